from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dvt_edge.energy.nvml import NvmlMeter
from dvt_edge.errors import EnergyError
from tests.energy.conftest import HandClock


class FakeNvmlError(Exception):
    pass


class FakeNvml(SimpleNamespace):
    """As nvidia-ml-py, with an energy counter that follows ``mj``."""

    NVMLError = FakeNvmlError

    def __init__(self) -> None:
        super().__init__(mj=lambda: 5_000_000, sessions=0, fail=set())
        self.nvmlInit = lambda: self._call("init", +1)
        self.nvmlShutdown = lambda: self._call("shutdown", -1)
        self.nvmlDeviceGetHandleByIndex = lambda index: self._call("handle", answer=index)
        self.nvmlDeviceGetTotalEnergyConsumption = lambda _: self._call("energy", answer=self.mj)()

    def _call(self, call: str, sessions: int = 0, answer: Any = None) -> Any:
        assert self.sessions > 0 or call == "init"
        if call == "shutdown" or call not in self.fail:
            self.sessions += sessions
        if call in self.fail:
            raise FakeNvmlError("Not Supported")
        return answer


@pytest.fixture
def nvml(monkeypatch):
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def test_window(nvml, clock):
    """70 W for 10 s; the session ends with the window."""
    nvml.mj = lambda: 5_000_000 + round((clock.ns - clock.started_ns) / 1e9 * 70_000)
    meter = NvmlMeter(clock=clock)
    assert meter.source == "NVML GPU 0"
    assert nvml.sessions == 0
    with meter.window() as w:
        clock.advance(10)
        assert nvml.sessions == 1
    assert w.energy_mj == pytest.approx(700_000)
    assert w.rails_mj == pytest.approx({"GPU 0": 700_000})
    assert nvml.sessions == 0


def test_seconds_are_needed(nvml, clock):
    with NvmlMeter(clock=clock).window() as w:
        clock.advance(4.9)
    assert "at least 5 s" in str(w.unavailable)


@pytest.mark.parametrize(
    ("call", "words"),
    [("init", "does not start"), ("handle", "lists the GPUs"), ("energy", "no energy counter")],
)
def test_not_supported(nvml, clock, call, words):
    """Jetson: NVML starts and then has nothing to read."""
    nvml.fail.add(call)
    with pytest.raises(EnergyError, match=words):
        NvmlMeter(clock=clock)
    assert nvml.sessions == 0


@pytest.mark.parametrize("call", ["init", "handle", "energy"])
def test_failing_later(nvml, clock, call):
    """At the start of a window."""
    meter = NvmlMeter(clock=clock)
    nvml.fail.add(call)
    with meter.window() as w:
        clock.advance(10)
    assert w.energy_mj is None
    assert "Not Supported" in str(w.unavailable)
    assert nvml.sessions == 0


def test_failing_while_measuring(nvml, clock):
    with NvmlMeter(clock=clock).window() as w:
        nvml.fail.update(("energy", "shutdown"))
        clock.advance(10)
    assert "no energy counter" in str(w.unavailable)
    assert nvml.sessions == 0
    assert not clock.ticks


def test_no_thread_to_be_had(
    nvml: FakeNvml, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session that the window had begun is ended."""
    meter = NvmlMeter(clock)

    def every(seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(clock, "every", every)
    with pytest.raises(RuntimeError, match="new thread"):
        meter.start()
    assert nvml.sessions == 0


def test_a_driver_that_hangs(
    nvml: FakeNvml, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its session is not ended while a thread still reads in it."""
    meter = NvmlMeter(clock)

    def cancel() -> None:
        raise EnergyError("the sensor has not answered")

    monkeypatch.setattr(clock, "every", lambda seconds, tick: cancel)
    count = meter.start()
    with pytest.raises(EnergyError, match="has not answered"):
        count.stop()
    assert nvml.sessions == 1


def test_the_driver_was_loaded_anew(nvml, clock):
    """The counter starts from 0; what was lost with the old one is not guessed."""
    with NvmlMeter(clock=clock).window() as w:
        clock.advance(10)
        nvml.mj = lambda: 1000
    assert w.energy_mj is None
    assert "counter of GPU 0 went backwards" in str(w.unavailable)


def test_not_installed(monkeypatch, clock):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(EnergyError, match=r"pip install 'dvt-edge\[nvml\]'"):
        NvmlMeter(clock=clock)
