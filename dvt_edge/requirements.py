"""Libraries that may be missing: what each is for, from which version on, and how to install it.

The one table behind every message that names an installation command, and behind
``dvt-edge doctor``. ``pyproject.toml`` holds the same minimum versions; a test compares them.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass

from dvt_edge.errors import ConfigError, DvtEdgeError


@dataclass(frozen=True)
class Library:
    """A Python library, and how to get it."""

    module: str
    name: str
    """For people."""
    install: str
    """Command."""
    minimum: tuple[int, ...] = ()
    purpose: str = ""
    """``needed to ...``; empty for what everything needs."""
    install_on_jetson: str = ""
    """Where it differs."""


def _extra(module: str, name: str, extra: str, minimum: tuple[int, ...], purpose: str) -> Library:
    """One that an extra of ours brings."""
    return Library(module, name, f"pip install 'dvt-edge[{extra}]'", minimum, purpose)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


_ORT = "1.30.1" if sys.version_info >= (3, 11) else "1.23.2"
"""ONNX Runtime: for Python 3.10, which JetPack 6 has, there is no later one."""
_FROM_CHECKPOINT = "build from a checkpoint"
_SIGN = "sign bundles and check signatures"
_LIVE = "serve the live page"
LIBRARIES = {
    library.module: library
    for library in (
        Library("numpy", "NumPy", "pip install 'numpy>=1.26'", (1, 26)),
        Library(
            "onnxruntime", "ONNX Runtime", f"pip install 'onnxruntime>={_ORT}'", _numbers(_ORT)
        ),
        _extra("torch", "torch", "export", (2, 11), "train, import and build from a checkpoint"),
        _extra("onnx", "onnx", "export", (1, 21), _FROM_CHECKPOINT),
        _extra("safetensors", "safetensors", "export", (0, 4, 3), _FROM_CHECKPOINT),
        Library(
            "tensorrt",
            "TensorRT",
            "pip install tensorrt",
            (10, 3),
            "run on Jetson and other NVIDIA GPUs",
            "sudo apt install nvidia-jetpack python3-libnvinfer, and make the virtual environment "
            "with python3 -m venv --system-site-packages",
        ),
        Library(
            "tensorrt_rtx",
            "TensorRT-RTX",
            "pip install tensorrt-rtx-cu13",
            (1, 4),
            "run on NVIDIA RTX GPUs",
        ),
        Library(
            "pycuda.driver",
            "pycuda",
            "pip install 'dvt-edge[tensorrt]'  # compiles: the CUDA toolkit's nvcc must be on PATH",
            (2024, 1),
            "run with TensorRT",
            "export PATH=/usr/local/cuda/bin:$PATH && pip install 'dvt-edge[tensorrt]'",
        ),
        _extra("pynvml", "nvidia-ml-py", "nvml", (12,), "read the energy of an NVIDIA GPU in a PC"),
        _extra("prometheus_client", "prometheus-client", "metrics", (0, 20), "export metrics"),
        _extra("matplotlib", "matplotlib", "plot", (3, 8), "draw the frontier"),
        _extra("jinja2", "Jinja2", "report", (3, 1, 6), "write reports"),
        _extra("plotly", "Plotly", "report", (6,), "write reports"),
        _extra("paho", "paho-mqtt", "mqtt", (2,), "publish answers to an MQTT broker"),
        _extra("av", "PyAV", "camera", (15,), "open cameras, streams and video files"),
        Library(
            "gi",
            "PyGObject",
            "sudo apt install python3-gi gir1.2-gst-plugins-base-1.0 gstreamer1.0-plugins-base, "
            "and make the virtual environment with python3 -m venv --system-site-packages",
            purpose="open CSI cameras and GStreamer pipelines",
        ),
        _extra("starlette", "Starlette", "serve", (1, 3, 1), _LIVE),
        _extra("uvicorn", "Uvicorn", "serve", (0, 47), _LIVE),
        _extra("wsproto", "wsproto", "serve", (1, 2), _LIVE),
        _extra("model_signing", "model-signing", "signing", (1, 1), _SIGN),
        _extra("OpenSSL", "pyOpenSSL", "signing", (24,), _SIGN),
        _extra("timm", "timm", "imagenet", (1, 0), "name ImageNet's classes"),
    )
}
"""By module."""

HOST_MODULES = ("torch", "onnx", "safetensors")
"""What turns a checkpoint into graphs."""


def missing(*modules: str) -> list[Library]:
    """Those of ``modules`` that are not installed; nothing is imported."""
    return [LIBRARIES[name] for name in modules if not _is_installed(name)]


def is_older(version: str, minimum: tuple[int, ...]) -> bool:
    """Whether ``version``, such as ``2.9.0+cpu``, is below ``minimum``; not if it has no number."""
    found = re.match(r"[0-9]+(\.[0-9]+)*", version)
    return found is not None and _numbers(found[0]) < minimum


def _is_installed(module: str) -> bool:
    if module in sys.modules:
        return sys.modules[module] is not None
    return importlib.util.find_spec(module) is not None


def need(
    what: str, *modules: str, error: type[DvtEdgeError] = ConfigError, instead: str = ""
) -> None:
    """Raise ``error``, with the command that installs them, unless all ``modules`` are there.

    ``instead`` says what else helps.
    """
    lacking = missing(*modules)
    if lacking:
        names = ", ".join(library.name for library in lacking)
        commands = " && ".join(dict.fromkeys(library.install for library in lacking))
        raise error(f"{what} needs {names}; install with {commands}{instead}")
