"""Thresholds a little above or below a solution, and the feedback that chooses among them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.live.tracking import SPIKE
from dvt_edge.policy.records import Floats, Records

STEPS = np.concatenate([-(np.linspace(1, 0, 41)[:-1] ** 2), np.linspace(0, 1, 41) ** 2])
"""Shifts of a ladder in ranks, -1..1, finest around 0."""
MIDDLE = 40
"""Index of the step that shifts nothing."""
GAIN = 0.1
"""Share of the target by which the next frame may cost less per target of debt."""
MEMORY = 1024
"""Frames whose steps are kept."""
BANK = 12.0
"""Debt or credit, in targets, beyond which it is forgotten (no wind-up)."""


def shifted(records: Records, thresholds: npt.ArrayLike, shift: float) -> Floats:
    """``thresholds`` [K] moved by the same ``shift`` in rank, -1..1, at every exit but the last.

    A threshold's rank is the share of the records' confidences below it; +1 lets none of them
    leave early, -1 all of them at exit 1. Never falls as the shift rises.
    """
    result = np.array(thresholds, float)
    count = len(records)
    for k in range(records.exits - 1 if shift else 0):
        ordered = np.sort(records.confidence[:, k]).astype(float)
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

    ``floor`` [K] holds thresholds up that must not fall below it.
    """

    def __init__(self, records: Records, thresholds: npt.ArrayLike, floor: Floats) -> None:
        self.thresholds = np.array(
            [np.maximum(shifted(records, thresholds, float(s)), floor) for s in STEPS]
        )
        self.thresholds[:, -1] = -np.inf
        self.exit_share = np.stack(
            [records.exit_shares(records.exits_taken(row)) for row in self.thresholds]
        )
        """[steps, K]: share of the records that leave at each exit."""


def highest_step(price: Floats, allowed: float) -> int:
    """The highest of the steps whose ``price`` [steps] is at most ``allowed``; 0 where none is."""
    return max(0, int(np.searchsorted(price, allowed, side="right")) - 1)


class Pacer:
    """Keeps the running mean latency at ``target_ms`` by integral feedback along a ladder.

    The debt is what was spent above the target so far, in targets. What the next frame may cost on
    average falls by :data:`GAIN` per target of debt, and the ladder's step is chosen for that.
    While the debt stays within +-B, the mean over any n frames is off by at most 2 B / n of the
    target: 3 % over 300 frames for B = 4.5.
    """

    def __init__(self, ladder: Ladder, target_ms: float, cost_ms: Floats) -> None:
        self.ladder = ladder
        self.target_ms = target_ms
        self.debt = 0.0
        self._steps = np.zeros(MEMORY, np.int16)
        self._count = 0
        self.reprice(cost_ms)

    def reprice(self, cost_ms: Floats) -> None:
        """Leaving at each exit now takes ``cost_ms`` [K]."""
        self._cost_ms = cost_ms
        self._price = self.ladder.exit_share @ cost_ms  # [steps], never falls

    def spend(self, latency_ms: float, ran: int) -> None:
        """Book a frame that ran ``ran`` stages; a spike counts as :data:`SPIKE` usual frames."""
        booked = min(latency_ms, SPIKE * float(self._cost_ms[ran - 1]))
        self.debt = float(np.clip(self.debt + booked / self.target_ms - 1, -BANK, BANK))

    def choose(self) -> tuple[float, ...]:
        """Thresholds [K] of the highest step that the next frame may cost."""
        step = highest_step(self._price, self.target_ms * (1 - GAIN * self.debt))
        self._steps[self._count % MEMORY] = step
        self._count += 1
        return tuple(self.ladder.thresholds[step].tolist())

    def made_up(self, frames: int) -> float:
        """What steps other than the solution's made up for over the last ``frames``, as a share of
        the target: positive where they spent more; 0 where fewer frames are known."""
        if self._count < frames:
            return 0.0
        return (self._mean_price(frames) - float(self._price[MIDDLE])) / self.target_ms

    def model_bias(self) -> float:
        """By how much frames cost less than the ladder expects, as a share of the target; NaN
        before :data:`MEMORY` frames are known."""
        if self._count < MEMORY:
            return float("nan")
        return self._mean_price(MEMORY) / self.target_ms - 1

    def _mean_price(self, frames: int) -> float:
        recent = self._steps[(self._count - 1 - np.arange(frames)) % MEMORY]
        return float(self._price[recent].mean())
