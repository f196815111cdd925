"""Certificates: bounds hold as often as stated, and bad input is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import (
    Budget,
    ExitLatency,
    Records,
    certify,
    replay,
    solve,
    solve_budget,
    solve_certified,
)
from dvt_edge.policy.certificate import take, uniform_margin, upper_bound

COST = np.array([1.0, 2.0, 4.0])
LATENCY = ExitLatency.constant(COST)
DRAWS = 1000


def population(count: int, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    hard = rng.random(count)[:, None]
    logits = (np.array([0.6, 0.8, 0.95]) - hard) * 8 + rng.normal(0, 0.8, (count, 3))
    confidence = 1 / (1 + np.exp(-logits))
    prediction = (rng.random((count, 3)) > confidence).astype(np.int32)
    return Records(confidence.astype(np.float32), prediction, np.zeros(count, np.int32))


@pytest.fixture(scope="module")
def everybody() -> Records:
    return population(3000)


def test_certified_budgets_hold_as_often_as_stated(everybody: Records) -> None:
    """1,000 draws with replacement from a population whose truth is known."""
    rng = np.random.default_rng(1)
    delta, limit = 0.1, 1.8
    over = gap = naive = 0
    for draw in range(DRAWS):
        sample = take(everybody, rng.integers(0, len(everybody), 300))
        solution, certificate = solve_certified(
            sample, LATENCY, None, Budget(latency_ms=limit), 1 - delta, seed=draw
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


def test_the_uniform_margin_holds_for_all_thresholds_at_once(everybody: Records) -> None:
    rng = np.random.default_rng(3)
    margin, wrong = uniform_margin(COST, 200, 0.1), 0
    for _ in range(200):
        sample = take(everybody, rng.integers(0, len(everybody), 200))
        chosen = solve(sample, COST, 1.8)
        wrong += replay(everybody, COST, chosen.thresholds).cost > chosen.cost + margin
    assert wrong <= 0.1 * 200
    assert uniform_margin(COST, 2000, 0.1) < margin / 2
    assert uniform_margin([1.0], 10, 0.1) == 0


@pytest.mark.parametrize(
    "budget",
    [
        Budget(latency_ms=2.0),
        Budget(latency_ms=2.0, statistic="p95"),
        Budget(latency_ms=2.0, statistic="max"),
        Budget(energy_mj=30.0),
        Budget(latency_ms=2.0, energy_mj=18.0),
        Budget(min_accuracy=0.7),
        Budget(min_accuracy=0.7, latency_ms=3.5),
        Budget(max_stage=2),
        Budget(latency_ms=1.0),
    ],
    ids=str,
)
def test_every_kind_of_budget_is_certified(everybody: Records, budget: Budget) -> None:
    energy = np.array([10.0, 20.0, 70.0])
    sample = take(everybody, np.arange(2000))
    solution, certificate = solve_certified(sample, LATENCY, energy, budget)
    plain = solve_budget(sample, LATENCY, energy, budget)
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
        assert LATENCY.of_mixture(truth.exit_fraction, budget.statistic) <= budget.latency_ms
    if budget.energy_mj is not None:
        assert truth.exit_fraction @ energy <= budget.energy_mj
    if budget.max_stage is not None:
        assert truth.exit_fraction[budget.max_stage :].sum() == 0


def test_fixed_thresholds_on_fresh_records(everybody: Records) -> None:
    thresholds = [0.7, 0.6, -np.inf]
    truth = replay(everybody, COST, thresholds)
    few, many = (certify(population(n, 7), COST, thresholds) for n in (100, 4000))
    assert truth.cost <= many.cost_bound < few.cost_bound <= COST[-1]
    assert truth.accuracy >= many.accuracy_bound >= few.accuracy_bound  # type: ignore[operator]
    assert many.method == "fixed thresholds"
    unlabelled = dataclasses.replace(population(100, 7), label=None)
    assert certify(unlabelled, COST, thresholds).accuracy_bound is None


def test_one_record_certifies_nothing_but_the_worst_case() -> None:
    one = population(1)
    certificate = certify(one, COST, [0.0, 0.0, -np.inf])
    assert certificate.accuracy_gap_bound > 0.5
    with pytest.raises(DataError, match="at least 20 records, found 1"):
        solve_certified(one, LATENCY, None, Budget(latency_ms=2))


def test_an_accuracy_that_the_records_cannot_prove_is_refused(everybody: Records) -> None:
    sample = take(everybody, np.arange(100))
    within_reach = float(np.floor(solve(sample, COST, 4.0).accuracy * 100) / 100)
    with pytest.raises(BudgetError, match="prove an accuracy of 0"):
        solve_certified(sample, LATENCY, None, Budget(min_accuracy=within_reach))


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, float("nan")])
def test_a_confidence_that_is_no_probability_is_refused(everybody: Records, level: float) -> None:
    with pytest.raises(DataError, match="between 0 and 1"):
        solve_certified(everybody, LATENCY, None, Budget(latency_ms=2), level)


def test_an_infeasible_budget_is_refused_as_without_a_certificate(everybody: Records) -> None:
    with pytest.raises(BudgetError, match="smallest possible is 1 ms"):
        solve_certified(everybody, LATENCY, None, Budget(latency_ms=0.5))
