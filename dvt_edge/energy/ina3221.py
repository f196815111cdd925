"""Power of a Jetson's supplies from its INA3221 sensors, three channels each.

JetPack 5 and 6 list them under hwmon, in mV and mA; JetPack 4 under iio, in mW. A channel labelled
``NC`` is not connected, and ``in7_label`` is a sum of shunt voltages, no supply; a disabled channel
cannot be read. The sensors sit on the module: the carrier board, with camera, disk and fan, is not
in any figure, but on boards with ``CVB`` rails, which are shown and not added.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path

from dvt_edge.energy.sampling import Rail, SampledMeter
from dvt_edge.energy.sensor_files import (
    denied,
    explain,
    i2c_devices,
    i2c_folder,
    read_once,
    read_text,
)
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock

TOTALS = ("VDD_IN", "POM_5V_IN")
"""The module's input (Orin Nano and NX, Xavier NX, TX2; Nano): all other rails are inside it."""
INSIDE = {"VDDQ_VDD2_1V8AO": "VIN_SYS_5V0"}
"""Rail -> the rail that supplies it (AGX Orin's memory); adding both counts it twice."""
CARRIER_BOARD = "CVB_"
"""How the names of rails outside the module begin."""


def open_ina3221(root: Path, clock: Clock | None = None) -> SampledMeter:
    """The INA3221 sensors below ``root``; raises EnergyError where none can be read."""
    rails, skipped = find_rails(root)
    names = [rail.name for rail in rails]
    if not names:
        found = f"; not read: {'; '.join(skipped)}" if skipped else ""
        raise EnergyError(f"no channel below {i2c_folder(root)}{found}")
    for total in TOTALS:
        if total in names:
            return SampledMeter(f"INA3221 {total} (module total)", rails, (total,), skipped, clock)
        lost = [reason for reason in skipped if reason.startswith(f"{total}:")]
        if lost:  # the rest would pass for the module's power, and is a part of it
            raise EnergyError(lost[0])
    added = [name for name in names if not _is_inside(name, names)]
    if not added:
        raise EnergyError(f"only rails of the carrier board: {', '.join(names)}")
    source = f"INA3221 sum of {' + '.join(added)} (no total rail on this board)"
    return SampledMeter(source, rails, tuple(added), skipped, clock)


def find_rails(root: Path, taken: tuple[str, ...] = ()) -> tuple[list[Rail], tuple[str, ...]]:
    """All readable channels, and the others as ``name: reason``.

    Names that are ``taken`` or come twice are numbered. Raises EnergyError where rights are
    missing, which can be mended.
    """
    names = list(taken)
    rails: list[Rail] = []
    skipped = []
    for device in i2c_devices(root, "ina3221"):
        for rail in _channels(device):
            problem = probe(rail)
            if problem:
                skipped.append(problem)
            else:
                names.append(_unused(rail.name, names))
                rails.append(Rail(names[-1], rail.files, rail.mw_per_unit))
    return rails, tuple(skipped)


def probe(rail: Rail) -> str | None:
    """Why ``rail`` cannot be read, as ``name: reason``; None where it can.

    Raises EnergyError where rights are missing.
    """
    for path in rail.files:
        try:
            read_once(path)
        except OSError as error:
            if denied(error):
                raise EnergyError(explain(path, error)) from None
            return f"{rail.name}: {explain(path, error)}"
        except EnergyError as error:
            return f"{rail.name}: {error}"
    return None


def _channels(device: Path) -> list[Rail]:
    """Connected channels of one sensor, readable or not."""
    rails = []
    for folder in sorted(device.glob("hwmon/hwmon*")):
        for i in (1, 2, 3):
            name = _connected(folder / f"in{i}_label")
            if name:
                files = folder / f"in{i}_input", folder / f"curr{i}_input"
                rails.append(Rail(name, files, 1e-3))  # mV * mA = uW
    for folder in sorted(device.glob("iio:device*")):
        for i in (0, 1, 2):
            name = _connected(folder / f"rail_name_{i}")
            if name:
                rails.append(Rail(name, (folder / f"in_power{i}_input",), 1.0))
    return rails


def _connected(label: Path) -> str | None:
    """The channel's name, or None where nothing is connected to it."""
    name = read_text(label)
    return None if not name or name.upper() == "NC" else name


def _unused(name: str, names: list[str]) -> str:
    """``name``, or ``name (2)`` and so on where it is in ``names``."""
    numbered = (name if n == 1 else f"{name} ({n})" for n in count(1))
    return next(candidate for candidate in numbered if candidate not in names)


def _is_inside(name: str, names: list[str]) -> bool:
    """Whether adding ``name`` to the others would count power twice, or power off the module."""
    return INSIDE.get(name) in names or name.startswith(CARRIER_BOARD)
