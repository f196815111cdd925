"""Finds the best meter of a machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from dvt_edge.energy.ina238 import find_input, open_ina238
from dvt_edge.energy.ina3221 import open_ina3221
from dvt_edge.energy.meter import Meter, UnavailableMeter
from dvt_edge.energy.nvml import NvmlMeter
from dvt_edge.energy.rapl import RaplMeter
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock

OR_DECLARE = "; or declare the power with energy.watts"
"""How the reason ends where nothing can be measured."""


def open_meter(
    root: str | Path = "/",
    *,
    runs_on: Literal["cpu", "gpu"] | None = None,
    clock: Clock | None = None,
) -> Meter:
    """The meter that sees most of what this machine uses.

    In this order: the input of a Jetson Thor (INA238), the rails of other Jetsons (INA3221), an
    NVIDIA GPU's counter (NVML), the processor's (RAPL). ``runs_on`` leaves out those that do not
    see the work: ``cpu`` a GPU's counter, ``gpu`` the processor's. Where nothing can be measured
    the meter's ``unavailable`` says what was looked for, and why not.

    ``root`` is the file system to look in, so that a recorded tree can stand in for a machine; NVML
    is asked only for ``/``.
    """
    folder = Path(root)
    meters: list[tuple[str, Callable[[], Meter]]] = [("INA238", lambda: open_ina238(folder, clock))]
    if find_input(folder) is None:  # its rails are a part of what an unreadable INA238 would show
        meters.append(("INA3221", lambda: open_ina3221(folder, clock)))
    if folder == Path("/") and runs_on != "cpu":
        meters.append(("NVML", lambda: NvmlMeter(clock=clock)))
    if runs_on != "gpu":
        meters.append(("RAPL", lambda: RaplMeter(folder, clock)))
    reasons = []
    for name, open_one in meters:
        try:
            return open_one()
        except EnergyError as error:
            reasons.append(f"{name}: {error}")
    return UnavailableMeter(
        f"no power sensor can be read ({'; '.join(reasons)}){OR_DECLARE}", clock
    )
