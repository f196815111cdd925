"""Which classes and images are easy."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy import Records
from dvt_edge.report.classes import (
    both_ends,
    easiest_and_hardest,
    order_classes,
)
from tests.conftest import made_records


def test_classes_by_how_early_they_leave() -> None:
    """The class whose images leave first comes first; classes without images do not come."""
    class_of = np.array([0, 0, 2, 2, 5, 5])
    at = np.array([2, 2, 0, 1, 0, 0])
    assert order_classes(class_of, at).tolist() == [5, 2, 0]


def test_many_classes_give_both_ends() -> None:
    """Of many classes the easiest and the hardest are taken; too few images say too little."""
    class_of = np.concatenate([np.repeat(np.arange(100), 5), [100]])
    at = np.concatenate([np.repeat(np.arange(100) >= 50, 5), [0]]).astype(np.int64)
    shown = order_classes(class_of, at, most=6)
    assert shown.tolist() == [0, 1, 2, 97, 98, 99]
    assert 100 not in shown


@pytest.mark.parametrize(
    ("most", "expected"), [(1, [0]), (2, [0, 4]), (3, [0, 1, 4]), (5, [0, 1, 2, 3, 4]), (9, None)]
)
def test_both_ends(most: int, expected: list[int] | None) -> None:
    ordered = np.arange(5)
    assert both_ends(ordered, most).tolist() == (expected or ordered.tolist())


def test_easiest_and_hardest_by_hand() -> None:
    """Early, right and sure is easy; late and unsure before is hard."""
    confidence = np.array(
        [[0.95, 0.99], [0.9, 0.99], [0.99, 0.99], [0.2, 0.9], [0.1, 0.9]], np.float32
    )
    prediction = np.array([[1, 1], [1, 1], [0, 0], [1, 1], [1, 0]], np.int32)
    records = Records(confidence, prediction, np.ones(5, np.int32))
    at = np.array([0, 0, 0, 1, 1])
    easiest, hardest = easiest_and_hardest(records, at, np.arange(5), count=2)
    assert easiest.tolist() == [0, 1]  # 2 is surer, and wrong
    assert hardest.tolist() == [4, 3]


@pytest.mark.parametrize("rows", [1, 2, 3, 50])
def test_no_image_is_easy_and_hard(rows: int) -> None:
    records = made_records()
    at = np.zeros(len(records), np.int64)
    easiest, hardest = easiest_and_hardest(records, at, np.arange(rows))
    assert not set(easiest) & set(hardest)
    assert len(easiest) + len(hardest) <= rows
    assert len(hardest) <= 4


def test_one_exit() -> None:
    """With a single exit there is nothing before it; its own confidence decides."""
    confidence = np.array([[0.9], [0.2], [0.5]], np.float32)
    records = Records(confidence, np.zeros((3, 1), np.int32), np.zeros(3, np.int32))
    easiest, hardest = easiest_and_hardest(records, np.zeros(3, np.int64), np.arange(3), count=1)
    assert (easiest.tolist(), hardest.tolist()) == ([0], [1])
