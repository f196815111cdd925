"""A GPU of host memory, and engines that ONNX Runtime runs."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.bundle.manifest import StageSpec, TensorSpec
from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.cuda_device import MappedArray, Transfers
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session
from tests.conftest import stage_graphs

if TYPE_CHECKING:
    import onnx

    from dvt_edge.models.cascade import Cascade


class HostDevice:
    """Stands in for ``CudaDevice``: its device memory is host memory of its own."""

    def __init__(self, *, integrated: bool = False, room: int = 1 << 40) -> None:
        self.name = "host memory"
        self.integrated, self.room = integrated, room
        self.transfers = Transfers()
        self.stream = 7
        self.depth = 0
        self.memory: dict[int, npt.NDArray[Any]] = {}
        self.copies: list[tuple[int, int, int]] = []
        self.captured: list[Callable[[], None]] = []
        self.launches: list[tuple[Any, ...]] = []
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

    def synchronize(self) -> None:
        assert not self.capturing, "a capture must not wait"

    def timed(self, work: Callable[[], None]) -> None:
        work()

    def elapsed_ms(self) -> float:
        return 1.5

    def capture(self, work: Callable[[], None]) -> int:
        self.capturing = True
        work()
        self.capturing = False
        self.captured.append(work)
        return len(self.captured)

    def replay(self, graph: int) -> None:
        self.captured[graph - 1]()

    def load_kernel(self, fatbin: bytes, name: str) -> tuple[bytes, str]:
        assert self.depth
        return fatbin, name

    def launch(self, kernel: Any, grid: tuple[int, int], threads: int, *arguments: Any) -> None:
        self.launches.append((kernel, grid, threads, arguments))

    def drop_graphs(self) -> None:
        self.captured.clear()

    def close(self) -> None:
        assert not self.captured, "a graph outlives what it runs"
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
        self.scratch: set[int] = set()
        self.runs: list[int] = []
        self.closed = False

    def prepare(self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int) -> None:
        assert batch not in self.bound, "bound twice"
        assert stream == self.device.stream
        self.bound[batch] = dict(addresses)
        self.scratch.add(scratch)

    def enqueue(self, batch: int, stream: int) -> None:
        if self.device.capturing:
            return
        self.runs.append(batch)
        read = {t.name: self._at(t, batch) for t in self.spec.inputs}
        names = [t.name for t in self.spec.outputs]
        for tensor, value in zip(self.spec.outputs, self.session.run(names, read), strict=True):
            self._at(tensor, batch)[...] = value

    def _at(self, tensor: TensorSpec, batch: int) -> npt.NDArray[Any]:
        shape = [batch if isinstance(n, str) else n for n in tensor.shape]
        size = batch * tensor.bytes_per_image
        memory = (ctypes.c_char * size).from_address(self.bound[batch][tensor.name])
        return np.frombuffer(memoryview(memory), tensor.dtype).reshape(shape)

    def close(self) -> None:
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
