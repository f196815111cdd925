"""The doctor: libraries that are there, missing, broken, crashing or slow; boards and sensors."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from dvt_edge import doctor
from dvt_edge.doctor import Finding, examine
from dvt_edge.machine import probes
from dvt_edge.profile import Profile
from dvt_edge.requirements import LIBRARIES

Root = Callable[..., Path]

HWMON = "sys/class/hwmon/hwmon1"
NO_DRIVER = 'print(\'{"state": "missing", "detail": "no libcuda"}\')'
DRIVER = 'print(\'{"state": "ok", "detail": "for CUDA up to 12.6", "extra": "Orin (8.7)"}\')'
GOOD = {
    "numpy": "__version__ = '2.0.0'",
    "onnxruntime": "__version__ = '1.31.0'\n"
    "def get_available_providers():\n    return ['CPUExecutionProvider']",
    "torch": "class version:\n    cuda = '12.6'\n__version__ = '2.12.1+cu126'",
    "onnx": "__version__ = '1.22.0'",
    "tensorrt": "__version__ = '10.3.0'",
    "tensorrt_rtx": "__version__ = '1.7.0.1'",
}

pytestmark = pytest.mark.skipif(os.name != "posix", reason="trees and probes of Linux")


class Fakes(NamedTuple):
    """A folder of libraries that the probes find before the real ones."""

    folder: Path

    def write(self, module: str, source: str) -> None:
        (self.folder / f"{module}.py").write_text(source, encoding="utf-8")

    def remove(self, module: str) -> None:
        """Python says so of a module that is not installed, also where the real one is."""
        self.write(module, f"raise ModuleNotFoundError('no {module}', name={module!r})")


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fakes:
    """Every library in a good version but no driver, whatever this machine has."""
    fakes = Fakes(tmp_path / "fakes")
    (fakes.folder / "pycuda").mkdir(parents=True)
    (fakes.folder / "pycuda" / "__init__.py").write_text("VERSION_TEXT = '2025.1'")
    (fakes.folder / "pycuda" / "driver.py").write_text("")
    for module, source in GOOD.items():
        fakes.write(module, source)
    monkeypatch.setattr(sys, "path", [str(fakes.folder), *sys.path])
    monkeypatch.setattr(probes, "_PROBE_DRIVER", NO_DRIVER)
    return fakes


@pytest.fixture
def profile_for(demo_profile_values: Callable[..., dict[str, Any]]) -> Callable[[str], Profile]:
    """A function giving a profile for a backend, also one that profiles do not know yet."""

    def make(backend: str) -> Profile:
        profile = Profile.model_validate(demo_profile_values())
        engine = profile.engine.model_copy(update={"backend": backend})
        return profile.model_copy(update={"engine": engine})

    return make


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    names = [finding.name for finding in findings]
    assert len(set(names)) == len(names)
    return {finding.name: finding for finding in findings}


def _blocking(findings: list[Finding]) -> set[str]:
    return {finding.name for finding in findings if finding.blocks}


@pytest.mark.usefixtures("fakes")
def test_pc(board_root: Root) -> None:
    """All libraries there, no GPU, no sensors: nothing that a PC needs is missing."""
    findings = examine(board_root("pc"))
    assert _blocking(findings) == set()
    found = _by_name(findings)
    assert [name for name, f in found.items() if f.required] == ["Python", "NumPy", "ONNX Runtime"]
    assert found["ONNX Runtime"].detail == "1.31.0, CPUExecutionProvider"
    assert found["torch"].detail == "2.12.1+cu126, CUDA 12.6"
    assert found["pycuda"].detail == "2025.1"
    assert found["NVIDIA driver"].state == "missing"
    assert found["board"].detail == "AMD Ryzen 7 5800X"
    assert found["memory"].detail == "20.5 of 33.6 GB available"
    assert found["energy sensors"].state == found["cameras"].state == "missing"
    for finding in findings:
        assert finding.remedy or finding.state == "ok", finding


def test_jetson_without_libraries(board_root: Root, fakes: Fakes) -> None:
    """A Jetson needs TensorRT, pycuda and a driver; each says how to get it there."""
    fakes.remove("tensorrt")
    (fakes.folder / "pycuda" / "driver.py").write_text("import pycuda._driver")
    findings = examine(board_root("orin-nano"))
    assert _blocking(findings) == {"TensorRT", "pycuda", "NVIDIA driver"}
    found = _by_name(findings)
    assert found["TensorRT"].state == "missing"
    assert "python3-libnvinfer" in found["TensorRT"].remedy
    assert found["pycuda"].state == "broken"  # it is there, but its compiled half is not
    assert "pycuda._driver" in found["pycuda"].detail
    assert found["JetPack"].detail == "6.2 (L4T 36.4.3)"
    assert found["power mode"].detail == "MAXN_SUPER"
    assert "Jetson Orin Nano, compute capability 8.7" in found["board"].detail
    assert found["CUDA toolkit"].detail == "12.6.68, /usr/local/cuda"


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("kind", ["orin-nano", "agx-orin", "thor"])
def test_good_jetsons(board_root: Root, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Nothing blocks where all is installed."""
    monkeypatch.setattr(probes, "_PROBE_DRIVER", DRIVER)
    findings = examine(board_root(kind))
    assert _blocking(findings) == set()
    assert _by_name(findings)["NVIDIA driver"].detail == "for CUDA up to 12.6; Orin (8.7)"
    assert _by_name(findings)["JetPack"].required


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize(
    ("kind", "remedy"), [("xavier", "use such a board"), ("orin-jetpack-5", "flash it")]
)
def test_old_jetsons(
    board_root: Root, monkeypatch: pytest.MonkeyPatch, kind: str, remedy: str
) -> None:
    """The JetPack line says what to do; the line of the power mode is only optional."""
    monkeypatch.setattr(probes, "_PROBE_DRIVER", DRIVER)
    findings = examine(board_root(kind))
    assert _blocking(findings) == {"JetPack"}
    jetpack = _by_name(findings)["JetPack"]
    assert jetpack.state == "broken"
    assert remedy in jetpack.remedy
    assert _by_name(findings)["power mode"].state == "missing"


@pytest.mark.parametrize(
    ("backend", "kind", "blocking"),
    [
        ("onnxruntime", "pc", set()),
        ("onnxruntime", "orin-nano", set()),
        ("onnxruntime", "xavier", set()),
        ("tensorrt", "pc", {"TensorRT", "NVIDIA driver"}),
        ("tensorrt", "orin-nano", {"TensorRT", "NVIDIA driver"}),
        ("tensorrt", "xavier", {"TensorRT", "NVIDIA driver", "JetPack"}),
        ("tensorrt-rtx", "pc", {"TensorRT-RTX", "NVIDIA driver"}),
    ],
)
def test_profile_says_what_is_required(
    board_root: Root,
    fakes: Fakes,
    profile_for: Callable[[str], Profile],
    backend: str,
    kind: str,
    blocking: set[str],
) -> None:
    """The backend of the profile counts, not the machine."""
    fakes.remove("tensorrt")
    fakes.remove("tensorrt_rtx")
    assert _blocking(examine(board_root(kind), profile_for(backend))) == blocking


@pytest.mark.parametrize(
    ("source", "state", "detail"),
    [
        ("__version__ = '10.3.0'", "ok", "10.3.0"),
        ("print('noise', end='')\n__version__ = '10.3.0'", "ok", "10.3.0"),
        ("__version__ = '8.5.2'", "broken", "8.5.2, older than 10.3"),
        ("", "ok", "version unknown"),
        (
            "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
            "broken",
            "ImportError: libnvinfer.so.10: cannot open shared object file",
        ),
        ("import no_such_helper", "broken", "No module named 'no_such_helper'"),
        ("import os\nos.abort()", "broken", "trying it crashed (Aborted"),
        ("import os\nos._exit(3)", "broken", "trying it ended with exit code 3"),
        ("import sys\nsys.exit('no licence')", "broken", "SystemExit: no licence"),
        ("import time\ntime.sleep(60)", "broken", "gave no answer within 1 s"),
        (  # a good answer, then a crash while the process ends
            "import atexit, os\natexit.register(os.abort)\n__version__ = '10.3.0'",
            "ok",
            "10.3.0",
        ),
    ],
)
def test_library_states(
    board_root: Root,
    fakes: Fakes,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    state: str,
    detail: str,
) -> None:
    """Whatever an import does, it becomes a line."""
    monkeypatch.setattr(doctor, "EXAMINED", ("tensorrt",))
    if "sleep" in source:
        monkeypatch.setattr(probes, "PROBE_SECONDS", 1.0)
    fakes.write("tensorrt", source)
    found = _by_name(examine(board_root("pc")))["TensorRT"]
    assert found.state == state
    assert found.detail.startswith(detail)
    assert bool(found.remedy) == (state != "ok")


def test_a_folder_is_no_library(
    board_root: Root, fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a bare folder on the path nor modules in the current folder count."""
    monkeypatch.setattr(doctor, "EXAMINED", ("tensorrt_rtx",))
    (fakes.folder / "tensorrt_rtx.py").rename(fakes.folder / "elsewhere.py")
    (fakes.folder / "tensorrt_rtx").mkdir()
    here = board_root("pc")
    (here / "json.py").write_text("raise SystemExit('the current folder was imported')")
    monkeypatch.chdir(here)
    found = _by_name(examine(here))["TensorRT-RTX"]
    assert (found.state, found.detail.split(";")[0]) in (
        ("missing", "not installed"),
        ("ok", found.detail),  # where the real one is installed, it is found behind the folder
    )


LIBCUDA = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strncpy(name, "Orin", size); return 0; }
int cuDeviceGetAttribute(int *value, int what, int device) {
    *value = what == 75 ? 8 : what == 76 ? 7 : -1; return 0; }
int cuGetErrorString(int status, const char **text) { *text = "unknown error"; return 0; }
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(
    ("status", "state", "detail"),
    [
        ("0", "ok", "for CUDA up to 12.6; Orin (8.7)"),
        ("100", "ok", "for CUDA up to 12.6; no GPU is visible"),
        ("999", "broken", "for CUDA up to 12.6; cuInit fails: unknown error (999)"),
        ("*(volatile int *)0", "broken", "trying it crashed (Segmentation fault"),
    ],
)
def test_driver(
    board_root: Root,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: str,
    state: str,
    detail: str,
) -> None:
    """The driver's own functions are called: a stand-in library answers."""
    (tmp_path / "cuda.c").write_text(LIBCUDA.replace("INIT", status))
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", tmp_path / "cuda.c"],
        check=True,
    )
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "EXAMINED", ())
    found = _by_name(examine(board_root("pc")))["NVIDIA driver"]
    assert found.state == state
    assert found.detail.startswith(detail)


@pytest.mark.usefixtures("fakes")
def test_needed_driver_without_a_gpu(
    board_root: Root, profile_for: Callable[[str], Profile], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU is no error by itself, but it is where TensorRT is to run."""
    code = 'print(\'{"state": "ok", "detail": "for CUDA up to 12.6"}\')'
    monkeypatch.setattr(probes, "_PROBE_DRIVER", code)
    root = board_root("pc")
    assert _by_name(examine(root))["NVIDIA driver"].state == "ok"
    assert _blocking(examine(root, profile_for("tensorrt"))) == {"NVIDIA driver"}


@pytest.fixture
def no_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the machine is looked at, which is quick."""
    monkeypatch.setattr(doctor, "EXAMINED", ())
    monkeypatch.setattr(probes, "_PROBE_DRIVER", NO_DRIVER)


I2C = "sys/bus/i2c/devices/1-0040"
INA3221 = {
    f"{I2C}/name": "ina3221\n",
    f"{I2C}/hwmon/hwmon1/in1_label": "VDD_IN",
    f"{I2C}/hwmon/hwmon1/in1_input": "5000",
    f"{I2C}/hwmon/hwmon1/curr1_input": "960",
}
RAPL_ZONE = "sys/class/powercap/intel-rapl:0"
RAPL = {
    f"{RAPL_ZONE}/name": "package-0",
    f"{RAPL_ZONE}/energy_uj": "1",
    f"{RAPL_ZONE}/max_energy_range_uj": "1000",
}
SENSORS: dict[str, tuple[dict[str, str], str]] = {
    "INA3221 VDD_IN (module total), 50 Hz": (INA3221, f"{I2C}/hwmon/hwmon1/in1_input"),
    "RAPL package-0, 1000 Hz": (RAPL, f"{RAPL_ZONE}/energy_uj"),
}


@pytest.mark.usefixtures("no_libraries")
@pytest.mark.parametrize("shown", SENSORS)
def test_energy_sensors(board_root: Root, monkeypatch: pytest.MonkeyPatch, shown: str) -> None:
    """Those that a measurement reads; without permission the file and the command are named."""
    files, denied = SENSORS[shown]
    root = board_root("pc", files)
    found = _by_name(examine(root))["energy sensors"]
    assert (found.state, found.detail) == ("ok", shown)
    file, os_open = root / denied, os.open

    def refuse(path: Any, *arguments: Any, **keywords: Any) -> int:
        if Path(str(path)) == file:
            raise PermissionError(13, "Permission denied")
        return os_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    found = _by_name(examine(root))["energy sensors"]
    assert found.state == "broken"
    assert f"no permission to read {file}" in found.detail
    assert found.remedy == f"sudo chmod o+r {file}"
    assert not found.blocks


@pytest.mark.usefixtures("no_libraries")
def test_energy_sensor_that_does_not_answer(
    board_root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, but broken: not the same as missing."""
    root = board_root("pc", RAPL)
    os_pread = os.pread

    def fail(descriptor: int, *arguments: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("energy_uj"):
            raise OSError(5, "Input/output error")
        return os_pread(descriptor, *arguments)

    monkeypatch.setattr(os, "pread", fail)
    found = _by_name(examine(root))["energy sensors"]
    assert found.state == "broken"
    assert "energy_uj cannot be read (Input/output error)" in found.detail
    assert "energy.watts" in found.remedy


@pytest.mark.usefixtures("no_libraries")
def test_other_hwmon_nodes_are_no_energy_sensors(board_root: Root) -> None:
    """A fan is none."""
    root = board_root("pc", {f"{HWMON}/name": "pwmfan", f"{HWMON}/curr1_input": "1"})
    assert _by_name(examine(root))["energy sensors"].state == "missing"


@pytest.mark.usefixtures("no_libraries")
def test_cameras(board_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named in their order; the group is the remedy where access is refused."""
    files = {
        "dev/video10": "",
        "dev/video0": "",
        "sys/class/video4linux/video0/name": "UVC Camera (046d:0825)\n",
    }
    root = board_root("pc", files)
    found = _by_name(examine(root))["cameras"]
    assert found.state == "ok"
    assert found.detail == "/dev/video0 (UVC Camera (046d:0825)), /dev/video10 (no name)"
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "video10")
    found = _by_name(examine(root))["cameras"]
    assert found.state == "broken"
    assert found.detail.endswith("no access to video10")
    assert "usermod -aG video" in found.remedy


@pytest.mark.usefixtures("no_libraries")
def test_little_memory_and_disk(board_root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for a build is said, but it blocks nothing."""
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10**8))
    text = "MemTotal: 4000000 kB\nMemAvailable: 300000 kB\n"
    findings = examine(board_root("pc", {"proc/meminfo": text}))
    found = _by_name(findings)
    assert found["memory"].state == found["disk"].state == "broken"
    assert "0.3 of 4.1 GB" in found["memory"].detail
    assert "0.1 GB free" in found["disk"].detail
    assert _blocking(findings) == set()


@pytest.mark.usefixtures("no_libraries")
def test_disk_of_the_bundle(
    board_root: Root, profile_for: Callable[[str], Profile], tmp_path: Path
) -> None:
    """The folder that exists nearest to the profile's output is looked at."""
    profile = profile_for("onnxruntime")
    profile = profile.model_copy(update={"output": tmp_path / "not" / "yet" / "bundle"})
    found = _by_name(examine(board_root("pc"), profile))["disk"]
    assert found.detail.endswith(f"GB free in {tmp_path}")


@pytest.mark.usefixtures("no_libraries")
def test_current_folder_that_was_deleted(
    board_root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line like any other."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert _by_name(examine(board_root("pc")))["disk"].state == "broken"


@pytest.mark.usefixtures("no_libraries")
def test_empty_root(tmp_path: Path) -> None:
    """A machine that tells nothing still gets all its lines."""
    findings = examine(str(tmp_path / "gone"))
    assert _blocking(findings) == set()
    assert {"board", "JetPack", "memory", "disk", "cameras"} <= set(_by_name(findings))


@pytest.mark.parametrize(
    ("uri", "lacks", "state", "words"),
    [
        ("test://", [], "ok", "test://"),
        ("rtsp://me:secret@host/x", [], "ok", "rtsp://***@host/x"),
        ("rtsp://me:secret@host/x", ["av"], "missing", "rtsp://***@host/x needs PyAV"),
        ("csi://0", ["gi"], "missing", "csi://0 needs PyGObject"),
        ("csi://0", ["nvarguscamerasrc"], "missing", "csi://0 needs nvarguscamerasrc"),
        ("ftp://host/x", [], "broken", "ftp"),
    ],
)
@pytest.mark.usefixtures("no_libraries")
def test_the_profiles_camera(
    profile_for: Callable[[str], Profile],
    monkeypatch: pytest.MonkeyPatch,
    board_root: Root,
    uri: str,
    lacks: list[str],
    state: str,
    words: str,
) -> None:
    """What reading it takes, its password left out; it is not opened."""
    libraries = [LIBRARIES[name] for name in lacks if name == "av"]
    monkeypatch.setattr("dvt_edge.doctor.missing", lambda *names: libraries)
    elements = [name for name in lacks if name != "av"]
    monkeypatch.setattr("dvt_edge.doctor.missing_elements", lambda uri: elements)
    profile = profile_for("onnxruntime")
    camera = profile.camera.model_copy(update={"source": uri})
    profile = profile.model_copy(update={"camera": camera})
    found = _by_name(examine(board_root("pc", {}), profile))["camera.source"]
    assert (found.state, found.blocks) == (state, state != "ok")
    assert words in found.detail
    assert "secret" not in found.detail
