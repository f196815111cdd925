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
import json
from dvt_edge.errors import BackendError
from dvt_edge.machine.driver import read_driver
try:
    driver = read_driver()
    if driver is None:
        result = {"state": "missing", "detail": "no libcuda.so.1"}
    else:
        gpus = [f"{gpu.name} ({gpu.compute_capability})" for gpu in driver.gpus]
        detail = f"for CUDA up to {driver.cuda}"
        result = {"state": "ok", "detail": detail, "extra": ", ".join(gpus)}
except BackendError as error:
    result = {"state": "broken", "detail": str(error)}
print(json.dumps(result))
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
