"""The GPU backend on a device of host memory, its engines run by ONNX Runtime.

What is tested is what the backend does with addresses, sizes and transfers; the numbers are those
of the very graphs that engines are built from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.errors import BackendError, BundleError, ClosedError
from dvt_edge.runtime.backends.cuda_device import Transfers
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend, GatherKernel
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session
from dvt_edge.runtime.backends.onnxruntime_cuda import OnnxRuntimeCudaStage
from dvt_edge.runtime.backends.protocol import ASIDE
from dvt_edge.runtime.native.library import GatherPlan

BATCH_SIZES = (1, 4, 8)
ANSWER_BYTES = 8


@pytest.fixture
def device(new_device: Callable[[], Any]) -> Any:
    return new_device()


def _backend(
    device: Any, models: Sequence[onnx.ModelProto], *, capturable: bool = True
) -> tuple[DeviceBackend, list[Any]]:
    specs = [stage_spec(model, f"stage{i}.plan") for i, model in enumerate(models)]
    engines = [
        device.engine(model, spec, capturable) for model, spec in zip(models, specs, strict=True)
    ]
    return DeviceBackend("TensorRT 10", device, engines, specs, BATCH_SIZES), engines


@pytest.fixture
def images(models: list[onnx.ModelProto]) -> npt.NDArray[np.float16]:
    shape = [int(side) for side in stage_spec(models[0], "").inputs[0].shape[1:]]
    return np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float16)


def test_answers_are_those_of_the_graphs(
    device: Any, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
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
    device: Any, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
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
    device: Any, models: list[onnx.ModelProto]
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
    device: Any, models: list[onnx.ModelProto]
) -> None:
    backend, engines = _backend(device, models)
    for count in (1, 1, 3, 4, 2, 8, 1):
        for k in range(len(models)):
            backend.run_stage(k, count)
    assert [sorted(engine.bound) for engine in engines] == [list(BATCH_SIZES)] * len(models)
    assert [engine.prepared for engine in engines] == [len(BATCH_SIZES)] * len(models)
    assert [engine.warm for engine in engines] == [len(BATCH_SIZES)] * len(models)
    assert len(device.captured) == len(models) * len(BATCH_SIZES)
    assert all(backend.captured(k, size) for k in range(len(models)) for size in BATCH_SIZES)
    # One run to warm up per size, then one per call, each with the nearest size there is.
    assert engines[0].runs == [1, 1, 1, 4, 4, 4, 4, 8, 8, 1]


def test_engines_that_capture_themselves_are_enqueued(
    device: Any, models: list[onnx.ModelProto]
) -> None:
    backend, engines = _backend(device, models, capturable=False)
    backend.run_stage(0, 1)
    backend.run_stage(0, 1)
    assert not device.captured
    assert not backend.captured(0, 1)
    assert engines[0].runs == [1, 1, 1]


def test_slots(device: Any, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]) -> None:
    """The next frame's image is written while the stages run; where memory is shared each slot has
    graphs of its own, elsewhere both are sent to the same place."""
    expected = list(Chain(models).run(images[:2]))
    backend, engines = _backend(device, models)
    for slot in range(2):
        backend.image_buffer(1, slot)[:] = images[slot]
    for slot in (1, 0):
        for k, outputs in enumerate(expected):
            answer = backend.run_stage(k, 1, slot)
            if k == 0:
                backend.image_buffer(1, 1 - slot)[:] = images[1 - slot]
            np.testing.assert_allclose(answer.confidence, outputs["confidence"][slot], atol=2e-3)
    assert engines[0].prepared == (2 if device.integrated else 1)
    sent = [backend.addresses(1, slot)["image"] for slot in range(2)]
    assert (sent[0] == sent[1]) != device.integrated


def test_events_only_where_somebody_asks(device: Any, models: list[onnx.ModelProto]) -> None:
    backend, _ = _backend(device, models)
    backend.run_stage(0, 1)
    assert backend.stage_ms is None
    backend.time_stages = True
    backend.run_stage(0, 1)
    assert backend.stage_ms == 1.5


def test_the_device_waits_for_the_batch_that_runs(
    device: Any, models: list[onnx.ModelProto]
) -> None:
    backend, _ = _backend(device, models)
    for count in (1, 3):
        backend.run_stage(0, count)
        device.sleeps.clear()
        backend.run_stage(0, count)
        assert device.sleeps == [1 if count == 1 else 4]


@pytest.mark.parametrize("change", ["type", "shape", "name"])
def test_stages_that_do_not_fit(device: Any, models: list[onnx.ModelProto], change: str) -> None:
    """Stage 2 writes what stage 3 would read as something else: refused as memory is laid out, and
    what was opened is closed."""
    specs = [stage_spec(model, "") for model in models]
    features = next(t for t in specs[1].outputs if t.name == "next_features")
    others: dict[str, dict[str, Any]] = {
        "type": {"dtype": "float32"},
        "shape": {"shape": (*features.shape[:-1], int(features.shape[-1]) + 1)},
        "name": {"name": "next_tokens"},
    }
    other = others[change]
    outputs = tuple(
        t.model_copy(update=other) if t.name == "next_features" else t for t in specs[1].outputs
    )
    specs[1] = specs[1].model_copy(update={"outputs": outputs})
    engines = [device.engine(m, s) for m, s in zip(models, specs, strict=True)]
    device.allocate_mapped = None  # nothing is laid out
    for engine in engines:
        engine.close = lambda engine=engine: setattr(engine, "closed", True)
    with pytest.raises(
        BundleError, match=r"stage 3 reads 'features' as float16 .* stage 2 hands on"
    ):
        DeviceBackend("TensorRT 10", device, engines, specs, BATCH_SIZES)
    assert all(engine.closed for engine in engines)
    assert device.closed == 1


@pytest.mark.parametrize("rows", [[0], [7], [1, 2], [0, 3, 4, 7], list(range(8))])
def test_survivors_go_on_as_if_alone(
    device: Any,
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


@pytest.mark.parametrize("kept", [[0, 1, 2], [1, 2]], ids=["with the last one", "in time"])
def test_frames_set_aside_go_on_together(
    device: Any,
    models: list[onnx.ModelProto],
    images: npt.NDArray[np.float16],
    kept: list[int],
) -> None:
    """Stage 1 one by one, in slots that are written to again; the others together. Nothing but
    stage 1's images goes to the device for that, and nothing but answers to the host."""
    backend, _ = _backend(device, models)
    expected = list(Chain(models).run(images))
    for row in (1, 2, 0):
        backend.image_buffer(1, row % 2)[0] = images[row]
        backend.run_stage(0, 1, row % 2)
        if row in kept:
            backend.set_aside(0, row, row % 2)
        backend.image_buffer(1, row % 2)[0] = np.nan
    sent = device.transfers.to_device
    if 0 not in kept:
        backend.keep_rows(0, np.array(kept), ASIDE)
    for k in (1, 2):
        answer = backend.run_stage(k, len(kept), ASIDE)
        wanted = expected[k]["confidence"][kept]
        np.testing.assert_allclose(answer.confidence, wanted, atol=2e-3)
    assert device.transfers.to_device == sent
    assert backend.bytes_resident == sum(array.nbytes for array in device.memory.values())


def test_onnxruntime_on_the_device_is_bound_to_the_same_memory(
    device: Any, models: list[onnx.ModelProto], images: npt.NDArray[np.float16]
) -> None:
    """The stages of ``provider: cuda``, told that host memory is the device's."""
    specs = [stage_spec(model, f"stage{i}.onnx") for i, model in enumerate(models)]
    stages = [
        OnnxRuntimeCudaStage(open_session(model.SerializeToString(), 1), spec, "cpu")
        for model, spec in zip(models, specs, strict=True)
    ]
    backend = DeviceBackend("TensorRT 10", device, stages, specs, BATCH_SIZES)
    backend.image_buffer(4)[:] = images[:4]
    for k, outputs in enumerate(Chain(models).run(images[:4])):
        answer = backend.run_stage(k, 4)
        np.testing.assert_array_equal(answer.confidence, outputs["confidence"])
        np.testing.assert_array_equal(answer.class_id, outputs["class_id"])
    assert device.transfers.to_host == ANSWER_BYTES * 4 * len(models)
    assert not device.copies


def test_everything_is_given_back(host_device: type[Any], models: list[onnx.ModelProto]) -> None:
    """Two hundred times, and each time all of it; once more is harmless."""
    spec = stage_spec(models[0], "stage1.plan")
    engine = host_device().engine(models[0], spec)
    for _ in range(200):
        device = host_device()
        engine.device, engine.closed = device, False
        engine.bound.clear()
        engine.runs.clear()
        backend = DeviceBackend("TensorRT 10", device, [engine], [spec], BATCH_SIZES)
        assert backend.bytes_resident == sum(a.nbytes for a in device.memory.values())
        backend.run_stage(0, 1)
        backend.close()
        backend.close()
        assert device.closed == 1
        assert not device.memory
        assert engine.closed


def test_graphs_go_before_engines_and_engines_before_memory(
    device: Any, models: list[onnx.ModelProto]
) -> None:
    backend, engines = _backend(device, models)
    backend.run_stage(0, 1)
    backend.close()  # each engine asserts that the graphs are gone and the memory is not
    assert all(engine.closed for engine in engines)
    assert not device.memory
    with pytest.raises(ClosedError, match="open another Runtime"):
        backend.image_buffer(1)


def test_a_forked_process_frees_nothing(device: Any, models: list[onnx.ModelProto]) -> None:
    backend, engines = _backend(device, models)
    device.forked = True
    backend.close()
    assert device.memory
    assert not device.closed
    assert not any(engine.closed for engine in engines)


def test_a_stage_that_cannot_be_captured_is_enqueued(
    device: Any, models: list[onnx.ModelProto], caplog: pytest.LogCaptureFixture
) -> None:
    def capture(work: Callable[[], None]) -> int:
        raise BackendError("operation not permitted when stream is capturing")

    device.capture = capture
    backend, engines = _backend(device, models)
    backend.run_stage(0, 3)
    backend.run_stage(0, 3)
    assert engines[0].runs == [4, 4, 4]
    assert [r.getMessage() for r in caplog.records] == [
        "stage 1 at batch 4 runs without a graph: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(("row_bytes", "blocks"), [(16, 1), (12, 1), (1 << 14, 4), (1 << 22, 1024)])
def test_gather_kernel(host_device: type[Any], row_bytes: int, blocks: int) -> None:
    """One launch moves the rows of all tensors; nothing has to be sent before it."""
    device = host_device()
    gather = GatherKernel(device, b"code")
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (8, size), np.uint8) for size in (row_bytes, 16, 20)]
    expected = [array[[1, 4, 7]].copy() for array in arrays]
    with device.current():
        gather([(a.ctypes.data, a.shape[1]) for a in arrays], np.array([1, 4, 7]))
    ((kernel, grid, threads, arguments),) = device.launches
    assert (kernel, grid, threads) == ("dvt_gather_kernel", (blocks, 3), 256)
    assert [type(a) for a in arguments] == [GatherPlan]
    for array, rows in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(array[:3], rows)
    assert device.transfers == Transfers()


def test_too_little_device_memory_gives_back_what_was_taken(
    host_device: type[Any], models: list[onnx.ModelProto]
) -> None:
    device = host_device(room=2000)
    with pytest.raises(BackendError, match="device memory"):
        _backend(device, models)
    assert device.closed == 1
    assert not device.memory
