"""Recorded machines as trees of files, a clock that takes no time, and sensors that fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest


class HandClock:
    """Time that passes only in :meth:`advance`, which also runs the ticks that fall due."""

    def __init__(self) -> None:
        self.ns = 10**12
        self.started_ns = self.ns
        self.ticks: list[list] = []
        self.on_time: Callable[[float], None] = lambda seconds: None
        """Called with the seconds since the start whenever time has passed."""

    def now(self) -> float:
        return self.ns / 1e9

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        entry = [self.ns + round(seconds * 1e9), round(seconds * 1e9), tick]
        self.ticks.append(entry)
        return lambda: self.ticks.remove(entry) if entry in self.ticks else None

    def advance(self, seconds: float) -> None:
        end = self.ns + round(seconds * 1e9)
        while due := [entry for entry in self.ticks if entry[0] <= end]:
            entry = min(due, key=lambda e: e[0])
            self._set(max(entry[0], self.ns))
            if entry[2]():
                entry[0] = max(entry[0] + entry[1], self.ns)
            else:
                self.ticks.remove(entry)
        self._set(max(end, self.ns))

    def _set(self, ns: int) -> None:
        self.ns = ns
        self.on_time((ns - self.started_ns) / 1e9)


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


class Sensors:
    """What happens to reads of files: errors by path, and the time that each takes."""

    def __init__(self, clock: HandClock) -> None:
        self.errors: dict[Path, int] = {}
        """Path -> errno of reading it."""
        self.denied: set[Path] = set()
        """Paths that may not be opened; tests run as root, whom file modes do not stop."""
        self.open: dict[int, Path] = {}
        """Descriptors that are open now."""
        self.read_ns = 0
        """How long each read takes."""
        self.reads = 0
        self.clock = clock


@pytest.fixture
def sensors(clock: HandClock, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sensors]:
    """Watches the files below ``tmp_path``; at the end no descriptor may be left open."""
    state = Sensors(clock)
    os_open, os_pread, os_close = os.open, os.pread, os.close

    def open_(path, flags, *rest, **named):
        watched = isinstance(path, Path) and path.is_relative_to(tmp_path)
        if watched and path in state.denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        descriptor = os_open(path, flags, *rest, **named)
        if watched:
            state.open[descriptor] = path
        return descriptor

    def pread(descriptor, length, offset):
        path = state.open.get(descriptor)
        if path is not None:
            state.reads += 1
            clock.ns += state.read_ns
            if path in state.errors:
                raise OSError(state.errors[path], os.strerror(state.errors[path]))
        return os_pread(descriptor, length, offset)

    def close(descriptor):
        state.open.pop(descriptor, None)
        os_close(descriptor)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "close", close)
    yield state
    assert not state.open
    assert not clock.ticks


def write(root: Path, files: dict[str, object]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{content}\n", encoding="utf-8")


def i2c_device(root: Path, address: str, files: dict[str, object]) -> Path:
    """A device's folder, where the kernel keeps it; ``/sys/bus/i2c/devices`` holds links."""
    bus = f"sys/devices/platform/bus@0/c240000.i2c/i2c-{address[0]}"
    write(root, {f"{bus}/{address}/{name}": content for name, content in files.items()})
    write(root, {f"{bus}/name": "Tegra I2C adapter"})
    links = root / "sys/bus/i2c/devices"
    links.mkdir(parents=True, exist_ok=True)
    (links / address).symlink_to(root / bus / address)
    adapter = links / f"i2c-{address[0]}"
    if not adapter.exists():
        adapter.symlink_to(root / bus)
    return links / address


def ina3221(
    root: Path, address: str, hwmon: int, channels: Sequence[tuple[str, int, int] | None]
) -> Path:
    """Channels as (label, mV, mA); None has no label. Gives the folder of the channels' files."""
    files: dict[str, object] = {"name": "ina3221"}
    folder = f"hwmon/hwmon{hwmon}"
    files[f"{folder}/in7_label"] = "sum of shunt voltages"
    files[f"{folder}/in7_input"] = 123456
    files[f"{folder}/curr4_input"] = 123456
    for i, channel in enumerate(channels, 1):
        label, mv, ma = channel or (None, 0, 0)
        if label is not None:
            files[f"{folder}/in{i}_label"] = label
        files[f"{folder}/in{i}_input"] = mv
        files[f"{folder}/curr{i}_input"] = ma
    return i2c_device(root, address, files) / folder


class Trees:
    """Writes recorded machines below ``root``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def orin_nano(self, hwmon: int = 1) -> Path:
        """4824 mW in, of which 518 and 1446 mW are named; gives the folder of the channels."""
        rails = [("VDD_IN", 5025, 960), ("VDD_CPU_GPU_CV", 5035, 103), ("VDD_SOC", 5021, 288)]
        return ina3221(self.root, "1-0040", hwmon, rails)

    def agx_orin(self) -> tuple[Path, Path]:
        """3160, 14320, 4968 and, inside the third, 1091 mW; gives the two sensors' folders."""
        first = [
            ("VDD_GPU_SOC", 20000, 158),
            ("VDD_CPU_CV", 20000, 716),
            ("VIN_SYS_5V0", 4968, 1000),
        ]
        second = [("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 4960, 220), None]
        return (
            ina3221(self.root, "1-0040", 3, first),
            ina3221(self.root, "1-0041", 4, second),
        )

    def thor(self, label: str | None = "label") -> Path:
        """23,456.789 mW in at the INA238; three rails of the module; gives the INA238's folder."""
        rails = [
            ("VDD_GPU", 12000, 0),
            ("VDD_CPU_SOC_MSS", 12000, 542),
            ("VIN_SYS_5V0", 5000, 1304),
        ]
        ina3221(self.root, "2-0040", 2, rails)
        files: dict[str, object] = {
            "name": "ina238",
            "hwmon/hwmon5/in0_input": 4,
            "hwmon/hwmon5/in1_input": 20000,
            "hwmon/hwmon5/curr1_input": 1173,
            "hwmon/hwmon5/power1_input": 23456789,
        }
        if label:
            files[f"hwmon/hwmon5/{label}"] = "VIN"
        return i2c_device(self.root, "2-0044", files) / "hwmon/hwmon5"

    def xavier_nx_jetpack4(self) -> Path:
        """The older layout: three channels under iio, powers in mW."""
        folder = "iio:device0"
        files: dict[str, object] = {"name": "ina3221x"}
        rails = [("VDD_IN", 3655), ("VDD_CPU_GPU_CV", 654), ("VDD_SOC", 1063)]
        for i, (label, power) in enumerate(rails):
            files[f"{folder}/rail_name_{i}"] = label
            files[f"{folder}/in_power{i}_input"] = power
        return i2c_device(self.root, "7-0040", files) / folder

    def x86(self, packages: int = 1, energy_uj: int = 1_000_000, range_uj: int = 262_143_328_850):
        """RAPL: packages with cores and memory inside; gives the packages' folders."""
        powercap = "sys/class/powercap"
        write(self.root, {f"{powercap}/intel-rapl/enabled": 1})
        folders = []
        for number in range(packages):
            zone = f"{powercap}/intel-rapl:{number}"
            inside = {"": f"package-{number}", ":0": "core", ":1": "uncore", ":2": "dram"}
            for part, name in inside.items():
                write(
                    self.root,
                    {
                        f"{zone}{part}/name": name,
                        f"{zone}{part}/energy_uj": energy_uj,
                        f"{zone}{part}/max_energy_range_uj": range_uj,
                    },
                )
            folders.append(self.root / zone)
        # The same package once more, through the memory-mapped interface.
        write(self.root, {f"{powercap}/intel-rapl-mmio:0/name": "package-0"})
        return folders


@pytest.fixture
def trees(tmp_path: Path) -> Trees:
    """A function of each machine, writing into ``tmp_path``."""
    return Trees(tmp_path)
