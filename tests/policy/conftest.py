"""Small random problems, and brute force over all thresholds that make a difference."""

from __future__ import annotations

import itertools

import numpy as np

from dvt_edge.policy import Records
from dvt_edge.policy.solver import RIGHT


def random_records(
    rng: np.random.Generator,
    count: int,
    exits: int,
    levels: int | None = None,
    *,
    labelled: bool | None = None,
) -> Records:
    """Records with ties, duplicates, and confidences that say little.

    The number of different confidences, and whether there are labels, are drawn unless given.
    """
    levels = levels or int(rng.choice([1, 2, 4, 1000]))
    confidence = rng.integers(0, levels, (count, exits)) / levels
    classes = int(rng.choice([1, 2, 3]))
    prediction = rng.integers(0, classes, (count, exits))
    if rng.random() < 0.3:  # duplicates
        copies = rng.integers(0, count, count)
        confidence, prediction = confidence[copies], prediction[copies]
    if labelled is None:
        labelled = bool(rng.random() < 0.8)
    label = rng.integers(0, classes, count).astype(np.int32) if labelled else None
    return Records(confidence.astype(np.float32), prediction.astype(np.int32), label)


def expected_worth(records: Records) -> np.ndarray:
    """[N, K]: what the solver adds up, in its units."""
    return np.rint(records.probability_right * RIGHT).astype(np.int64)


def total_worth(records: Records, worth: np.ndarray, thresholds: np.ndarray) -> int:
    """The sum of ``worth`` [N, K] at the exits taken."""
    return int(worth[np.arange(len(records)), records.exits_taken(thresholds)].sum())


def all_outcomes(records: Records, worth: np.ndarray) -> np.ndarray:
    """[T, K + 1]: total ``worth`` [N, K] and samples per exit, for all thresholds."""
    count, exits = records.confidence.shape
    values = [
        np.append(np.unique(records.confidence[:, k]), np.float32(np.inf)) for k in range(exits - 1)
    ]
    combinations = list(itertools.product(*values))
    thresholds = np.array(combinations).reshape(len(combinations), exits - 1)  # (T, K-1)
    leaves = records.confidence[None, :, :-1] >= thresholds[:, None, :]  # (T, N, K-1)
    leaves = np.concatenate([leaves, np.ones((len(leaves), count, 1), bool)], axis=2)
    at = leaves.argmax(axis=2)  # (T, N)
    total = worth.astype(np.int64)[np.arange(count), at].sum(axis=1)
    return np.column_stack([total, *((at == k).sum(axis=1) for k in range(exits))])
