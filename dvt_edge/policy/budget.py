"""Budgets in milliseconds, joules, accuracy and stages, turned into limits that are kept exactly.

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

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError
from dvt_edge.policy.records import Floats, Records
from dvt_edge.policy.search import Found, Problem, search
from dvt_edge.policy.solver import (
    RIGHT,
    Limit,
    Solution,
    cheapest,
    check_cost,
    make_problem,
    replay,
    round_up,
)
from dvt_edge.policy.statistic import TAIL_SHARE, Statistic

_ROUNDING = 1e-9  # of an accuracy that was given as a decimal fraction
_TRIES = 8  # nearly always one or two are enough


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


class Budget(Protocol):
    """What must be kept: a :class:`~dvt_edge.profile.BudgetConfig`, which explains and checks it.

    Pure NumPy code cannot import that.
    """

    @property
    def latency_ms(self) -> float | None: ...
    @property
    def statistic(self) -> Statistic: ...
    @property
    def energy_mj(self) -> float | None: ...
    @property
    def min_accuracy(self) -> float | None: ...
    @property
    def max_stage(self) -> int | None: ...
    @property
    def confidence_level(self) -> float | None: ...
    @property
    def point(self) -> int | None: ...


def solve_budget(
    records: Records, latency: ExitLatency, energy_mj: npt.ArrayLike | None, budget: Budget
) -> Solution:
    """The thresholds that ``budget`` asks for; ``cost`` of the solution is its mean latency in ms.

    ``energy_mj`` [K] is the mean energy of leaving at each exit in millijoules, positive and
    increasing; None where it was not measured. The optimum is exact for up to four exits, as in
    :func:`~dvt_edge.policy.solver.solve`. Beyond ``max_stage`` all thresholds are -inf.

    Raises :class:`~dvt_edge.errors.BudgetError`, naming the nearest feasible value, where no
    thresholds keep the budget, and :class:`~dvt_edge.errors.DataError` for figures that do not fit
    the records.
    """
    exits, limits = budget_limits(records, latency, energy_mj, budget)
    thresholds = solve_limits(records, latency.mean, limits, exits, budget.min_accuracy)
    return replay(records, latency.mean, thresholds)


def allowed_exits(latency: ExitLatency, budget: Budget) -> int:
    """How many exits ``budget`` leaves open, whatever the frames are.

    Raises :class:`~dvt_edge.errors.BudgetError` for a ``max_stage`` beyond the last.
    """
    exits = len(latency.mean)
    if budget.max_stage is not None:
        if budget.max_stage > exits:
            raise BudgetError(
                f"max_stage {budget.max_stage} does not exist; the cascade has {exits} stages"
            )
        exits = budget.max_stage
    if budget.latency_ms is not None and budget.statistic == "max":
        exits = min(exits, int((latency.exceeding(budget.latency_ms) == 0).sum()))
    return exits


def budget_limits(
    records: Records, latency: ExitLatency, energy_mj: npt.ArrayLike | None, budget: Budget
) -> tuple[int, list[Limit]]:
    """Exits that may be used, and the limits of ``budget``; raises where exit 1 breaks one."""
    check_cost(records, latency.mean)
    exits = allowed_exits(latency, budget)
    limits = []
    if budget.latency_ms is not None:
        least = float(getattr(latency, budget.statistic)[0])
        if budget.latency_ms < least:
            raise BudgetError(
                f"the {budget.statistic} latency budget of {budget.latency_ms:g} ms is smaller "
                f"than the first exit's; the smallest possible is {round_up(least):g} ms"
                f"{_right_at_first(records)}"
            )
        if budget.statistic == "mean":
            limits.append(Limit(latency.mean, budget.latency_ms))
        elif budget.statistic != "max":
            share = latency.exceeding(budget.latency_ms)
            limits.append(Limit(share, TAIL_SHARE[budget.statistic]))
    if budget.energy_mj is not None:
        if energy_mj is None:
            raise BudgetError(
                "an energy budget needs the measured energy per exit, and none was measured; "
                "run 'dvt-edge profile' where a power sensor can be read or energy.watts is "
                "declared, or set latency_ms instead"
            )
        energy = check_cost(records, energy_mj)
        if budget.energy_mj < energy[0]:
            raise BudgetError(
                f"the energy budget of {budget.energy_mj:g} mJ is smaller than the first exit's "
                f"energy; the smallest possible is {round_up(energy[0]):g} mJ"
                f"{_right_at_first(records)}"
            )
        limits.append(Limit(energy, budget.energy_mj))
    return exits, limits


def _right_at_first(records: Records) -> str:
    """What the nearest feasible budget gives."""
    share = f"{100 * records.accuracy[0]:.2f} %"
    if records.label is None:
        return f", where {share} of the records are answered as by the last exit"
    return f", with an accuracy of {share} on the records"


def solve_limits(
    records: Records,
    price: Floats,
    limits: list[Limit],
    exits: int,
    min_accuracy: float | None = None,
    like: Problem | None = None,
) -> Floats:
    """Thresholds [K] that use the first ``exits`` within ``limits``; ``price`` [K] decides ties.

    With ``min_accuracy`` the cheapest of which that accuracy is to be expected and which have it on
    the records, by count. Where none are found the cheapest by count. ``like`` is the problem of
    the same records under limits on the same costs; it saves time. Raises
    :class:`~dvt_edge.errors.BudgetError` where there are no such thresholds.
    """
    every = [Limit(price, np.inf), *limits]
    problem = make_problem(records, every, exits)
    if like is not None:
        problem = like.limited(problem.allowance, None)
    if min_accuracy is None:
        found = search(problem)
    else:
        need = math.ceil(min_accuracy * len(records) - _ROUNDING)
        found = _cheapest_expected(records, problem, need)
    if found is None:
        counted = make_problem(records, every, exits, counted=True)
        found = None if min_accuracy is None else cheapest(counted, need)
        if found is None:
            raise _refusal(counted, min_accuracy)
    return _for_all_exits(found, records.exits)


def _cheapest_expected(records: Records, problem: Problem, need: int) -> Found | None:
    """The cheapest thresholds with ``need`` right answers both expected and counted.

    The cheapest by count alone owe part of their right answers to luck and miss the accuracy on
    unseen images. None where the count stays short: so much more is then expected in turn.
    """
    wanted = need
    for _ in range(_TRIES):
        found = cheapest(problem, wanted * RIGHT)
        if found is None:
            return None
        at = records.exits_taken(_for_all_exits(found, records.exits))
        short = need - int(records.correct_at(at).sum())
        if short <= 0:
            return found
        wanted += short
    return None


def _for_all_exits(found: Found, exits: int) -> Floats:
    """[K] thresholds of a problem of the first exits only."""
    return np.array([*found.thresholds, *[-np.inf] * (exits - len(found.thresholds))])


def _refusal(counted: Problem, min_accuracy: float | None) -> BudgetError:
    best = search(counted)
    if best is None:
        return BudgetError("not even leaving at the first exit keeps all limits; raise them")
    reached = math.floor(best.value / len(counted.confidence) * 1e4) / 1e4
    return BudgetError(
        f"min_accuracy {min_accuracy} is more than the cascade reaches on the records within the "
        f"other limits; the highest possible is {reached:g}"
    )
