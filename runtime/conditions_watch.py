"""Whether frames come as those did that the costs were measured with."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

from dvt_edge.bundle.costs import Costs
from dvt_edge.profile import ColorOrder
from dvt_edge.runtime.events import Event, FramesStopped, OtherConditions, SameConditions
from dvt_edge.runtime.preprocess import frame_shape

CHECK_FRAMES = 32
"""Frames whose mean interval is looked at, and in a row of another size that make it the size."""
SLOWER, AS_FAST = 1.5, 1.25
"""Times the interval of the costs' pace from which on frames come slower, and below which they are
as fast again."""
PAUSE_S, NO_PAUSE_S = 5e-3, 2.5e-3
"""Pause between frames, on average, from which on they do not come back to back: clocks and caches
outlast a shorter one. Below the second they do again."""
OTHER_SIZE = 1.1
"""Ratio of pixels, either way, from which on preprocessing takes another time."""
STOPPED_S, STOPPED_INTERVALS = 2.0, 30
"""A camera has stopped when for this long, and for so many intervals between its frames, none
comes."""

_NOTHING: tuple[Event, ...] = ()


class ConditionsWatch:
    """Looks at the pace and the size of frames; a few comparisons per frame.

    ``order`` is the frames' layout. Frames that come faster than measured cost less, which is no
    reason to say anything.
    """

    def __init__(self, costs: Costs, order: ColorOrder) -> None:
        self._fps, self._measured = costs.paced_fps, costs.frame_shape
        self._rows = 2 / 3 if order == "nv12" else 1.0  # of the array that are the picture
        self._expected = frame_shape(*costs.frame_shape, order)[:2]
        self._shape: tuple[int, ...] = self._expected
        self._alike = 0
        self._since_stop = CHECK_FRAMES
        self._interval_s = 0.0 if costs.paced_fps is None else 1 / costs.paced_fps
        self._since = self._last = nan
        self._longest_s, self._busy_s, self._frames = 0.0, 0.0, 0
        self._slow = self._size = ""

    @property
    def problems(self) -> tuple[str, ...]:
        """What differs from the measurement at present; empty where nothing does."""
        return tuple(text for text in (self._slow, self._size) if text)

    def silent_s(self, now: float) -> float | None:
        """Seconds since the last frame, where that says that the camera has stopped; else None.

        ``now`` is on the clock of :meth:`note`. Callable from any thread.
        """
        silent = now - self._last
        longest = max(STOPPED_S, STOPPED_INTERVALS * self._interval_s)
        return silent if longest < silent < inf else None  # before the first frame it is NaN

    def note(
        self, shape: tuple[int, ...] | None, answered: float, latency_ms: float
    ) -> Sequence[Event]:
        """One frame: its array's shape (None for a part of a frame, whose size says nothing), when
        it was answered in seconds, and how long it took.

        What has become different, and what is as it was measured again; said once each time.
        """
        interval_s = answered - self._last
        # Between two answers no frame can have taken longer than that: else a clock has jumped.
        busy_s = max(0.0, min(latency_ms / 1e3, interval_s)) if 0 < latency_ms < inf else 0.0
        silent = self.silent_s(answered - busy_s)
        # Of stops that follow one another only the first is one: the others are the pace.
        stopped = silent is not None and self._since_stop >= CHECK_FRAMES
        self._since_stop = 0 if silent is not None else self._since_stop + 1
        events: list[Event] = []
        if stopped or not interval_s >= 0:  # the first frame, or no time at all
            self._start(answered)
        else:
            events += self._note_pace(answered, interval_s)
        self._frames += 1
        self._busy_s += busy_s
        self._last = answered
        if stopped:
            why = (
                f"no frame came for {silent:.3g} s, and nothing was seen meanwhile; look at the "
                "camera and at what reads it"
            )
            events.append(FramesStopped(silent or 0.0, why))
        if shape is not None:
            if shape[:2] != self._shape:
                self._shape, self._alike = shape[:2], 0
            self._alike += 1
            if self._alike == CHECK_FRAMES:
                events += self._note_size(shape[:2])
        return events or _NOTHING

    def _note_pace(self, answered: float, interval_s: float) -> Sequence[Event]:
        self._longest_s = max(self._longest_s, interval_s)
        if self._frames < CHECK_FRAMES:
            return _NOTHING
        # One pause among them is no pace.
        passed = answered - self._since - self._longest_s
        said = self._pace(passed / (CHECK_FRAMES - 1))
        self._start(answered)
        return said

    def _start(self, answered: float) -> None:
        self._since, self._longest_s = answered, 0.0
        self._busy_s, self._frames = 0.0, 0

    def _pace(self, interval_s: float) -> Sequence[Event]:
        self._interval_s = interval_s
        if self._fps is None:
            pause_s = interval_s - self._busy_s / CHECK_FRAMES
            slow = pause_s > (NO_PAUSE_S if self._slow else PAUSE_S)
            measured = "back to back"
        else:
            slow = interval_s * self._fps > (AS_FAST if self._slow else SLOWER)
            measured = f"at {self._fps:g} fps"
        if slow == bool(self._slow):
            return _NOTHING
        if not slow:
            self._slow = ""
            return (SameConditions(f"frames come {measured} again, as costs were measured"),)
        self._slow = f"frames come at {1 / interval_s:.3g} fps, costs were measured {measured}"
        why = (
            f"{self._slow}: frames take longer than the budget was solved for; set camera.fps and "
            "run 'dvt-edge profile'"
        )
        return (OtherConditions(why),)

    def _note_size(self, shape: tuple[int, ...]) -> Sequence[Event]:
        pixels, expected = shape[0] * shape[1], self._expected[0] * self._expected[1]
        height, width = self._measured
        before = self._size
        if max(pixels, expected) < OTHER_SIZE * min(pixels, expected):
            self._size = ""
            if not before:
                return _NOTHING
            back = f"frames are of about {width}x{height} again, as costs were measured with"
            return (SameConditions(back),)
        self._size = (
            f"a frame is {shape[1]}x{round(shape[0] * self._rows)}, costs were measured with "
            f"{width}x{height}"
        )
        if self._size == before:
            return _NOTHING
        why = f"{self._size}; set camera.frame to the frames' size and run 'dvt-edge profile'"
        return (OtherConditions(why),)
