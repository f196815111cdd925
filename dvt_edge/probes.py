"""Trying out libraries and the NVIDIA driver in processes of their own.

What crashes, hangs or changes the process there does not do so here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "broken"]

PROBE_SECONDS = 60.0
"""Importing torch or TensorRT from a cold SD card takes tens of seconds."""


@dataclass(frozen=True)
class Probe:
    """How a trial went."""

    state: State
    detail: str
    """The version, or why it is missing or broken."""
    extra: str = ""
    """Of a library what was asked for, of the driver its GPUs."""


# Before anything else is imported: files of the current folder are not what is installed.
_PROBE_START = """
import os, sys
sys.path[:] = [folder for folder in sys.argv[1].split(os.pathsep) if folder]
"""

# The last line on stdout is the result: modules print what they like before it.
_PROBE_LIBRARY = """
import importlib, json
name, top = sys.argv[2], sys.argv[2].split(".")[0]
try:
    module = importlib.import_module(name)
    package = sys.modules[top]
    version = getattr(package, "__version__", None) or getattr(package, "VERSION_TEXT", None)
    if version is None and getattr(package, "__file__", None) is None:
        result = {"state": "missing", "detail": "not installed"}  # a mere folder of that name
    else:
        result = {"state": "ok", "detail": str(version or "version unknown"), "extra": EXTRA}
except ModuleNotFoundError as error:
    if error.name == top:
        result = {"state": "missing", "detail": "not installed"}
    else:
        result = {"state": "broken", "detail": f"{error}"}
except BaseException as error:
    result = {"state": "broken", "detail": f"{type(error).__name__}: {error}"}
print()
print(json.dumps(result))
"""

# Initialising a driver can crash or hang like an import, and would mark this process.
_PROBE_DRIVER = """
import ctypes, json

def probe():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        absent = "libcuda.so.1: cannot open" in str(error)
        return {"state": "missing" if absent else "broken", "detail": str(error)}
    version, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver = f"for CUDA up to {version.value // 1000}.{version.value % 1000 // 10}"
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, 100):  # 100: no device
        text = ctypes.c_char_p()
        cuda.cuGetErrorString(status, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        return {"state": "broken", "detail": f"{driver}; cuInit fails: {reason} ({status})"}
    gpus = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name = ctypes.create_string_buffer(256)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, 256, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)
        gpus.append(f"{name.value.decode(errors='replace')} ({major.value}.{minor.value})")
    return {"state": "ok", "detail": driver, "extra": ", ".join(gpus)}

print(json.dumps(probe()))
"""


def probe_library(module: str, extra: str = "''") -> Probe:
    """Import ``module`` as this process would.

    ``extra`` is an expression that gives a string from ``module``, the imported one.
    """
    return _run(_PROBE_LIBRARY.replace("EXTRA", extra), module)


def probe_driver() -> Probe:
    """Start libcuda and ask for version, GPUs and their compute capabilities."""
    return _run(_PROBE_DRIVER)


def _run(code: str, *arguments: str) -> Probe:
    """What ``code`` prints last, or ``broken`` with how its process ended."""
    path = os.pathsep.join(sys.path)
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE_START + code, path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Probe("broken", f"gave no answer within {PROBE_SECONDS:g} s")
    except OSError as error:
        return Probe("broken", f"could not be tried: {error}")
    try:  # a process may also crash while it ends, after a good answer
        return Probe(**json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError, TypeError):
        pass
    if done.returncode < 0:
        end = f"crashed ({signal.strsignal(-done.returncode)})"
    else:
        end = f"ended with exit code {done.returncode}"
    last = done.stderr.strip().splitlines()[-1:]
    return Probe("broken", ": ".join([f"trying it {end}", *last]))
