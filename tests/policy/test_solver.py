"""The solver against brute force over all thresholds that make a difference."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import Records, Solution, replay, solve
from tests.policy.conftest import all_outcomes, expected_worth, random_records, total_worth


def _costs(rng: np.random.Generator, exits: int) -> np.ndarray:
    """Increasing whole numbers, so that brute force and solver add up without rounding."""
    return np.cumsum(rng.integers(1, 6, exits)).astype(float)


def _brute_force(records: Records, costs: np.ndarray, limit: float) -> tuple[int, float]:
    """Highest expected worth, and least total cost among equals, over all thresholds in limit."""
    outcomes = all_outcomes(records, expected_worth(records))
    worth, total = outcomes[:, 0], outcomes[:, 1:] @ costs
    fits = total <= limit * len(records)
    best = int(worth[fits].max())
    return best, float(total[fits & (worth == best)].min())


def _worth(records: Records, solution: Solution) -> int:
    return total_worth(records, expected_worth(records), solution.thresholds)


def _check(records: Records, costs: np.ndarray, limit: float, solution: Solution) -> None:
    """What every solution has to be: feasible, and what replaying it gives."""
    again = replay(records, costs, solution.thresholds)
    assert again.accuracy == solution.accuracy
    assert again.cost == solution.cost
    np.testing.assert_array_equal(again.exit_fraction, solution.exit_fraction)
    assert solution.cost <= limit * (1 + 1e-9)
    assert solution.exit_fraction.sum() == pytest.approx(1)
    assert solution.thresholds[-1] == -np.inf
    assert not np.isnan(solution.thresholds).any()


@pytest.mark.parametrize("exits", [1, 2, 3])
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_optimum_is_brute_forces(exits: int, labelled: bool) -> None:
    """Up to three exits nothing is expected to be better, and nothing as good is cheaper."""
    rng = np.random.default_rng(exits)
    for _ in range(500):
        count, levels = int(rng.integers(1, 9)), int(rng.integers(1, 9))
        records = random_records(rng, count, exits, levels, labelled=labelled)
        costs = _costs(rng, exits)
        # Totals that are met exactly are the interesting limits: half of them are.
        total = rng.integers(costs[0] * count, costs[-1] * count + 2)
        limit = max((total + rng.choice([0, 0.5])) / count, costs[0])
        solution = solve(records, costs, limit)
        _check(records, costs, limit, solution)
        best, cost = _brute_force(records, costs, limit + 1e-9)
        assert _worth(records, solution) == best
        assert solution.cost * count == pytest.approx(cost)


def test_optimum_with_many_records() -> None:
    """More first thresholds than one vectorised sweep takes."""
    rng = np.random.default_rng(7)
    for _ in range(3):
        records = random_records(rng, 150, 3, 200)
        costs = _costs(rng, 3)
        limit = float(rng.uniform(costs[0], costs[-1]))
        best, cost = _brute_force(records, costs, limit)
        solution = solve(records, costs, limit)
        assert _worth(records, solution) == best
        assert solution.cost * 150 == pytest.approx(cost)


@pytest.mark.parametrize("exits", [4, 5])
def test_more_exits_are_feasible_and_no_worse_than_static(exits: int) -> None:
    """From four exits on the search is not exact, but keeps the budget and beats static exits."""
    rng = np.random.default_rng(exits)
    for _ in range(100 if exits == 4 else 8):
        records = random_records(rng, int(rng.integers(1, 7)), exits, int(rng.integers(1, 6)))
        costs = _costs(rng, exits)
        limit = float(rng.uniform(costs[0], costs[-1] * 1.1))
        solution = solve(records, costs, limit)
        _check(records, costs, limit, solution)
        assert solution.accuracy >= records.accuracy[costs <= limit].max() - 1e-12


def test_four_exits_find_the_optimum_of_small_problems() -> None:
    """With few records the candidates hold every threshold that makes a difference."""
    rng = np.random.default_rng(11)
    for _ in range(100):
        count = int(rng.integers(1, 7))
        records = random_records(rng, count, 4, 4)
        costs = _costs(rng, 4)
        limit = float(rng.uniform(costs[0], costs[-1]))
        solution = solve(records, costs, limit)
        assert _worth(records, solution) == _brute_force(records, costs, limit)[0]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    exits=st.integers(1, 4),
    count=st.integers(1, 30),
    levels=st.integers(1, 30),
    limits=st.tuples(st.floats(0.5, 30), st.floats(0.5, 30)),
)
def test_a_larger_budget_is_never_worse(
    seed: int, exits: int, count: int, levels: int, limits: tuple[float, float]
) -> None:
    """What is expected does not fall as the budget grows."""
    rng = np.random.default_rng(seed)
    records, costs = random_records(rng, count, exits, levels), _costs(rng, exits)
    small, large = sorted(limits)
    assume(small >= costs[0])
    tight, loose = solve(records, costs, small), solve(records, costs, large)
    _check(records, costs, small, tight)
    _check(records, costs, large, loose)
    assert _worth(records, loose) >= _worth(records, tight)


def test_budget_of_exactly_the_first_exit() -> None:
    """Then everybody leaves there, rounding or not."""
    rng = np.random.default_rng(3)
    for exits in (1, 2, 3, 4):
        for _ in range(30):
            records = random_records(rng, 7, exits, 5)
            costs = np.cumsum(rng.random(exits) + 0.01)
            solution = solve(records, costs, float(costs[0]))
            assert solution.exit_fraction[0] == 1
            assert solution.cost == pytest.approx(costs[0])


def test_unlimited_budget() -> None:
    """With a budget that does not bind, accuracy is at least that of every exit alone."""
    rng = np.random.default_rng(5)
    records = random_records(rng, 100, 3, 50)
    assert solve(records, [1, 2, 3], 1e9).accuracy >= records.accuracy.max()


def test_equal_accuracy_takes_the_cheapest() -> None:
    """Exits that all agree are not paid for."""
    confidence = np.array([[0.5, 0.6, 0.7]] * 4, np.float32)
    records = Records(confidence, np.ones((4, 3), np.int32), np.ones(4, np.int32))
    assert solve(records, [1, 2, 3], 3).cost == 1


def test_threshold_stands_between_neighbours() -> None:
    """Halfway, so that rounding on another machine moves nobody across it."""
    confidence = np.array([[0.9, 1], [0.5, 1]], np.float32)
    records = Records(confidence, np.array([[1, 1], [0, 1]], np.int32), np.ones(2, np.int32))
    solution = solve(records, [1, 3], 2)
    assert solution.thresholds[0] == pytest.approx(0.7)
    assert solution.accuracy == 1


def test_neighbouring_floats_are_told_apart() -> None:
    """Confidences that differ in the last bit only."""
    low = np.float32(0.75)
    high = np.nextafter(low, np.float32(1))
    records = Records(
        np.array([[high, 1], [low, 1]], np.float32),
        np.array([[1, 1], [0, 1]], np.int32),
        np.ones(2, np.int32),
    )
    solution = solve(records, [1, 3], 2)
    assert solution.accuracy == 1
    np.testing.assert_array_equal(solution.exit_fraction, [0.5, 0.5])


@settings(deadline=None, max_examples=200)
@given(first=st.floats(1e-6, 1e6), share=st.floats(0.01, 0.999999))
def test_budget_too_small_names_a_feasible_one(first: float, share: float) -> None:
    """The number in the message can be put into the profile as it is."""
    records = Records(np.full((2, 2), 0.5, np.float32), np.zeros((2, 2), np.int32))
    costs = [first, 2 * first]
    with pytest.raises(BudgetError, match="smallest possible is") as caught:
        solve(records, costs, first * share)
    named = float(re.findall(r"is ([\d.e+-]+)$", str(caught.value))[0])
    assert first <= named <= first * 1.0011
    assert solve(records, costs, named).cost == pytest.approx(first)


@pytest.mark.parametrize("first", [0.1234, 1.234, 12.34, 123.4, 1234.0])
def test_budget_named_after_rounding_noise(first: float) -> None:
    """A cost one bit above a short number is not rounded to that number."""
    cost = float(np.nextafter(first, np.inf))
    records = Records(np.full((2, 1), 0.5, np.float32), np.zeros((2, 1), np.int32))
    with pytest.raises(BudgetError) as caught:
        solve(records, [cost], first / 2)
    solve(records, [cost], float(str(caught.value).rsplit(" ", maxsplit=1)[1]))


@pytest.mark.parametrize("limit", [0, -1, np.nan, np.inf, -np.inf])
def test_budget_that_is_no_number(limit: float) -> None:
    """A budget is a positive number."""
    records = Records(np.full((2, 1), 0.5, np.float32), np.zeros((2, 1), np.int32))
    with pytest.raises(BudgetError, match="positive number"):
        solve(records, [1], limit)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ([1, 2], "expected 3 costs"),
        ([[1, 2, 3]], "expected 3 costs"),
        ([1, 3, 2], "increase from exit to exit"),
        ([1, 2, 2], "increase from exit to exit"),
        ([0, 1, 2], "must be positive"),
        ([-1, 1, 2], "must be positive"),
        ([1, np.nan, 3], "increase"),
        ([1, 2, np.inf], "increase"),
    ],
)
def test_bad_costs(costs: Sequence[float], message: str) -> None:
    """Costs are finite, positive, cumulative and one per exit."""
    records = Records(np.full((2, 3), 0.5, np.float32), np.zeros((2, 3), np.int32))
    with pytest.raises(DataError, match=message):
        solve(records, costs, 10)
    with pytest.raises(DataError, match=message):
        replay(records, costs, [0, 0, 0])


def test_replay() -> None:
    """Leaving at the first exit that reaches its threshold; the last takes all that are left."""
    records = Records(
        np.array([[0.75, 0.1, 0.1], [0.1, 0.5, 0.1], [0.4, 0.4, 0.1]], np.float32),
        np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], np.int32),
        np.ones(3, np.int32),
    )
    solution = replay(records, [1, 2, 4], [0.75, 0.5, 0.99])
    assert solution.accuracy == 1
    assert solution.cost == pytest.approx(7 / 3)
    np.testing.assert_allclose(solution.exit_fraction, 1 / 3)
    np.testing.assert_array_equal(solution.thresholds, [0.75, 0.5, -np.inf])


def test_replay_needs_all_thresholds() -> None:
    """One per exit."""
    records = Records(np.full((2, 3), 0.5, np.float32), np.zeros((2, 3), np.int32))
    with pytest.raises(DataError, match="expected 3 thresholds"):
        replay(records, [1, 2, 3], [0.5, 0.5])


def test_one_record() -> None:
    """One image is enough for thresholds: it leaves where it is first right."""
    confidence = np.array([[0.9, 0.2, 0.3]], np.float32)
    records = Records(confidence, np.array([[0, 1, 1]], np.int32), np.array([1], np.int32))
    assert solve(records, [1, 2, 3], 3).exit_fraction.tolist() == [0, 1, 0]
    assert solve(records, [1, 2, 3], 1.5).exit_fraction.tolist() == [1, 0, 0]


def test_five_exits_keep_the_budget_when_all_leave_early() -> None:
    """Thresholds under which nobody reaches the last three exits are held to the budget too."""
    confidence = np.tile(np.array([[0.5], [0.75]], np.float32), 5)
    records = Records(
        confidence, np.array([[0, 1, 1, 1, 1]] * 2, np.int32), np.ones(2, np.int32)
    )  # the first exit is wrong, all others are right
    solution = solve(records, [1, 2, 3, 4, 5], 1.5)
    assert (solution.cost, solution.accuracy) == (1.5, 0.5)
