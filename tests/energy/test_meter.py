from __future__ import annotations

import math

import pytest

from dvt_edge.energy import UnavailableMeter, Window
from dvt_edge.energy.meter import Counted, Meter
from dvt_edge.errors import EnergyError
from tests.energy.conftest import HandClock


class FakeMeter(Meter):
    """Counts what it is told to."""

    min_seconds = 0.5

    def __init__(self, clock, rails_mj, start_error=None, stop_error=None):
        super().__init__("fake A + B", ("A", "B"), clock=clock)
        self.rails_mj, self.start_error, self.stop_error = rails_mj, start_error, stop_error
        self.stopped = 0

    def start(self):
        if self.start_error:
            raise EnergyError(self.start_error)
        self.began = self.clock.now()
        return self

    def stop(self):
        self.stopped += 1
        if self.stop_error:
            raise EnergyError(self.stop_error)
        return Counted(self.clock.now() - self.began, self.rails_mj)


def test_the_total_is_of_the_total_rails(clock: HandClock) -> None:
    meter = FakeMeter(clock, {"A": 1000.0, "B": 500.0, "inside A": 400.0})
    with meter.window() as w:
        clock.advance(3)
    assert (w.energy_mj, w.seconds) == (1500, 3)
    assert w.rails_mj == {"A": 1000, "B": 500, "inside A": 400}
    assert w.source == "fake A + B"
    assert w.unavailable is None


def test_an_open_window_has_no_figures(clock: HandClock) -> None:
    with FakeMeter(clock, {"A": 1.0, "B": 1.0}).window() as w:
        assert w.energy_mj is None
        assert "still open" in str(w.unavailable)


def _no_figures(w: Window, *words: str) -> bool:
    figures = (w.energy_mj, w.rails_mj)
    return figures == (None, None) and all(word in str(w.unavailable) for word in words)


def test_too_short(clock):
    """The reason names the meter, the length and the length that is needed."""
    with FakeMeter(clock, {"A": 1.0, "B": 1.0}).window() as w:
        clock.advance(0.02)
    assert _no_figures(w, "0.02 s is too short for fake A + B", "at least 0.5 s")
    assert w.seconds == pytest.approx(0.02)


def test_the_shortest_window_that_counts(clock):
    with FakeMeter(clock, {"A": 1.0, "B": 1.0}).window() as w:
        clock.advance(0.5)
    assert w.unavailable is None


@pytest.mark.parametrize("energy_mj", [0.0, -5.0, math.nan, math.inf])
def test_nothing_counted_is_no_figure(clock: HandClock, energy_mj: float) -> None:
    """0 mJ means a sensor that does not work, not work that is free."""
    with FakeMeter(clock, {"A": energy_mj, "B": 0.0}).window() as w:
        clock.advance(1)
    assert _no_figures(w, "counted no energy")


def test_failures_become_reasons(clock):
    """At the start and at the end; the block runs all the same, and its time is known."""
    for meter in (
        FakeMeter(clock, {}, start_error="no sensor"),
        FakeMeter(clock, {}, stop_error="no sensor"),
    ):
        with meter.window() as w:
            clock.advance(2)
        assert _no_figures(w, "no sensor")
        assert w.seconds == 2


@pytest.mark.parametrize("stop_error", [None, "no sensor"])
def test_an_exception_in_the_block_passes_through(clock, stop_error):
    """And the count is stopped, which frees what it holds."""
    meter = FakeMeter(clock, {"A": 1.0, "B": 1.0}, stop_error=stop_error)
    with pytest.raises(KeyError, match="work"), meter.window():
        raise KeyError("work")
    assert meter.stopped == 1


def test_unavailable_meter(clock: HandClock) -> None:
    meter = UnavailableMeter("nothing here", clock)
    assert meter.unavailable == "nothing here"
    with meter.window() as w:
        clock.advance(1)
    assert _no_figures(w, "nothing here")
    assert w.seconds == 1
