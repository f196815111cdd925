"""Whether frames come as those did that the costs were measured with."""

from __future__ import annotations

from math import nan

from dvt_edge.bundle.costs import Costs
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.preprocess import frame_shape

CHECK_FRAMES = 32
"""Frames whose mean interval is looked at, and in a row of another size that make it the size."""
SLOWER = 1.5
"""Times the interval of the costs' pace from which on frames come slower."""
PAUSE_S = 5e-3
"""Pause between frames, on average, from which on they do not come back to back: clocks and caches
outlast a shorter one."""
OTHER_SIZE = 1.1
"""Ratio of pixels, either way, from which on preprocessing takes another time."""


class ConditionsWatch:
    """Looks at the pace and the size of frames; a few comparisons per frame.

    ``order`` is the frames' layout. Frames that come faster than measured cost less, which is no
    reason to say anything.
    """

    def __init__(self, costs: Costs, order: ColorOrder) -> None:
        self._fps, self._measured = costs.paced_fps, costs.frame_shape
        self._expected = frame_shape(*costs.frame_shape, order)[:2]
        self._shape: tuple[int, ...] = self._expected
        self._alike = 0
        self._since = self._last = nan
        self._longest_s, self._busy_s, self._frames = 0.0, 0.0, 0
        self._slow = False

    def note(self, shape: tuple[int, ...], answered: float, latency_ms: float) -> str | None:
        """One frame: its array's shape, when it was answered in seconds, and how long it took.

        What differs from the measurement, said once until it changes; None where nothing does.
        """
        if self._frames == 0:
            self._since = answered
        else:
            self._longest_s = max(self._longest_s, answered - self._last)
        self._last = answered
        if self._frames == CHECK_FRAMES:
            # One pause among them is no pace.
            found = self._pace((answered - self._since - self._longest_s) / (CHECK_FRAMES - 1))
            self._since, self._longest_s = answered, 0.0
            self._busy_s, self._frames = 0.0, 0
            if found:
                return found
        self._frames += 1
        self._busy_s += latency_ms / 1e3
        if shape[:2] != self._shape:
            self._shape, self._alike = shape[:2], 0
        self._alike += 1
        return self._size(shape[:2]) if self._alike == CHECK_FRAMES else None

    def _pace(self, interval_s: float) -> str | None:
        if self._fps is None:
            slow = interval_s - self._busy_s / CHECK_FRAMES > PAUSE_S
            measured = "back to back"
        else:
            slow = interval_s * self._fps > SLOWER
            measured = f"at {self._fps:g} fps"
        changed, self._slow = slow != self._slow, slow
        if not (changed and slow):
            return None
        return (
            f"frames come at {1 / interval_s:.3g} fps, costs were measured {measured}: frames take "
            "longer than the budget was solved for; set camera.fps and run 'dvt-edge profile'"
        )

    def _size(self, shape: tuple[int, ...]) -> str | None:
        pixels, expected = shape[0] * shape[1], self._expected[0] * self._expected[1]
        if max(pixels, expected) < OTHER_SIZE * min(pixels, expected):
            return None
        (height, width), (measured_height, measured_width) = shape, self._measured
        return (
            f"a frame is {width}x{height}, costs were measured with {measured_width}x"
            f"{measured_height}; set camera.frame to the frames' size and run 'dvt-edge profile'"
        )
