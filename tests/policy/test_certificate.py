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
from dvt_edge.policy.betting import upper_bound
from dvt_edge.policy.certificate import _split
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


CLIP = 20


def _clips(everybody: Records, rng: np.random.Generator) -> Records:
    """A population in clips of 20 images that are alike."""
    order = np.argsort(everybody.confidence.mean(axis=1))
    start = rng.integers(0, len(everybody), 600)
    within = rng.integers(0, 60, (600, CLIP))
    return everybody.take(order[(start[:, None] + within) % len(everybody)].ravel())


@pytest.mark.slow
@pytest.mark.parametrize("told", [False, True])
def test_clips_count_once_where_they_are_told(everybody: Records, told: bool) -> None:
    """Taken for single images they made certificates wrong much more often than stated."""
    rng = np.random.default_rng(5)
    population, limit = _clips(everybody, rng), 1.8
    wrong, draws = 0, 150
    for draw in range(draws):
        chosen = rng.integers(0, 600, 60)
        sample = population.take((chosen[:, None] * CLIP + np.arange(CLIP)).ravel())
        group = np.arange(60, dtype=np.int32).repeat(CLIP)
        if told:
            sample = dataclasses.replace(sample, group=group)
        solution, certificate = solve_certified(
            sample, ExitCosts(LATENCY), BudgetConfig(latency_ms=limit), 0.95, seed=draw
        )
        truth = replay(population, COST, solution.thresholds)
        wrong += truth.cost > limit
        wrong += population.accuracy[-1] - truth.accuracy > certificate.accuracy_gap_bound
        assert certificate.groups == (30 if told else None)
    if told:
        assert wrong <= 0.05 * draws
    else:
        assert wrong > 0.1 * draws


def test_unequal_groups_bound_the_mean_over_images() -> None:
    """Of groups of 1 and of 50 with other values; the mean over groups would be 0.5."""
    rng = np.random.default_rng(6)
    missed = 0
    for _ in range(400):
        large = rng.random(60) < 0.5
        values = np.where(large, 0.9, 0.1)
        sizes = np.where(large, 50.0, 1.0)
        missed += float(upper_bound(values, 0.1, sizes)) < (50 * 0.9 + 0.1) / 51
    assert missed <= 40


def test_weights_of_one_change_nothing() -> None:
    values = np.random.default_rng(7).random(80)
    assert upper_bound(values, 0.1, np.ones(80)) == upper_bound(values, 0.1)
    assert upper_bound(values, 0.1, np.full(80, 7.0)) == upper_bound(values, 0.1)


def test_few_groups_are_refused(everybody: Records) -> None:
    sample = everybody.take(np.arange(400))
    grouped = dataclasses.replace(sample, group=np.arange(19, dtype=np.int32).repeat(22)[:400])
    with pytest.raises(DataError, match="at least 20 groups of records, found 19"):
        solve_certified(grouped, ExitCosts(LATENCY), BudgetConfig(latency_ms=2))
    single = dataclasses.replace(sample, group=np.arange(400, dtype=np.int32))
    alone, certificate = solve_certified(single, ExitCosts(LATENCY), BudgetConfig(latency_ms=2))
    plain, _ = solve_certified(sample, ExitCosts(LATENCY), BudgetConfig(latency_ms=2))
    assert alone.thresholds.tolist() == plain.thresholds.tolist()  # groups of one are none
    assert certificate.groups == 200


def test_no_group_is_in_both_halves(everybody: Records) -> None:
    sample = everybody.take(np.arange(400))
    group = np.random.default_rng(8).integers(0, 60, 400).astype(np.int32)
    chooser, judge = _split(dataclasses.replace(sample, group=group), 3)
    assert chooser.group is not None
    assert judge.group is not None
    assert not set(chooser.group.tolist()) & set(judge.group.tolist())
    assert len(chooser) + len(judge) == 400


@pytest.mark.slow
def test_unlabelled_records_prove_more(everybody: Records) -> None:
    """All labelled ones choose; what is certified still holds."""
    rng = np.random.default_rng(9)
    budget, over, plain, more = BudgetConfig(latency_ms=1.8), 0, [], []
    for draw in range(60):
        sample = everybody.take(rng.integers(0, len(everybody), 400))
        field = everybody.take(rng.integers(0, len(everybody), 4000))
        unlabelled = Records(field.confidence, field.prediction)
        known, _ = solve_certified(sample, ExitCosts(LATENCY), budget, seed=draw)
        found, certificate = solve_certified(
            sample, ExitCosts(LATENCY), budget, unlabelled=unlabelled, seed=draw
        )
        assert certificate.n == 4000
        assert certificate.accuracy_bound is None
        truth = replay(everybody, COST, found.thresholds)
        over += truth.cost > 1.8
        over += everybody.accuracy[-1] - truth.accuracy > certificate.accuracy_gap_bound
        more.append(truth.accuracy)
        plain.append(replay(everybody, COST, known.thresholds).accuracy)
    assert over <= 3
    assert np.mean(more) > np.mean(plain) + 0.005


def test_unlabelled_records_of_another_cascade(everybody: Records) -> None:
    two = Records(everybody.confidence[:, :2], everybody.prediction[:, :2])
    with pytest.raises(DataError, match="have 2 exits, the others 3"):
        solve_certified(everybody, ExitCosts(LATENCY), BudgetConfig(latency_ms=2), unlabelled=two)


def test_bounds_on_costs_are_counted_in(everybody: Records) -> None:
    """They cost accuracy, and their error is taken off."""
    sample, budget = everybody.take(np.arange(800)), BudgetConfig(latency_ms=2)
    slower = ExitCosts(ExitLatency(*[COST * 1.2] * 5))
    plain, _ = solve_certified(sample, ExitCosts(LATENCY), budget)
    found, certificate = solve_certified(
        sample, ExitCosts(LATENCY), budget, at_most=slower, bound_error=0.01
    )
    assert found.cost < plain.cost
    assert certificate.delta == pytest.approx(0.05)
    with pytest.raises(BudgetError, match="can be at most 0"):
        solve_certified(sample, ExitCosts(LATENCY), budget, 0.97, at_most=slower, bound_error=0.05)
