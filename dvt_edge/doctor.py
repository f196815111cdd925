"""What this machine has of what dvt-edge needs: libraries, driver, board, sensors, cameras."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dvt_edge.camera import missing_elements, needed_library, redacted
from dvt_edge.energy import open_meter
from dvt_edge.errors import BackendError, ConfigError
from dvt_edge.machine.board import Board, check_jetpack, read_board, read_text
from dvt_edge.machine.conditions import read_conditions
from dvt_edge.machine.probes import State, probe_driver, probe_library
from dvt_edge.profile import Profile
from dvt_edge.requirements import LIBRARIES, Library, is_older, missing
from dvt_edge.runtime.native import operator_library
from dvt_edge.runtime.native.library import kernels_unavailable, unavailable

LITTLE_BYTES = 1e9
"""With less free memory or disk than this, builds fail."""

# Of the libraries below, what executing a bundle takes; ONNX Runtime checks every build.
_ALWAYS = ("Python", "NumPy", "ONNX Runtime")
_NEEDED_BY = {
    "onnxruntime": _ALWAYS,
    "tensorrt": (*_ALWAYS, "TensorRT", "pycuda", "NVIDIA driver"),
    "tensorrt-rtx": (*_ALWAYS, "TensorRT-RTX", "pycuda", "NVIDIA driver"),
}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for."""

    name: str
    state: State
    detail: str
    """What was found: version, or why it is missing or broken."""
    remedy: str = ""
    """What to do about it, such as the command that installs it; empty if there is nothing."""
    required: bool = False
    """This machine, or the profile, does not work without it."""

    @property
    def blocks(self) -> bool:
        """It is needed and not ready."""
        return self.required and self.state != "ok"


# Expressions of the imported ``module`` for what else to show.
_DETAILS = {
    "onnxruntime": "', '.join(module.get_available_providers())",
    "torch": "f'CUDA {module.version.cuda}' if module.version.cuda else 'CPU only'",
}
EXAMINED = ("numpy", "onnxruntime", "torch", "onnx", "tensorrt", "tensorrt_rtx", "pycuda.driver")


def examine(root: str | Path = "/", profile: Profile | None = None) -> list[Finding]:
    """Look for everything that dvt-edge uses; takes seconds, mostly for imports.

    Board, toolkit, sensors and cameras are read below ``root``; libraries and driver are this
    Python's. What is required follows the profile's backend; without a profile, TensorRT on a
    Jetson and ONNX Runtime elsewhere. Never raises for what it finds.
    """
    folder = Path(root)
    board = read_board(folder)
    backend = profile.engine.backend if profile else "tensorrt" if board.is_jetson else ""
    required = set(_NEEDED_BY.get(backend, _ALWAYS))
    if board.is_jetson and backend != "onnxruntime":
        required.add("JetPack")
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        driver = pool.submit(_driver, board, "NVIDIA driver" in required)
        libraries = list(pool.map(lambda name: _library(LIBRARIES[name], board), EXAMINED))
    findings = [
        Finding("Python", "ok", f"{platform.python_version()}, {sys.executable}"),
        *_machine(folder, board),  # first what explains the rest
        driver.result(),
        _toolkit(folder, board),
        *libraries,
        _native_code(),
        _native_operators(),
        _memory(board),
        _disk(profile),
        _energy_sensors(folder),
        _cameras(folder),
        *_source(profile),
    ]
    return [
        replace(
            f, required=f.required or f.name in required, remedy="" if f.state == "ok" else f.remedy
        )
        for f in findings
    ]


def _library(library: Library, board: Board) -> Finding:
    probe = probe_library(library.module, _DETAILS.get(library.module, "''"))
    state, detail = probe.state, probe.detail
    remedy = (board.is_jetson and library.install_on_jetson) or library.install
    if state == "ok" and is_older(detail, library.minimum):
        state, detail = "broken", f"{detail}, older than {'.'.join(map(str, library.minimum))}"
    elif state == "ok":
        detail = ", ".join(filter(None, (detail, probe.extra)))
    else:
        detail += f"; needed to {library.purpose}" if library.purpose else ""
        if state == "broken":
            remedy = f"repair what is named above, or install it again: {remedy}"
    return Finding(library.name, state, detail, remedy)


def _driver(board: Board, needed: bool) -> Finding:
    probe = probe_driver()
    state, detail = probe.state, probe.detail
    if state == "ok":
        detail += f"; {probe.extra or 'no GPU is visible'}"
        state = "missing" if needed and not probe.extra else "ok"
    return Finding(
        "NVIDIA driver",
        state,
        detail,
        "JetPack installs it; start containers with --runtime nvidia"
        if board.is_jetson
        else "install it from https://www.nvidia.com/drivers (Ubuntu: sudo ubuntu-drivers install) "
        "and restart; start containers with --gpus all",
    )


def _toolkit(root: Path, board: Board) -> Finding:
    nvcc = shutil.which("nvcc") if root == Path("/") else None
    found = f"{board.cuda}, /usr/local/cuda" if board.cuda else nvcc
    return Finding(
        "CUDA toolkit",
        "ok" if found else "missing",
        found or "no /usr/local/cuda/version.json; needed to install pycuda",
        "sudo apt install nvidia-jetpack"
        if board.is_jetson
        else "https://developer.nvidia.com/cuda-downloads",
    )


def _machine(root: Path, board: Board) -> Iterator[Finding]:
    """Board, JetPack and power mode."""
    capability = f", compute capability {board.compute_capability}"
    known = f" ({board.module}{capability})" if board.module else ""
    yield Finding("board", "ok", board.name + known)
    if not board.is_jetson:
        yield Finding("JetPack", "ok", "not a Jetson")
        governor = read_conditions(root).governor
        yield Finding("power mode", "ok", f"not a Jetson; CPU governor {governor or 'unknown'}")
        return
    try:
        check_jetpack(board)
    except BackendError as error:
        found, _, remedy = str(error).rpartition(": ")
        yield Finding("JetPack", "broken", found, remedy)
    else:
        version = board.jetpack or "of an unknown version"
        release = f"L4T {board.l4t}" if board.l4t else "/etc/nv_tegra_release does not say"
        yield Finding("JetPack", "ok", f"{version} ({release})")
    yield Finding(
        "power mode",
        "ok" if board.power_mode else "missing",
        board.power_mode
        or "unknown from /etc/nvpmodel.conf and /var/lib/nvpmodel/status; measurements will not "
        "name it",
        "choose one with sudo nvpmodel -m ID; give containers both files",
    )


def _native_code() -> Finding:
    """The library that preprocesses frames, and the kernels for the GPU."""
    absent, kernels = unavailable(), kernels_unavailable()
    return Finding(
        "native code",
        "missing" if absent else "ok",
        absent or (f"CPU only, for GPUs {kernels}" if kernels else "CPU and CUDA kernels"),
        "sudo apt install g++ && pip install --force-reinstall --no-deps dvt-edge",
    )


def _native_operators() -> Finding:
    """What ONNX Runtime's stages run on, on a CPU."""
    absent, library = operator_library.unavailable(), operator_library.path()
    return Finding(
        "operators",
        "missing" if absent else "ok",
        absent or f"for ONNX Runtime on the CPU, with {operator_library.instruction_set()}",
        ""
        if library
        else "sudo apt install g++ && pip install --force-reinstall --no-deps dvt-edge",
    )


def _memory(board: Board) -> Finding:
    total, available = board.memory_bytes, board.memory_available_bytes
    if total is None or available is None:
        return Finding("memory", "missing", "/proc/meminfo does not say")
    detail = f"{available / 1e9:.1f} of {total / 1e9:.1f} GB available"
    return _space("memory", available, detail, "close other programs, add swap")


def _disk(profile: Profile | None) -> Finding:
    """Where the bundle will be: the profile's output, or the current folder."""
    wanted = profile.output if profile else Path()
    try:
        folder = wanted.absolute()
        while not os.path.isdir(folder) and folder != folder.parent:
            folder = folder.parent
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding("disk", "broken", f"{wanted}: {error}", "change to a folder that exists")
    return _space("disk", free, f"{free / 1e9:.1f} GB free in {folder}", "delete what is not used")


def _space(name: str, free_bytes: float, detail: str, remedy: str) -> Finding:
    if free_bytes < LITTLE_BYTES:
        return Finding(name, "broken", f"{detail}: too little to build", remedy)
    return Finding(name, "ok", detail)


def _energy_sensors(root: Path) -> Finding:
    """The meter that a measurement would use."""
    name = "energy sensors"
    meter = open_meter(root)
    if meter.unavailable is None:
        rate = "" if meter.refresh_hz is None else f", {meter.refresh_hz:g} Hz"
        return Finding(name, "ok", meter.source + rate)
    allow = re.search(r"sudo chmod o\+r [^;)]+", meter.unavailable)
    if allow:
        return Finding(name, "broken", meter.unavailable, allow[0])
    return Finding(
        name,
        "broken" if " cannot be read (" in meter.unavailable else "missing",
        f"{meter.unavailable}; needed for budgets and reports in millijoules",
        "use latency budgets, declare energy.watts in the profile, or run on a board with sensors",
    )


def _cameras(root: Path) -> Finding:
    nodes = sorted(root.glob("dev/video[0-9]*"), key=lambda node: (len(node.name), node.name))
    shown = ", ".join(
        f"/dev/{node.name} "
        f"({read_text(root / 'sys/class/video4linux' / node.name / 'name') or 'no name'})"
        for node in nodes
    )
    closed = [node.name for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    if closed:
        return Finding(
            "cameras",
            "broken",
            f"{shown}; no access to {', '.join(closed)}",
            "sudo usermod -aG video $USER, then log in again",
        )
    return Finding(
        "cameras",
        "ok" if nodes else "missing",
        shown or "no /dev/video*; needed for live video only",
        "connect one (CSI: sudo /opt/nvidia/jetson-io/jetson-io.py sets the connector); give "
        "containers --device /dev/video0",
    )


def _source(profile: Profile | None) -> Iterator[Finding]:
    """What reading the profile's camera takes; the camera itself is not opened."""
    uri = profile.camera.source if profile else None
    if uri is None or uri.startswith("replay://"):
        return
    try:
        shown = redacted(uri)
        libraries = missing("av") if needed_library(uri) == "av" else []
        elements = missing_elements(uri)
    except ConfigError as error:
        yield Finding("camera.source", "broken", str(error), "correct it", required=True)
        return
    if elements == ["gi"]:  # GStreamer's module itself
        libraries, elements = [LIBRARIES["gi"]], []
    lacking = [library.name for library in libraries] + elements
    if not lacking:
        yield Finding("camera.source", "ok", shown, required=True)
        return
    remedy = "gst-inspect-1.0 NAME looks for an element; Debian has them in gstreamer1.0-plugins-*"
    if libraries:
        remedy = libraries[0].install
    detail = f"{shown} needs {', '.join(lacking)}"
    yield Finding("camera.source", "missing", detail, remedy, required=True)
