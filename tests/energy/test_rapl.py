from __future__ import annotations

import errno
from pathlib import Path

import pytest

from dvt_edge.energy.rapl import RaplMeter
from dvt_edge.errors import EnergyError


def set_uj(zone: Path, value: float) -> None:
    (zone / "energy_uj").write_text(f"{value:.0f}\n", encoding="utf-8")


def test_package(trees, clock, sensors, tmp_path):
    """12.5 W: cores, uncore and memory are not added to the package."""
    [zone] = trees.x86()
    clock.on_time = lambda t: set_uj(zone, 1_000_000 + 12.5e6 * t)
    meter = RaplMeter(tmp_path, clock)
    assert meter.source == "RAPL package-0"
    with meter.window() as w:
        clock.advance(10)
    assert w.energy_mj == pytest.approx(125_000, rel=0.01)
    assert w.rails_mj == pytest.approx({"package-0": 125_000}, rel=0.01)


def test_two_packages(trees, clock, sensors, tmp_path):
    zones = trees.x86(packages=2)

    def tick(t):
        for i, zone in enumerate(zones):
            set_uj(zone, (2 + i) * 1e6 * t)

    clock.on_time = tick
    clock.on_time(0)
    meter = RaplMeter(tmp_path, clock)
    assert meter.source == "RAPL package-0 + package-1"
    with meter.window() as w:
        clock.advance(10)
    assert w.rails_mj == pytest.approx({"package-0": 20_000, "package-1": 30_000})
    assert w.energy_mj == pytest.approx(50_000)


def test_a_counter_that_starts_again(trees, clock, sensors, tmp_path):
    """Once: the range is added."""
    [zone] = trees.x86(energy_uj=60_000_000, range_uj=65_532_610_987 // 1000)
    clock.on_time = lambda t: set_uj(zone, (60e6 + 1e6 * t) % 65_532_610)
    with RaplMeter(tmp_path, clock).window() as w:
        clock.advance(10)
    assert w.energy_mj == pytest.approx(10_000, rel=0.01)


def test_a_counter_that_starts_again_often(trees, clock, sensors, tmp_path):
    """Readings in between see each time: 65.5 kJ last 131 s at 500 W, and 20 minutes are
    measured."""
    range_uj = 65_532_610_987
    [zone] = trees.x86(range_uj=range_uj)
    clock.on_time = lambda t: set_uj(zone, 500e6 * t % range_uj)
    clock.on_time(0)
    with RaplMeter(tmp_path, clock).window() as w:
        clock.advance(1200)
    assert w.energy_mj == pytest.approx(600_000_000, rel=0.01)


def test_too_short(trees, clock, sensors, tmp_path):
    trees.x86()
    with RaplMeter(tmp_path, clock).window() as w:
        clock.advance(0.1)
    assert "0.1 s is too short for RAPL package-0" in str(w.unavailable)
    assert "at least 0.2 s" in str(w.unavailable)


def test_a_counter_that_stands_still(trees, clock, sensors, tmp_path):
    """As in virtual machines."""
    trees.x86()
    with RaplMeter(tmp_path, clock).window() as w:
        clock.advance(10)
    assert w.energy_mj is None
    assert "counted no energy" in str(w.unavailable)


@pytest.mark.parametrize("after", [0.0, RaplMeter.period_s + 1])
def test_vanishing(trees, clock, sensors, tmp_path, after):
    [zone] = trees.x86()
    meter = RaplMeter(tmp_path, clock)
    with meter.window() as w:
        sensors.errors[zone / "energy_uj"] = errno.ENODEV
        clock.advance(after)
    assert w.energy_mj is None
    assert "vanished" in str(w.unavailable)


def test_vanished_before_the_window(trees, clock, sensors, tmp_path):
    zones = trees.x86(packages=2)
    meter = RaplMeter(tmp_path, clock)
    (zones[1] / "energy_uj").unlink()
    with meter.window() as w:
        clock.advance(1)
    assert str(zones[1] / "energy_uj") in str(w.unavailable)


def test_no_permission(trees, clock, sensors, tmp_path):
    """One command allows all packages; half of them would pass for the whole."""
    zones = trees.x86(packages=2)
    files = [zone / "energy_uj" for zone in zones]
    sensors.denied.update(files)
    with pytest.raises(EnergyError) as caught:
        RaplMeter(tmp_path, clock)
    assert f"sudo chmod o+r {files[0]} {files[1]}" in str(caught.value)
    sensors.denied.remove(files[0])
    with pytest.raises(EnergyError, match=r"no permission to read .*intel-rapl:1/energy_uj;"):
        RaplMeter(tmp_path, clock)


def test_unreadable(trees, clock, sensors, tmp_path):
    [zone] = trees.x86()
    sensors.errors[zone / "energy_uj"] = errno.EIO
    with pytest.raises(EnergyError, match="energy_uj cannot be read"):
        RaplMeter(tmp_path, clock)


def test_no_range(trees, clock, sensors, tmp_path):
    [zone] = trees.x86()
    (zone / "max_energy_range_uj").unlink()
    with pytest.raises(EnergyError, match="max_energy_range_uj"):
        RaplMeter(tmp_path, clock)


def test_nothing_there(clock, sensors, tmp_path):
    with pytest.raises(EnergyError, match="no RAPL package"):
        RaplMeter(tmp_path, clock)
