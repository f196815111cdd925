"""A GPU of host memory, and engines that ONNX Runtime runs."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import kernel_twins
import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.bundle.manifest import StageSpec, TensorSpec
from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends import cuda_context, cuda_device
from dvt_edge.runtime.backends.cuda_device import MappedArray, Transfers
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session
from dvt_edge.runtime.native import calls
from dvt_edge.runtime.native.library import GatherPlan, PreprocessPlan
from tests.conftest import stage_graphs
from tests.runtime.backends.fake_cuda import Driver, Libcuda, fake_pycuda

if TYPE_CHECKING:
    import onnx

    from dvt_edge.models.cascade import Cascade


def _gather(threads: int, shared_bytes: int, plan: GatherPlan) -> None:
    kernel_twins.gather_planned(plan, threads)


def _preprocess(
    threads: int,
    shared_bytes: int,
    plan: PreprocessPlan,
    frame: np.uintp,
    columns: np.uintp,
    column_taps: np.int32,
    rows: np.uintp,
    row_taps: np.int32,
    width: np.int32,
    height: np.int32,
    out: np.uintp,
) -> None:
    for axis, at, taps in ((0, columns, column_taps), (1, rows, row_taps)):
        table = calls.axis_table(plan, axis)
        assert table.shape[1] == 2 + taps
        assert ctypes.string_at(int(at), table.nbytes) == table.tobytes()
    cut = calls.tile(plan, 48 << 10)
    assert cut == (int(width), int(height), shared_bytes)
    size = plan.row_stride * plan.height * (3 if plan.layout == calls.LAYOUTS["nv12"] else 2) // 2
    pixels = np.frombuffer(ctypes.string_at(int(frame), size), np.uint8)
    dtype = next(kind for kind, number in calls.OUTPUTS.items() if number == plan.output)
    image = np.empty((plan.channels, plan.crop, plan.crop), dtype)
    kernel_twins.preprocess_reference(plan, pixels, image, 256, shared_bytes)
    ctypes.memmove(int(out), image.ctypes.data, image.nbytes)


_KERNELS: dict[str, Callable[..., None]] = {
    "dvt_gather_kernel": _gather,
    "dvt_preprocess_kernel": _preprocess,
}


class HostDevice:
    """Stands in for ``CudaDevice``: its device memory is host memory of its own."""

    def __init__(self, *, integrated: bool = False, room: int = 1 << 40) -> None:
        self.name = "host memory"
        self.integrated, self.room = integrated, room
        self.transfers = Transfers()
        self.stream = 7
        self.depth = 0
        self.memory: dict[int, npt.NDArray[Any]] = {}
        self.kernels: dict[str, Callable[..., None]] = {}
        self.copies: list[tuple[int, int, int]] = []
        self.captured: list[Callable[[], None]] = []
        self.launches: list[tuple[Any, ...]] = []
        self.users: list[Callable[[], None]] = []
        self.sleeps: list[int] = []
        """Batch sizes that were waited for."""
        self.capturing = False
        self.forked = False
        self.closed = 0

    def engine(self, model: Any, spec: StageSpec, capturable: bool = True) -> OrtEngine:
        """A stand-in for a stage's engine on this device."""
        return OrtEngine(self, model, spec, capturable)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def _keep(self, array: npt.NDArray[Any]) -> int:
        assert self.depth, "the context is not current"
        self.memory[array.ctypes.data] = array
        return array.ctypes.data

    def allocate(self, size: int) -> int:
        self.room -= size
        if self.room < 0:
            raise BackendError(f"{size} bytes more of device memory are needed")
        return self._keep(np.full(max(size, 1), 0xAB, np.uint8))

    def allocate_mapped(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> MappedArray:
        array = np.zeros(shape, dtype)
        return MappedArray(array, self._keep(array))

    def upload(self, address: int, array: npt.NDArray[Any]) -> None:
        assert array.flags.c_contiguous
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self.transfers.to_device += array.nbytes

    def download(self, array: npt.NDArray[Any], address: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)
        self.transfers.to_host += array.nbytes

    def copy(self, target: int, source: int, size: int) -> None:
        assert self.depth
        assert abs(target - source) >= size, "source and target overlap"
        self.copies.append((target, source, size))
        ctypes.memmove(target, source, size)

    def free(self, address: int) -> None:
        assert self.depth, "the context is not current"
        del self.memory[address]

    def synchronize(self, batch: int = 1) -> None:
        assert not self.capturing, "a capture must not wait"
        self.sleeps.append(batch)

    def run(self, graph: int, batch: int) -> None:
        self.captured[graph - 1]()
        self.synchronize(batch)

    def timed(self, work: Callable[[], None]) -> float:
        work()
        return 1.5

    def on_close(self, close: Callable[[], None]) -> None:
        self.users.append(close)

    def capture(self, work: Callable[[], None]) -> int:
        self.capturing = True
        work()
        self.capturing = False
        self.captured.append(work)
        return len(self.captured)

    def load_kernel(self, fatbin: bytes, name: str) -> None:
        assert self.depth
        self.kernels[name] = _KERNELS[name]

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        *arguments: Any,
        shared_bytes: int = 0,
    ) -> None:
        """Does what the kernel does, one thread after the other."""
        assert self.depth
        self.launches.append((kernel, grid, threads, arguments))
        self.kernels[kernel](grid[0] * threads, shared_bytes, *arguments)

    def close(self) -> None:
        if self.closed:
            return
        self.captured.clear()
        with self.current():
            while self.users:
                self.users.pop(0)()
        self.closed += 1
        self.memory.clear()


class OrtEngine:
    """Stands in for ``TensorRTStage``: reads and writes the bound addresses."""

    def __init__(
        self, device: HostDevice, model: Any, spec: StageSpec, capturable: bool = True
    ) -> None:
        self.device, self.spec, self.capturable = device, spec, capturable
        self.session = open_session(model.SerializeToString(), threads=1)
        self.scratch_bytes = 1000 + len(spec.inputs)
        self.bound: dict[int, dict[str, int]] = {}
        """By batch size, as prepared last."""
        self.prepared = 0
        self.warm = 0
        self.scratch: set[int] = set()
        self.runs: list[int] = []
        self.closed = False

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        assert stream == self.device.stream
        bound = self.bound[batch] = dict(addresses)
        self.prepared += 1
        self.scratch.add(scratch)

        def at(tensor: TensorSpec) -> npt.NDArray[Any]:
            size = batch * tensor.bytes_per_image
            memory = (ctypes.c_char * size).from_address(bound[tensor.name])
            values = np.frombuffer(memoryview(memory), tensor.dtype)
            return values.reshape(tensor.shape_at(batch))

        def enqueue() -> None:
            if self.device.capturing:
                return
            self.runs.append(batch)
            read = {t.name: at(t) for t in self.spec.inputs}
            names = [t.name for t in self.spec.outputs]
            for tensor, value in zip(self.spec.outputs, self.session.run(names, read), strict=True):
                at(tensor)[...] = value

        return enqueue

    def warmed_up(self) -> None:
        assert self.runs, "nothing ran"
        self.warm += 1

    def close(self) -> None:
        assert not self.device.captured, "a graph outlives what it runs"
        assert self.device.memory, "the memory went first"
        self.closed = True


def fp16_stages(cascade: Cascade) -> list[onnx.ModelProto]:
    """As TensorRT gets them: float16, queries and keys handed on."""
    from dvt_edge.converters.graphs.fp16 import fp16_body

    return [fp16_body(graph) for graph in stage_graphs(cascade, target="tensorrt")]


@pytest.fixture(scope="session")
def host_device() -> type[HostDevice]:
    """The class that stands in for the GPU."""
    return HostDevice


@pytest.fixture(params=["discrete", "shared memory"])
def new_device(request: pytest.FixtureRequest) -> Callable[[], HostDevice]:
    """A function that gives one more GPU."""
    return lambda: HostDevice(integrated=request.param == "shared memory")


@pytest.fixture(scope="session")
def models(tiny_config: Callable[..., Any], random_cascade: Callable[..., Any]) -> list[Any]:
    """A tiny cascade's :func:`fp16_stages`."""
    return fp16_stages(random_cascade(tiny_config()))


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Stand-ins for pycuda and libcuda, which a ``CudaDevice`` then finds; what they noted."""
    made = Driver()
    package, module = ModuleType("pycuda"), fake_pycuda(made)
    vars(package)["driver"] = module
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", module)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libcuda(made))
    monkeypatch.setattr(cuda_context, "_retained", {})
    # Native code calls libcuda by address; tests/runtime/native/ has stand-ins for that.
    monkeypatch.setattr(cuda_device, "library", lambda: None)
    return made
