"""One GPU through pycuda: memory, copies that are counted, graphs, kernels.

The primary context is retained, which CUDA's runtime, torch and TensorRT share; it is current only
inside :meth:`CudaDevice.current`, on whichever thread works at the moment. pycuda does not bind
stream capture; that goes to libcuda itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from dvt_edge.errors import BackendError

_THREAD_LOCAL_CAPTURE = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may use CUDA meanwhile."""


@dataclass
class Transfers:
    """Bytes that crossed between host and device."""

    to_device: int = 0
    to_host: int = 0


@dataclass(frozen=True)
class MappedArray:
    """Page-locked host memory that the device reads and writes where it lies."""

    array: npt.NDArray[Any]
    address: int
    """As the device sees it."""


class CudaDevice:
    """The first GPU and one stream on it; frees everything in :meth:`close`.

    Raises :class:`~dvt_edge.errors.BackendError` without pycuda, driver or GPU.
    """

    def __init__(self) -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise BackendError(
                f"running engines needs pycuda ({error}); install it where CUDA's nvcc is on PATH "
                "with pip install 'dvt-edge[tensorrt]'"
            ) from None
        self._cuda: Any = cuda
        try:
            cuda.init()
            device = cuda.Device(0)
            self._context = device.retain_primary_context()
        except cuda.Error as error:
            raise BackendError(
                f"no NVIDIA GPU can be used ({error}); 'dvt-edge doctor' says what is missing"
            ) from None
        self._process = os.getpid()
        self.name: str = device.name()
        self.compute_capability = ".".join(map(str, device.compute_capability()))
        attributes = cuda.device_attribute
        self.integrated = bool(device.get_attribute(attributes.INTEGRATED))
        """Whether host and device share their memory, as on Jetson."""
        self.transfers = Transfers()
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._owned: list[Any] = []
        self._graphs: list[int] = []
        with self.current():
            self._stream = cuda.Stream()
            self._started, self._stopped = cuda.Event(), cuda.Event()
        self._modules: list[Any] = []

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current on this thread for the block.

        Raises :class:`~dvt_edge.errors.BackendError` in a process forked since, where CUDA does
        not work, and for errors of the driver.
        """
        if os.getpid() != self._process:
            raise BackendError(
                "this process was forked after the Runtime was opened, and CUDA does not survive "
                "a fork; open the Runtime in the new process, or start it with 'spawn'"
            )
        self._context.push()
        try:
            yield
        except self._cuda.Error as error:
            raise BackendError(f"CUDA failed: {error}") from None
        finally:
            self._context.pop()

    @property
    def stream(self) -> int:
        """Handle of the stream that everything runs on, in order."""
        return int(self._stream.handle)

    def allocate(self, size: int) -> int:
        """Address of ``size`` bytes of device memory, aligned to at least 256.

        Raises :class:`~dvt_edge.errors.BackendError` saying how much there is.
        """
        try:
            memory = self._cuda.mem_alloc(max(size, 1))
        except self._cuda.MemoryError:
            free, total = self._cuda.mem_get_info()
            raise BackendError(
                f"{size >> 20} MiB more of device memory are needed, {free >> 20} of "
                f"{total >> 20} MiB are free; close other programs, or lower engine.batch_sizes "
                "or engine.workspace_mb and rebuild"
            ) from None
        self._owned.append(memory)
        return int(memory)

    def allocate_mapped(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> MappedArray:
        """Zeroed host memory that kernels use in place."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP
        array = self._cuda.pagelocked_zeros(shape, dtype, mem_flags=flags)
        self._owned.append(array.base)
        return MappedArray(array, int(array.base.get_device_pointer()))

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy page-locked ``array`` to the device, in stream order."""
        self._cuda.memcpy_htod_async(address, array, self._stream)
        self.transfers.to_device += array.nbytes

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to ``array`` and wait."""
        self._stream.synchronize()
        self._cuda.memcpy_dtoh(array, address)
        self.transfers.to_host += array.nbytes

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy within the device, in stream order."""
        self._cuda.memcpy_dtod_async(target, source, size, self._stream)

    def load_kernel(self, fatbin: bytes, name: str) -> Any:
        """A kernel of compiled CUDA code, for :meth:`launch`."""
        module = self._cuda.module_from_buffer(fatbin)
        self._modules.append(module)
        return module.get_function(name)

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int],
        threads: int,
        *arguments: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel in stream order; arguments are NumPy scalars of the kernel's types."""
        kernel(
            *arguments,
            block=(threads, 1, 1),
            grid=grid,
            shared=shared_bytes,
            stream=self._stream,
        )

    def synchronize(self) -> None:
        """Wait until the stream is done."""
        self._stream.synchronize()

    def timed(self, work: Callable[[], None]) -> None:
        """Do ``work`` between two events; :meth:`elapsed_ms` tells how long the stream took."""
        self._started.record(self._stream)
        work()
        self._stopped.record(self._stream)

    def elapsed_ms(self) -> float:
        """Time of the last :meth:`timed` work, once it is done."""
        return float(self._stopped.time_since(self._started))

    def capture(self, work: Callable[[], None]) -> int:
        """Record what ``work`` puts on the stream as a graph, without running it."""
        stream, graph = ctypes.c_void_p(self.stream), ctypes.c_void_p()
        self._check(self._driver.cuStreamBeginCapture_v2(stream, _THREAD_LOCAL_CAPTURE))
        try:
            work()
        finally:
            status = self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))
        self._check(status)
        runnable = ctypes.c_void_p()
        try:
            self._check(
                self._driver.cuGraphInstantiateWithFlags(
                    ctypes.byref(runnable), graph, ctypes.c_ulonglong(0)
                )
            )
        finally:
            self._driver.cuGraphDestroy(graph)
        assert runnable.value is not None
        self._graphs.append(runnable.value)
        return runnable.value

    def replay(self, graph: int) -> None:
        """Run a captured graph in stream order."""
        self._check(
            self._driver.cuGraphLaunch(ctypes.c_void_p(graph), ctypes.c_void_p(self.stream))
        )

    def close(self) -> None:
        """Free all memory and graphs; the context is released with the last user of it."""
        if self._context is None:
            return
        with self.current():
            self._stream.synchronize()
            for graph in self._graphs:
                self._driver.cuGraphExecDestroy(ctypes.c_void_p(graph))
            for memory in self._owned:
                memory.free()
            self._graphs.clear()
            self._owned.clear()
            self._modules.clear()
            del self._stream, self._started, self._stopped
        self._context.detach()
        self._context = None

    def _check(self, status: int) -> None:
        if status:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(status, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode()
            raise BackendError(f"CUDA failed: {reason} ({status})")
