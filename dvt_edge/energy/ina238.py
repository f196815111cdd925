"""Power at a Jetson Thor's input from its INA238 sensor; the INA3221 rails are shown beside it.

The sensor sits where power enters the carrier board, so that unlike other Jetsons' total this one
has the carrier board in it, and what is plugged into that.
"""

from __future__ import annotations

from pathlib import Path

from dvt_edge.energy.ina3221 import find_rails
from dvt_edge.energy.polling import SampledMeter
from dvt_edge.energy.sensor_files import I2C, Rail, i2c_devices
from dvt_edge.errors import EnergyError
from dvt_edge.machine.board import read_text
from dvt_edge.machine.clock import Clock

INPUT = "VIN"
"""The board's input; also taken for it is a sensor without a label."""


def find_input(root: Path) -> Rail | None:
    """The sensor at the board's input, readable or not; its driver gives the power in uW."""
    for device in i2c_devices(root, "ina238"):
        for folder in sorted(device.glob("hwmon/hwmon*")):
            name = read_text(folder / "in1_label") or read_text(folder / "label") or INPUT
            if name == INPUT:
                return Rail(INPUT, (folder / "power1_input",), 1e-3)
    return None


def open_ina238(root: Path, clock: Clock | None = None) -> SampledMeter:
    """The INA238 at the board's input; raises EnergyError where none can be read."""
    rail = find_input(root)
    if rail is None:
        raise EnergyError(f"none labelled {INPUT} below {root / I2C}")
    rail.read_mw()
    rails, _ = find_rails(root, taken=INPUT)
    source = f"INA238 {INPUT} (board input, carrier board included)"
    return SampledMeter(source, [rail, *rails], (INPUT,), clock)
