from __future__ import annotations

import errno

import pytest

from dvt_edge.energy.ina238 import open_ina238
from dvt_edge.errors import EnergyError


@pytest.mark.parametrize("label", ["label", "in1_label", None])
def test_thor(trees, clock, sensors, tmp_path, label):
    """The board's input is the total; the module's rails stand beside it."""
    trees.thor(label)
    meter = open_ina238(tmp_path, clock)
    assert meter.source == "INA238 VIN (board input, carrier board included)"
    with meter.window() as w:
        clock.advance(10)
    assert w.energy_mj == pytest.approx(234_567.89, rel=0.01)
    expected = {"VIN": 234_567.89, "VDD_GPU": 0, "VDD_CPU_SOC_MSS": 65_040, "VIN_SYS_5V0": 65_200}
    assert w.rails_mj == pytest.approx(expected, rel=0.01)


def test_a_rail_of_the_same_name(trees, clock, sensors, tmp_path):
    """It is numbered, not mixed with the board's input."""
    trees.thor()
    label = tmp_path / "sys/bus/i2c/devices/2-0040/hwmon/hwmon2/in2_label"
    label.write_text("VIN\n", encoding="utf-8")
    with open_ina238(tmp_path, clock).window() as w:
        clock.advance(10)
    assert w.energy_mj == pytest.approx(234_567.89)
    assert w.rails_mj is not None
    assert w.rails_mj["VIN (2)"] == pytest.approx(65_040)


def test_another_ina238(trees, clock, sensors, tmp_path):
    """One that measures something else is not taken for the board's input."""
    folder = trees.thor()
    (folder / "label").write_text("FAN\n", encoding="utf-8")
    with pytest.raises(EnergyError, match="none labelled VIN"):
        open_ina238(tmp_path, clock)


def test_unreadable(trees, clock, sensors, tmp_path):
    file = trees.thor() / "power1_input"
    sensors.errors[file] = errno.EIO
    with pytest.raises(EnergyError, match="power1_input cannot be read"):
        open_ina238(tmp_path, clock)


def test_no_permission(trees, clock, sensors, tmp_path):
    file = trees.thor() / "power1_input"
    sensors.denied.add(file)
    with pytest.raises(EnergyError, match=r"sudo chmod o\+r .*power1_input"):
        open_ina238(tmp_path, clock)


def test_a_jetson_without_one(trees, clock, sensors, tmp_path):
    trees.orin_nano()
    with pytest.raises(EnergyError, match="none labelled VIN"):
        open_ina238(tmp_path, clock)
