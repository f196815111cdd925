"""The GPU backend on a device of host memory, its engines run by ONNX Runtime.

What is tested is what the backend does with addresses, sizes and transfers; the numbers are those
of the very graphs that engines are built from.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from dvt_edge.bundle import StageSpec, TensorSpec
from dvt_edge.converters.chain import Chain
from dvt_edge.converters.fp16 import fp16_body
from dvt_edge.converters.graph_facts import stage_spec
from dvt_edge.converters.stage_graph import stage_graph_from_cascade
from dvt_edge.errors import BackendError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.runtime.cuda_device import MappedArray, Transfers
from dvt_edge.runtime.device_backend import DeviceBackend
from dvt_edge.runtime.onnxruntime_backend import open_session
from dvt_edge.runtime.onnxruntime_cuda_stage import OnnxRuntimeCudaStage, open_cuda_session

BATCH_SIZES = (1, 4, 8)
ANSWER_BYTES = 8


class HostDevice:
    """Stands in for ``CudaDevice``: its device memory is host memory of its own."""

    def __init__(self, *, integrated: bool = False, room: int = 1 << 40) -> None:
        self.integrated, self.room = integrated, room
        self.transfers = Transfers()
        self.stream = 7
        self.depth = 0
        self.memory: dict[int, npt.NDArray[Any]] = {}
        self.copies: list[tuple[int, int, int]] = []
        self.captured: list[Callable[[], None]] = []
        self.capturing = False
        self.closed = 0

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

    def close(self) -> None:
        self.closed += 1
        self.memory.clear()


class OrtEngine:
    """Stands in for ``TensorRTStage``: reads and writes the bound addresses."""

    def __init__(
        self, device: HostDevice, model: onnx.ModelProto, spec: StageSpec, capturable: bool = True
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
        return np.frombuffer(memory, tensor.dtype).reshape(shape)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def models(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> list[onnx.ModelProto]:
    cascade = random_cascade(tiny_config())
    stages = range(len(cascade.stages))
    return [fp16_body(stage_graph_from_cascade(cascade, i, target="tensorrt")) for i in stages]


@pytest.fixture(params=["discrete", "shared memory"])
def device(request: pytest.FixtureRequest) -> HostDevice:
    return HostDevice(integrated=request.param == "shared memory")


def _backend(
    device: HostDevice, models: Sequence[onnx.ModelProto], *, capturable: bool = True
) -> tuple[DeviceBackend, list[OrtEngine]]:
    specs = [stage_spec(model, f"stage{i}.plan") for i, model in enumerate(models)]
    engines = [
        OrtEngine(device, model, spec, capturable)
        for model, spec in zip(models, specs, strict=True)
    ]
    backend = DeviceBackend(device, engines, specs, BATCH_SIZES)  # type: ignore[arg-type]
    return backend, engines


@pytest.fixture
def images(models: list[onnx.ModelProto]) -> npt.NDArray[np.float16]:
    shape = stage_spec(models[0], "").inputs[0].shape[1:]
    return np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float16)


def test_answers_are_those_of_the_graphs(
    device: HostDevice, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
) -> None:
    expected = list(Chain(models).run(images))
    backend, _ = _backend(device, models)
    backend.image_buffer(8)[:] = images
    for k, outputs in enumerate(expected):
        answer = backend.run_stage(k, 8)
        np.testing.assert_array_equal(answer.confidence, outputs["confidence"])
        np.testing.assert_array_equal(answer.class_id, outputs["class_id"])
        np.testing.assert_array_equal(backend.logits(k, 8), outputs["logits"])


def test_eight_bytes_to_the_host_per_image_and_stage(
    device: HostDevice, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
) -> None:
    """The image goes to a discrete device once, to a shared memory not at all."""
    backend, _ = _backend(device, models)
    for count in (1, 3, 8):
        before = Transfers(device.transfers.to_device, device.transfers.to_host)
        backend.image_buffer(count)[:] = images[:count]
        for k in range(len(models)):
            backend.run_stage(k, count)
        sent = device.transfers.to_device - before.to_device
        assert sent == (0 if device.integrated else images[:count].nbytes)
        assert device.transfers.to_host - before.to_host == ANSWER_BYTES * count * len(models)


def test_a_stage_reads_where_the_one_before_wrote(
    device: HostDevice, models: list[onnx.ModelProto]
) -> None:
    backend, engines = _backend(device, models)
    for k in range(len(models)):
        backend.run_stage(k, 1)
    for before, after in itertools.pairwise(engines):
        names = [t.name for t in after.spec.inputs if t.name != "image"]
        assert names
        for name in names:
            assert after.bound[1][name] == before.bound[1][f"next_{name}"]
        assert after.bound[1]["image"] == engines[0].bound[1]["image"]
    assert len(set().union(*(engine.scratch for engine in engines))) == 1
    assert not device.copies


def test_addresses_are_bound_and_graphs_captured_once(
    device: HostDevice, models: list[onnx.ModelProto]
) -> None:
    backend, engines = _backend(device, models)
    for count in (1, 1, 3, 4, 2, 8, 1):
        for k in range(len(models)):
            backend.run_stage(k, count)
    assert [sorted(engine.bound) for engine in engines] == [list(BATCH_SIZES)] * len(models)
    assert len(device.captured) == len(models) * len(BATCH_SIZES)
    # One run to warm up per size, then one per call, each with the nearest size there is.
    assert engines[0].runs == [1, 1, 1, 4, 4, 4, 4, 8, 8, 1]


def test_engines_that_capture_themselves_are_enqueued(
    device: HostDevice, models: list[onnx.ModelProto]
) -> None:
    backend, engines = _backend(device, models, capturable=False)
    backend.run_stage(0, 1)
    backend.run_stage(0, 1)
    assert not device.captured
    assert engines[0].runs == [1, 1, 1]


@pytest.mark.parametrize("rows", [[0], [7], [1, 2], [0, 3, 4, 7], list(range(8))])
def test_survivors_go_on_as_if_alone(
    device: HostDevice,
    models: list[onnx.ModelProto],
    images: npt.NDArray[np.float16],
    rows: list[int],
) -> None:
    """Batch 8, then only ``rows``: the next stage answers as it does to those images."""
    backend, _ = _backend(device, models)
    expected = list(Chain(models).run(images))
    backend.image_buffer(8)[:] = images
    backend.run_stage(0, 8)
    backend.keep_rows(0, np.asarray(rows))
    answer = backend.run_stage(1, len(rows))
    np.testing.assert_allclose(answer.confidence, expected[1]["confidence"][rows], atol=2e-3)
    kept = len(rows) - 1 if len(rows) > 1 else 0
    backend.keep_rows(1, np.asarray([kept]))
    last = backend.run_stage(2, 1)
    np.testing.assert_allclose(last.confidence, expected[2]["confidence"][[rows[kept]]], atol=2e-3)


def test_onnxruntime_on_the_device_is_bound_to_the_same_memory(
    device: HostDevice, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
) -> None:
    """The stages of ``provider: cuda``, told that host memory is the device's."""
    specs = [stage_spec(model, f"stage{i}.onnx") for i, model in enumerate(models)]
    stages = [
        OnnxRuntimeCudaStage(open_session(model.SerializeToString(), 1), spec, "cpu")
        for model, spec in zip(models, specs, strict=True)
    ]
    backend = DeviceBackend(device, stages, specs, BATCH_SIZES)  # type: ignore[arg-type]
    backend.image_buffer(4)[:] = images[:4]
    for k, outputs in enumerate(Chain(models).run(images[:4])):
        answer = backend.run_stage(k, 4)
        np.testing.assert_array_equal(answer.confidence, outputs["confidence"])
        np.testing.assert_array_equal(answer.class_id, outputs["class_id"])
    assert device.transfers.to_host == ANSWER_BYTES * 4 * len(models)
    assert not device.copies


def test_no_cuda_provider_here(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"pip install onnxruntime-gpu"):
        open_cuda_session(tmp_path / "stage1.onnx", 0)


def test_everything_is_given_back(models: list[onnx.ModelProto]) -> None:
    """Two hundred times, and each time all of it."""
    for _ in range(200):
        device = HostDevice()
        backend, engines = _backend_of_one(device, models[0])
        assert backend.bytes_resident == sum(a.nbytes for a in device.memory.values())
        backend.close()
        assert device.closed == 1
        assert not device.memory
        assert all(engine.closed for engine in engines)


def _backend_of_one(
    device: HostDevice, model: onnx.ModelProto
) -> tuple[DeviceBackend, list[OrtEngine]]:
    spec = stage_spec(model, "stage1.plan")
    engine = OrtEngine.__new__(OrtEngine)
    engine.device, engine.spec, engine.capturable = device, spec, True
    engine.scratch_bytes, engine.closed = 100, False
    backend = DeviceBackend(device, [engine], [spec], BATCH_SIZES)  # type: ignore[arg-type]
    return backend, [engine]


def test_too_little_device_memory_gives_back_what_was_taken(
    models: list[onnx.ModelProto],
) -> None:
    device = HostDevice(room=2000)
    with pytest.raises(BackendError, match="device memory"):
        _backend(device, models)
    assert device.closed == 1
    assert not device.memory


@pytest.mark.parametrize("count", [0, 9])
def test_batch_outside_the_profile(
    device: HostDevice, models: list[onnx.ModelProto], count: int
) -> None:
    backend, _ = _backend(device, models)
    with pytest.raises(BackendError, match=r"engine\.batch_sizes end at 8"):
        backend.image_buffer(count)


def test_the_proof_script_reads_a_backend(
    models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
) -> None:
    """What ``scripts/gpu_proof.py`` does to a cascade on a GPU, done to one on host memory."""
    path = Path(__file__).resolve().parents[2] / "scripts" / "gpu_proof.py"
    spec = importlib.util.spec_from_file_location("gpu_proof", path)
    assert spec is not None
    assert spec.loader is not None
    proof = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(proof)
    proof.RUNS.update({1: 3, 8: 2})
    backend, engines = _backend(HostDevice(), models)
    specs = [engine.spec for engine in engines]
    row = {
        "backend": "none",
        "model": "tiny",
        "precision": "fp16",
        "stages": proof._agreement(backend, images, list(Chain(models).run(images))),
        "residency": proof._residency(backend, images, specs),
        "latency": [proof._latency(backend, len(specs), batch) for batch in (1, 8)],
    }
    assert all(stage["same_class"] == 1 for stage in row["stages"])
    assert row["residency"]["to_host"] == row["residency"]["expected_to_host"] == 24
    assert row["residency"]["to_device"] == row["residency"]["image"]
    assert row["latency"][0]["stages_ms"]["median"] == 4.5
    text = proof._markdown(
        {
            "gpu": "none",
            "compute_capability": "0.0",
            "command": "test",
            "date": "today",
            "driver_cuda": "0.0",
            "versions": {},
            "cascades": [row, {**row, "failed": "for a reason"}],
            "kernels": {"failed": "not built"},
        }
    )
    assert "24 of 24" in text
    assert "failed: for a reason" in text
