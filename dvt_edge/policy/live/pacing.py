"""Thresholds a little above or below a solution, and the feedback that chooses among them."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.live.tracking import History
from dvt_edge.policy.records import Floats, Records

STEPS = np.concatenate([-(np.linspace(1, 0, 41)[:-1] ** 2), np.linspace(0, 1, 41) ** 2])
"""Shifts of a ladder in ranks, -1..1, finest around 0."""
MIDDLE = 40
"""Index of the step that shifts nothing."""
GAIN = 0.1
"""Share of the target by which the next frame may cost less per target of debt."""
MEMORY = 1024
"""Frames whose steps are kept."""
CREDIT, DEBT = 12.0, 32.0
"""In targets, beyond which they are forgotten (no wind-up)."""
CARRIED = 4.0
"""In targets, what of a debt is taken over when thresholds were solved again."""
TAIL_FRAMES = 128.0
"""Frames over which the tail of a frame becomes debt."""


class Ranks:
    """Confidences of every exit in order, to move thresholds by ranks."""

    def __init__(self, records: Records) -> None:
        self._ordered = np.sort(records.confidence, axis=0).astype(float)

    def shifted(self, thresholds: npt.ArrayLike, shift: float) -> Floats:
        """``thresholds`` [K] moved by the same ``shift`` in rank, -1..1, except at the last exit.

        A threshold's rank is the share of the records' confidences below it; +1 lets none of them
        leave early, -1 all of them at exit 1. Never falls as the shift rises.
        """
        result = np.array(thresholds, float)
        count = len(self._ordered)
        for k in range(len(result) - 1 if shift else 0):
            ordered = self._ordered[:, k]
            rank = np.searchsorted(ordered, result[k]) + round(shift * count)
            if rank >= count:
                result[k] = np.inf
            elif rank <= 0:
                result[k] = -np.inf
            elif shift > 0:
                result[k] = max(result[k], ordered[rank])
            else:
                result[k] = min(result[k], ordered[rank])
        result[-1] = -np.inf
        return result


class Ladder:
    """Thresholds from "all leave at exit 1" to "none leaves early" through one solution.

    ``floor`` [K] holds thresholds up that must not fall below it. Nothing changes it later.
    """

    def __init__(self, records: Records, thresholds: npt.ArrayLike, floor: npt.ArrayLike) -> None:
        ranks = Ranks(records)
        self.thresholds = np.array(
            [np.maximum(ranks.shifted(thresholds, float(s)), floor) for s in STEPS]
        )
        self.thresholds[:, -1] = -np.inf
        exits = [records.exits_taken(row) for row in self.thresholds]
        self.exit_share = np.stack([records.exit_shares(at) for at in exits])
        """[steps, K]: share of the records that leave at each exit."""
        right = np.array([records.correct_at(at).mean() for at in exits])
        self.top = int(np.flatnonzero(right >= right[MIDDLE])[-1])
        """The highest step that is as accurate on the records as the solution: where frames are so
        easy that later exits only spoil answers, time that is left is not to be spent."""


def highest_step(price: Floats, allowed: float) -> int:
    """The highest of the steps whose ``price`` [steps] is at most ``allowed``; 0 where none is."""
    return max(0, int(np.searchsorted(price, allowed, side="right")) - 1)


class Pacer:
    """Keeps the running mean latency at ``target_ms`` by integral feedback along a ladder.

    The debt is what was spent above the target so far, in targets. What the next frame may cost on
    average falls by :data:`GAIN` per target of debt, and the ladder's step is chosen for that.
    While the debt stays within +-B, the mean over any n frames is off by at most 2 B / n of the
    target: 3 % over 300 frames for B = 4.5. The tail of a frame becomes debt little by little, so
    that a single spike is hardly felt and nothing that was spent is lost; only a halt of more than
    :data:`TAIL_FRAMES` targets counts as that many.
    """

    def __init__(
        self, ladder: Ladder, target_ms: float, cost_ms: Floats, before: Pacer | None = None
    ) -> None:
        self.ladder = ladder
        self.target_ms = target_ms
        scale = before.target_ms / target_ms if before else 0.0
        owed = before.debt * scale if before else 0.0
        self.debt: float = min(CARRIED, max(-CARRIED, owed))
        self.tail: float = before.tail * scale if before else 0.0
        """In targets, what is still to become debt."""
        self._limits = [tuple(row) for row in ladder.thresholds.tolist()]
        self._history = History(1, MEMORY)
        self.reprice(cost_ms)
        self._usual = self._step(target_ms)

    def _step(self, allowed_ms: float) -> int:
        return min(max(0, bisect_right(self._price, allowed_ms) - 1), self.ladder.top)

    def reprice(self, cost_ms: Floats) -> None:
        """Leaving at each exit now takes ``cost_ms`` [K]."""
        price = self.ladder.exit_share @ cost_ms  # [steps], never falls
        self._price: list[float] = price.tolist()

    def hold(self, floor: Floats) -> None:
        """Let no step go below ``floor`` [K] from now on."""
        self._limits = [tuple(row) for row in np.maximum(self.ladder.thresholds, floor).tolist()]

    def spend(self, body_ms: float, tail_ms: float) -> None:
        """Book a frame: its latency without tail, and the tail."""
        if tail_ms:
            self.tail = min(self.tail + tail_ms / self.target_ms, TAIL_FRAMES)
        due = self.tail / TAIL_FRAMES
        self.tail -= due
        self.debt = min(DEBT, max(-CREDIT, self.debt + body_ms / self.target_ms - 1 + due))

    def choose(self) -> tuple[float, ...]:
        """Thresholds [K] of the highest step that the next frame may cost."""
        step = self._step(self.target_ms * (1 - GAIN * self.debt))
        self._history.total[0] += self._price[step]
        self._history.count()
        return self._limits[step]

    def made_up(self, frames: int) -> float:
        """What steps other than that expected to keep the target made up for over the last
        ``frames``, as a share of it: positive where they spent more; 0 where fewer are known."""
        if self._history.frames < frames:
            return 0.0
        return (self._mean_price(frames) - self._price[self._usual]) / self.target_ms

    def model_bias(self) -> float:
        """By how much frames cost less than the ladder expects, as a share of the target; NaN
        before :data:`MEMORY` frames are known."""
        if self._history.frames < MEMORY:
            return float("nan")
        return self._mean_price(MEMORY) / self.target_ms - 1

    def _mean_price(self, frames: int) -> float:
        return float(self._history.sums(frames)[0]) / frames
