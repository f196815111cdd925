"""The budgeted curve."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy.curve import CurvePoint, budgeted_curve
from tests.conftest import made_records

MACS = (10**9, 2 * 10**9, 5 * 10**9)
LATENCY = (1.0, 2.0, 4.0)
CALIBRATION, TEST = made_records(400), made_records(400, seed=1)


def test_solver_is_never_worse_on_the_records_it_chose_on() -> None:
    """At what each of the authors' points costs, ours is expected to be as accurate at least."""
    curve = budgeted_curve(CALIBRATION, CALIBRATION, MACS, LATENCY)
    theirs = {p.point: p for p in curve if p.rule == "authors"}
    ours = {p.point: p for p in curve if p.rule == "solver"}
    assert theirs.keys() == ours.keys() == set(range(1, 60))
    for point, found in ours.items():
        assert expected_accuracy(found) >= expected_accuracy(theirs[point]) - 1e-9
        assert found.gflops <= theirs[point].gflops * (1 + 1e-9)


def expected_accuracy(point: CurvePoint) -> float:
    at = CALIBRATION.exits_taken(point.thresholds)
    return float(CALIBRATION.probability_right[np.arange(len(at)), at].mean())


def test_figures_follow_from_the_exits() -> None:
    """GFLOPs are cumulative; latency and energy are the exits' means."""
    curve = budgeted_curve(CALIBRATION, TEST, MACS, LATENCY, (3.0, 6.0, 9.0))
    for point in curve:
        share = np.asarray(point.exit_fraction)
        assert share.sum() == pytest.approx(1)
        assert point.gflops == pytest.approx(share @ (1, 3, 8))
        assert point.latency_ms == pytest.approx(share @ LATENCY)
        assert point.energy_mj == pytest.approx(share @ (3, 6, 9))


def test_recorded_thresholds_are_used_as_they_are() -> None:
    """Rows of the checkpoint's table, infinities as strings included."""
    table: list[list[float | str]] = [["inf", 0.7, "-inf"], [0.6, 0.6, "-inf"]]
    curve = budgeted_curve(CALIBRATION, TEST, MACS, LATENCY, recorded=table)
    found = [p for p in curve if p.rule == "recorded"]
    assert [p.thresholds for p in found] == [(np.inf, 0.7, -np.inf), (0.6, 0.6, -np.inf)]
    assert found[0].exit_fraction[0] == 0
