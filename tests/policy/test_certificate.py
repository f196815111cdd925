"""Certificates: bounds hold as often as stated, and bad input is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import (
    ExitCosts,
    ExitLatency,
    Records,
    replay,
    solve,
    solve_budget,
    solve_certified,
)
from dvt_edge.policy.certificate import upper_bound
from dvt_edge.policy.statistic import TAIL_SHARE
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

COST = np.array([1.0, 2.0, 4.0])
LATENCY = ExitLatency(COST, COST, COST, COST, COST)
DRAWS = 1000


@pytest.fixture(scope="module")
def everybody() -> Records:
    return made_records(3000)


@pytest.mark.slow
def test_certified_budgets_hold_as_often_as_stated(everybody: Records) -> None:
    """1,000 draws with replacement from a population whose truth is known."""
    rng = np.random.default_rng(1)
    delta, limit = 0.1, 1.8
    over = gap = naive = 0
    for draw in range(DRAWS):
        sample = everybody.take(rng.integers(0, len(everybody), 300))
        solution, certificate = solve_certified(
            sample, ExitCosts(LATENCY), BudgetConfig(latency_ms=limit), 1 - delta, seed=draw
        )
        truth = replay(everybody, COST, solution.thresholds)
        over += truth.cost > min(limit, certificate.cost_bound)
        gap += everybody.accuracy[-1] - truth.accuracy > certificate.accuracy_gap_bound
        naive += replay(everybody, COST, solve(sample, COST, limit).thresholds).cost > limit
    assert over + gap <= delta * DRAWS
    assert over > 0  # the test is not won by never spending anything
    assert naive > 0.3 * DRAWS  # which is why there are certificates


@pytest.mark.parametrize("mean", [0.02, 0.3, 0.9])
def test_the_betting_bound_covers_and_shrinks(mean: float) -> None:
    rng = np.random.default_rng(2)
    widths = []
    for count in (50, 400):
        values = (rng.random((DRAWS, count)) < mean).astype(float)
        bound = upper_bound(values, 0.1)
        assert (bound < mean).mean() <= 0.1
        widths.append(bound.mean() - mean)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize(
    "budget",
    [
        BudgetConfig(latency_ms=2.0),
        BudgetConfig(latency_ms=2.0, statistic="p95"),
        BudgetConfig(latency_ms=2.0, statistic="max"),
        BudgetConfig(energy_mj=30.0),
        BudgetConfig(latency_ms=2.0, energy_mj=18.0),
        BudgetConfig(min_accuracy=0.7),
        BudgetConfig(min_accuracy=0.7, latency_ms=3.5),
        BudgetConfig(max_stage=2),
        BudgetConfig(latency_ms=1.0),
    ],
    ids=str,
)
def test_every_kind_of_budget_is_certified(everybody: Records, budget: BudgetConfig) -> None:
    energy = np.array([10.0, 20.0, 70.0])
    sample = everybody.take(np.arange(2000))
    solution, certificate = solve_certified(sample, ExitCosts(LATENCY, energy), budget)
    plain = solve_budget(sample, ExitCosts(LATENCY, energy), budget)
    truth = replay(everybody, COST, solution.thresholds)
    assert certificate.n == 1000
    assert certificate.delta == pytest.approx(0.05)
    assert truth.cost <= certificate.cost_bound
    assert everybody.accuracy[-1] - truth.accuracy <= certificate.accuracy_gap_bound
    assert certificate.accuracy_bound is not None
    assert certificate.accuracy_bound <= truth.accuracy
    if budget.min_accuracy is None:
        assert solution.accuracy <= plain.accuracy
    else:
        assert solution.cost >= plain.cost
        assert truth.accuracy >= budget.min_accuracy
    if budget.latency_ms is not None:
        beyond = truth.exit_fraction @ LATENCY.exceeding(budget.latency_ms)
        if budget.statistic == "mean":
            assert truth.cost <= budget.latency_ms
        else:
            assert beyond <= TAIL_SHARE[budget.statistic] + 1e-9
    if budget.energy_mj is not None:
        assert truth.exit_fraction @ energy <= budget.energy_mj
    if budget.max_stage is not None:
        assert truth.exit_fraction[budget.max_stage :].sum() == 0


def test_without_labels_no_accuracy_is_certified(everybody: Records) -> None:
    unlabelled = dataclasses.replace(everybody, label=None)
    _, found = solve_certified(unlabelled, ExitCosts(LATENCY), BudgetConfig(latency_ms=2))
    assert found.accuracy_bound is None
    assert 0 < found.accuracy_gap_bound < 1


def test_one_record_certifies_nothing() -> None:
    with pytest.raises(DataError, match="at least 20 records, found 1"):
        solve_certified(made_records(1), ExitCosts(LATENCY), BudgetConfig(latency_ms=2))


def test_an_accuracy_that_the_records_cannot_prove_is_refused(everybody: Records) -> None:
    sample = everybody.take(np.arange(100))
    within_reach = float(np.floor(solve(sample, COST, 4.0).accuracy * 100) / 100)
    with pytest.raises(BudgetError, match="prove an accuracy of 0"):
        solve_certified(sample, ExitCosts(LATENCY), BudgetConfig(min_accuracy=within_reach))


def test_an_infeasible_budget_is_refused_as_without_a_certificate(everybody: Records) -> None:
    with pytest.raises(BudgetError, match="smallest possible is 1 ms"):
        solve_certified(everybody, ExitCosts(LATENCY), BudgetConfig(latency_ms=0.5))
