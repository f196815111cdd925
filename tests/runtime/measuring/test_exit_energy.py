"""Idle, mixes, and what is said where there are no figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from dvt_edge.bundle.measurement import EnergyFigures
from dvt_edge.energy import ExitEnergy, UnavailableMeter
from dvt_edge.energy.opening import OR_DECLARE
from dvt_edge.runtime.measuring.exit_energy import (
    IDLE_WINDOWS,
    EnergyRun,
    declared_figures,
    mix_patterns,
)
from dvt_edge.runtime.measuring.timing import time_back_to_back

if TYPE_CHECKING:
    from tests.runtime.conftest import Timed


def run(timed: Timed, duration_s: float = 10.0) -> EnergyFigures:
    """Idle, then work."""
    energy = EnergyRun(timed.meter, duration_s)
    energy.idle(timed.clock)
    energy.work(timed.exits, timed.clock)
    return energy.figures


def test_joules_of_every_exit(timed: Timed) -> None:
    """Stages take 3, 5 and 11 mJ and 1, 1 and 2 ms at 2 W idle."""
    found = run(timed)
    assert found.unavailable is None
    assert found.source == "FAKE rail"
    assert found.idle_mw == pytest.approx(2000)
    assert found.net_mj == pytest.approx((3, 8, 19), rel=1e-6)
    assert found.gross_mj == pytest.approx((5, 12, 27), rel=1e-6)
    assert found.net_error_mj is not None
    assert max(found.net_error_mj) < 1e-6
    assert found.seconds == pytest.approx(2.5 * (IDLE_WINDOWS + 6), rel=0.01)


def test_idle_comes_first_and_runs_nothing(timed: Timed) -> None:
    """The machine rests with the model loaded."""
    energy = EnergyRun(timed.meter, 10.0)
    energy.idle(timed.clock)
    assert timed.backend.inner.runs == []
    assert timed.clock.slept_s == [2.5] * IDLE_WINDOWS


@pytest.mark.parametrize("breaks_after", [0, 1, IDLE_WINDOWS, IDLE_WINDOWS + 2])
def test_a_sensor_that_vanishes(timed: Timed, breaks_after: int) -> None:
    """Its reason stands in place of the figures, and nothing more is run for it."""
    timed.meter.breaks_after = breaks_after
    found = run(timed)
    assert found.gross_mj is None
    assert found.unavailable == "rail: the sensor has gone; look at the kernel's log"
    assert found.source == "FAKE rail"
    assert timed.meter.windows == breaks_after + 1


@pytest.mark.parametrize(
    ("min_seconds", "duration_s", "needed"), [(5.0, 10.0, 22), (0.5, 2.0, 3), (0.2, 0.5, 1)]
)
def test_too_short_for_the_meter(
    timed: Timed, min_seconds: float, duration_s: float, needed: int
) -> None:
    """The message says how long it must be, nothing is run; that long is enough."""
    timed.meter.min_seconds = min_seconds
    found = run(timed, duration_s)
    assert found.unavailable is not None
    assert found.unavailable.endswith(f"give --duration {needed} or more")
    assert (timed.meter.windows, timed.backend.inner.runs) == (0, [])
    assert run(timed, needed).unavailable is None


def test_no_meter(timed: Timed) -> None:
    """The reason is passed on."""
    energy = EnergyRun(UnavailableMeter("no permission to read x"), 10.0)
    energy.idle(timed.clock)
    energy.work(timed.exits, timed.clock)
    assert energy.figures.unavailable == "no permission to read x"
    assert timed.clock.slept_s == []


def test_noise_that_hides_an_exit(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy that is not positive is noise, and no figure."""
    figures = (-0.1, 5.0, 11.0)
    fitted = ExitEnergy(2000.0, figures, figures, figures, figures)
    monkeypatch.setattr(
        "dvt_edge.runtime.measuring.exit_energy.energy_per_exit", lambda *measured: fitted
    )
    found = run(timed)
    assert found.gross_mj is None
    assert found.unavailable is not None
    assert "longer --duration" in found.unavailable


@pytest.mark.parametrize("exits", range(1, 8))
def test_patterns_tell_exits_apart(exits: int) -> None:
    """Two windows more than the fit needs, and of full rank."""
    patterns = mix_patterns(exits)
    assert len(patterns) == exits + 3
    counts = np.array([np.bincount(pattern, minlength=exits) for pattern in patterns])
    assert np.linalg.matrix_rank(counts) == exits


def test_declared(timed: Timed) -> None:
    """Power times time, labelled, with the reason why nothing was measured; 2 ms more of
    preprocessing draw what the first stage does."""
    timing = time_back_to_back(timed.exits, timed.clock, 0.1)
    found = declared_figures((10.0, 20.0, 30.0), timing, f"no sensor{OR_DECLARE}")
    assert found.declared
    assert found.unavailable is None
    assert found.source == (
        "declared: energy.watts 10 / 20 / 30 W times measured time, because no sensor"
    )
    assert found.gross_mj == pytest.approx((10, 30, 90))
    assert found.net_mj is found.gross_error_mj is None
    last = timing.exits[-1]
    preprocess = last.preprocess.model_copy(update={"mean_ms": last.preprocess.mean_ms + 2})
    last = last.model_copy(update={"preprocess": preprocess})
    timing = timing.model_copy(update={"exits": (*timing.exits[:-1], last)})
    found = declared_figures((10.0, 20.0, 30.0), timing, "no sensor")
    assert found.gross_mj == pytest.approx((30, 50, 110))


def test_declared_power_at_rest_gives_the_energy_above_it(timed: Timed) -> None:
    """Stages take 1, 1 and 2 ms."""
    timing = time_back_to_back(timed.exits, timed.clock, 0.1)
    found = declared_figures((10.0, 20.0, 30.0), timing, "no sensor", idle_watts=4.0)
    assert found.idle_mw == 4000.0
    assert found.gross_mj == pytest.approx((10, 30, 90))
    assert found.net_mj == pytest.approx((6, 22, 74))
