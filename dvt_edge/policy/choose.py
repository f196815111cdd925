"""Budget -> thresholds: the one place where that is decided, for the Runtime and all commands."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from dvt_edge.errors import BudgetError
from dvt_edge.policy.budget import Budget, ExitLatency, solve_budget
from dvt_edge.policy.certificate import solve_certified
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Solution, replay

RecordedThresholds = Sequence[Sequence[float | str]]
"""[P, K]: what an imported checkpoint carries; infinities are strings, as in JSON."""


class Costs(Protocol):
    """What leaving at each exit costs, such as :class:`~dvt_edge.bundle.costs.Costs`."""

    @property
    def latency(self) -> ExitLatency: ...

    @property
    def energy_mj(self) -> Sequence[float] | None:
        """[K]: mean per frame; None where it was not measured."""


def choose_thresholds(
    records: Records, costs: Costs, budget: Budget, recorded: RecordedThresholds | None = None
) -> Solution:
    """The thresholds that ``budget`` asks for, and what is certified of them.

    ``recorded`` is for budgets with a ``point``. Raises :class:`~dvt_edge.errors.BudgetError`,
    naming the nearest feasible value, where no thresholds keep the budget, and
    :class:`~dvt_edge.errors.DataError` for costs that do not fit the records.
    """
    latency, energy_mj = costs.latency, costs.energy_mj
    if budget.point is not None:
        return replay(records, latency.mean, _recorded_point(recorded, budget.point))
    if budget.confidence_level is None:
        return solve_budget(records, latency, energy_mj, budget)
    solution, certificate = solve_certified(
        records, latency, energy_mj, budget, budget.confidence_level
    )
    return replace(solution, certificate=certificate)


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
