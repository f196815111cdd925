"""One GPU through pycuda: memory, copies that are counted, graphs, kernels.

The primary context is used, which CUDA's runtime, torch and TensorRT share; it is current only
inside :meth:`CudaDevice.current`, on whichever thread works at the moment. pycuda does not bind
stream capture; that goes to libcuda itself.

What must be given back is in a ``Held``, apart from the device, so that a device that nobody
closed is closed when it is collected or the process ends, whichever thread that is on.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BackendError, ClosedError
from dvt_edge.machine.driver import cuda_error
from dvt_edge.requirements import LIBRARIES
from dvt_edge.runtime.backends.cuda_context import Held, in_a_fork, primary_context
from dvt_edge.runtime.native.library import DriverCalls, library

_NON_BLOCKING = 1
"""CU_STREAM_NON_BLOCKING: the default stream, where torch works, and ours do not wait for each
other, and its use by another thread does not break a capture."""
_SLEEPING = 1 | 2
"""CU_EVENT_BLOCKING_SYNC and CU_EVENT_DISABLE_TIMING."""
_THREAD_LOCAL_CAPTURE = 1
"""CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may use CUDA meanwhile."""

_FORKED = (
    "this process was forked from one that uses the GPU, and CUDA does not survive a fork; start "
    "it with multiprocessing's 'spawn', or fork before the first Runtime is opened"
)

_LESS = "close other programs, or lower engine.batch_sizes or engine.workspace_mb and rebuild"

Wait = Literal["spin", "block"]


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
    """The first GPU and one stream on it; :meth:`close` frees everything.

    So does the collector, or the end of the process, where that is forgotten. ``wait`` says how a
    thread waits for a stage at batch 1: ``spin`` answers soonest and keeps a core busy, ``block``
    sleeps; for larger batches it always sleeps.

    Raises :class:`~dvt_edge.errors.BackendError` without pycuda, driver or GPU.
    """

    def __init__(self, wait: Wait = "spin") -> None:
        try:
            import pycuda.driver as cuda
        except ImportError as error:
            raise BackendError(
                f"running on a GPU needs pycuda ({error}); {LIBRARIES['pycuda.driver'].install}"
            ) from None
        self._cuda: Any = cuda
        if in_a_fork():
            raise BackendError(_FORKED)
        try:
            cuda.init()
            device = cuda.Device(0)
            context = primary_context(device)
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
        self._held = Held(cuda, self._driver, context)
        self._release = weakref.finalize(self, self._held.release)
        self._spin = wait == "spin"
        native = library()
        self._calls = None if native is None else _Calls(native, self._driver)
        held = self._held
        with self.current():
            held.stream = cuda.Stream(_NON_BLOCKING)
            held.started, held.stopped = cuda.Event(), cuda.Event()
            self._check(self._driver.cuEventCreate(ctypes.byref(held.done), _SLEEPING))

    @property
    def forked(self) -> bool:
        """Whether this is a process forked since, to which nothing here belongs."""
        return os.getpid() != self._held.process

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the context current on this thread for the block.

        Raises :class:`~dvt_edge.errors.BackendError` in a process forked since, where CUDA does
        not work, and for errors of the driver; :class:`~dvt_edge.errors.ClosedError` once closed.
        """
        if self.forked:
            raise BackendError(_FORKED)
        if not self._release.alive:
            raise ClosedError("this GPU backend is closed; open another Runtime")
        context = self._held.context
        try:
            context.push()
            try:
                yield
            finally:
                context.pop()
        except self._cuda.Error as error:
            raise BackendError(_failed(str(error))) from None

    @property
    def stream(self) -> int:
        """Handle of the stream that everything runs on, in order."""
        return int(self._held.stream.handle)

    def on_close(self, close: Callable[[], None]) -> None:
        """Have ``close`` called when the device closes, in the order given, while the context is
        current: after the graphs are gone and before the memory is. It must not refer to the
        device."""
        self._held.users.append(close)

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
        self._held.memory[int(memory)] = memory
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
        address = int(array.base.get_device_pointer())
        self._held.memory[address] = array.base
        return MappedArray(array, address)

    def free(self, address: int) -> None:
        """Free what one of the two above gave; nothing on the stream may still use it."""
        self._held.memory.pop(address).free()

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Copy page-locked ``array`` to the device, in stream order."""
        self._cuda.memcpy_htod_async(address, array, self._held.stream)
        self.transfers.to_device += array.nbytes

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        """Copy from the device to ``array`` and wait."""
        self._held.stream.synchronize()
        self._cuda.memcpy_dtoh(array, address)
        self.transfers.to_host += array.nbytes

    def copy(self, target: int, source: int, size: int) -> None:
        """Copy within the device, in stream order."""
        self._cuda.memcpy_dtod_async(target, source, size, self._held.stream)

    def load_kernel(self, fatbin: bytes, name: str) -> None:
        """Make ``name`` of compiled CUDA code known to :meth:`launch`."""
        module = self._cuda.module_from_buffer(fatbin)
        self._held.modules.append(module)
        self._held.kernels[name] = module.get_function(name)

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        *arguments: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Run a loaded kernel in stream order; arguments are NumPy scalars of the kernel's types,
        and ``ctypes`` structures, which go by value."""
        block = (threads, 1, 1)
        values = [_by_value(a) if isinstance(a, ctypes.Structure) else a for a in arguments]
        run, stream = self._held.kernels[kernel], self._held.stream
        run(*values, block=block, grid=grid, shared=shared_bytes, stream=stream)

    def synchronize(self, batch: int = 1) -> None:
        """Wait until the stream is done, as the profile says for a stage of ``batch`` images."""
        event = self._event(batch)
        if self._calls is not None:
            self._check(self._calls.wait(self.stream, event))
        elif event is None:
            self._held.stream.synchronize()
        else:
            self._check(self._driver.cuEventRecord(event, ctypes.c_void_p(self.stream)))
            self._check(self._driver.cuEventSynchronize(event))

    def run(self, graph: int, batch: int) -> None:
        """Launch a captured graph and wait for it; one call where there is native code."""
        if self._calls is not None:
            self._check(self._calls.run_graph(graph, self.stream, self._event(batch)))
        else:
            self.replay(graph)
            self.synchronize(batch)

    def timed(self, work: Callable[[], None]) -> float:
        """Do ``work`` on the stream and wait for it: the milliseconds that the stream took."""
        held = self._held
        held.started.record(held.stream)
        work()
        held.stopped.record(held.stream)
        held.stopped.synchronize()
        return float(held.stopped.time_since(held.started))

    def capture(self, work: Callable[[], None]) -> int:
        """Record what ``work`` puts on the stream as a graph, without running it."""
        with self.recorded(work) as graph:
            return self.instantiate(graph)

    @contextlib.contextmanager
    def recorded(self, work: Callable[[], None]) -> Iterator[ctypes.c_void_p]:
        """What ``work`` puts on the stream, as a graph that cannot run yet; for the block."""
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
        try:
            yield graph
        finally:
            self._driver.cuGraphDestroy(graph)

    def instantiate(self, graph: ctypes.c_void_p) -> int:
        """A graph made runnable, for :meth:`run`."""
        runnable = ctypes.c_void_p()
        self._check(
            self._driver.cuGraphInstantiateWithFlags(
                ctypes.byref(runnable), graph, ctypes.c_ulonglong(0)
            )
        )
        assert runnable.value is not None
        self._held.graphs.append(runnable.value)
        return runnable.value

    def replay(self, graph: int) -> None:
        """Run a captured graph in stream order."""
        self._check(
            self._driver.cuGraphLaunch(ctypes.c_void_p(graph), ctypes.c_void_p(self.stream))
        )

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of libcuda's that pycuda does not bind.

        Raises :class:`~dvt_edge.errors.BackendError` where it fails or the driver does not have it.
        """
        try:
            function = getattr(self._driver, name)
        except AttributeError:
            raise BackendError(f"this NVIDIA driver has no {name}; install a newer one") from None
        self._check(function(*arguments))

    def later(self, name: str, *arguments: Any) -> Callable[[], None]:
        """The same, for :meth:`on_close`; what it answers does not matter then."""
        function = getattr(self._driver, name)

        def call() -> None:
            function(*arguments)

        return call

    @property
    def context(self) -> ctypes.c_void_p:
        """Handle of the context."""
        return ctypes.c_void_p(self._held.context.handle)

    def close(self) -> None:
        """Free everything, also after a failure; twice or in a forked process it does nothing.

        The arrays of :meth:`allocate_mapped` are not to be touched afterwards.
        """
        if not self.forked:
            self._release()

    def _event(self, batch: int) -> ctypes.c_void_p | None:
        """What to sleep on; None to ask again and again instead."""
        return None if self._spin and batch == 1 else self._held.done

    def _check(self, status: int) -> None:
        if status:
            raise BackendError(_failed(cuda_error(self._driver, status)))


class _Calls:
    """Launching and waiting in native code: one call each, other threads run meanwhile."""

    def __init__(self, native: ctypes.CDLL, driver: Any) -> None:
        names = ("cuGraphLaunch", "cuStreamQuery", "cuEventRecord", "cuEventSynchronize")
        self._functions = [
            getattr(driver, name) for name in names
        ]  # kept: what follows points there
        self._driver = DriverCalls(
            *(ctypes.cast(function, ctypes.c_void_p).value for function in self._functions)
        )
        self._native = native

    def run_graph(self, graph: int, stream: int, event: ctypes.c_void_p | None) -> int:
        return int(self._native.dvt_run_graph(ctypes.byref(self._driver), graph, stream, event))

    def wait(self, stream: int, event: ctypes.c_void_p | None) -> int:
        return int(self._native.dvt_wait(ctypes.byref(self._driver), stream, event))


def _by_value(structure: ctypes.Structure) -> np.void:
    """As pycuda passes a structure to a kernel."""
    data = bytes(structure)
    value: np.void = np.frombuffer(data, np.dtype((np.void, len(data))))[0]
    return value


def _failed(reason: str) -> str:
    return (
        f"CUDA failed: {reason}; restart the process, and if it happens again see what "
        "'dvt-edge doctor' says"
    )


def _mib(size: int) -> int:
    return -(-size // (1 << 20))
