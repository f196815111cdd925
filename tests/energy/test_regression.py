from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.energy import IdlePower, Mix, Window, energy_per_exit
from dvt_edge.errors import EnergyError

STAGE_SECONDS = np.array([0.004, 0.012, 0.035])
NET_MJ = np.array([12.0, 50.0, 170.0])
IDLE = IdlePower(4000.0)
GROSS_MJ = NET_MJ + IDLE.mean_mw * STAGE_SECONDS
SHARES = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [0, 1, 1], [1, 0, 1], [3, 2, 1], [1, 2, 3]], float
)


def mixes(noise_mj: float = 0.0, seed: int = 0) -> list[Mix]:
    """Windows of about 10 s whose net energies are off by a normal error."""
    rng = np.random.default_rng(seed)
    result = []
    for share in SHARES:
        counts = np.rint(share * 10 / (share @ STAGE_SECONDS)).astype(int)
        seconds = float(counts @ STAGE_SECONDS)
        energy = counts @ NET_MJ + IDLE.mean_mw * seconds + rng.normal(0, noise_mj)
        result.append(Mix(tuple(counts.tolist()), float(energy), seconds))
    return result


def test_exact_without_noise():
    found = energy_per_exit(mixes(), IDLE)
    assert found.net_mj == pytest.approx(NET_MJ)
    assert found.gross_mj == pytest.approx(GROSS_MJ)
    assert found.net_error_mj == pytest.approx(np.zeros(3), abs=1e-6)


def test_standard_errors_are_honest():
    """Over many repetitions the spread of the results is what each of them says about itself."""
    found = [energy_per_exit(mixes(noise_mj=300, seed=seed), IDLE) for seed in range(400)]
    for values, errors in (
        ([f.net_mj for f in found], [f.net_error_mj for f in found]),
        ([f.gross_mj for f in found], [f.gross_error_mj for f in found]),
    ):
        spread = np.std(values, axis=0)
        typical = np.sqrt(np.mean(np.square(errors), axis=0))
        assert spread == pytest.approx(typical, rel=0.15)
    assert np.mean([f.net_mj for f in found], axis=0) == pytest.approx(NET_MJ, rel=0.01)


def test_error_of_the_idle_power():
    """100 mW off move every exit's net energy by its own time, and no gross energy."""
    found = energy_per_exit(mixes(), IdlePower(IDLE.mean_mw, 100.0))
    assert found.net_error_mj == pytest.approx(100 * STAGE_SECONDS)
    assert found.gross_error_mj == pytest.approx(np.zeros(3), abs=1e-6)


def test_one_exit():
    found = energy_per_exit([Mix((100,), 1000.0, 1.0), Mix((200,), 2000.0, 2.0)], IdlePower(500.0))
    assert (found.gross_mj[0], found.net_mj[0]) == pytest.approx((10, 5))


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ([], "count of frames at each exit"),
        ([()], "count of frames at each exit"),
        ([(1, 2), (1, 2, 3), (3, 1)], "of the same exits"),
        ([(1, 2), (2, 1)], "at least 3 windows .* found 2"),
        ([(1, 0, 2), (2, 0, 1), (3, 0, 1), (3, 0, 3)], "no frame left at exit 2 in"),
        ([(1, 0, 0), (2, 0, 0), (3, 0, 0), (3, 0, 0)], "no frame left at exits 2 and 3 in"),
        ([(5, 10, 1), (1, 2, 7), (3, 6, 3), (2, 4, 9)], "tell exits 1 and 2 apart"),
        ([(3, 2, 1)] * 9, "do not tell exits .* such as one for each exit alone"),
        ([(1, -2), (2, 1), (1, 1)], "not negative"),
    ],
)
def test_refused(counts, words):
    with pytest.raises(EnergyError, match=words):
        energy_per_exit([Mix(c, 100.0, 1.0) for c in counts], IDLE)


@pytest.mark.parametrize("field", ["energy_mj", "seconds"])
def test_not_a_number(field):
    values = {"energy_mj": 100.0, "seconds": 1.0} | {field: float("nan")}
    windows = [Mix(c, **values) for c in [(1, 2), (2, 1), (1, 1)]]
    with pytest.raises(EnergyError, match="finite"):
        energy_per_exit(windows, IDLE)


def _window(energy_mj: float, seconds: float) -> Window:
    return Window("test", seconds=seconds, energy_mj=energy_mj, unavailable=None)


def test_mix_of_a_window():
    mix = Mix.of(np.array([3, 4]), _window(100.0, 2.0))
    assert mix == Mix((3, 4), 100.0, 2.0)
    assert type(mix.counts[0]) is int


def test_idle_power():
    windows = [_window(e, 10.0) for e in (40_000, 41_000, 39_000)]
    idle = IdlePower.of(windows)
    assert (idle.mean_mw, idle.error_mw) == pytest.approx((4000, 100 / np.sqrt(3)))
    assert IdlePower.of(windows[:1]) == IdlePower(4000.0, 0.0)
    with pytest.raises(EnergyError, match="at least one window"):
        IdlePower.of([])


def test_windows_without_figures():
    """The window's reason is passed on."""
    lost = Window("test", seconds=1.0, unavailable="the sensor vanished")
    for use in (
        lambda: Mix.of((1,), lost),
        lambda: IdlePower.of([lost]),
    ):
        with pytest.raises(EnergyError, match="energy is unavailable: the sensor vanished"):
            use()
