"""The authors' rule, as their release computes it."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import DataError
from dvt_edge.policy import Records, replay
from dvt_edge.policy.authors import AUTHORS_BUDGETS, authors_thresholds


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


def test_more_is_spent_with_p() -> None:
    records = sample(1000)
    solutions = [
        replay(records, [1.0, 2.0, 4.0], authors_thresholds(records, p)) for p in AUTHORS_BUDGETS
    ]
    assert len(solutions) == 59
    assert (np.diff([s.cost for s in solutions]) >= 0).all()
    equal_shares = solutions[19].exit_fraction  # p = 20
    assert equal_shares == pytest.approx([1 / 3] * 3, abs=0.01)


def test_p_is_positive() -> None:
    with pytest.raises(DataError, match="found 0"):
        authors_thresholds(sample(10), 0)
