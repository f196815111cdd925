from __future__ import annotations

import pytest

from dvt_edge.energy import declared_exit_mj
from dvt_edge.errors import EnergyError


def test_exits():
    """1 ms of preprocessing and 2 ms at 5 W, then 4 ms at 8 W."""
    assert declared_exit_mj([5, 8], [2, 4], 1.0) == pytest.approx([15, 47])
    assert declared_exit_mj([5], [2]) == pytest.approx([10])


@pytest.mark.parametrize("watts", [0, -1, float("nan"), float("inf")])
def test_bad_watts(watts):
    with pytest.raises(EnergyError, match="positive numbers of watts"):
        declared_exit_mj([5, watts], [1, 1])


def test_one_figure_per_stage():
    with pytest.raises(EnergyError, match="expected 3, found 2"):
        declared_exit_mj([5, 8], [1, 1, 1])
