"""What can move a measurement: power mode, governor, clocks, temperatures, throttling."""

from __future__ import annotations

import re
from pathlib import Path
from statistics import fmean

from pydantic import Field

from dvt_edge.files.documents import Document
from dvt_edge.machine.board import read_integer, read_power_mode, read_text

CLOCK_TOLERANCE = 0.1
"""Share by which a mean clock may move between two readings."""
TEMPERATURE_RISE_C = 10.0
HOT_C = 85.0
"""Jetsons begin to slow down a few degrees above."""

_LOWEST_C = -100.0  # a gated sensor of older kernels reads -256


class Conditions(Document):
    """The state of the machine at one moment; None or empty for what it does not report."""

    power_mode: str | None = None
    """Name of the nvpmodel mode on a Jetson, such as ``MAXN_SUPER``."""
    governor: str | None = None
    """Of the CPU clocks, such as ``schedutil``; all of them, comma-separated, if cores differ."""
    cpu_mhz: tuple[float, ...] = ()
    """Current clock of each core that is on."""
    gpu_mhz: float | None = Field(default=None, ge=0)
    """Current clock of the integrated GPU."""
    temperatures_c: dict[str, float] = Field(default_factory=dict)
    """By the type of the thermal zone; the hottest of several zones of one type."""
    throttle_events: int | None = Field(default=None, ge=0)
    """How often since the start the hardware has slowed itself down: for over-current and low
    voltage on a Jetson, for heat on a PC."""


def read_conditions(root: str | Path = "/") -> Conditions:
    """Read the files below ``root``; what cannot be read is left out.

    Clocks follow the load: read during the measurement or right after it, before the machine is
    idle again.
    """
    folder = Path(root)
    cores = sorted(
        folder.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq"),
        key=lambda path: (len(path.parent.name), path.parent.name),  # cpu10 after cpu9
    )
    governors = {read_text(core / "scaling_governor") for core in cores} - {None}
    clocks = (read_integer(core / "scaling_cur_freq") for core in cores)
    return Conditions(
        power_mode=read_power_mode(folder),
        governor=", ".join(sorted(map(str, governors))) or None,
        cpu_mhz=tuple(khz / 1e3 for khz in clocks if khz is not None),
        gpu_mhz=_gpu_mhz(folder),
        temperatures_c=_temperatures(folder),
        throttle_events=_throttle_events(folder),
    )


def changes(before: Conditions, after: Conditions) -> list[str]:
    """Warnings for people about what changed enough to move a measurement; empty if nothing did.

    What only one of the two has is not compared.
    """
    warnings = []
    for what, old, new in (
        ("power mode", before.power_mode, after.power_mode),
        ("CPU governor", before.governor, after.governor),
    ):
        if old is not None and new is not None and old != new:
            warnings.append(f"the {what} changed from {old} to {new}; set it and measure again")
    if before.cpu_mhz and after.cpu_mhz:
        if len(before.cpu_mhz) != len(after.cpu_mhz):
            warnings.append(
                f"{len(before.cpu_mhz)} CPU cores were on before, {len(after.cpu_mhz)} after; "
                "keep the power mode and measure again"
            )
        warnings += _clock_change("CPU", fmean(before.cpu_mhz), fmean(after.cpu_mhz))
    if before.gpu_mhz is not None and after.gpu_mhz is not None:
        warnings += _clock_change("GPU", before.gpu_mhz, after.gpu_mhz)
    for zone, new_c in after.temperatures_c.items():
        old_c = before.temperatures_c.get(zone, new_c)
        if new_c - old_c > TEMPERATURE_RISE_C:
            warnings.append(
                f"{zone} rose from {old_c:.0f} to {new_c:.0f} degC; warm the machine up first, or "
                "cool it"
            )
        if new_c > HOT_C:
            warnings.append(
                f"{zone} is at {new_c:.0f} degC, above {HOT_C:.0f}, where clocks begin to fall; "
                "cool the machine"
            )
    if before.throttle_events is not None and after.throttle_events is not None:
        events = after.throttle_events - before.throttle_events
        if events > 0:
            warnings.append(
                f"the hardware slowed itself down {events} times; look after its cooling and power "
                "supply, or choose a lower power mode"
            )
    return warnings


def _clock_change(what: str, before_mhz: float, after_mhz: float) -> list[str]:
    if abs(after_mhz - before_mhz) <= CLOCK_TOLERANCE * before_mhz:
        return []
    return [
        f"the {what} clock went from {before_mhz:.0f} to {after_mhz:.0f} MHz; fix the clocks "
        "(sudo jetson_clocks on a Jetson, the governor 'performance' elsewhere) and measure again"
    ]


def _gpu_mhz(root: Path) -> float | None:
    """Orin's node is ``17000000.gpu`` (``17000000.ga10b`` on older kernels), Thor's
    ``gpu-gpc-0``."""
    for node in sorted(root.glob("sys/class/devfreq/*")):
        if re.fullmatch(r"[0-9a-f]+\.(gpu|ga10b|gv11b)|gpu-gpc-0", node.name):
            hertz = read_integer(node / "cur_freq")
            if hertz is not None and hertz >= 0:
                return hertz / 1e6
    return None


def _temperatures(root: Path) -> dict[str, float]:
    hottest: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        name = read_text(zone / "type")
        millidegrees = read_integer(zone / "temp")  # EAGAIN while its part of the chip is off
        if name is None or millidegrees is None or millidegrees / 1e3 < _LOWEST_C:
            continue
        hottest[name] = max(millidegrees / 1e3, hottest.get(name, _LOWEST_C))
    return hottest


def _throttle_events(root: Path) -> int | None:
    files = [
        *root.glob("sys/class/hwmon/hwmon*/oc[0-9]*_event_cnt"),
        *root.glob("sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"),
    ]
    counts = [count for count in map(read_integer, files) if count is not None and count >= 0]
    return sum(counts) if counts else None
