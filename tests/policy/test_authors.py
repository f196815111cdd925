"""The authors' rule, as their release computes it."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy import replay
from dvt_edge.policy.authors import AUTHORS_BUDGETS, authors_thresholds
from tests.conftest import made_records


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
        records = made_records(count, exits, seed=count)
        ours, theirs = authors_thresholds(records, p), as_released(records.confidence, p)
        leaves = records.confidence >= ours
        assert leaves.tolist() == (records.confidence >= theirs).tolist()


def test_more_is_spent_with_p() -> None:
    records = made_records(1000)
    solutions = [
        replay(records, [1.0, 2.0, 4.0], authors_thresholds(records, p)) for p in AUTHORS_BUDGETS
    ]
    assert len(solutions) == 59
    assert (np.diff([s.cost for s in solutions]) >= 0).all()
    equal_shares = solutions[19].exit_fraction  # p = 20
    assert equal_shares == pytest.approx([1 / 3] * 3, abs=0.01)
