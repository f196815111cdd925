"""The GPU through a stand-in for pycuda and libcuda, which keep account of everything."""

# ruff: noqa: N802 - libcuda names its functions so

from __future__ import annotations

import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.errors import BackendError, ClosedError
from dvt_edge.runtime.backends import cuda_device
from dvt_edge.runtime.backends.cuda_device import CudaDevice

MIB = 1 << 20


class Driver:
    """What pycuda and libcuda share: one GPU, its memory, and the calls that were made."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.local = threading.local()
        self.retained = 0
        self.free = 100 * MIB
        self.allocated: dict[int, int] = {}
        self.objects = 0
        self.streams: list[int] = []
        """Flags of those that were made."""
        self.graphs: set[int] = set()
        self.templates: set[int] = set()
        self.capturing = False
        self.fails: dict[str, int] = {}
        """Status by the name of a call of libcuda's."""
        self.next = 0x7F00_0000_0000

    @property
    def stack(self) -> list[Any]:
        """Contexts of this thread."""
        if not hasattr(self.local, "stack"):
            self.local.stack = []
        stack: list[Any] = self.local.stack
        return stack

    def handle(self) -> int:
        """Wider than 32 bits, as the driver's are."""
        self.next += 4096
        return self.next

    def take(self, size: int) -> int:
        assert self.stack, "no context is current"
        self.free -= size
        address = self.handle()
        self.allocated[address] = size
        return address

    def give_back(self, address: int) -> None:
        assert self.stack, "no context is current"
        self.free += self.allocated.pop(address)


def _fake_pycuda(driver: Driver) -> ModuleType:
    """``pycuda.driver`` as far as it is used, with its rules."""

    class Error(Exception):
        pass

    class OutOfMemoryError(Error):
        pass

    class Context:
        def push(self) -> None:
            if "push" in driver.fails:
                raise Error("cuCtxPushCurrent failed: context is destroyed")
            driver.stack.append(self)

        def pop(self) -> None:
            driver.stack.pop()

    class Device:
        def __init__(self, index: int) -> None:
            if "device" in driver.fails:
                raise Error("cuDeviceGet failed: no CUDA-capable device is detected")
            assert index == 0

        def retain_primary_context(self) -> Context:
            driver.retained += 1
            return Context()

        def name(self) -> str:
            return "Orin"

        def compute_capability(self) -> tuple[int, int]:
            return (8, 7)

        def get_attribute(self, attribute: str) -> int:
            return int(attribute == "integrated" and "discrete" not in driver.fails)

    class Allocation:
        def __init__(self, size: int) -> None:
            if size > driver.free:
                raise OutOfMemoryError("cuMemAlloc failed: out of memory")
            self.address: int | None = driver.take(size)

        def __int__(self) -> int:
            assert self.address is not None
            return self.address

        def free(self) -> None:
            assert self.address is not None, "freed twice"
            driver.give_back(self.address)
            self.address = None

    class Pinned(Allocation):
        def get_device_pointer(self) -> int:
            return int(self)

    class PinnedArray(np.ndarray):
        """NumPy alone decides on ``base``; pycuda sets it from C."""

        _owner: Any = None

        @property
        def base(self) -> Any:
            return self._owner

    def pagelocked_zeros(
        shape: tuple[int, ...], dtype: Any, order: str = "C", mem_flags: int = 0
    ) -> Any:
        assert mem_flags == 2
        array = np.zeros(shape, dtype).view(PinnedArray)
        array._owner = Pinned(array.nbytes)
        return array

    class Counted:
        def __init__(self, flags: int = 0) -> None:
            assert driver.stack, "no context is current"
            driver.objects += 1
            self.flags = flags
            self.handle = driver.handle()

        def __del__(self) -> None:
            driver.objects -= 1

    class Stream(Counted):
        def __init__(self, flags: int = 0) -> None:
            super().__init__(flags)
            driver.streams.append(flags)

        def synchronize(self) -> None:
            assert not driver.capturing
            if "synchronize" in driver.fails:
                raise Error("cuStreamSynchronize failed: an illegal memory access was encountered")
            driver.calls.append("synchronize")

    class Event(Counted):
        def record(self, stream: Stream) -> Event:
            driver.calls.append("record")
            return self

        def time_since(self, start: Event) -> float:
            return 2.5

    class Module(Counted):
        def get_function(self, name: str) -> Callable[..., None]:
            def function(*arguments: Any, **keywords: Any) -> None:
                assert set(keywords) == {"block", "grid", "shared", "stream"}
                driver.calls.append(f"{name} {arguments} {keywords['block']} {keywords['shared']}")

            return function

    def htod(address: int, array: npt.NDArray[Any], stream: Stream) -> None:
        assert array.flags.c_contiguous
        assert type(address) is int
        driver.calls.append(f"htod {array.nbytes}")

    def dtoh(array: npt.NDArray[Any], address: int) -> None:
        driver.calls.append(f"dtoh {array.nbytes}")

    def dtod(target: int, source: int, size: int, stream: Stream) -> None:
        driver.calls.append(f"dtod {target} {source} {size}")

    module = ModuleType("pycuda.driver")
    vars(module).update(
        init=lambda: None,
        Device=Device,
        Error=Error,
        MemoryError=OutOfMemoryError,
        Stream=Stream,
        Event=Event,
        mem_alloc=Allocation,
        mem_get_info=lambda: (driver.free, 100 * MIB),
        pagelocked_zeros=pagelocked_zeros,
        memcpy_htod_async=htod,
        memcpy_dtoh=dtoh,
        memcpy_dtod_async=dtod,
        module_from_buffer=lambda code: Module(),
        device_attribute=type("device_attribute", (), {"INTEGRATED": "integrated"}),
        host_alloc_flags=type("host_alloc_flags", (), {"DEVICEMAP": 2}),
    )
    return module


class Libcuda:
    """The functions that pycuda does not bind; handles must arrive as pointers, whole."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver

    def _call(self, name: str) -> int:
        self.driver.calls.append(name)
        return self.driver.fails.get(name, 0)

    def cuStreamBeginCapture_v2(self, stream: ctypes.c_void_p, mode: int) -> int:
        assert isinstance(stream, ctypes.c_void_p)
        assert mode == 1
        status = self._call("begin")
        self.driver.capturing = not status
        return status

    def cuStreamEndCapture(self, stream: ctypes.c_void_p, graph: Any) -> int:
        self.driver.capturing = False
        status = self._call("end")
        if not status:
            graph._obj.value = self.driver.handle()
            self.driver.templates.add(graph._obj.value)
        return status

    def cuGraphInstantiateWithFlags(
        self, runnable: Any, graph: ctypes.c_void_p, flags: ctypes.c_ulonglong
    ) -> int:
        assert graph.value in self.driver.templates
        assert isinstance(flags, ctypes.c_ulonglong)
        status = self._call("instantiate")
        if not status:
            runnable._obj.value = self.driver.handle()
            self.driver.graphs.add(runnable._obj.value)
        return status

    def cuGraphDestroy(self, graph: ctypes.c_void_p) -> int:
        self.driver.templates.remove(graph.value or 0)
        return self._call("destroy")

    def cuGraphLaunch(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p) -> int:
        assert isinstance(stream, ctypes.c_void_p)
        assert graph.value in self.driver.graphs
        return self._call("launch")

    def cuGraphExecDestroy(self, graph: ctypes.c_void_p) -> int:
        self.driver.graphs.remove(graph.value or 0)
        return self._call("drop")

    def cuGetErrorString(self, status: int, text: Any) -> int:
        if status == 901:
            text._obj.value = b"operation failed due to a previous error during capture"
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    package, module = ModuleType("pycuda"), _fake_pycuda(made)
    vars(package)["driver"] = module
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libcuda(made))
    monkeypatch.setattr(cuda_device, "_retained", {})
    return made


@pytest.fixture
def device(driver: Driver) -> Iterator[CudaDevice]:
    opened = CudaDevice()
    yield opened
    driver.fails.clear()
    opened.close()
    assert not driver.allocated
    assert not driver.graphs
    assert not driver.templates
    assert not driver.objects
    assert not driver.stack


def test_without_pycuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(BackendError, match=r"pip install 'dvt-edge\[tensorrt\]'"):
        CudaDevice()


def test_without_a_gpu(driver: Driver) -> None:
    driver.fails["device"] = 100
    with pytest.raises(BackendError, match=r"no CUDA-capable device .*dvt-edge doctor"):
        CudaDevice()
    assert not driver.retained


def test_what_it_is(device: CudaDevice, driver: Driver) -> None:
    assert (device.name, device.compute_capability) == ("Orin", "8.7")
    assert device.integrated
    assert device.stream > 1 << 32
    assert driver.streams == [1]  # does not wait for the default stream
    driver.fails["discrete"] = 1
    other = CudaDevice()
    assert not other.integrated
    other.close()


def test_too_little_device_memory(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        device.allocate(60 * MIB)
        with pytest.raises(
            BackendError, match=r"^61 MiB more .* 40 of 100 MiB are free; .*lower engine"
        ):
            device.allocate(60 * MIB + 1)
    assert len(driver.allocated) == 1


def test_too_little_page_locked_memory(device: CudaDevice, driver: Driver) -> None:
    driver.free = MIB
    with device.current(), pytest.raises(BackendError, match=r"^2 MiB more of page-locked .*lower"):
        device.allocate_mapped((1024, 1024), np.float16)
    driver.free = 100 * MIB


def test_transfers_are_counted(device: CudaDevice, driver: Driver) -> None:
    """Copies within the device are none; what is mapped is counted by who uses it."""
    with device.current():
        mapped = device.allocate_mapped((4, 3), np.float16)
        assert not mapped.array.any()
        address = device.allocate(24)
        device.upload(address, mapped.array[:2])
        device.copy(address, address + 12, 12)
        device.download(np.empty((2, 3), np.float32), address)
    assert (device.transfers.to_device, device.transfers.to_host) == (12, 24)
    assert driver.calls == [
        "htod 12",
        f"dtod {address} {address + 12} 12",
        "synchronize",  # what is still under way arrives before it is read
        "dtoh 24",
    ]


def test_kernels(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        kernel = device.load_kernel(b"code", "gather")
        device.launch(kernel, (3, 1), 256, np.int64(7), shared_bytes=64)
    assert driver.calls == [f"gather {(np.int64(7),)} (256, 1, 1) 64"]


def test_timed(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        device.timed(lambda: driver.calls.append("work"))
    assert driver.calls == ["record", "work", "record"]
    assert device.elapsed_ms() == 2.5


@pytest.mark.parametrize("error", [BackendError("of ours"), KeyError("of anyone's")])
def test_context_is_current_within_the_block_alone(
    device: CudaDevice, driver: Driver, error: Exception
) -> None:
    assert not driver.stack

    def work() -> None:
        with device.current():
            with device.current():
                assert len(driver.stack) == 2
            raise error

    with pytest.raises(type(error), match="of "):
        work()
    assert not driver.stack


def test_errors_of_the_driver_are_typed(device: CudaDevice, driver: Driver) -> None:
    driver.fails["synchronize"] = 700
    with pytest.raises(BackendError, match=r"illegal memory .*start the process"), device.current():
        device.synchronize()
    assert not driver.stack
    driver.fails["push"] = 709
    with pytest.raises(BackendError, match="context is destroyed"), device.current():
        pass


def test_any_thread(device: CudaDevice, driver: Driver) -> None:
    """Each has a stack of contexts of its own, which is left as it was."""
    depths: list[int] = []

    def work() -> None:
        with device.current():
            device.synchronize()
            depths.append(len(driver.stack))
        depths.append(len(driver.stack))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(depths) == [0] * 4 + [1] * 4


def test_capture_and_replay(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        graph = device.capture(lambda: driver.calls.append("work"))
        assert driver.calls == ["begin", "work", "end", "instantiate", "destroy"]
        assert graph > 1 << 32
        device.replay(graph)
    assert driver.calls[-1] == "launch"
    assert driver.graphs == {graph}


@pytest.mark.parametrize(
    ("call", "done"),
    [
        ("begin", ["begin"]),
        ("end", ["begin", "end"]),
        ("instantiate", ["begin", "end", "instantiate", "destroy"]),
    ],
)
def test_capture_fails(device: CudaDevice, driver: Driver, call: str, done: list[str]) -> None:
    driver.fails[call] = 901
    with device.current(), pytest.raises(BackendError, match=r"previous error .*\(901\)"):
        device.capture(lambda: None)
    assert driver.calls == done
    assert not driver.capturing


@pytest.mark.parametrize("status", [0, 901])
def test_what_is_captured_fails(device: CudaDevice, driver: Driver, status: int) -> None:
    """Its own error counts, the capture is over, and what was recorded is not kept."""

    def work() -> None:
        raise BackendError("the engine's reason")

    driver.fails["end"] = status
    with device.current(), pytest.raises(BackendError, match="the engine's reason"):
        device.capture(work)
    assert not driver.capturing
    assert not driver.templates


def test_replay_fails(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        graph = device.capture(lambda: None)
        driver.fails["launch"] = 1234
        with pytest.raises(BackendError, match=r"unknown error \(1234\)"):
            device.replay(graph)


def test_close_after_a_failure_frees_all_the_same(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        device.allocate(10)
        device.capture(lambda: None)
    driver.fails["synchronize"] = 700
    device.close()
    assert not driver.allocated
    assert not driver.graphs
    assert not driver.objects


def test_close_on_another_thread_twice(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        device.allocate(10)
    thread = threading.Thread(target=device.close)
    thread.start()
    thread.join()
    assert not driver.allocated
    device.close()
    with pytest.raises(ClosedError, match="open another Runtime"), device.current():
        pass


def test_two_hundred_times_leave_nothing(driver: Driver) -> None:
    """The primary context is retained once, as CUDA's runtime does it."""
    for _ in range(200):
        device = CudaDevice()
        with device.current():
            device.allocate(1000)
            device.allocate_mapped((8, 8), np.float32)
            device.load_kernel(b"code", "gather")
            device.replay(device.capture(lambda: None))
        device.close()
    del device
    assert driver.free == 100 * MIB
    assert (driver.objects, driver.graphs, driver.templates) == (0, set(), set())
    assert driver.retained == 1
    assert not driver.stack


def test_two_at_once(device: CudaDevice, driver: Driver) -> None:
    """Closing one leaves the other's memory and graphs."""
    other = CudaDevice()
    assert other.stream != device.stream
    with device.current():
        kept = device.allocate(10)
        graph = device.capture(lambda: None)
        with other.current():
            other.allocate(10)
            other.capture(lambda: None)
    other.close()
    assert set(driver.allocated) == {kept}
    with device.current():
        device.replay(graph)


def test_refused_after_a_fork(
    device: CudaDevice, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the old device nor a new one: CUDA itself does not start again after a fork."""
    with device.current():
        device.allocate(10)
    with monkeypatch.context() as forked:
        forked.setattr(os, "getpid", lambda: -1)
        with pytest.raises(BackendError, match=r"forked .*'spawn'"), device.current():
            pass
        with pytest.raises(BackendError, match=r"forked .*'spawn'"):
            CudaDevice()
        device.close()
    assert driver.allocated, "the parent's memory was freed"


def _use(device: CudaDevice, answer: Any) -> None:
    try:
        with device.current():
            answer.send("worked")
    except BackendError as error:
        answer.send(str(error))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_refused_in_a_real_fork(device: CudaDevice) -> None:
    methods = multiprocessing.get_context("fork")
    ours, theirs = methods.Pipe()
    process = methods.Process(target=_use, args=(device, theirs))
    process.start()
    assert ours.poll(60)
    assert "'spawn'" in ours.recv()
    process.join()
    ours.close()
    theirs.close()
