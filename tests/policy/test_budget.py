"""Budgets: every field, what tail statistics mean, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import ExitCosts, ExitLatency, Records, Solution, solve, solve_budget
from dvt_edge.policy.statistic import TAIL_SHARE, Statistic
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

LATENCY = ExitLatency(
    mean=np.array([1.0, 2.0, 4.0]),
    p50=np.array([0.9, 1.8, 3.8]),
    p95=np.array([1.4, 2.6, 5.0]),
    p99=np.array([1.8, 3.2, 6.0]),
    max=np.array([3.0, 5.0, 9.0]),
)
ENERGY = np.array([3.0, 8.0, 20.0])
TIMED, MEASURED = ExitCosts(LATENCY), ExitCosts(LATENCY, ENERGY)


@pytest.fixture(scope="module")
def records() -> Records:
    return made_records(500)


def test_mean_latency_is_what_solve_gives(records: Records) -> None:
    found = solve_budget(records, TIMED, BudgetConfig(latency_ms=2.2))
    expected = solve(records, LATENCY.mean, 2.2)
    assert found.thresholds.tolist() == expected.thresholds.tolist()
    assert found.cost == expected.cost <= 2.2


def test_both_limits_hold_at_once(records: Records) -> None:
    both = solve_budget(records, MEASURED, BudgetConfig(latency_ms=2.2, energy_mj=7.0))
    assert both.cost <= 2.2
    assert both.exit_fraction @ ENERGY <= 7.0 + 1e-9
    for alone in (BudgetConfig(latency_ms=2.2), BudgetConfig(energy_mj=7.0)):
        assert both.accuracy <= solve_budget(records, MEASURED, alone).accuracy


@pytest.mark.parametrize(
    ("limit_ms", "share"),
    [
        (0.8, [1, 1, 1]),
        (0.9, [0.5, 1, 1]),
        (1.8, [0.01, 0.5, 1]),
        (3.0, [0, 0.05, 1]),
        (5.0, [0, 0, 0.05]),
        (9.0, [0, 0, 0]),
    ],
)
def test_share_of_an_exit_beyond_a_limit(limit_ms: float, share: list[float]) -> None:
    assert LATENCY.exceeding(limit_ms).tolist() == share


def test_a_later_exit_never_counts_as_faster() -> None:
    noisy = dataclasses.replace(LATENCY, p99=np.array([1.8, 5.0, 5.0]), p95=LATENCY.p50)
    assert (np.diff(noisy.exceeding(4.0)) >= 0).all()


@pytest.mark.parametrize("statistic", ["p50", "p95", "p99", "max"])
@pytest.mark.parametrize("limit_ms", [3.0, 3.5, 5.0, 7.0])
def test_a_tail_budget_holds_for_any_latencies_with_those_figures(
    records: Records,
    statistic: str,
    limit_ms: float,
) -> None:
    budget = BudgetConfig(latency_ms=limit_ms, statistic=statistic)
    found = solve_budget(records, TIMED, budget)
    # The slowest latencies that have the measured figures: every frame at its quantile's top.
    percent = np.arange(100_000) / 100_000  # share of frames below each one
    slowest = [
        np.select(
            [percent < 0.5, percent < 0.95, percent < 0.99],
            [LATENCY.p50[k], LATENCY.p95[k], LATENCY.p99[k]],
            LATENCY.max[k],
        )
        for k in range(3)
    ]
    beyond = sum(f * (slowest[k] > limit_ms).mean() for k, f in enumerate(found.exit_fraction))
    allowed = {"p50": 0.5, "p95": 0.05, "p99": 0.01, "max": 0.0}[statistic]
    assert beyond <= allowed + 1e-4


def test_a_tail_budget_uses_the_slow_exit_as_far_as_it_may(records: Records) -> None:
    found = solve_budget(records, TIMED, BudgetConfig(latency_ms=5.0, statistic="p99"))
    assert 0 < found.exit_fraction[2] <= 0.01 / 0.05 + 1e-9  # 5 % of exit 3's frames are slower
    longest = solve_budget(records, TIMED, BudgetConfig(latency_ms=5.0, statistic="max"))
    assert longest.exit_fraction[2] == 0


def test_min_accuracy_gives_the_cheapest(records: Records) -> None:
    """Of those that are so accurate by count and by what is expected of them."""
    found = solve_budget(records, TIMED, BudgetConfig(min_accuracy=0.7))
    assert found.accuracy >= 0.7
    assert expected_accuracy(records, found) >= 0.7
    cheaper = solve(records, LATENCY.mean, found.cost - 1e-6)
    assert expected_accuracy(records, cheaper) < 0.7 or cheaper.accuracy < 0.7
    dearer = BudgetConfig(min_accuracy=0.7, latency_ms=found.cost)
    assert solve_budget(records, TIMED, dearer).cost == found.cost


def expected_accuracy(records: Records, found: Solution) -> float:
    at = records.exits_taken(found.thresholds)
    return float(records.probability_right[np.arange(len(records)), at].mean())


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_min_accuracy_holds_by_count_however_few_records_there_are(count: int) -> None:
    """And the refusal names one that the records have."""
    for seed in range(20):
        few = made_records(count, seed=seed)
        for wanted in np.unique(few.accuracy[few.accuracy > 0]):
            found = solve_budget(few, TIMED, BudgetConfig(min_accuracy=float(wanted)))
            assert found.accuracy >= wanted - 1e-9


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_exit_beyond_max_stage(records: Records, stage: int) -> None:
    found = solve_budget(records, TIMED, BudgetConfig(max_stage=stage))
    assert found.exit_fraction[stage:].sum() == 0
    assert np.isneginf(found.thresholds[stage - 1 :]).all()
    alone = solve_budget(records, TIMED, BudgetConfig(max_stage=stage, latency_ms=1.5))
    assert alone.cost <= 1.5
    assert alone.exit_fraction[stage:].sum() == 0


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"latency_ms": 0.5}, "smallest possible is 1 ms"),
        ({"latency_ms": 1.7, "statistic": "p99"}, "smallest possible is 1.8 ms"),
        ({"latency_ms": 2.9, "statistic": "max"}, "smallest possible is 3 ms"),
        ({"energy_mj": 2.0}, "smallest possible is 3 mJ"),
        ({"min_accuracy": 1.0}, "highest possible is 0"),
        ({"min_accuracy": 0.7, "latency_ms": 1.0}, "highest possible is 0"),
        ({"max_stage": 4}, "the cascade has 3 stages"),
    ],
)
def test_infeasible_budgets_name_the_nearest_value(
    records: Records, budget: dict[str, object], words: str
) -> None:
    with pytest.raises(BudgetError, match=words):
        solve_budget(records, MEASURED, BudgetConfig(**budget))


def test_the_named_accuracy_is_feasible(records: Records) -> None:
    with pytest.raises(BudgetError) as caught:
        solve_budget(records, TIMED, BudgetConfig(min_accuracy=1.0))
    named = float(str(caught.value).rsplit(" ", 1)[1])
    assert solve_budget(records, TIMED, BudgetConfig(min_accuracy=named)).accuracy >= named


def test_energy_that_nobody_measured_is_refused(records: Records) -> None:
    with pytest.raises(BudgetError, match="none was measured"):
        solve_budget(records, TIMED, BudgetConfig(energy_mj=5))


def test_latencies_of_another_cascade_are_refused(records: Records) -> None:
    two = ExitCosts(ExitLatency(*[np.array([1.0, 2.0])] * 5))
    with pytest.raises(DataError, match="expected 3 costs"):
        solve_budget(records, two, BudgetConfig(latency_ms=2))


@pytest.mark.parametrize(
    ("fraction", "statistic", "expected"),
    [
        ([1.0, 0.0], "mean", 1.0),
        ([0.5, 0.5], "mean", 2.0),
        ([1.0, 0.0], "p99", 1.4),
        ([1.0, 0.0], "max", 2.0),
        ([0.0, 1.0], "p95", 3.4),
        ([0.98, 0.02], "p99", 3.0),
        ([0.5, 0.5], "p50", 2.0),
        ([0.0, 1.0], "max", 5.0),
    ],
)
def test_statistic_of_a_mixture(
    fraction: list[float], statistic: Statistic, expected: float
) -> None:
    """The least limit that a budget on it would keep: one a little lower is refused."""
    latency = ExitLatency(
        *(np.array(pair) for pair in ((1.0, 3.0), (1.0, 3.0), (1.2, 3.4), (1.4, 4.0), (2.0, 5.0)))
    )
    found = latency.at(fraction, statistic)
    assert found == expected
    if statistic != "mean":
        below = np.nextafter(found, 0)
        assert np.array(fraction) @ latency.exceeding(below) > TAIL_SHARE[statistic]
        assert np.array(fraction) @ latency.exceeding(found) <= TAIL_SHARE[statistic] + 1e-9
