"""Finds and loads the native library and the CUDA kernels; neither needs a compiler afterwards."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

LIBRARY = "libdvt_edge_native.so"
KERNELS = "dvt_edge_kernels.fatbin"
ABI_VERSION = 2
"""Of the interface in ``native.h`` that is declared here."""

OK, BAD_PLAN, NO_MEMORY = 0, 1, 2
"""What the functions that return a status return."""


class PreprocessPlan(ctypes.Structure):
    """``DvtPlan`` of ``device.h``, where the fields are explained; also the kernels' argument."""

    _fields_ = (
        ("row_stride", ctypes.c_int64),
        ("layout", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("resized_height", ctypes.c_int32),
        ("resized_width", ctypes.c_int32),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("crop", ctypes.c_int32),
        ("filter", ctypes.c_int32),
        ("output", ctypes.c_int32),
        ("scale", ctypes.c_float * 3),
        ("shift", ctypes.c_float * 3),
    )


class GatherPlan(ctypes.Structure):
    """``DvtGather`` of ``device.h``; the gather kernel's argument."""

    _fields_ = (
        ("base", ctypes.c_uint64 * 8),
        ("row_bytes", ctypes.c_int64 * 8),
        ("arrays", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("rows", ctypes.c_uint16 * 1024),
    )


class DriverCalls(ctypes.Structure):
    """``DvtDriver`` of ``native.h``: addresses of libcuda's functions."""

    _fields_ = tuple((name, ctypes.c_void_p) for name in ("launch", "query", "record", "wait"))


def library() -> ctypes.CDLL | None:
    """The loaded library, or None; :func:`unavailable` then says why."""
    return _load()[0]


def unavailable() -> str | None:
    """Why there is no native library and what to do about it; None where there is one."""
    return _load()[1]


@lru_cache(maxsize=1)
def kernels() -> bytes | None:
    """The CUDA kernels' fat binary for ``cuModuleLoadData``; None where it was built without nvcc.

    Its names are in ``kernels.cu``.
    """
    path = find(KERNELS)
    return path.read_bytes() if path else None


def kernels_unavailable() -> str | None:
    """Why there are no CUDA kernels and what to do about it; None where there are."""
    if find(KERNELS):
        return None
    return (
        f"{KERNELS} was not built; put nvcc (CUDA 11.8 or later) and g++ on PATH and install "
        "dvt-edge again"
    )


@lru_cache(maxsize=1)
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    path = find(LIBRARY)
    if path is None:
        return None, (
            f"{LIBRARY} was not built; install a C++ compiler (g++) and then dvt-edge again. "
            "Until then frames are preprocessed with Pillow, more slowly"
        )
    try:
        found = ctypes.CDLL(str(path))
        version = found.dvt_abi_version()
        if version == ABI_VERSION:
            found.dvt_preprocess.restype = ctypes.c_int
            found.dvt_preprocess.argtypes = [
                ctypes.POINTER(PreprocessPlan),
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int,
            ]
            found.dvt_axis_table.restype = ctypes.c_int
            found.dvt_axis_table.argtypes = [
                ctypes.POINTER(PreprocessPlan),
                ctypes.c_int,
                ctypes.c_void_p,
            ]
            found.dvt_tile.restype = ctypes.c_int64
            found.dvt_tile.argtypes = [
                ctypes.POINTER(PreprocessPlan),
                ctypes.c_int64,
                *[ctypes.POINTER(ctypes.c_int)] * 2,
            ]
            driver, pointer = ctypes.POINTER(DriverCalls), ctypes.c_void_p
            found.dvt_run_graph.argtypes = [driver, pointer, pointer, pointer]
            found.dvt_wait.argtypes = [driver, pointer, pointer]
    except (OSError, AttributeError) as error:
        return None, f"{path} cannot be loaded: {error}; install dvt-edge again on this machine"
    if version != ABI_VERSION:
        return None, (
            f"{path} has interface {version}, this code needs {ABI_VERSION}; install dvt-edge again"
        )
    return found, None


def find(name: str) -> Path | None:
    """A built file: beside this one or, for an editable install, where that put it."""
    beside = Path(__file__).with_name(name)
    if beside.is_file():
        return beside
    try:
        installed = Path(
            str(distribution("dvt-edge").locate_file(f"dvt_edge/runtime/native/{name}"))
        )
    except PackageNotFoundError:
        return None
    return installed if installed.is_file() else None
