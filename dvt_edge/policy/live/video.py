"""Consecutive frames are alike: keep the last answer, or do not ask exits that will not let go.

Two savings, each used only while what was measured says that it pays, and both off by default.

*Keeping the answer.* Where a frame differs little from the one that was answered last, the answer
is returned without running a stage. How little is learned: frames that run anyway, and every
eighth that need not have, show how often the answer changes at which difference. The last answer
can be wrong by then: the rule bounds how often it is seen to differ from a fresh one, it does not
make it right. It is kept for a bounded number of frames and milliseconds.

*A later start stage.* Where frames after a late exit leave late as well, the exits before are not
evaluated. What that saves depends on the cascade. Where a stage uses the tensors of the one before
(feature and relationship reuse, as in a Dynamic Vision Transformer), all earlier stages must run
still: only their exit's decision is saved, that is a classifier head, a copy to the host and a
synchronisation, often some hundredths of a millisecond; and a frame that would have left there now
pays for a further stage. There it rarely pays, and the rule then stays off. Without reuse, the
earlier stages themselves are skipped. ``skip_saves_ms`` tells the two apart: hand in what was
measured. Answers become no less accurate than the cascade's later exits are.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import ConfigError, DataError, FrameError
from dvt_edge.policy.live.audit import agreement_interval
from dvt_edge.policy.records import Floats

THUMBNAIL = 24
"""Rows and columns of the thumbnail that frames are compared by."""
CUT = 24.0
"""Mean difference, of 255, from which a frame counts as another scene."""
EDGES = np.geomspace(0.125, CUT, 17)
"""Upper edges of the differences at which answers are compared."""
CHECK_EVERY = 8
"""Of the frames that need not run, every so many runs, to see whether the answer still holds."""
RELEARN_FRAMES = 16
ENOUGH = 64
"""Frames of which a saving must be known before it is believed."""
MEMORY = 2048
"""Comparisons after which the older ones count half."""
TRIAL_FRAMES, REST_FRAMES = 2048, 4096
"""For how many frames comparing may cost and not pay, and for how many it then stops."""


@dataclass(frozen=True)
class Plan:
    """What to do with one frame."""

    keep_answer: bool
    """Return the last answer; run no stage."""
    start_stage: int = 1
    """First stage, from 1, whose exit may let the frame go; 1 is the ordinary cascade."""
    reason: str | None = None
    """Why this is not the ordinary cascade, for ``explain``; None where it is."""


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
    """Plans each frame of one stream from the frames before it; holds no clock and no frame.

    ``costs`` [K]: mean milliseconds of leaving at each exit. ``skip_saves_ms`` [K - 1]: measured
    milliseconds saved by not evaluating each exit (and stage, where it need not run).
    ``tolerated``: at most this share, 0..1, of kept answers may differ from fresh ones, as far as
    the checks can tell with 95 % confidence. ``max_stale_frames``, ``max_stale_ms``: for how long
    an answer is kept and exits stay unasked at most. Raises
    :class:`~dvt_edge.errors.ConfigError` for limits out of range and
    :class:`~dvt_edge.errors.DataError` for costs that do not fit.

        plan = policy.plan(thumbnail(frame), now_ms, thumbnail_ms)
        if not plan.keep_answer:
            answer = run(frame, plan.start_stage)
            policy.observe(plan, answer.class_id, answer.exit_stage, answer.latency_ms)
    """

    def __init__(
        self,
        costs: npt.ArrayLike,
        skip_saves_ms: npt.ArrayLike,
        *,
        tolerated: float = 0.02,
        max_stale_frames: int = 10,
        max_stale_ms: float = 500.0,
    ) -> None:
        self._costs: Floats = np.asarray(costs, float)
        saves = np.asarray(skip_saves_ms, float)
        if self._costs.ndim != 1 or not len(self._costs) or not np.isfinite(self._costs).all():
            raise DataError(f"costs are one finite number per exit, found {self._costs.tolist()}")
        if saves.shape != (len(self._costs) - 1,) or not np.isfinite(saves).all():
            raise DataError(
                "skip_saves_ms needs one finite number per exit but the last, found "
                f"{saves.tolist()}"
            )
        if not 0 < tolerated < 1:
            raise ConfigError(f"tolerated is a share between 0 and 1, found {tolerated}")
        if max_stale_frames < 1 or not max_stale_ms > 0:
            raise ConfigError(
                "answers are kept for at least 1 frame and more than 0 ms, found max_stale_frames "
                f"{max_stale_frames} and max_stale_ms {max_stale_ms}"
            )
        self.tolerated, self.max_stale_frames = tolerated, max_stale_frames
        self.max_stale_ms = max_stale_ms
        self._exits = exits = len(self._costs)
        self._given = np.append(0.0, np.cumsum(saves))  # [K]: saved by starting at stage k + 1
        self._pairs = np.zeros((len(EDGES), 2), np.int64)  # same answer, all
        self._after = np.zeros((exits, exits), np.int64)  # [last exit, exit]
        self._full = np.zeros((exits, 2))  # latency of ordinary frames by exit: sum, number
        self._saved = np.zeros((exits, 2))  # by start stage: sum, number
        self._best = [(1, 0.0)] * exits  # by last exit: start stage, mean saving
        self.keep_below = -inf
        """Difference, of 255, up to which an answer is kept; -inf while none is."""
        self._frame = self._tested = self._unasked = self._ran = 0
        self._hits = self._run_ms = self._look_ms = 0.0
        self._pays = False
        self._looked = self._rests_until = 0
        self.reset()

    def reset(self) -> None:
        """Forget the last frame, because the stream was interrupted; what was learned stays."""
        self._held: npt.NDArray[np.float32] | None = None
        self._seen: npt.NDArray[np.float32] | None = None
        self._class_id: int | None = None
        self._exit: int | None = None
        self._held_ms = self._now_ms = 0.0
        self._stale = 0

    @property
    def wants_thumbnail(self) -> bool:
        """Whether the next frame should be compared; False for a while where that did not pay."""
        return self._frame >= self._rests_until

    def plan(
        self, look: npt.NDArray[np.float32] | None, now_ms: float, look_ms: float = 0.0
    ) -> Plan:
        """What to do with the next frame.

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
        age = now_ms - self._held_ms
        if (
            self._pays
            and self._difference <= self.keep_below
            and self._stale < self.max_stale_frames
            and 0 <= age <= self.max_stale_ms
        ):
            self._tested += 1
            if self._tested % CHECK_EVERY:
                self._stale += 1
                return Plan(
                    True,
                    1,
                    f"the frame hardly changed (mean difference {self._difference:.2g} of 255, "
                    f"at most {self.keep_below:.2g}), so the answer of {self._stale} frame"
                    f"{'s' if self._stale > 1 else ''} ago was kept",
                )
        start, saving = (1, 0.0) if self._exit is None else self._best[self._exit]
        cut = self._difference >= CUT and look is not None
        if start == 1 or cut or self._unasked >= self.max_stale_frames:
            self._unasked = 0
            return Plan(False)
        self._unasked += 1
        return Plan(
            False,
            start,
            f"exits before {start} were not asked, because frames after one that left at exit "
            f"{(self._exit or 0) + 1} leave late too, which saves {saving:.2g} ms on average",
        )

    def observe(self, plan: Plan, class_id: int, exit_stage: int, latency_ms: float) -> None:
        """The answer to the frame just planned, if stages ran for it.

        Do not call it for frames whose exit a deadline or an audit decided, but :meth:`reset`
        where their answer is to be kept neither. Raises
        :class:`~dvt_edge.errors.DataError` where ``exit_stage``, from 1, lies before the start
        stage or is none.
        """
        if not plan.start_stage <= exit_stage <= self._exits:
            raise DataError(
                f"exit_stage must be {plan.start_stage}..{self._exits}, found {exit_stage}"
            )
        at = exit_stage - 1
        if self._class_id is not None and self._difference < CUT:
            pair = self._pairs[np.searchsorted(EDGES, self._difference)]
            pair += (class_id == self._class_id, 1)
        if isfinite(latency_ms) and latency_ms > 0:
            latency_ms = min(latency_ms, 4 * float(self._costs[at]))  # a spike is no saving lost
            self._run_ms += (latency_ms - self._run_ms) / (ENOUGH if self._run_ms else 1)
            if plan.start_stage == 1:
                self._full[at] += (latency_ms, 1)
            elif self._full[at, 1]:
                usual = self._full[at, 0] / self._full[at, 1]
                self._saved[plan.start_stage - 1] += (usual - latency_ms, 1)
        if plan.start_stage == 1 and self._exit is not None:
            self._after[self._exit, at] += 1
        self._held, self._class_id, self._exit = self._seen, class_id, at
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
        for counts in (self._pairs, self._after):
            if counts.sum() > MEMORY:
                counts[:] //= 2
        for sums in (self._full, self._saved):
            sums[sums[:, 1] > MEMORY] /= 2
        self.keep_below = self._learned_difference()
        gain, cost = self._hits * self._run_ms, self._look_ms
        self._pays = gain > (cost if self._pays else 1.5 * cost)  # hysteresis
        if self._pays:
            self._looked = 0
        elif self._looked >= TRIAL_FRAMES:
            self._looked, self._rests_until = 0, self._frame + REST_FRAMES
        self._best = [self._learned_start(last) for last in range(self._exits)]

    def _learned_difference(self) -> float:
        """The largest edge up to which answers are seen to hold, and in no bin seen not to."""
        found, same, total = -inf, 0, 0
        for edge, (kept, count) in zip(EDGES.tolist(), self._pairs.tolist(), strict=True):
            if count and agreement_interval(kept, count, 0.95)[1] < 1 - self.tolerated:
                break
            same, total = same + kept, total + count
            if count and agreement_interval(same, total, 0.95)[0] >= 1 - self.tolerated:
                found = edge
        return found

    def _learned_start(self, last: int) -> tuple[int, float]:
        """The start stage that saves most after a frame that left at ``last``, and how much.

        Frames that would have left before it are counted at the upper bound of their share, and
        as if all of them had left at exit 1.
        """
        total, best = int(self._after[last].sum()), (1, 0.0)
        for start in range(1, self._exits if total >= ENOUGH else 1):
            late = int(self._after[last, start:].sum())
            early = 1 - agreement_interval(late, total, 0.95)[0]
            known = self._saved[start, 1] >= ENOUGH
            saves = self._saved[start, 0] / self._saved[start, 1] if known else self._given[start]
            gain = float(saves - early * (self._costs[start] - self._costs[0]))
            if gain > best[1]:
                best = (start + 1, gain)
        return best
