from __future__ import annotations

import errno
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvt_edge.energy.polling import SAMPLES_PER_SECOND, SampledMeter
from dvt_edge.energy.sensor_files import Rail
from dvt_edge.errors import EnergyError
from tests.energy.conftest import HandClock, Sensors


class Curve(SampledMeter):
    """A power, in milliwatts, that is a function of the seconds since the clock's start."""

    def __init__(self, clock: HandClock, power_mw: Callable[[float], float]) -> None:
        super().__init__("curve", [], ("A",), clock)
        self.power_mw, self.start_s = power_mw, clock.now()

    def read(self) -> Mapping[str, float]:
        return {"A": self.power_mw(self.clock.now() - self.start_s)}


@given(
    mean=st.floats(1e3, 60e3),
    swing=st.floats(0, 1),
    hertz=st.floats(0, 5),
    phase=st.floats(0, 2 * math.pi),
    seconds=st.floats(10, 30),
    late=st.lists(st.floats(0, 0.5), min_size=1, max_size=20),
)
def test_integral_of_a_known_curve(
    mean: float, swing: float, hertz: float, phase: float, seconds: float, late: list[float]
) -> None:
    """A power that swings up to five times a second, sampled at 50 Hz by a thread that is up to
    half a period late, is integrated to 1 %."""
    omega = 2 * math.pi * hertz
    clock = HandClock()
    count = Curve(clock, lambda t: mean * (1 + swing * math.sin(omega * t + phase))).start()
    _, _, tick = clock.ticks.pop()
    for i in range(1, int(seconds * SAMPLES_PER_SECOND)):
        t = (i + late[i % len(late)]) / SAMPLES_PER_SECOND
        clock.ns = clock.started_ns + round(t * 1e9)
        assert tick()
    clock.ns = clock.started_ns + round(seconds * 1e9)
    whole = mean * seconds
    if omega > 1e-6:
        whole += mean * swing * (math.cos(phase) - math.cos(omega * seconds + phase)) / omega
    else:
        whole += mean * swing * math.sin(phase) * seconds
    assert count.stop().rails_mj["A"] == pytest.approx(whole, rel=0.01)


def test_a_ramp(clock: HandClock) -> None:
    """2 to 4 W over two seconds: 6 J."""
    with Curve(clock, lambda t: 2000 + 1000 * t).window() as w:
        clock.advance(2)
    assert w.energy_mj == pytest.approx(6000)


@pytest.fixture
def meter(tmp_path, clock, sensors):
    """One rail of 6 W from voltage and current, and one of 1 W whose file holds the power."""
    for name, value in {"in": 5000, "curr": 1200, "power": 1000}.items():
        (tmp_path / name).write_text(f"{value}\n", encoding="utf-8")
    rails = [
        Rail("A", (tmp_path / "in", tmp_path / "curr"), 1e-3),
        Rail("B", (tmp_path / "power",), 1.0),
    ]
    return SampledMeter("test A + B", rails, ("A", "B"), clock=clock)


def test_constant_power(meter: SampledMeter, clock: HandClock, sensors: Sensors) -> None:
    with meter.window() as w:
        clock.advance(10)
    assert w.energy_mj == pytest.approx(70_000)
    assert w.rails_mj == pytest.approx({"A": 60_000, "B": 10_000})
    assert sensors.reads == 3 * 502  # one at each end as well
    assert meter.refresh_hz == SAMPLES_PER_SECOND


def test_a_step_of_power(meter, clock, tmp_path):
    """6 W until 4 s, 24 W from then on: 24 + 144 J."""
    clock.on_time = lambda t: (tmp_path / "curr").write_text("1200" if t < 4 else "4800")
    with meter.window() as w:
        clock.advance(10)
    assert w.rails_mj["A"] == pytest.approx(168_000, rel=0.01)


def test_reads_take_time(meter, clock, sensors):
    """Three register reads a sample; what they take is inside the window."""
    sensors.read_ns = 550_000
    with meter.window() as w:
        clock.advance(10)
    assert w.energy_mj == pytest.approx(7000 * w.seconds, rel=1e-6)
    assert w.seconds == pytest.approx(10, rel=0.001)


def test_too_short(meter, clock):
    with meter.window() as w:
        clock.advance(0.02)
    assert w.energy_mj is None
    assert "a window of 0.02 s is too short for test A + B" in w.unavailable
    assert "at least 0.5 s" in w.unavailable


@pytest.mark.parametrize("gone", [errno.ENODEV, errno.ENXIO, errno.EIO])
def test_vanishing_while_sampling(
    meter: SampledMeter, clock: HandClock, sensors: Sensors, tmp_path: Path, gone: int
) -> None:
    """The window says what vanished, and nothing is read any more."""
    with meter.window() as w:
        clock.advance(1)
        sensors.errors[tmp_path / "curr"] = gone
        clock.advance(1)
        reads = sensors.reads
        clock.advance(10)
        assert sensors.reads == reads
    assert (w.energy_mj, w.rails_mj) == (None, None)
    assert f"vanished while measuring: {tmp_path / 'curr'}" in str(w.unavailable)
    assert w.seconds == 12
    with meter.window() as again:
        clock.advance(1)
    assert "vanished" in str(again.unavailable)
    sensors.errors.clear()
    with meter.window() as back:
        clock.advance(1)
    assert back.energy_mj == pytest.approx(7000)


def test_vanishing_at_the_last_reading(meter, clock, sensors, tmp_path):
    with meter.window() as w:
        clock.advance(1)
        sensors.errors[tmp_path / "power"] = errno.ENODEV
    assert "vanished" in w.unavailable


def test_vanished_before_the_window(meter: SampledMeter, clock: HandClock, tmp_path: Path) -> None:
    (tmp_path / "power").unlink()
    with meter.window() as w:
        clock.advance(1)
    assert f"vanished while measuring: {tmp_path / 'power'}" in str(w.unavailable)


def test_a_sensor_that_hangs(
    meter: SampledMeter, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock gives up waiting for it; that becomes the reason."""

    def cancel() -> None:
        raise EnergyError("the sensor has not answered")

    monkeypatch.setattr(clock, "every", lambda seconds, tick: cancel)
    with meter.window() as w:
        clock.advance(1)
    assert (w.energy_mj, w.seconds, w.unavailable) == (None, 1, "the sensor has not answered")


def test_nonsense_in_a_file(meter, clock, tmp_path):
    (tmp_path / "power").write_text("watts\n", encoding="utf-8")
    with meter.window() as w:
        clock.advance(1)
    assert "expected an integer, found 'watts'" in w.unavailable


def test_a_thread_that_does_not_run(meter: SampledMeter, clock: HandClock) -> None:
    """No figure is made up for the time in which nothing was read."""
    ticks = clock.ticks
    with meter.window() as w:
        clock.advance(5)
        held, clock.ticks = clock.ticks, []  # somebody holds the interpreter
        clock.advance(meter.max_gap_s + 0.1)
        clock.ticks = held
        clock.advance(5)
    assert ticks is held
    assert w.energy_mj is None
    assert "0.6 s apart" in str(w.unavailable)
    assert "CPU core" in str(w.unavailable)


def test_too_few_samples(meter: SampledMeter, clock: HandClock) -> None:
    with meter.window() as w:
        held, clock.ticks = clock.ticks, []
        clock.advance(meter.min_seconds)
        clock.ticks = held
    assert "2 samples in 0.5 s" in str(w.unavailable)


def test_the_real_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It samples until the window ends, and is gone afterwards."""
    (tmp_path / "power").write_text("1000\n", encoding="utf-8")
    meter = SampledMeter("test", [Rail("A", (tmp_path / "power",), 1.0)], ("A",), None)
    sampled = threading.Semaphore(0)
    read = meter.read

    def counted() -> Mapping[str, float]:
        sampled.release()
        return read()

    monkeypatch.setattr(meter, "read", counted)
    with meter.window():
        for _ in range(5):
            assert sampled.acquire(timeout=60)
    assert not [t for t in threading.enumerate() if t.name == "dvt-edge-energy"]
