"""The NVIDIA driver and its GPUs, asked through libcuda itself: no CUDA toolkit, no pycuda.

Starting the driver can crash or hang on a broken installation; ``dvt-edge doctor`` therefore does
it in a process of its own.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from dvt_edge.errors import BackendError

_NO_DEVICE = 100
_MAJOR, _MINOR = 75, 76
"""CUdevice_attribute of the two parts of the compute capability."""


@dataclass(frozen=True)
class Gpu:
    """One GPU."""

    name: str
    compute_capability: str
    """Such as ``8.7``."""


@dataclass(frozen=True)
class Driver:
    """An NVIDIA driver."""

    cuda: str
    """Newest CUDA that it runs, such as ``12.6``."""
    gpus: tuple[Gpu, ...]


def read_driver() -> Driver | None:
    """The driver of this machine, or None where none is installed.

    Raises :class:`~dvt_edge.errors.BackendError` for one that does not start.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        if "libcuda.so.1: cannot open" in str(error):
            return None
        raise BackendError(f"the NVIDIA driver cannot be loaded ({error})") from None
    number, count = ctypes.c_int(), ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(number))
    version = f"{number.value // 1000}.{number.value % 1000 // 10}"
    status = cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count))
    if status not in (0, _NO_DEVICE):
        reason = cuda_error(cuda, status)
        raise BackendError(f"for CUDA up to {version}; cuInit fails: {reason}")
    return Driver(version, tuple(_gpu(cuda, index) for index in range(count.value)))


def cuda_error(cuda: ctypes.CDLL, status: int) -> str:
    """What libcuda calls ``status``, with the number."""
    text = ctypes.c_char_p()
    cuda.cuGetErrorString(status, ctypes.byref(text))
    return f"{(text.value or b'unknown error').decode()} ({status})"


def _gpu(cuda: ctypes.CDLL, index: int) -> Gpu:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return Gpu(name.value.decode(errors="replace"), f"{major.value}.{minor.value}")
