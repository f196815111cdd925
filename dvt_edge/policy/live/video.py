"""Consecutive frames are alike: keep the last answer while the picture hardly changes.

Used only while what was measured says that it pays, and off by default. Where a frame differs
little from the one that was answered last, the answer is returned without running a stage. How
little is learned: frames that run anyway, and one in eight that need not have, show how often the
answer changes at which difference. The last answer can be wrong by then: the rule bounds how often
it is seen to differ from a fresh one, it does not make it right. It is kept for a bounded number of
frames and milliseconds.

Nothing is saved by leaving early exits unasked: with reuse a later stage reads what the earlier
ones computed, so all of them still run.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import FrameError
from dvt_edge.policy.live.audit import agreement_interval, evenly
from dvt_edge.policy.live.tracking import SPIKE

TOLERATED = 0.02
"""At most this share of kept answers may differ from fresh ones, as far as the checks can say with
95 % confidence."""
MAX_STALE_FRAMES, MAX_STALE_MS = 10, 500.0
"""For how long an answer is kept at most."""
THUMBNAIL = 24
"""Rows and columns of the thumbnail that frames are compared by."""
CUT = 24.0
"""Mean difference, of 255, from which a frame counts as another scene."""
EDGES = np.geomspace(0.125, CUT, 17)
"""Upper edges of the differences at which answers are compared."""
CHECK_SHARE = 1 / 8
"""Of the frames that need not run, so many do, to see whether the answer still holds; in step with
no period of the scene."""
RELEARN_FRAMES = 16
ENOUGH = 64
"""Frames of which a saving must be known before it is believed."""
MEMORY = 2048
"""Comparisons after which the older ones count half."""
TRIAL_FRAMES, REST_FRAMES = 2048, 4096
"""For how many frames comparing may cost and not pay, and for how many it then stops."""


def thumbnail(frame: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Brightness [24, 24], 0..255, of a ``frame`` uint8 [H, W], [H, W, 1] or [H, W, 3].

    Green counts double, so that the order of red and blue does not matter. Of each tile 4 x 4
    pixels are read. Raises :class:`~dvt_edge.errors.FrameError` for anything else.
    """
    if (
        frame.dtype != np.uint8
        or frame.ndim not in (2, 3)
        or frame.shape[2:] not in ((), (1,), (3,))
    ):
        raise FrameError(
            f"frames are uint8 [H, W], [H, W, 1] or [H, W, 3], found {frame.dtype} "
            f"{list(frame.shape)}"
        )
    if 0 in frame.shape:
        raise FrameError(f"frames have at least one pixel, found shape {list(frame.shape)}")
    side = 4 * THUMBNAIL
    rows, columns = (np.arange(side) * n // side for n in frame.shape[:2])
    pixels = frame[rows[:, None], columns].astype(np.float32)
    if pixels.ndim == 3:
        pixels = pixels @ np.array(
            (0.25, 0.5, 0.25) if pixels.shape[2] == 3 else (1.0,), dtype=np.float32
        )
    result: npt.NDArray[np.float32] = pixels.reshape(THUMBNAIL, 4, THUMBNAIL, 4).mean(axis=(1, 3))
    return result


class VideoPolicy:
    """Says for each frame of one stream whether the last answer is kept; holds no clock, no frame.

    ``costs`` [K]: mean milliseconds of leaving at each exit.

        reason = policy.keep(thumbnail(frame), now_ms, thumbnail_ms)
        if reason is None:
            answer = run(frame)
            policy.observe(answer.class_id, answer.exit_stage, answer.latency_ms)
    """

    def __init__(self, costs: Sequence[float]) -> None:
        self._costs = costs
        self._pairs = np.zeros((len(EDGES), 2), np.int64)  # same answer, all
        self.keep_below = -inf
        """Difference, of 255, up to which an answer is kept; -inf while none is."""
        self._frame = self._tested = self._ran = 0
        self._hits = self._run_ms = self._look_ms = 0.0
        self._pays = False
        self._looked = self._rests_until = 0
        self.reset()

    def reset(self) -> None:
        """Forget the last frame, because the stream was interrupted; what was learned stays."""
        self._held: npt.NDArray[np.float32] | None = None
        self._seen: npt.NDArray[np.float32] | None = None
        self._class_id: int | None = None
        self._held_ms = self._now_ms = 0.0
        self._stale = 0

    @property
    def wants_thumbnail(self) -> bool:
        """Whether the next frame should be compared; False for a while where that did not pay."""
        return self._frame >= self._rests_until

    def keep(
        self, look: npt.NDArray[np.float32] | None, now_ms: float, look_ms: float = 0.0
    ) -> str | None:
        """Why the last answer is kept for the next frame; None where its stages are to run.

        ``look`` is its :func:`thumbnail`, or None (then nothing is kept); ``now_ms`` its time on
        any steady clock; ``look_ms`` what making the thumbnail took.
        """
        self._frame += 1
        self._seen, self._now_ms = look, now_ms
        self._difference = self._compare(look)
        if look is not None:
            self._looked += 1
            self._look_ms += ((look_ms if isfinite(look_ms) else 0.0) - self._look_ms) / ENOUGH
            self._hits += ((self._difference <= self.keep_below) - self._hits) / ENOUGH
        if not (
            self._pays
            and self._difference <= self.keep_below
            and self._stale < MAX_STALE_FRAMES
            and 0 <= now_ms - self._held_ms <= MAX_STALE_MS
        ):
            return None
        self._tested += 1
        if evenly(self._tested, CHECK_SHARE):
            return None
        self._stale += 1
        return (
            f"the frame hardly changed (mean difference {self._difference:.2g} of 255, at most "
            f"{self.keep_below:.2g}), so the answer of {self._stale} "
            f"frame{'s' if self._stale > 1 else ''} ago was kept"
        )

    def observe(self, class_id: int, exit_stage: int, latency_ms: float) -> None:
        """The answer, from exit ``exit_stage`` (from 1), to the frame that was not kept.

        Do not call it for frames whose exit a deadline or an audit decided, but :meth:`reset`
        where their answer is not to be kept either.
        """
        if self._class_id is not None and self._difference < CUT:
            pair = self._pairs[np.searchsorted(EDGES, self._difference)]
            pair += (class_id == self._class_id, 1)
        if isfinite(latency_ms) and latency_ms > 0:
            latency_ms = min(latency_ms, SPIKE * self._costs[exit_stage - 1])
            self._run_ms += (latency_ms - self._run_ms) / (ENOUGH if self._run_ms else 1)
        self._held, self._class_id = self._seen, class_id
        self._held_ms, self._stale = self._now_ms, 0
        self._ran += 1
        if self._ran % RELEARN_FRAMES == 0:
            self._learn()

    def _compare(self, look: npt.NDArray[np.float32] | None) -> float:
        if look is None or self._held is None or look.shape != self._held.shape:
            return inf
        difference = float(np.abs(look - self._held).mean())
        return difference if isfinite(difference) else inf

    def _learn(self) -> None:
        if self._pairs.sum() > MEMORY:
            self._pairs //= 2
        self.keep_below = self._learned_difference()
        gain, cost = self._hits * self._run_ms, self._look_ms
        self._pays = gain > (cost if self._pays else 1.5 * cost)  # hysteresis
        if self._pays:
            self._looked = 0
        elif self._looked >= TRIAL_FRAMES:
            self._looked, self._rests_until = 0, self._frame + REST_FRAMES

    def _learned_difference(self) -> float:
        """The largest edge up to which answers are seen to hold, and in no bin seen not to."""
        found, same, total = -inf, 0, 0
        for edge, (kept, count) in zip(EDGES.tolist(), self._pairs.tolist(), strict=True):
            if count and agreement_interval(kept, count, 0.95)[1] < 1 - TOLERATED:
                break
            same, total = same + kept, total + count
            if count and agreement_interval(same, total, 0.95)[0] >= 1 - TOLERATED:
                found = edge
        return found
