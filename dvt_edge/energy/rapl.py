"""Energy of x86 processors from RAPL's counters.

Only packages are counted: cores and uncore are inside them. Memory, disks, the mainboard and GPUs
in slots are not in the figures.

Newer kernels let only root read the counters, because they tell about other users' programs
(CVE-2020-8694). A udev rule allows it for good::

    ACTION=="add", SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod o+r /sys%p/energy_uj"
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dvt_edge.energy.polling import PolledMeter
from dvt_edge.energy.sensor_files import DeniedError, read_sensor
from dvt_edge.errors import EnergyError
from dvt_edge.machine.board import read_text
from dvt_edge.machine.clock import Clock

UJ_PER_MJ = 1000.0


class RaplMeter(PolledMeter):
    """The packages' counters, by package name."""

    # The counters move about every millisecond, and both ends of a window may be off by as much:
    # 1 % of 0.2 s.
    min_seconds = 0.2
    refresh_hz = 1000.0

    def __init__(self, root: Path, clock: Clock | None = None) -> None:
        """All packages below ``root``; raises EnergyError where one of them cannot be read."""
        folder = root / "sys/class/powercap"
        names = {file.parent: read_text(file) or "" for file in folder.glob("intel-rapl:*/name")}
        self._zones = {n: zone for zone, n in sorted(names.items()) if n.startswith("package")}
        if not self._zones:
            raise EnergyError(
                f"no RAPL package in {folder}; an x86 kernel has intel_rapl_common there"
            )
        super().__init__(f"RAPL {' + '.join(self._zones)}", tuple(self._zones), clock)
        denied: list[Path] = []  # all of them in one command
        for file in [zone / "energy_uj" for zone in self._zones.values()]:
            try:
                read_sensor(file)
            except DeniedError:
                denied.append(file)
        if denied:
            raise DeniedError(*denied)
        self._ranges_mj = self._read_mj("max_energy_range_uj")

    def _read_mj(self, file: str) -> dict[str, float]:
        return {name: read_sensor(zone / file) / UJ_PER_MJ for name, zone in self._zones.items()}

    def read(self) -> Mapping[str, float]:
        return self._read_mj("energy_uj")

    def used_mj(self, rail: str, before: float, after: float, seconds: float) -> float:
        started_again = after < before
        return after - before + (self._ranges_mj[rail] if started_again else 0.0)
