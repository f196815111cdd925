"""Power of a Jetson's supplies from its INA3221 sensors, three channels each.

JetPack 5 and 6 list them under hwmon, in mV and mA; JetPack 4 under iio, in mW. A channel labelled
``NC`` is not connected, and ``in7_label`` is a sum of shunt voltages, no supply; a disabled channel
cannot be read. The sensors sit on the module: the carrier board, with camera, disk and fan, is not
in any figure, but on boards with ``CVB`` rails, which are shown and not added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dvt_edge.energy.polling import SampledMeter
from dvt_edge.energy.sensor_files import I2C, DeniedError, Rail, i2c_devices
from dvt_edge.errors import EnergyError
from dvt_edge.machine.board import read_text
from dvt_edge.machine.clock import Clock

TOTALS = ("VDD_IN", "POM_5V_IN")
"""The module's input (Orin Nano and NX, Xavier NX, TX2; Nano): all other rails are inside it."""
INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rail -> the rail that supplies it (AGX Orin's memory); adding both counts it twice."""
CARRIER_BOARD = "CVB_"
"""How the names of rails outside the module begin."""
NOT_CONNECTED = "NC"


def open_ina3221(root: Path, clock: Clock | None = None) -> SampledMeter:
    """The INA3221 sensors below ``root``; raises EnergyError where none can be read."""
    rails, skipped = find_rails(root)
    names = [rail.name for rail in rails]
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        found = f"; not read: {reasons}" if reasons else ""
        raise EnergyError(f"no channel below {root / I2C}{found}")
    for total in TOTALS:
        if total in names:
            return SampledMeter(f"INA3221 {total} (module total)", rails, (total,), clock)
        if total in skipped:  # the rest would pass for the module's power, and is a part of it
            raise EnergyError(f"{total}: {skipped[total]}")
    on_module = [name for name in names if not name.startswith(CARRIER_BOARD)]
    added = tuple(name for name in on_module if INSIDE.get(name) not in names)
    if not added:
        raise EnergyError(f"only rails of the carrier board: {', '.join(names)}")
    source = f"INA3221 sum of {' + '.join(added)} (no total rail on this board)"
    return SampledMeter(source, rails, added, clock)


def find_rails(root: Path, taken: str = "") -> tuple[list[Rail], dict[str, str]]:
    """All readable channels, and why the others cannot be read, by name.

    A name that is ``taken`` or comes twice is numbered. Raises EnergyError where rights are
    missing, which can be mended.
    """
    rails: list[Rail] = []
    skipped: dict[str, str] = {}
    uses = Counter([taken])
    for device in i2c_devices(root, "ina3221"):
        for label, files, mw_per_unit in _channels(device):
            name = read_text(label) or NOT_CONNECTED
            if name.upper() == NOT_CONNECTED:
                continue
            numbered = f"{name} ({uses[name] + 1})" if uses[name] else name
            rail = Rail(numbered, files, mw_per_unit)
            try:
                rail.read_mw()
            except DeniedError:
                raise
            except EnergyError as error:
                skipped[name] = str(error)
            else:
                uses[name] += 1
                rails.append(rail)
    return rails, skipped


def _channels(device: Path) -> Iterator[tuple[Path, tuple[Path, ...], float]]:
    """One sensor's channels, connected or not: label, files, milliwatts per unit."""
    for folder in sorted(device.glob("hwmon/hwmon*")):
        for i in (1, 2, 3):
            files = folder / f"in{i}_input", folder / f"curr{i}_input"
            yield folder / f"in{i}_label", files, 1e-3  # mV * mA = uW
    for folder in sorted(device.glob("iio:device*")):
        for i in (0, 1, 2):
            yield folder / f"rail_name_{i}", (folder / f"in_power{i}_input",), 1.0
