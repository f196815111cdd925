"""The GPU through a stand-in for pycuda and libcuda, which keep account of everything."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.errors import BackendError, ClosedError
from dvt_edge.runtime.backends import cuda_device
from dvt_edge.runtime.backends.cuda_device import CudaDevice, Wait
from dvt_edge.runtime.native.library import GatherPlan
from tests.runtime.backends.fake_cuda import MIB, Driver, Libcuda


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
    assert not driver.events
    assert not driver.leaked
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
        "event",
        "htod 12",
        f"dtod {address} {address + 12} 12",
        "synchronize",  # what is still under way arrives before it is read
        "dtoh 24",
    ]


def test_kernels(device: CudaDevice, driver: Driver) -> None:
    with device.current():
        device.load_kernel(b"code", "gather")
        device.launch("gather", (3, 1), 256, np.int64(7), shared_bytes=64)
        plan = GatherPlan(arrays=1, count=2)
        device.launch("gather", (3, 1), 256, plan)
    first, (second,) = driver.launched
    assert first == (np.int64(7),)
    assert isinstance(second, np.void)  # which pycuda passes by value
    assert second.tobytes() == bytes(plan)
    assert driver.calls[-2:] == ["gather (256, 1, 1) 64", "gather (256, 1, 1) 0"]


def test_timed(device: CudaDevice, driver: Driver) -> None:
    driver.calls.clear()
    with device.current():
        assert device.timed(lambda: driver.calls.append("work")) == 2.5
    assert driver.calls == ["record", "work", "record", "wait"]


@pytest.mark.parametrize(
    ("wait", "batch", "made"),
    [
        ("spin", 1, ["launch", "synchronize"]),
        ("spin", 8, ["launch", "record event", "sleep"]),
        ("block", 1, ["launch", "record event", "sleep"]),
        ("block", 8, ["launch", "record event", "sleep"]),
    ],
)
def test_how_a_thread_waits(driver: Driver, wait: Wait, batch: int, made: list[str]) -> None:
    """As the profile says at batch 1; for more it sleeps, and no event is recorded to spin."""
    device = CudaDevice(wait)
    with device.current():
        graph = device.capture(lambda: None)
        driver.calls.clear()
        device.run(graph, batch)
        assert driver.calls == made
    device.close()


def test_native_code_launches_and_waits_at_once(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given libcuda's functions by address, the graph, the stream, and what to sleep on."""
    given: list[tuple[Any, ...]] = []

    class Native:
        def dvt_run_graph(self, calls: Any, *handles: Any) -> int:
            given.append((calls._obj.launch, *handles))
            return driver.fails.get("native", 0)

        def dvt_wait(self, calls: Any, *handles: Any) -> int:
            given.append((calls._obj.query, *handles))
            return 0

    kind = ctypes.CFUNCTYPE(ctypes.c_int)
    names = ("cuGraphLaunch", "cuStreamQuery", "cuEventRecord", "cuEventSynchronize")
    functions = {name: kind(lambda: 0) for name in names}
    for name, function in functions.items():
        monkeypatch.setattr(Libcuda, name, function, raising=False)
    monkeypatch.setattr(cuda_device, "library", Native)
    device = CudaDevice()
    with device.current():
        device.run(17, 1)
        device.run(17, 8)
        device.synchronize()
        driver.fails["native"] = 719
        with pytest.raises(BackendError, match=r"unknown error \(719\)"):
            device.run(17, 1)
    launch, query = (ctypes.cast(functions[n], ctypes.c_void_p).value for n in names[:2])
    stream = device.stream
    assert given[0] == (launch, 17, stream, None)
    assert given[1][:3] == (launch, 17, stream)
    assert given[1][3].value in driver.events
    assert given[2] == (query, stream, None)
    device.close()


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
        driver.calls.clear()
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
    driver.calls.clear()
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


def test_close_without_a_driver_that_answers(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    """The context is gone: what belongs to it is forgotten, and closing goes on."""
    device, closed = CudaDevice(), []
    with device.current():
        device.allocate(10)
        device.capture(lambda: None)
    device.on_close(lambda: closed.append("engine"))
    driver.fails["push"] = 709
    device.close()
    assert "may not have been given back: cuCtxPushCurrent failed" in caplog.text
    with pytest.raises(ClosedError), device.current():
        pass
    device.close()
    assert not closed


def test_one_that_does_not_close_keeps_nothing_else(
    device: CudaDevice, driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        assert driver.stack, "no context is current"
        assert driver.allocated, "the memory went first"
        assert not driver.graphs, "a graph outlives what it runs"
        order.append("first")
        raise RuntimeError("an engine's reason")

    order: list[str] = []
    with device.current():
        device.allocate(10)
        device.capture(lambda: None)
    device.on_close(fail)
    device.on_close(lambda: order.append("second"))
    device.close()
    assert order == ["first", "second"]
    assert "an engine's reason" in caplog.text
    assert not driver.allocated


def test_a_device_that_nobody_closed(driver: Driver) -> None:
    """Opened and forgotten on a thread: all of it is given back, inside the context, when it is
    collected; also by another thread."""

    def work() -> None:
        device = CudaDevice()
        with device.current():
            device.allocate(1000)
            device.allocate_mapped((8, 8), np.float32)
            device.load_kernel(b"code", "gather")
            device.run(device.capture(lambda: None), 1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    gc.collect()
    assert not driver.leaked
    assert driver.free == 100 * MIB
    assert (driver.objects, driver.graphs, driver.events) == (0, set(), set())
    assert not driver.stack


LEAVING = """
import os, sys, types
sys.path.insert(0, {root!r})
from tests.runtime.backends.fake_cuda import Driver, Libcuda, fake_pycuda
import ctypes
driver = Driver()
package, module = types.ModuleType("pycuda"), fake_pycuda(driver)
package.driver = module
sys.modules["pycuda"], sys.modules["pycuda.driver"] = package, module
ctypes.CDLL = lambda name: Libcuda(driver)
from dvt_edge.runtime.backends import cuda_device
cuda_device.library = lambda: None
retain = module.Device.retain_primary_context

def retained(self):
    context = retain(self)
    type(context).__del__ = lambda self, write=os.write: write(1, b"pure virtual method called")
    return context

module.Device.retain_primary_context = retained
device = cuda_device.CudaDevice()
with device.current():
    device.allocate(10)
print("end", flush=True)
"""


def test_leaving_the_process() -> None:
    """A device that is open then is closed, and the primary context is never destroyed: pycuda's
    destructor would call a virtual function of a base that has none."""
    root = str(Path(__file__).resolve().parents[3])
    done = subprocess.run(
        [sys.executable, "-c", LEAVING.format(root=root)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "end\n"
    assert done.stderr == ""


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
            device.run(device.capture(lambda: None), 1)
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
