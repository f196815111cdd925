"""Budget -> thresholds: which way a budget goes, and what is in force afterwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from dvt_edge.errors import BudgetError
from dvt_edge.policy import (
    ExitCosts,
    ExitLatency,
    Records,
    choose_thresholds,
    replay,
    solve_budget,
    solve_certified,
)
from dvt_edge.policy.choose import finite_thresholds
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

COST = np.array([1.0, 2.0, 4.0])
LATENCY = ExitLatency(COST, COST, COST, COST, COST)
MEASURED = ExitCosts(LATENCY, np.array([3.0, 6.0, 9.0]))
RECORDED = (("inf", 0.7, "-inf"), (0.6, 0.6, "-inf"))


@dataclass(frozen=True)
class Costs:
    """What the function reads of measured costs."""

    exit_costs: ExitCosts = MEASURED
    exit_costs_at_most: ExitCosts = MEASURED
    bound_error: float = 0.0
    runs_per_exit: int = 50

    def seconds_needed(self, statistic: str) -> float:
        return {"mean": 6.0, "p99": 140.0}[statistic]


@pytest.fixture(scope="module")
def records() -> Records:
    return made_records(400)


@pytest.mark.parametrize("limit", [{"latency_ms": 2.0}, {"energy_mj": 5.0}, {"max_stage": 2}])
def test_limits_are_solved(records: Records, limit: dict[str, float]) -> None:
    budget, costs = BudgetConfig.model_validate(limit), Costs()
    chosen = choose_thresholds(records, costs, budget)
    expected = solve_budget(records, costs.exit_costs, budget)
    assert tuple(chosen.thresholds) == tuple(expected.thresholds)
    assert chosen.thresholds[-1] == -np.inf
    assert chosen.certificate is None


def test_confidence_is_certified(records: Records) -> None:
    budget, costs = BudgetConfig(latency_ms=2.0, confidence_level=0.9), Costs()
    chosen = choose_thresholds(records, costs, budget)
    solution, certificate = solve_certified(records, costs.exit_costs, budget, 0.9)
    assert chosen.certificate == certificate
    assert tuple(chosen.thresholds) == tuple(solution.thresholds)


def test_recorded_thresholds_are_used_as_they_are(records: Records) -> None:
    budget = BudgetConfig(thresholds="recorded", point=1)
    chosen = choose_thresholds(records, Costs(), budget, RECORDED)
    assert tuple(chosen.thresholds) == (np.inf, 0.7, -np.inf)
    assert chosen.cost == replay(records, COST, chosen.thresholds).cost


@pytest.mark.parametrize(
    ("point", "recorded", "words"), [(3, RECORDED, r"1\.\.2"), (1, None, "carries none")]
)
def test_points_that_are_not_recorded(
    records: Records, point: int, recorded: tuple[tuple[float | str, ...], ...] | None, words: str
) -> None:
    budget = BudgetConfig(thresholds="recorded", point=point)
    with pytest.raises(BudgetError, match=words):
        choose_thresholds(records, Costs(), budget, recorded)


def test_json_knows_no_infinity() -> None:
    assert finite_thresholds([np.inf, 0.5, -np.inf]) == (None, 0.5, 0.0)
