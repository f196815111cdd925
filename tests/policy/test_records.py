"""Records: what is refused, and what counts as right."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import DataError
from dvt_edge.policy import Records

CONFIDENCE = np.array([[0.5, 0.9], [0.8, 0.7], [0.6, 1.0]], np.float32)
PREDICTION = np.array([[1, 2], [0, 0], [4, 3]], np.int32)


def test_labelled() -> None:
    """Right is what the label says."""
    records = Records(CONFIDENCE, PREDICTION, np.array([1, 0, 3], np.int32))
    assert len(records) == 3
    assert records.exits == 2
    np.testing.assert_array_equal(records.correct, [[True, False], [True, True], [False, True]])
    np.testing.assert_allclose(records.accuracy, [2 / 3, 2 / 3])


def test_unlabelled_is_agreement_with_the_last_exit() -> None:
    """Without labels the last exit is the judge."""
    records = Records(CONFIDENCE, PREDICTION)
    np.testing.assert_array_equal(records.correct, [[False, True], [True, True], [False, True]])
    np.testing.assert_allclose(records.accuracy, [1 / 3, 1])


@pytest.mark.parametrize(
    ("confidence", "prediction", "label", "message"),
    [
        (CONFIDENCE, PREDICTION[:, :1], None, r"one shape \[N, K\], found \(3, 2\) and \(3, 1\)"),
        (CONFIDENCE[:, 0], PREDICTION[:, 0], None, r"one shape \[N, K\]"),
        (CONFIDENCE[:0], PREDICTION[:0], None, "records are empty"),
        (CONFIDENCE[:, :0], PREDICTION[:, :0], None, "records are empty"),
        (np.where(CONFIDENCE > 0.8, np.nan, CONFIDENCE), PREDICTION, None, "of 2 records are not"),
        (np.where(CONFIDENCE < 0.55, np.inf, CONFIDENCE), PREDICTION, None, "of 1 records are not"),
        (CONFIDENCE, PREDICTION, np.zeros(2, np.int32), r"shape \[3\], found \(2,\)"),
        (CONFIDENCE, PREDICTION, np.zeros((3, 1), np.int32), r"shape \[3\]"),
        (CONFIDENCE, PREDICTION, np.array([0, -1, 2], np.int32), "classes from 0, found -1"),
    ],
    ids=[
        "shapes",
        "one axis",
        "no images",
        "no exits",
        "nan",
        "inf",
        "short labels",
        "label axes",
        "negative label",
    ],
)
def test_refused(
    confidence: np.ndarray, prediction: np.ndarray, label: np.ndarray | None, message: str
) -> None:
    """Records that no thresholds could be chosen on."""
    with pytest.raises(DataError, match=message):
        Records(confidence, prediction, label)


def test_what_counts_as_right() -> None:
    """The label, or the last exit's answer where labels are missing."""
    prediction = np.array([[1, 2], [2, 2]], np.int32)
    confidence = np.full((2, 2), 0.5, np.float32)
    labelled = Records(confidence, prediction, np.array([1, 0], np.int32))
    assert labelled.truth.tolist() == [1, 0]
    assert labelled.correct.tolist() == [[True, False], [False, False]]
    unlabelled = Records(confidence, prediction)
    assert unlabelled.truth.tolist() == [2, 2]
    assert unlabelled.correct_at(np.array([0, 0])).tolist() == [False, True]


def test_exits_taken() -> None:
    """The first exit whose threshold is reached, the last one for all others."""
    confidence = np.array([[0.9, 0.1, 0.1], [0.2, 0.7, 0.1], [0.2, 0.3, 0.1]], np.float32)
    records = Records(confidence, np.zeros((3, 3), np.int32))
    at = records.exits_taken([0.5, 0.8, 0.9])
    assert at.tolist() == [0, 2, 2]
    assert records.exits_taken([0.5, 0.5, np.inf]).tolist() == [0, 1, 2]
    assert records.exit_shares(at).tolist() == [1 / 3, 0, 2 / 3]
    with pytest.raises(DataError, match="expected 3 thresholds"):
        records.exits_taken([0.5, 0.5])


def test_parts_of_records() -> None:
    rng = np.random.default_rng(0)
    records = Records(
        rng.random((5, 3)).astype(np.float32),
        rng.integers(0, 4, (5, 3)).astype(np.int32),
        np.arange(5, dtype=np.int32),
    )
    some = records.take(np.array([4, 1]))
    assert some.label is not None
    assert some.label.tolist() == [4, 1]
    assert (some.confidence == records.confidence[[4, 1]]).all()
    unlabelled = Records(records.confidence, records.prediction)
    first = unlabelled.first_exits(2)
    assert first.exits == 2
    assert (first.truth == unlabelled.truth).all()


def test_groups_stay_with_their_records() -> None:
    records = Records(CONFIDENCE, PREDICTION, group=np.array([4, 4, 1], np.int32))
    assert records.label is None
    for part in (records.take(np.array([2, 0])), records.first_exits(1).take(np.array([2, 0]))):
        assert part.group is not None
        assert part.group.tolist() == [1, 4]
    assert Records(CONFIDENCE, PREDICTION).take(np.array([0])).group is None
    with pytest.raises(DataError, match=r"group must have shape \[3\], found \(2,\)"):
        Records(CONFIDENCE, PREDICTION, group=np.zeros(2, np.int32))
