"""Which machine this is: module, JetPack, CUDA, power mode, memory, from files alone.

Everything is read below a root folder, so that a recorded tree of another board can be used.
"""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

from dvt_edge.errors import BackendError

# By the module's p-number in the device tree; carrier boards (p3768, p3737, p4071) say nothing.
_MODULES = {
    "p3767-0000": "Jetson Orin NX",
    "p3767-0001": "Jetson Orin NX",
    "p3767-0003": "Jetson Orin Nano",
    "p3767-0004": "Jetson Orin Nano",
    "p3767-0005": "Jetson Orin Nano",
    "p3701": "Jetson AGX Orin",
    "p3834": "Jetson AGX Thor",
    "p2888": "Jetson AGX Xavier",
    "p3668": "Jetson Xavier NX",
}

# SoC -> module where the p-number is not known, compute capability.
_SOCS = {
    "tegra264": ("Jetson AGX Thor", "11.0"),
    "tegra234": ("Jetson Orin", "8.7"),
    "tegra194": ("Jetson Xavier", "7.2"),
    "tegra186": ("Jetson TX2", "6.2"),
    "tegra210": ("Jetson Nano", "5.3"),
}
_UNSUPPORTED = ("7.2", "6.2", "5.3")

# The longest L4T version that fits counts: 36.4.3 and later are 6.2, the rest of 36.4 is 6.1.
_JETPACKS = {
    "32": "4",
    "34": "5.0",
    "35": "5.1",
    "35.1": "5.0",
    "36": "6",
    "36.2": "6.0",
    "36.3": "6.0",
    "36.4": "6.2",
    "36.4.0": "6.1",
    "36.4.2": "6.1",
    "36.5": "6.2",
    "38": "7",
    "38.2": "7.0",
    "38.4": "7.1",
    "39": "7",
    "39.2": "7.2",
}
_OLDEST_L4T = (36, 4)  # JetPack 6.1: the first with TensorRT 10
_GET_JETPACK = "https://developer.nvidia.com/embedded/jetpack"


@dataclass(frozen=True)
class Board:
    """What a machine says about itself; None for what it does not say."""

    name: str
    """The device tree's model, or the processor's name on a PC."""
    module: str | None
    """``Jetson Orin Nano``, ``Jetson Orin NX``, ``Jetson AGX Orin``, ``Jetson AGX Thor`` or an
    older Jetson's name; None for other machines."""
    compute_capability: str | None
    """Of the Jetson's GPU, such as ``8.7``; None for other machines."""
    l4t: str | None
    """Jetson Linux, such as ``36.4.3``."""
    jetpack: str | None
    """The JetPack that this L4T belongs to, such as ``6.2``; ``6`` where only that is known."""
    cuda: str | None
    """Version of the CUDA toolkit in ``/usr/local/cuda``."""
    power_mode: str | None
    """Name of the nvpmodel mode, such as ``MAXN_SUPER``."""
    memory_bytes: int | None
    memory_available_bytes: int | None
    """What programs can still take without swapping; a Jetson's GPU takes from the same."""

    @property
    def is_jetson(self) -> bool:
        """Also in a container that hides the device tree but has the L4T release file."""
        return self.module is not None or self.l4t is not None


def read_board(root: str | Path = "/") -> Board:
    """Read the files below ``root``; unreadable or malformed ones give None."""
    folder = Path(root)
    module, capability = _module(folder)
    l4t = _l4t(folder)
    return Board(
        name=_name(folder),
        module=module,
        compute_capability=capability,
        l4t=l4t,
        jetpack=_jetpack(l4t),
        cuda=_cuda(folder),
        power_mode=read_power_mode(folder),
        memory_bytes=_memory(folder, "MemTotal"),
        memory_available_bytes=_memory(folder, "MemAvailable"),
    )


def check_jetpack(board: Board) -> None:
    """Raise :class:`~dvt_edge.errors.BackendError` for a Jetson that TensorRT stages cannot run on.

    Machines other than Jetsons, and Jetsons that do not report their L4T version, pass.
    """
    if not board.is_jetson:
        return
    if board.compute_capability in _UNSUPPORTED:
        raise BackendError(
            f"{board.name} ({board.module}) has a GPU of compute capability "
            f"{board.compute_capability}, for which there is no JetPack 6; dvt-edge needs a Jetson "
            f"Orin with JetPack 6.1 or later, or a Jetson Thor with JetPack 7.0 or later: use such "
            "a board"
        )
    if board.l4t is not None and tuple(map(int, board.l4t.split("."))) < _OLDEST_L4T:
        raise BackendError(
            f"{board.name} has JetPack {board.jetpack or 'of an unknown version'} (L4T "
            f"{board.l4t}), whose TensorRT is older than 10; dvt-edge needs "
            "JetPack 6.1 or later, best 6.2: back up your files and flash it with SDK Manager or "
            f"the SD card image from {_GET_JETPACK}"
        )


def processor_name(root: str | Path = "/") -> str:
    """Architecture, name and cores of the processor: what all timings depend on."""
    return f"{platform.machine()}, {_name(Path(root))}, {available_cores()} cores"


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_power_mode(root: str | Path = "/") -> str | None:
    """Name of the current nvpmodel mode, such as ``15W``; None where there is none."""
    folder = Path(root)
    config = read_text(folder / "etc/nvpmodel.conf") or ""
    try:
        status = (folder / "var/lib/nvpmodel/status").read_text(encoding="utf-8", errors="replace")
        current = re.search(r"pmode:([0-9]{1,9})", status)
    except FileNotFoundError:  # nothing was chosen yet: the default holds
        current = re.search(r"^\s*<\s*PM_CONFIG\s+DEFAULT=([0-9]{1,9})\s*>", config, re.MULTILINE)
    except OSError:
        return None
    for number, name in re.findall(
        r"^\s*<\s*POWER_MODEL\s+ID=([0-9]{1,9})\s+NAME=([^\s>]+)", config, re.MULTILINE
    ):
        if current is not None and int(number) == int(current[1]):
            return str(name)
    return None


def read_text(path: Path) -> str | None:
    """A small file's text without the blanks around it; None if it is empty or unreadable."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.strip("\0 \t\r\n") or None


def read_integer(path: Path) -> int | None:
    """A file's text as an integer; None if it is unreadable or something else."""
    text = read_text(path)
    return int(text) if text and re.fullmatch(r"[+-]?[0-9]{1,20}", text) else None


def _name(root: Path) -> str:
    model = read_text(root / "proc/device-tree/model")
    if model:
        return model
    found = re.search(
        r"^(?:model name|Model)\s*:[ \t]*(\S.*)$",
        read_text(root / "proc/cpuinfo") or "",
        re.MULTILINE,
    )
    return found[1].strip() if found else "unknown machine"


def _module(root: Path) -> tuple[str | None, str | None]:
    """Name of the Jetson module and compute capability of its GPU."""
    compatible = (read_text(root / "proc/device-tree/compatible") or "").split("\0")
    for soc, (family, capability) in _SOCS.items():
        if f"nvidia,{soc}" in compatible:
            numbers = re.findall(r"p[0-9]{4}-[0-9]{4}", " ".join(compatible))
            known = (_MODULES.get(n) or _MODULES.get(n[:5]) for n in numbers)
            return next(filter(None, known), family), capability
    return None, None


def _l4t(root: Path) -> str | None:
    found = re.search(
        r"#\s*R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,3}(?:\.[0-9]{1,3})*)",
        read_text(root / "etc/nv_tegra_release") or "",
    )
    return f"{found[1]}.{found[2]}" if found else None


def _jetpack(l4t: str | None) -> str | None:
    parts = l4t.split(".") if l4t else []
    prefixes = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((_JETPACKS[prefix] for prefix in prefixes if prefix in _JETPACKS), None)


def _cuda(root: Path) -> str | None:
    try:
        version = json.loads(read_text(root / "usr/local/cuda/version.json") or "")["cuda"][
            "version"
        ]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return version if isinstance(version, str) and version else None


def _memory(root: Path, key: str) -> int | None:
    """Bytes of one line of ``/proc/meminfo``, which counts in kB of 1024."""
    found = re.search(
        rf"^{key}:\s*([0-9]{{1,18}}) kB$", read_text(root / "proc/meminfo") or "", re.MULTILINE
    )
    return int(found[1]) * 1024 if found else None
