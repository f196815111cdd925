"""The methods we compare with do what their descriptions say, and do not beat the optimum."""

from __future__ import annotations

import numpy as np
import pytest
from baselines import authors_rule, genetic_search, most_right, uniform_margin

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import replay, solve
from tests.conftest import made_records

COST = [1.0, 2.0, 4.0]


@pytest.mark.parametrize("limit", [1.0, 1.3, 2.0, 3.0, 4.0])
def test_no_baseline_beats_the_optimum_or_exceeds_the_limit(limit: float) -> None:
    records = made_records(1000)
    best = most_right(records, COST, limit)
    found = genetic_search(records, COST, limit)
    assert found.cost <= limit + 1e-9
    assert found.accuracy <= best.accuracy
    for other in authors_rule(records, COST):
        assert other.cost > limit or other.accuracy <= best.accuracy


def test_the_genetic_search_comes_close_and_repeats_itself() -> None:
    records = made_records(1000)
    found = genetic_search(records, COST, 2.0, seed=3)
    assert found.accuracy >= solve(records, COST, 2.0).accuracy - 0.02
    assert genetic_search(records, COST, 2.0, seed=3).thresholds.tolist() == (
        found.thresholds.tolist()
    )
    assert replay(records, COST, found.thresholds).accuracy == found.accuracy


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
def test_one_record(exits: int) -> None:
    records, cost = made_records(1, exits), np.arange(1.0, exits + 1)
    assert genetic_search(records, cost, float(exits), generations=3).cost <= exits


def test_bad_arguments_are_refused() -> None:
    records = made_records(10)
    with pytest.raises(BudgetError, match="smallest possible is 1"):
        genetic_search(records, COST, 0.5)
    with pytest.raises(DataError, match="expected 3 costs"):
        genetic_search(records, [1.0], 2.0)
    with pytest.raises(DataError, match="population of 8"):
        genetic_search(records, COST, 2.0, population=3)


def test_the_uniform_margin_holds_for_all_thresholds_at_once() -> None:
    rng, everybody = np.random.default_rng(3), made_records(3000)
    margin, wrong = uniform_margin(COST, 200, 0.1), 0
    for _ in range(200):
        drawn = everybody.take(rng.integers(0, len(everybody), 200))
        chosen = solve(drawn, COST, 1.8)
        wrong += replay(everybody, COST, chosen.thresholds).cost > chosen.cost + margin
    assert wrong <= 0.1 * 200
    assert uniform_margin(COST, 2000, 0.1) < margin / 2
    assert uniform_margin([1.0], 10, 0.1) == 0
