"""What leaving at each exit costs: latency with its tail, energy, and the pace it was measured at.

The latency of a frame is a mixture: a frame that leaves at exit k is as slow as exit k was measured
to be. Of exit k five figures are known (mean, p50, p95, p99, max), so the share of its frames that
take longer than L is at most

    q_k(L) = 0 if max_k <= L,  0.01 if p99_k <= L,  0.05 if p95_k <= L,  0.5 if p50_k <= L,  else 1.

A budget of L on the p-quantile is kept when the mixture's share, the sum of exit_fraction[k] *
q_k(L), is at most 1 - p. It is conservative: q is the largest share that the figures allow, never
less than the measured one. Where noise makes a later exit look better than an earlier one, it
counts as that one. So a few frames may leave at exits slower than L, and only as many as the other
exits' own tails leave room for. ``max`` closes every exit whose longest measured frame took longer
than L, for any frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.records import Floats
from dvt_edge.policy.statistic import TAIL_SHARE, Statistic

_ROUNDING = 1e-9  # of a share that was given as a decimal fraction


@dataclass(frozen=True)
class ExitLatency:
    """Measured latency of leaving at each of K exits, in milliseconds: arrays [K].

    Means increase from exit to exit; of one exit p50 <= p95 <= p99 <= max.
    """

    mean: Floats
    p50: Floats
    p95: Floats
    p99: Floats
    max: Floats

    def exceeding(self, limit_ms: float) -> Floats:
        """[K]: largest share of each exit's frames that takes longer than ``limit_ms``, 0..1."""
        share = np.ones(len(self.mean))
        for name, beyond in TAIL_SHARE.items():
            share[getattr(self, name) <= limit_ms] = beyond
        return np.asarray(np.maximum.accumulate(share))

    def at(self, exit_fraction: npt.ArrayLike, statistic: Statistic) -> float:
        """``statistic`` of the latency, in milliseconds, where ``exit_fraction`` [K] of the frames
        leave at each exit: the mean, or the least limit that is kept for certain."""
        fraction = np.asarray(exit_fraction, float)
        if statistic == "mean":
            return float(fraction @ self.mean)
        figures = np.concatenate([getattr(self, name) for name in TAIL_SHARE])
        late = TAIL_SHARE[statistic] + _ROUNDING
        kept = [limit for limit in figures if fraction @ self.exceeding(limit) <= late]
        return float(min(kept))


@dataclass(frozen=True)
class ExitCosts:
    """Measured costs of leaving at each of K exits."""

    latency: ExitLatency
    energy_mj: Floats | None = None
    """[K]: mean energy of a frame in millijoules while it is worked on, idle power included;
    positive and increasing. None where it was not measured, as the others."""
    net_mj: Floats | None = None
    """[K]: the same above idle."""
    idle_mw: float | None = None
    """Power at rest, in milliwatts."""
    fps: float | None = None
    """Frames per second that were timed; None for back to back."""


def with_audit(per_exit: npt.ArrayLike, share: float, exits: int | None = None) -> Floats:
    """What leaving at each exit comes to where a ``share``, 0..1, of all frames runs all stages.

    ``per_exit`` [K] is the mean cost of each exit, or the share of its frames that exceeds a limit
    (:meth:`ExitLatency.exceeding`). Both are linear in the shares of the exits, so whatever keeps a
    limit on the result, such as :func:`~dvt_edge.policy.solver.solve`, keeps it with the audited
    frames included. Frames are audited whatever they show. Where only the first ``exits`` may be
    used, these are all that an audit runs.
    """
    values = np.array(per_exit, float)
    allowed = values[:exits]
    allowed[:] = (1 - share) * allowed + share * allowed[-1]
    return values
