"""The methods we compare with do what their descriptions say, and do not beat the optimum."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy import Records, replay, solve
from dvt_edge.policy.baselines import (
    authors_best,
    authors_rule,
    authors_thresholds,
    genetic_search,
)

COST = [1.0, 2.0, 4.0]


def sample(count: int, exits: int = 3, seed: int = 0) -> Records:
    rng = np.random.default_rng(seed)
    hard = rng.random(count)[:, None]
    logits = (np.linspace(0.6, 0.95, exits) - hard) * 8 + rng.normal(0, 0.8, (count, exits))
    confidence = 1 / (1 + np.exp(-logits))
    prediction = (rng.random((count, exits)) > confidence).astype(np.int32)
    return Records(confidence.astype(np.float32), prediction, np.zeros(count, np.int32))


def as_released(confidence: np.ndarray, p: float) -> np.ndarray:
    """The authors' ``dynamic_find_threshold``, sample by sample."""
    count, exits = confidence.shape
    shares = (p / 20) ** np.arange(1, exits + 1)
    shares = shares / shares.sum()
    filtered, thresholds = np.zeros(count), np.full(exits, 1e8)
    for k in range(exits - 1):
        seen, wanted = 0, int(np.floor(count * shares[k]))
        for i in np.argsort(-confidence[:, k], kind="stable"):
            if not filtered[i]:
                seen += 1
                if seen == wanted:
                    thresholds[k] = confidence[i, k]
                    break
        filtered += confidence[:, k] >= thresholds[k]
    thresholds[-1] = -1e8
    return thresholds


@pytest.mark.parametrize("p", [1, 7, 20, 33, 59])
@pytest.mark.parametrize("exits", [2, 3, 4])
def test_the_authors_rule_is_theirs(p: int, exits: int) -> None:
    for count in (1, 2, 10, 300):
        records = sample(count, exits, seed=count)
        ours, theirs = authors_thresholds(records, p), as_released(records.confidence, p)
        leaves = records.confidence >= ours
        assert leaves.tolist() == (records.confidence >= theirs).tolist()


def test_the_authors_rule_spends_more_with_p() -> None:
    solutions = authors_rule(sample(1000), COST)
    assert len(solutions) == 59
    assert (np.diff([s.cost for s in solutions]) >= 0).all()
    equal_shares = solutions[19].exit_fraction  # p = 20
    assert equal_shares == pytest.approx([1 / 3] * 3, abs=0.01)


@pytest.mark.parametrize("limit", [1.0, 1.3, 2.0, 3.0, 4.0])
def test_no_baseline_beats_the_optimum_or_exceeds_the_limit(limit: float) -> None:
    records = sample(1000)
    best = solve(records, COST, limit)
    for other in (authors_best(records, COST, limit), genetic_search(records, COST, limit)):
        assert other.cost <= limit + 1e-9
        assert other.accuracy <= best.accuracy


def test_the_genetic_search_comes_close_and_repeats_itself() -> None:
    records = sample(1000)
    found = genetic_search(records, COST, 2.0, seed=3)
    assert found.accuracy >= solve(records, COST, 2.0).accuracy - 0.02
    assert genetic_search(records, COST, 2.0, seed=3).thresholds.tolist() == (
        found.thresholds.tolist()
    )
    assert replay(records, COST, found.thresholds).accuracy == found.accuracy


@pytest.mark.parametrize("exits", [1, 2, 3, 4, 5])
def test_one_record(exits: int) -> None:
    records, cost = sample(1, exits), np.arange(1.0, exits + 1)
    assert genetic_search(records, cost, float(exits), generations=3).cost <= exits
    assert authors_best(records, cost, float(exits)).cost <= exits


def test_bad_arguments_are_refused() -> None:
    records = sample(10)
    for search in (authors_best, genetic_search):
        with pytest.raises(BudgetError, match="smallest possible is 1"):
            search(records, COST, 0.5)
        with pytest.raises(BudgetError, match="positive number"):
            search(records, COST, 0.0)
        with pytest.raises(DataError, match="expected 3 costs"):
            search(records, [1.0], 2.0)
    with pytest.raises(DataError, match="found 0"):
        authors_thresholds(records, 0)
    with pytest.raises(DataError, match="population of 8"):
        genetic_search(records, COST, 2.0, population=3)
