from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.energy import Window, energy_per_exit

STAGE_SECONDS = np.array([0.004, 0.012, 0.035])
NET_MJ = np.array([12.0, 50.0, 170.0])
IDLE_MW = 4000.0
GROSS_MJ = NET_MJ + IDLE_MW * STAGE_SECONDS
SHARES = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [3, 2, 1], [1, 2, 3]], float
)


def window(energy_mj: float, seconds: float) -> Window:
    return Window("test", seconds, energy_mj, {}, None)


def idle(*powers_mw: float) -> list[Window]:
    """Windows of 10 s."""
    return [window(10 * power, 10.0) for power in powers_mw]


IDLE = idle(IDLE_MW, IDLE_MW, IDLE_MW)


def mixes(noise_mj: float = 0.0, seed: int = 0) -> tuple[list[list[int]], list[Window]]:
    """Counts and windows of about 10 s whose net energies are off by a normal error."""
    rng = np.random.default_rng(seed)
    counts, windows = [], []
    for share in SHARES:
        count = np.rint(share * 10 / (share @ STAGE_SECONDS)).astype(int)
        seconds = float(count @ STAGE_SECONDS)
        energy = count @ NET_MJ + IDLE_MW * seconds + rng.normal(0, noise_mj)
        counts.append(count.tolist())
        windows.append(window(float(energy), seconds))
    return counts, windows


def test_exact_without_noise() -> None:
    found = energy_per_exit(*mixes(), IDLE)
    assert found.idle_mw == pytest.approx(IDLE_MW)
    assert found.net_mj == pytest.approx(NET_MJ)
    assert found.gross_mj == pytest.approx(GROSS_MJ)
    assert found.net_error_mj == pytest.approx(np.zeros(3), abs=1e-6)


def test_standard_errors_are_honest() -> None:
    """Over many repetitions the spread of the results is what each of them says about itself."""
    found = [energy_per_exit(*mixes(noise_mj=300, seed=seed), IDLE) for seed in range(400)]
    for values, errors in (
        ([f.net_mj for f in found], [f.net_error_mj for f in found]),
        ([f.gross_mj for f in found], [f.gross_error_mj for f in found]),
    ):
        spread = np.std(values, axis=0)
        typical = np.sqrt(np.mean(np.square(errors), axis=0))
        assert spread == pytest.approx(typical, rel=0.15)
    assert np.mean([f.net_mj for f in found], axis=0) == pytest.approx(NET_MJ, rel=0.01)


def test_error_of_the_idle_power() -> None:
    """100 mW off move every exit's net energy by its own time, and no gross energy."""
    off = 100 * np.sqrt(3)  # so that the mean of three has a standard error of 100 mW
    found = energy_per_exit(*mixes(), idle(IDLE_MW - off, IDLE_MW, IDLE_MW + off))
    assert found.idle_mw == pytest.approx(IDLE_MW)
    assert found.net_error_mj == pytest.approx(100 * STAGE_SECONDS)
    assert found.gross_error_mj == pytest.approx(np.zeros(3), abs=1e-6)


def test_one_exit() -> None:
    windows = [window(1000.0, 1.0), window(2000.0, 2.0)]
    found = energy_per_exit([[100], [200]], windows, idle(500.0, 500.0))
    assert (found.gross_mj[0], found.net_mj[0]) == pytest.approx((10, 5))
