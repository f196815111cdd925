"""Energy of x86 processors from RAPL's counters.

Only packages are counted: cores and uncore are inside them. Memory, disks, the mainboard and GPUs
in slots are not in the figures.

Newer kernels let only root read the counters, because they tell about other users' programs
(CVE-2020-8694). A udev rule allows it for good::

    ACTION=="add", SUBSYSTEM=="powercap", KERNEL=="intel-rapl:*", RUN+="/bin/chmod o+r /sys%p/energy_uj"
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dvt_edge.energy.counters import CounterMeter, Reader
from dvt_edge.energy.sensor_files import (
    denied,
    explain,
    open_file,
    read_file,
    read_once,
    read_text,
)
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock

UJ_PER_MJ = 1000.0


class RaplMeter(CounterMeter):
    """The packages' counters by package name; ``zones`` are their folders."""

    # The counters move about every millisecond, and both ends of a window may be off by as much:
    # 1 % of 0.2 s.
    min_seconds = 0.2
    refresh_hz = 1000.0

    def __init__(self, zones: Mapping[str, Path], clock: Clock | None = None) -> None:
        super().__init__(f"RAPL {' + '.join(zones)}", tuple(zones), clock=clock)
        self._zones = dict(zones)
        self.ranges_mj = {
            name: read_once(zone / "max_energy_range_uj") / UJ_PER_MJ
            for name, zone in zones.items()
        }

    @contextmanager
    def opened(self) -> Iterator[Reader]:
        with ExitStack() as stack:
            files = {
                name: open_file(zone / "energy_uj", stack) for name, zone in self._zones.items()
            }
            yield lambda: {name: read_file(file) / UJ_PER_MJ for name, file in files.items()}


def open_rapl(root: Path, clock: Clock | None = None) -> RaplMeter:
    """RAPL below ``root``; raises EnergyError where no package can be read."""
    folder = root / "sys/class/powercap"
    zones: dict[str, Path] = {}
    for file in sorted(folder.glob("intel-rapl:*/name")):
        name = read_text(file) or ""
        if name.startswith("package"):
            zones[name] = file.parent
    if not zones:
        raise EnergyError(f"no RAPL package in {folder}; an x86 kernel has intel_rapl_common there")
    refused = []
    for zone in zones.values():
        path = zone / "energy_uj"
        try:
            read_once(path)
        except OSError as error:
            if not denied(error):
                raise EnergyError(explain(path, error)) from None
            refused.append(str(path))
    if refused:  # all of them in one command: half of the packages would pass for all
        files = " ".join(refused)
        raise EnergyError(
            f"no permission to read {files}; allow it until the next start with: "
            f"sudo chmod o+r {files}"
        )
    try:
        return RaplMeter(zones, clock)
    except OSError as error:
        raise EnergyError(f"RAPL without max_energy_range_uj in {folder} ({error})") from None
