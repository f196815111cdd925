"""The choices of thresholds that are compared."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy import Records
from dvt_edge.policy.choose import finite_thresholds
from dvt_edge.report.collect import Choices
from tests.conftest import made_records


@pytest.mark.parametrize(
    ("threshold", "expected"), [(np.inf, None), (-np.inf, 0.0), (-0.5, 0.0), (0.25, 0.25)]
)
def test_thresholds_for_json(threshold: float, expected: float | None) -> None:
    assert finite_thresholds(np.array([threshold])) == (expected,)


def test_one_exit() -> None:
    """A cascade of one stage has a curve of one point."""
    records = Records(np.full((9, 1), 0.5, np.float32), np.zeros((9, 1), np.int32))
    choices = Choices(records, np.array([2.0]), None)
    curve = choices.frontiers()["latency"]
    assert [choices.point(t).latency_ms for t in curve] == [2.0]


def test_counts_by_class() -> None:
    """Exits are counted for the classes shown, in their order."""
    records = made_records(200, classes=4)
    assert records.label is not None
    choices = Choices(records, np.array([1.0, 2.0, 3.0]), None)
    point = choices.point([np.inf, -np.inf, -np.inf], [3, 0])
    images = np.bincount(records.label)
    assert point.class_exits == ((0, images[3], 0), (0, images[0], 0))
