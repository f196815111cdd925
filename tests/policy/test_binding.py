"""Which limit binds, and its price."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy import ExitCosts, ExitLatency, Records, solve_budget
from dvt_edge.policy.binding import Binding, find_binding
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

MEAN = np.array([1.0, 2.0, 4.0])
COSTS = ExitCosts(
    ExitLatency(MEAN, 0.9 * MEAN, 1.3 * MEAN, 1.6 * MEAN, 2.5 * MEAN),
    energy_mj=np.array([3.0, 8.0, 20.0]),
    fps=30.0,
)


@pytest.fixture(scope="module")
def records() -> Records:
    return made_records(1000)


def _find(records: Records, keys: dict[str, object]) -> Binding | None:
    budget = BudgetConfig(**keys)
    return find_binding(records, COSTS, budget, solve_budget(records, COSTS, budget))


@pytest.mark.parametrize(
    ("keys", "key", "unit"),
    [
        ({"latency_ms": 1.6}, "latency_ms", "ms"),
        ({"latency_ms": 1.6, "fps": 30}, "latency_ms", "ms"),
        ({"latency_ms": 3.0, "fps": 500}, "fps", "ms"),
        ({"duty_cycle": 0.05}, "duty_cycle", "ms"),
        ({"latency_ms": 3.0, "energy_mj": 5}, "energy_mj", "mJ"),
        ({"latency_ms": 1.6, "energy_mj": 19}, "latency_ms", "ms"),
        ({"latency_ms": 3.0, "statistic": "p99"}, "latency_ms", "ms"),
        ({"latency_ms": 6.0, "statistic": "max"}, "latency_ms", "ms"),
        ({"max_stage": 2}, "max_stage", "stage"),
        ({"max_stage": 2, "latency_ms": 3}, "max_stage", "stage"),
        ({"max_stage": 2, "latency_ms": 1.2}, "latency_ms", "ms"),
        ({"min_accuracy": 0.7}, "min_accuracy", ""),
    ],
)
def test_the_binding_limit(records: Records, keys: dict[str, object], key: str, unit: str) -> None:
    found = _find(records, keys)
    assert found is not None
    assert (found.key, found.unit) == (key, unit)
    assert found.gain >= 0
    assert found.step > 0


@pytest.mark.parametrize("keys", [{"latency_ms": 50}, {"fps": 1}, {"max_stage": 3}])
def test_where_nothing_binds(records: Records, keys: dict[str, object]) -> None:
    assert _find(records, keys) is None


def test_the_price_is_what_the_moved_budget_gives(records: Records) -> None:
    found = _find(records, {"latency_ms": 1.6})
    assert found is not None
    assert found.step == pytest.approx(0.08)
    assert found.used == pytest.approx(1.6, abs=0.01)

    def expected(limit: float) -> float:
        at = records.exits_taken(
            solve_budget(records, COSTS, BudgetConfig(latency_ms=limit)).thresholds
        )
        return float(records.probability_right[np.arange(len(records)), at].mean())

    assert found.gain == pytest.approx(expected(1.68) - expected(1.6))
    assert found.gain > 0
    assert str(found).startswith("the mean latency of 1.6 ms, of which 1.")


def test_recorded_thresholds_have_no_price(records: Records) -> None:
    budget = BudgetConfig(thresholds="recorded", point=1)
    plain = solve_budget(records, COSTS, BudgetConfig(latency_ms=2))
    assert find_binding(records, COSTS, budget, plain) is None
