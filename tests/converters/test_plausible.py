"""Answers that are no better than guesses, and decisions that do not last, are not built."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.converters.plausible import check_plausible
from dvt_edge.errors import BuildError
from dvt_edge.policy import Records


def _records(
    label: npt.ArrayLike | None, *exits: npt.ArrayLike, confidence: float = 0.5
) -> Records:
    prediction = np.stack([np.asarray(part) for part in exits], axis=1).astype(np.int32)
    truth = None if label is None else np.asarray(label, np.int32)
    return Records(np.full(prediction.shape, confidence, np.float32), prediction, truth)


TEN = np.arange(200) % 10
RARE = np.arange(60) < 2
THOUSAND = np.arange(500)


@pytest.mark.parametrize(
    "records",
    [
        _records(TEN, TEN),
        _records(TEN, np.zeros(200), TEN),  # the first exit may know nothing
        _records(TEN, np.where(np.arange(200) % 3, TEN, 0)),
        _records(None, np.zeros(200)),  # without labels nobody can tell
        _records(TEN[:20], np.zeros(20)),
        _records(RARE, RARE),
        _records(RARE, np.arange(60) < 1),  # right but for one of two
        _records(THOUSAND, np.where(THOUSAND % 50, 0, THOUSAND)),  # 2 % of a thousand classes
    ],
)
def test_better_than_guessing(records: Records) -> None:
    check_plausible(records, 0.0)


@pytest.mark.parametrize(
    ("records", "guess"),
    [
        (_records(TEN, np.zeros(200)), "10.0"),  # one class for all
        (_records(TEN, np.roll(TEN, 1), np.zeros(200)), "10.0"),
        (_records(TEN, np.repeat(np.arange(10), 20)), "10.0"),
        (_records(RARE, np.zeros(60)), "96.7"),  # right for 58 of 60 images
        (_records(THOUSAND, np.full(500, 7)), "0.2"),
    ],
)
def test_guessing(records: Records, guess: str) -> None:
    """The message has both shares and the usual causes."""
    with pytest.raises(BuildError, match=rf"guessing gives {guess} %; check input\.mean") as caught:
        check_plausible(records, 0.0)
    assert "\n" not in str(caught.value)


def test_decisions() -> None:
    """Half of them may change, more may not, labels or none."""
    for records in (_records(TEN, TEN), _records(None, TEN)):
        check_plausible(records, 0.5)
        check_plausible(records.take(np.arange(29)), 1.0)  # too few to tell
        with pytest.raises(BuildError, match="sends 51 % of the calibration images to another"):
            check_plausible(records, 0.51)
