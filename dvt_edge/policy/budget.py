"""Thresholds that keep a budget: all its limits at once, exactly."""

from __future__ import annotations

import math

import numpy as np

from dvt_edge.errors import BudgetError
from dvt_edge.policy.exit_costs import ExitCosts, ExitLatency, with_audit
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
)
from dvt_edge.policy.targets import Budget, Target, find_targets, first_exit_refusal

_ROUNDING = 1e-9  # of an accuracy that was given as a decimal fraction
_TRIES = 8  # nearly always one or two are enough


def solve_budget(records: Records, costs: ExitCosts, budget: Budget) -> Solution:
    """The thresholds that ``budget`` asks for; ``cost`` of the solution is its mean latency in ms,
    audited frames included.

    The optimum is exact for up to four exits, as in :func:`~dvt_edge.policy.solver.solve`. Beyond
    ``max_stage`` all thresholds are -inf.

    Raises :class:`~dvt_edge.errors.BudgetError`, naming the nearest feasible value, where no
    thresholds keep the budget, and :class:`~dvt_edge.errors.DataError` for figures that do not fit
    the records.
    """
    exits, targets = budget_targets(records, costs, budget)
    limits = tightest(targets, costs.latency, exits, budget.audit)
    thresholds = solve_limits(records, costs.latency.mean, limits, exits, budget.min_accuracy)
    return replay(records, with_audit(costs.latency.mean, budget.audit, exits), thresholds)


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


def budget_targets(
    records: Records, costs: ExitCosts, budget: Budget
) -> tuple[int, tuple[Target, ...]]:
    """Exits that may be used, and the targets of ``budget``; raises where exit 1 breaks one."""
    check_cost(records, costs.latency.mean)
    if costs.energy_mj is not None and budget.energy_mj is not None:
        check_cost(records, costs.energy_mj)
    targets = find_targets(costs, budget)
    for target in targets:
        if target.most < target.cost[0]:
            raise first_exit_refusal(target, float(target.cost[0]), _right_at_first(records))
    exits = allowed_exits(costs.latency, budget)
    for target in targets:
        limit = target.limit(costs.latency, exits, budget.audit)
        if limit is not None and limit.most < limit.cost[0]:
            raise BudgetError(
                f"auditing {budget.audit:.3g} of the frames alone breaks the budget's {target}; "
                "lower audit or max_stage, or raise the limit"
            )
    return exits, targets


def tightest(
    targets: tuple[Target, ...], latency: ExitLatency, exits: int, audit: float
) -> list[Limit]:
    """What the solver must keep: of limits on the same costs only the lowest."""
    limits: list[Limit] = []
    for target in targets:
        found = target.limit(latency, exits, audit)
        if found is None:
            continue
        for at, other in enumerate(limits):
            if other.cost.tolist() == found.cost.tolist():
                limits[at] = min(other, found, key=lambda limit: limit.most)
                break
        else:
            limits.append(found)
    return limits


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
