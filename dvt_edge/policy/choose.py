"""Budget -> thresholds: the one place where that is decided, for the Runtime and all commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from dvt_edge.errors import BudgetError
from dvt_edge.policy.budget import solve_budget
from dvt_edge.policy.certificate import solve_certified
from dvt_edge.policy.exit_costs import ExitCosts
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Solution, replay
from dvt_edge.policy.statistic import Statistic
from dvt_edge.policy.targets import Budget

RecordedThresholds = Sequence[Sequence[float | str]]
"""[P, K]: what an imported checkpoint carries; infinities are strings, as in JSON."""


class Costs(Protocol):
    """What leaving at each exit costs, such as :class:`~dvt_edge.bundle.costs.Costs`."""

    @property
    def exit_costs(self) -> ExitCosts:
        """As measured."""

    @property
    def exit_costs_at_most(self) -> ExitCosts:
        """Upper confidence bounds; infinite where too few runs were measured."""

    @property
    def bound_error(self) -> float:
        """Probability that any of the bounds is wrong, 0..1."""

    @property
    def runs_per_exit(self) -> int: ...

    def seconds_needed(self, statistic: Statistic) -> float:
        """``--duration`` of 'dvt-edge profile' with which ``statistic`` has a bound."""


def choose_thresholds(
    records: Records,
    costs: Costs,
    budget: Budget,
    recorded: RecordedThresholds | None = None,
    unlabelled: Records | None = None,
) -> Solution:
    """The thresholds that ``budget`` asks for, and what is certified of them.

    ``recorded`` is for budgets with a ``point``; ``unlabelled`` are records of frames from the
    field, which may prove a certificate's costs. Raises :class:`~dvt_edge.errors.BudgetError`,
    naming the nearest feasible value, where no thresholds keep the budget, and
    :class:`~dvt_edge.errors.DataError` for costs that do not fit the records.
    """
    found = costs.exit_costs
    if budget.point is not None:
        return replay(records, found.latency.mean, _recorded_point(recorded, budget.point))
    if budget.confidence_level is None:
        return solve_budget(records, found, budget)
    _check_runs(costs, budget)
    solution, certificate = solve_certified(
        records,
        found,
        budget,
        budget.confidence_level,
        at_most=costs.exit_costs_at_most,
        bound_error=costs.bound_error,
        unlabelled=unlabelled,
    )
    return replace(solution, certificate=certificate)


def _check_runs(costs: Costs, budget: Budget) -> None:
    """Refuse to certify what was measured too shortly."""
    needed: set[Statistic] = {"mean"}
    if budget.latency_ms is not None:
        needed.add(budget.statistic)
    if "max" in needed:
        raise BudgetError(
            "no number of runs bounds the longest frame, so a max latency cannot be certified; "
            "certify p99 instead, set deadline_ms, or drop confidence_level"
        )
    for statistic in sorted(needed):
        if not np.isfinite(getattr(costs.exit_costs_at_most.latency, statistic)).all():
            raise BudgetError(
                f"{costs.runs_per_exit} runs per exit are too few to certify the {statistic} "
                "latency; run 'dvt-edge profile --duration "
                f"{costs.seconds_needed(statistic):.0f}', or drop confidence_level"
            )


def _recorded_point(recorded: RecordedThresholds | None, point: int) -> list[float]:
    if recorded is None:
        raise BudgetError(
            "thresholds: recorded needs a model imported with recorded thresholds, and this one "
            "carries none; give a limit such as latency_ms"
        )
    if point > len(recorded):
        raise BudgetError(
            f"point {point} does not exist; the checkpoint records 1..{len(recorded)}"
        )
    return [float(value) for value in recorded[point - 1]]


def finite_thresholds(thresholds: Iterable[float]) -> tuple[float | None, ...]:
    """Thresholds for JSON, which has no infinity: None where nothing leaves, 0 where all does."""
    return tuple(None if t == np.inf else max(float(t), 0.0) for t in thresholds)
