"""The solver against every combination of thresholds, on thousands of small random problems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import Records, frontier, replay, solve
from dvt_edge.policy.budget import solve_budget
from dvt_edge.policy.exit_costs import ExitCosts, ExitLatency
from dvt_edge.policy.search import Problem, search
from dvt_edge.policy.solver import RIGHT, Limit, cheapest, integer_prices, make_problem
from dvt_edge.policy.statistic import TAIL_SHARE, Statistic
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records
from tests.policy.conftest import all_outcomes, expected_worth, random_records, total_worth

TOLERANCE = 1e-9


def random_costs(rng: np.random.Generator, exits: int) -> np.ndarray:
    steps = rng.choice([0.1, 0.3, 1.0, 2.5], exits) if rng.random() < 0.5 else rng.random(exits)
    return np.cumsum(steps + 1e-3)


def some_limit(rng: np.random.Generator, outcomes: np.ndarray, costs: np.ndarray) -> float:
    """Often exactly what one combination costs, which is where rounding would show."""
    if rng.random() < 0.5:
        row = outcomes[rng.integers(len(outcomes)), 1:]
        return float(row / row.sum() @ costs)
    return float(rng.uniform(costs[0], costs[-1]))


def some_problem(rng: np.random.Generator, records: Records, limits: list[Limit]) -> Problem:
    """Answers are worth right or wrong, what the records let expect, or anything."""
    kind = rng.choice(["counted", "expected", "anything"])
    problem = make_problem(records, limits, counted=bool(kind == "counted"))
    if kind == "anything":
        few = rng.choice([3, RIGHT])  # with ties or without
        problem = replace(problem, value=rng.integers(0, few + 1, records.confidence.shape))
    return problem


SIZES = [
    (1, 200, 6),
    (2, 900, 12),
    (3, 900, 9),
    pytest.param(4, 400, 6, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("exits", "problems", "largest"), SIZES)
def test_optimum_and_its_price_equal_brute_force(exits: int, problems: int, largest: int) -> None:
    rng = np.random.default_rng(exits)
    for _ in range(problems):
        records = random_records(rng, int(rng.integers(1, largest + 1)), exits)
        costs, worth = random_costs(rng, exits), expected_worth(records)
        outcomes = all_outcomes(records, worth)
        limit = some_limit(rng, outcomes, costs)
        spent = outcomes[:, 1:] @ costs / len(records)
        allowed = spent <= limit + TOLERANCE
        top = outcomes[allowed, 0].max()
        price = spent[allowed & (outcomes[:, 0] == top)].min()

        found = solve(records, costs, limit)

        assert total_worth(records, worth, found.thresholds) == top
        assert found.cost == pytest.approx(price, abs=TOLERANCE)
        assert found.cost <= limit + TOLERANCE
        assert found.thresholds[-1] == -np.inf


@pytest.mark.parametrize(("exits", "problems", "largest"), SIZES)
def test_cheapest_of_an_accuracy_equals_brute_force(
    exits: int, problems: int, largest: int
) -> None:
    rng = np.random.default_rng(100 + exits)
    for _ in range(problems // 2):
        records = random_records(rng, int(rng.integers(1, largest + 1)), exits)
        costs = random_costs(rng, exits)
        problem = some_problem(rng, records, [Limit(costs, np.inf)])
        outcomes = all_outcomes(records, problem.value)
        spent = outcomes[:, 1:] @ integer_prices(costs)
        need = int(rng.integers(0, outcomes[:, 0].max() + 1))
        price = spent[outcomes[:, 0] >= need].min()
        value = outcomes[spent == price, 0].max()

        found = cheapest(problem, need)

        assert found is not None
        assert (found.price, found.value) == (price, value)
        most = int(outcomes[:, 0].max())
        assert search(problem.limited(problem.allowance, most + 1)) is None


@pytest.mark.parametrize("exits", [2, 3, 4])
def test_two_limits_at_once_equal_brute_force(exits: int) -> None:
    rng = np.random.default_rng(200 + exits)
    for _ in range(150):
        records = random_records(rng, int(rng.integers(1, 8)), exits)
        first, second = random_costs(rng, exits), random_costs(rng, exits)
        outcomes = all_outcomes(records, records.correct)
        limits = [Limit(first, some_limit(rng, outcomes, first))]
        limits.append(Limit(second, some_limit(rng, outcomes, second)))
        allowed = np.ones(len(outcomes), bool)
        for cost, limit in limits:
            allowed &= outcomes[:, 1:] @ cost / len(records) <= limit + TOLERANCE

        problem = some_problem(rng, records, limits)
        found = search(problem)
        outcomes = all_outcomes(records, problem.value)

        assert (found is not None) == allowed.any()
        if found is not None:
            assert found.value == outcomes[allowed, 0].max()


@pytest.mark.parametrize("statistic", list(TAIL_SHARE))
def test_quantile_of_the_cost_equals_brute_force(statistic: Statistic) -> None:
    """Every frame of an exit taking the same time."""
    rng = np.random.default_rng(300)
    for _ in range(150):
        records = random_records(rng, int(rng.integers(1, 25)), 3)
        costs, worth = random_costs(rng, 3), expected_worth(records)
        outcomes = all_outcomes(records, worth)
        limit = float(rng.uniform(costs[0], costs[-1] * 1.1))
        beyond = outcomes[:, 1:] @ (costs > limit) / len(records)
        allowed = beyond <= TAIL_SHARE[statistic] + TOLERANCE

        latency = ExitLatency(costs, costs, costs, costs, costs)
        budget = BudgetConfig(latency_ms=limit, statistic=statistic)
        found = solve_budget(records, ExitCosts(latency), budget)

        assert total_worth(records, worth, found.thresholds) == outcomes[allowed, 0].max()
        assert found.exit_fraction @ (costs > limit) <= TAIL_SHARE[statistic] + TOLERANCE


@pytest.mark.parametrize(("exits", "largest"), [(1, 5), (2, 12), (3, 9), (4, 6)])
def test_frontier_is_on_the_pareto_front(exits: int, largest: int) -> None:
    """Nothing as good is cheaper and nothing as cheap is better, from one end to the other."""
    rng = np.random.default_rng(400 + exits)
    for _ in range(60):
        records = random_records(rng, int(rng.integers(1, largest + 1)), exits)
        costs, worth = random_costs(rng, exits), expected_worth(records)
        outcomes = all_outcomes(records, worth)
        spent = outcomes[:, 1:] @ costs / len(records)

        found = frontier(records, costs)

        values = [total_worth(records, worth, point.thresholds) for point in found]
        assert found[0].cost == costs[0]
        assert values[-1] == outcomes[:, 0].max()
        for value, point in zip(values, found, strict=True):
            assert point.cost <= spent[outcomes[:, 0] >= value].min() + TOLERANCE
            assert value >= outcomes[spent <= point.cost - TOLERANCE, 0].max(initial=0)
        assert (np.diff(values) > 0).all()
        assert (np.diff([point.cost for point in found]) > 0).all()


def test_a_long_frontier_is_a_subset_of_exact_solutions() -> None:
    records = made_records(3000, 3)
    costs = np.array([1.0, 2.0, 4.0])
    curve = frontier(records, costs, points=20)
    assert 10 <= len(curve) <= 20
    assert curve[0].cost == costs[0]
    assert (np.diff([s.cost for s in curve]) > 0).all()
    worth = expected_worth(records)
    values = [total_worth(records, worth, s.thresholds) for s in curve]
    assert (np.diff(values) > 0).all()
    for value, point in zip(values[1:], curve[1:], strict=True):
        cheaper = solve(records, costs, point.cost - 1e-6)
        assert total_worth(records, worth, cheaper.thresholds) < value


@pytest.mark.parametrize("exits", [3, 4])
def test_larger_problems_beat_every_sampled_combination(exits: int) -> None:
    records = made_records(600, exits)
    costs = np.cumsum(1.8 ** np.arange(exits))
    limit = float(costs[0] + costs[-1]) / 3
    worth = expected_worth(records)
    best = total_worth(records, worth, solve(records, costs, limit).thresholds)
    rng = np.random.default_rng(1)
    for _ in range(2000):
        thresholds = [*(rng.choice(records.confidence[:, k]) for k in range(exits - 1)), -np.inf]
        other = replay(records, costs, thresholds)
        assert other.cost > limit or total_worth(records, worth, other.thresholds) <= best


def test_five_exits_are_at_least_as_good_as_their_best_four() -> None:
    records = made_records(400, 5)
    costs = np.cumsum(1.6 ** np.arange(5))
    limit = float(costs[0] + costs[-1]) / 3
    problem = make_problem(records, [Limit(costs, limit)])
    best = search(problem)
    assert best is not None
    for skipped in range(4):
        kept = [k for k in range(5) if k != skipped]
        less = replace(
            problem,
            confidence=problem.confidence[:, kept],
            value=problem.value[:, kept],
            price=problem.price[:, kept],
        )
        found = search(less)
        assert found is not None
        assert best.value >= found.value - RIGHT


def test_thresholds_lie_between_neighbours_and_survive_rounding_to_float32() -> None:
    upper = np.float32(0.7)
    lower = np.nextafter(upper, np.float32(0))
    confidence = np.array([[upper, 0.5], [lower, 0.5]], np.float32)
    right = np.array([[0, 1], [1, 0]], np.int32)  # the first must leave early, the second must not
    records = Records(confidence, right, np.zeros(2, np.int32))
    found = solve(records, [1.0, 2.0], 2.0)
    assert found.accuracy == 1.0
    assert lower < np.float32(found.thresholds[0]) <= upper

    spread = Records(np.array([[0.8, 0.5], [0.4, 0.5]], np.float32), right, np.zeros(2, np.int32))
    assert solve(spread, [1.0, 2.0], 2.0).thresholds[0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("cost", "limit", "error", "words"),
    [
        ([1, 2, 3], 0, BudgetError, "positive number, found 0"),
        ([1, 2, 3], -1, BudgetError, "positive number, found -1"),
        ([1, 2, 3], np.nan, BudgetError, "positive number, found nan"),
        ([1.23456, 2, 3], 1, BudgetError, "smallest possible is 1.235"),
        ([1, 2], 2, DataError, "expected 3 costs"),
        ([3, 2, 1], 2, DataError, "increase from exit to exit"),
        ([1, 1, 2], 2, DataError, "increase from exit to exit"),
        ([0, 1, 2], 2, DataError, "positive"),
        ([1, np.nan, 3], 2, DataError, "positive"),
    ],
)
def test_bad_budgets_and_costs_are_refused(
    cost: list[float], limit: float, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        solve(made_records(10, 3), cost, limit)


def test_bad_points_are_refused() -> None:
    records = made_records(10, 3)
    with pytest.raises(DataError, match="at least 2 points"):
        frontier(records, [1, 2, 3], points=1)


@pytest.mark.parametrize(
    ("confidence", "label", "words"),
    [
        ([[np.nan, 0.5]], [0], "1 records are not finite"),
        ([[np.inf, 0.5]], [0], "1 records are not finite"),
        ([[0.5, 0.5]], [-1], "classes from 0, found -1"),
        ([[0.5, 0.5]], [0, 1], r"label must have shape \[1\]"),
        (np.empty((0, 2)), [], "records are empty"),
        (np.empty((2, 0)), [0, 0], "records are empty"),
        ([0.5], [0], r"one shape \[N, K\]"),
    ],
)
def test_bad_records_are_refused(confidence: object, label: list[int], words: str) -> None:
    values = np.asarray(confidence, np.float32)
    with pytest.raises(DataError, match=words):
        Records(values, np.zeros(values.shape, np.int32), np.asarray(label, np.int32))


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
def test_one_record_of_one_class(exits: int) -> None:
    records = Records(
        np.full((1, exits), 0.5, np.float32), np.zeros((1, exits), np.int32), np.zeros(1, np.int32)
    )
    found = solve(records, np.arange(1.0, exits + 1), float(exits))
    assert (found.accuracy, found.cost) == (1.0, 1.0)  # the cheapest of equals
