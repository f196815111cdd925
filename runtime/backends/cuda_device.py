"""One GPU through pycuda: memory, copies that are counted, graphs, kernels.

The primary context is used, which CUDA's runtime, torch and TensorRT share; it is current only
inside :meth:`CudaDevice.current`, on whichever thread works at the moment. pycuda does not bind
stream capture; that goes to libcuda itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BackendError, ClosedError
from dvt_edge.machine.driver import cuda_error
from dvt_edge.requirements import LIBRARIES

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the default stream, where torch works, and ours do not wait for each
other, and its use by another thread does not break a capture."""
_THREAD_LOCAL_CAPTURE = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may use CUDA meanwhile."""

_FORKED = (
    "this process was forked from one that uses the GPU, and CUDA does not survive a fork; start "
    "it with multiprocessing's 'spawn', or fork before the first Runtime is opened"
)

_LESS = "close other programs, or lower engine.batch_sizes or engine.workspace_mb and rebuild"

# The primary context, by the process that retained it. It is never detached: CUDA's runtime, which
# engines use, keeps it until the process ends anyway, and pycuda's detach() leaves it on the stack
# of the thread that retained it, or on another thread unreleased.
_retained: dict[int, Any] = {}
_retaining = threading.Lock()


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
                f"running on a GPU needs pycuda ({error}); {LIBRARIES['pycuda.driver'].install}"
            ) from None
        self._cuda: Any = cuda
        self._process = os.getpid()
        if _retained and self._process not in _retained:
            raise BackendError(_FORKED)
        try:
            cuda.init()
            device = cuda.Device(0)
            with _retaining:
                if not _retained:
                    _retained[self._process] = device.retain_primary_context()
            self._context = _retained[self._process]
        except cuda.Error as error:
            raise BackendError(
                f"no NVIDIA GPU can be used ({error}); 'dvt-edge doctor' says what is missing"
            ) from None
        self.name: str = device.name()
        self.compute_capability = ".".join(map(str, device.compute_capability()))
        attributes = cuda.device_attribute
        self.integrated = bool(device.get_attribute(attributes.INTEGRATED))
        """Whether host and device share their memory, as on Jetson."""
        self.transfers = Transfers()
        self._driver = ctypes.CDLL("libcuda.so.1")
        self._owned: list[Any] = []
        self._graphs: list[int] = []
        self._modules: list[Any] = []
        self._closed = False
        with self.current():
            self._stream = cuda.Stream(_NON_BLOCKING)
            self._started, self._stopped = cuda.Event(), cuda.Event()

    @property
    def forked(self) -> bool:
        """Whether this is a process forked since, to which nothing here belongs."""
        return os.getpid() != self._process

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current on this thread for the block.

        Raises :class:`~dvt_edge.errors.BackendError` in a process forked since, where CUDA does
        not work, and for errors of the driver; :class:`~dvt_edge.errors.ClosedError` once closed.
        """
        if self.forked:
            raise BackendError(_FORKED)
        if self._closed:
            raise ClosedError("this GPU backend is closed; open another Runtime")
        try:
            self._context.push()
            try:
                yield
            finally:
                self._context.pop()
        except self._cuda.Error as error:
            raise BackendError(_failed(str(error))) from None

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
                f"{_mib(size)} MiB more of device memory are needed, {free >> 20} of "
                f"{total >> 20} MiB are free; {_LESS}"
            ) from None
        self._owned.append(memory)
        return int(memory)

    def allocate_mapped(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> MappedArray:
        """Zeroed host memory that kernels use in place; raises as :meth:`allocate`."""
        flags = self._cuda.host_alloc_flags.DEVICEMAP
        try:
            array = self._cuda.pagelocked_zeros(shape, dtype, mem_flags=flags)
        except self._cuda.MemoryError:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            raise BackendError(
                f"{_mib(size)} MiB more of page-locked memory are needed and cannot be had; {_LESS}"
            ) from None
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
        block = (threads, 1, 1)
        kernel(*arguments, block=block, grid=grid, shared=shared_bytes, stream=self._stream)

    def synchronize(self) -> None:
        """Wait until the stream is done."""
        self._stream.synchronize()

    def timed(self, work: Callable[[], None]) -> None:
        """Do ``work`` between two events; :meth:`elapsed_ms` says how long the stream took."""
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
        except BaseException:
            self._driver.cuStreamEndCapture(stream, ctypes.byref(graph))
            if graph:
                self._driver.cuGraphDestroy(graph)
            raise
        self._check(self._driver.cuStreamEndCapture(stream, ctypes.byref(graph)))
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

    def drop_graphs(self) -> None:
        """Wait for the stream and destroy all graphs: before what they run is freed."""
        with self.current(), contextlib.suppress(self._cuda.Error):
            self._stream.synchronize()
        while self._graphs:
            self._driver.cuGraphExecDestroy(ctypes.c_void_p(self._graphs.pop()))

    def close(self) -> None:
        """Free everything, also after a failure; twice or in a forked process it does nothing.

        The arrays of :meth:`allocate_mapped` are not to be touched afterwards.
        """
        if self._closed or self.forked:
            return
        self.drop_graphs()
        with self.current():
            while self._owned:
                with contextlib.suppress(self._cuda.Error):
                    self._owned.pop().free()
            self._modules.clear()
            del self._stream, self._started, self._stopped
        self._closed = True

    def _check(self, status: int) -> None:
        if status:
            raise BackendError(_failed(cuda_error(self._driver, status)))


def _failed(reason: str) -> str:
    return (
        f"CUDA failed: {reason}; restart the process, and if it happens again see what "
        "'dvt-edge doctor' says"
    )


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
