"""The estimated probability of being right, and what thresholds do that are chosen by it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dvt_edge.policy import Records, frontier, replay, solve, solve_budget
from dvt_edge.policy.estimate import CURVED, RIDGES, estimate_right
from dvt_edge.policy.exit_costs import ExitCosts, ExitLatency
from dvt_edge.policy.search import search
from dvt_edge.policy.solver import Limit, make_problem
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

COST = np.array([1.0, 2.0, 4.0])
LIMITS = (1.5, 2.0, 2.5)


def population(count: int, seed: int = 0) -> tuple[Records, np.ndarray]:
    """Records, and the probability [N, K] of being right by which they were drawn.

    A tenth of the labels and more is noise, so it is neither what the confidences say nor linear in
    their logits.
    """
    rng = np.random.default_rng(seed)
    hard = rng.random((count, 1))
    logit = (np.linspace(0.6, 0.95, 3) - hard) * 8 + rng.normal(0, 0.8, (count, 3))
    confidence = 1 / (1 + np.exp(-logit))
    truth = confidence * [0.8, 0.85, 0.9]
    wrong = (rng.random((count, 3)) > truth).astype(np.int32)
    return Records(confidence.astype(np.float32), wrong, np.zeros(count, np.int32)), truth


def margin(size: int, splits: int) -> tuple[float, float]:
    """True accuracy on unseen records, by estimate less by count, and its standard error."""
    gains = []
    for seed in range(splits):
        records, _ = population(size, seed)
        unseen, truth = population(4000, 1000 + seed)

        def worth(
            thresholds: np.ndarray, unseen: Records = unseen, truth: np.ndarray = truth
        ) -> float:
            return float(truth[np.arange(len(unseen)), unseen.exits_taken(thresholds)].mean())

        for limit in LIMITS:
            by_count = search(make_problem(records, [Limit(COST, limit)], counted=True))
            assert by_count is not None
            ours = solve(records, COST, limit).thresholds
            gains.append(worth(ours) - worth(np.array(by_count.thresholds)))
    means = np.reshape(gains, (splits, len(LIMITS))).mean(axis=1)
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(splits))


@pytest.mark.parametrize("size", [200, 1000])
def test_thresholds_are_better_on_unseen_images_than_those_that_fit_the_records(size: int) -> None:
    gain, error = margin(size, splits=60)
    assert gain > 4 * error
    assert gain > 0.0005


def test_the_estimate_comes_closer_to_the_truth_with_more_records() -> None:
    errors = []
    for size in (200, 2000, 20_000):
        records, truth = population(size)
        given = records.probability_right
        errors.append(float(np.abs(given - truth)[:, 0].mean()))
        # With the mean of what was seen, as logistic regression has it.
        assert given.mean(axis=0) == pytest.approx(records.accuracy, abs=1 / size)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 2


def test_the_last_confidence_and_the_order_of_the_records_do_not_matter() -> None:
    records, _ = population(300)
    given = records.probability_right
    other = records.confidence.copy()
    other[:, -1] = 0.5
    assert (estimate_right(other, records.correct) == given).all()
    order = np.random.default_rng(0).permutation(300)
    assert records.take(order).probability_right == pytest.approx(given[order], abs=1e-9)
    again = Records(records.confidence, records.prediction, records.label)
    assert (again.probability_right == given).all()


def test_taken_records_know_nothing_of_the_others() -> None:
    """A certificate tests on one half what the other half proposed."""
    records, _ = population(400)
    assert records.label is not None
    changed = records.label.copy()
    changed[200:] = 1
    other = Records(records.confidence, records.prediction, changed)
    assert (records.probability_right != other.probability_right).any()
    half = np.arange(200)
    first, second = records.take(half), other.take(half)
    assert (first.probability_right == second.probability_right).all()


def test_what_is_reported_is_counted() -> None:
    records, _ = population(400)
    found = solve(records, COST, 2.0)
    assert found.accuracy == replay(records, COST, found.thresholds).accuracy
    at = records.exits_taken(found.thresholds)
    assert found.accuracy == records.correct_at(at).mean()
    for point in frontier(records, COST, points=9):
        assert point.accuracy == records.correct_at(records.exits_taken(point.thresholds)).mean()


def test_records_of_equal_confidence_are_held_out_together() -> None:
    """Copies, as sampling with replacement makes them, do not change the penalty that is chosen."""
    records, _ = population(60)
    copies = records.take(np.tile(np.arange(60), 8))
    # Eight times the likelihood against the same penalties: no closer than the weakest allows.
    spread = copies.probability_right.std(axis=0)
    assert (np.abs(spread - records.probability_right.std(axis=0)) < 0.15).all()
    assert CURVED > 1
    assert sorted(RIDGES, reverse=True) == list(RIDGES)


SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as drawn": lambda c: c,
    "constant": lambda c: np.full_like(c, 0.7),
    "all 1": np.ones_like,
    "all 0": np.zeros_like,
    "only 0 and 1": np.round,
    "exits alike": lambda c: np.repeat(c[:, :1], c.shape[1], axis=1),
    "beyond 0..1": lambda c: 20 * c - 10,
    "huge": lambda c: c * np.float32(3e38),
    "one stands out": lambda c: (
        np.where(np.arange(len(c))[:, None] == 0, 1, 0.5).astype(c.dtype) * np.ones_like(c)
    ),
}
ANSWERS: dict[str, Callable[[np.random.Generator, tuple[int, int]], np.ndarray]] = {
    "mixed": lambda rng, shape: rng.random(shape) < 0.6,
    "all right": lambda rng, shape: np.ones(shape, bool),
    "all wrong": lambda rng, shape: np.zeros(shape, bool),
    "told by the first exit": lambda rng, shape: np.arange(shape[0])[:, None] % 2 < np.ones(shape),
    "one right": lambda rng, shape: np.arange(np.prod(shape)).reshape(shape) == 0,
}


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("answers", ANSWERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_odd_records_neither_fail_nor_warn(shape: str, answers: str, exits: int) -> None:
    """Warnings are errors in these tests. One class only is the same as one of these."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 3, 7, 40):
        confidence = SHAPES[shape](rng.random((count, exits)).astype(np.float32))
        right = ANSWERS[answers](rng, (count, exits))
        for label in (np.zeros(count, np.int32), None):
            records = Records(confidence, (~right).astype(np.int32), label)
            given = records.probability_right
            assert given.shape == (count, exits)
            assert ((given >= 0) & (given <= 1)).all()
            constant = records.correct.all(axis=0) | ~records.correct.any(axis=0)
            assert (given[:, constant] == records.accuracy[constant]).all()
            costs = np.arange(1.0, exits + 1)
            solution = solve(records, costs, (1 + exits) / 2)
            assert solution.cost <= (1 + exits) / 2 + 1e-9
            latency = ExitLatency(costs, costs, costs, costs, costs)
            accuracy = float(records.accuracy.max())
            if not accuracy:
                continue
            budget = BudgetConfig(min_accuracy=accuracy)
            assert solve_budget(records, ExitCosts(latency), budget).accuracy >= accuracy


def test_confidence_that_tells_right_from_wrong_perfectly() -> None:
    """Separable: without a penalty the likelihood has no maximum."""
    confidence = np.linspace(0.01, 0.99, 100, dtype=np.float32)[:, None].repeat(2, axis=1)
    right = confidence[:, 0] > 0.5
    given = estimate_right(confidence, np.column_stack([right, right]))
    assert (np.diff(given[:, 0]) > 0).all()
    assert given[:25].max() < 0.2
    assert given[75:].min() > 0.8


def test_without_labels_agreement_is_estimated() -> None:
    records = made_records(500, labelled=False)
    assert (records.probability_right[:, -1] == 1).all()
    assert solve(records, COST, 2.0).cost <= 2.0


def test_many_records_choose_the_penalty_on_some() -> None:
    records, truth = population(25_000)
    assert np.abs(records.probability_right - truth).mean() < 0.05
