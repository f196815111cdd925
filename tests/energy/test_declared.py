from __future__ import annotations

import pytest

from dvt_edge.energy import DeclaredMeter, declared_exit_mj
from dvt_edge.errors import EnergyError


def test_window(timer):
    meter = DeclaredMeter(7, "no sensors", timer)
    assert meter.declared
    assert meter.not_measured == "no sensors"
    with meter.window() as w:
        timer.advance(0.01)  # no window is too short
    assert w.energy_mj == pytest.approx(70)
    assert w.rails_mj == pytest.approx({"declared": 70})
    assert w.source == "declared 7 W"
    assert w.declared


def test_exits():
    """1 ms of preprocessing and 2 ms at 5 W, then 4 ms at 8 W."""
    assert declared_exit_mj([5, 8], [2, 4], 1.0) == pytest.approx([15, 47])
    assert declared_exit_mj([5], [2]) == pytest.approx([10])


@pytest.mark.parametrize("watts", [0, -1, float("nan"), float("inf")])
def test_bad_watts(watts):
    for wrong in (lambda: DeclaredMeter(watts), lambda: declared_exit_mj([5, watts], [1, 1])):
        with pytest.raises(EnergyError, match="positive number of watts"):
            wrong()


def test_one_figure_per_stage():
    with pytest.raises(EnergyError, match="expected 3, found 2"):
        declared_exit_mj([5, 8], [1, 1, 1])
