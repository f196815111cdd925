"""The ONNX Runtime backend on the demo bundle: whose memory, how often bound, same answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import handed_on
from dvt_edge.errors import BackendError, BundleError
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend, open_session
from dvt_edge.runtime.backends.protocol import ASIDE, SLOTS
from tests.conftest import edit_manifest

BATCH = 6


def _open(folder: Path, max_batch: int = BATCH) -> OnnxRuntimeBackend:
    bundle = Bundle(folder)
    stages = bundle.manifest.stages
    paths = [bundle.stage_path(k) for k in range(len(stages))]
    return OnnxRuntimeBackend(paths, stages, max_batch, threads=1)


@pytest.fixture
def backend(demo_bundle: Path) -> Iterator[OnnxRuntimeBackend]:
    """The demo's stages, with room for a few frames."""
    opened = _open(demo_bundle)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def stages(demo_bundle: Path) -> int:
    """How many stages the demo has."""
    return len(Bundle(demo_bundle).manifest.stages)


def _images(backend: OnnxRuntimeBackend, count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    shape = backend.image_buffer(count).shape
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def _reference(folder: Path, images: npt.NDArray[np.float32]) -> list[dict[str, np.ndarray]]:
    """All outputs of all stages through plain ``session.run``."""
    bundle = Bundle(folder)
    handed: dict[str, np.ndarray] = {}
    result = []
    for k in range(len(bundle.manifest.stages)):
        path, native = str(bundle.stage_path(k)), bundle.manifest.native
        session = open_session(path, threads=1, native=native)
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(names, {"image": images, **handed}), strict=True))
        handed = handed_on(outputs)
        result.append(outputs)
    return result


def test_stages_share_memory(backend: OnnxRuntimeBackend, stages: int) -> None:
    """What a stage hands on is, byte for byte, where the next one reads it."""
    assert stages > 1
    for k in range(stages - 1):
        ours, theirs = backend.tensors[k], backend.tensors[k + 1]
        assert "features" in handed_on(ours)
        for name, array in handed_on(ours).items():
            assert array is theirs[name]


def test_bound_values_share_the_arrays_memory(
    backend: OnnxRuntimeBackend, stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every OrtValue points into the backend's arrays: nothing is copied in or out. All stages read
    the image of the slot that they run for."""
    pointers: list[int] = []
    make = ort.OrtValue.ortvalue_from_numpy

    def recording(array: np.ndarray) -> ort.OrtValue:
        value = make(array)
        pointers.append(value.data_ptr())
        return value

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", recording)
    for slot in range(SLOTS):
        pointers.clear()
        for k in range(stages):
            backend.run_stage(k, 2, slot)
        arrays = [a for k in range(stages) for a in backend.tensors[k].values()]
        image = backend.image_buffer(2, slot).ctypes.data
        assert sorted(pointers) == sorted([image] * stages + [a.ctypes.data for a in arrays])


def test_slots_do_not_mix(backend: OnnxRuntimeBackend, stages: int) -> None:
    """An image that is written while the stages run for another changes none of their answers."""
    images = np.random.default_rng(0).normal(size=(2, *backend.image_buffer(1).shape[1:]))
    alone = []
    for image in images:
        backend.image_buffer(1)[0] = image
        alone.append([float(backend.run_stage(k, 1).confidence[0]) for k in range(stages)])
    assert alone[0] != alone[1]
    for slot, image in enumerate(images):
        backend.image_buffer(1, slot)[0] = image
    for slot in (1, 0):
        found = []
        for k in range(stages):
            found.append(float(backend.run_stage(k, 1, slot).confidence[0]))
            backend.image_buffer(1, 1 - slot)[0] = 0.0
        backend.image_buffer(1, 1 - slot)[0] = images[1 - slot]
        assert found == alone[slot]


def test_answers_are_views(backend: OnnxRuntimeBackend) -> None:
    """The answer is read where the stage wrote it."""
    answer = backend.run_stage(0, 3)
    assert np.shares_memory(answer.confidence, backend.tensors[0]["confidence"])
    assert np.shares_memory(answer.class_id, backend.tensors[0]["class_id"])
    assert answer.confidence.shape == answer.class_id.shape == (3,)
    assert [str(a.dtype) for a in answer] == ["float32", "int32"]


def test_nothing_is_allocated_after_the_first_frame(
    backend: OnnxRuntimeBackend, stages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays, values and bindings are made once per stage and count."""
    made: list[str] = []
    make_value, make_array = ort.OrtValue.ortvalue_from_numpy, np.zeros
    make_binding = ort.InferenceSession.io_binding

    def value(array: np.ndarray) -> ort.OrtValue:
        made.append("value")
        return make_value(array)

    def binding(session: ort.InferenceSession) -> ort.IOBinding:
        made.append("binding")
        return make_binding(session)

    def array(*args: object, **keywords: object) -> np.ndarray:
        made.append("array")
        return make_array(*args, **keywords)  # type: ignore[call-overload]

    monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", value)
    monkeypatch.setattr(ort.InferenceSession, "io_binding", binding)
    monkeypatch.setattr(np, "zeros", array)
    for k in range(stages):
        backend.run_stage(k, 1)
    assert made.count("binding") == stages
    assert made.count("array") == 0
    before = {id(a) for k in range(stages) for a in backend.tensors[k].values()}
    made.clear()
    for _ in range(5):
        for k in range(stages):
            backend.run_stage(k, 1)
    assert made == []
    assert {id(a) for k in range(stages) for a in backend.tensors[k].values()} == before
    backend.run_stage(0, 2)
    assert made.count("binding") == 1


def test_bytes_resident_counts_shared_tensors_once(
    backend: OnnxRuntimeBackend, stages: int
) -> None:
    """The number for reports: each piece of memory counts once."""
    arrays = {a.ctypes.data: a.nbytes for k in range(stages) for a in backend.tensors[k].values()}
    images = sum(backend.image_buffer(BATCH, slot).nbytes for slot in range(SLOTS))
    assert backend.bytes_resident == sum(arrays.values()) + images


@pytest.mark.parametrize("count", [1, 2, BATCH])
def test_equals_plain_session(
    backend: OnnxRuntimeBackend, demo_bundle: Path, stages: int, count: int
) -> None:
    """Bound memory gives what feeding and fetching arrays gives."""
    images = _images(backend, count)
    backend.image_buffer(count)[:] = images
    for k, expected in zip(range(stages), _reference(demo_bundle, images), strict=True):
        answer = backend.run_stage(k, count)
        np.testing.assert_allclose(answer.confidence, expected["confidence"], atol=1e-4)
        np.testing.assert_array_equal(answer.class_id, expected["class_id"])
        np.testing.assert_allclose(backend.logits(k, count), expected["logits"], atol=1e-4)


def test_batch_equals_single(backend: OnnxRuntimeBackend, stages: int) -> None:
    """Frames do not see each other."""
    images = _images(backend, BATCH, seed=1)
    alone = []
    for image in images:
        backend.image_buffer(1)[0] = image
        answers = [backend.run_stage(k, 1) for k in range(stages)]
        alone.append([(float(a.confidence[0]), int(a.class_id[0])) for a in answers])
    backend.image_buffer(BATCH)[:] = images
    for k in range(stages):
        answer = backend.run_stage(k, BATCH)
        np.testing.assert_allclose(answer.confidence, [row[k][0] for row in alone], atol=1e-4)
        assert answer.class_id.tolist() == [row[k][1] for row in alone]


def test_keep_rows_moves_image_and_reuse(
    backend: OnnxRuntimeBackend, demo_bundle: Path, stages: int
) -> None:
    """After rows are gathered, the next stages answer as if only those had been there."""
    images = _images(backend, BATCH, seed=2)
    expected = _reference(demo_bundle, images)
    backend.image_buffer(BATCH)[:] = images
    waiting = np.arange(BATCH)
    for k in range(stages):
        answer = backend.run_stage(k, len(waiting))
        np.testing.assert_allclose(answer.confidence, expected[k]["confidence"][waiting], atol=1e-4)
        stays = np.arange(len(waiting))[1 - k % 2 :: 2]
        if k < stages - 1:
            backend.keep_rows(k, stays)
            waiting = waiting[stays]


def test_frames_set_aside_go_on_together(
    backend: OnnxRuntimeBackend, demo_bundle: Path, stages: int
) -> None:
    """Stage 1 one by one, in slots that are written to again; the others together, or without the
    last one, whose place in row 0 stays empty."""
    images = _images(backend, 4, seed=3)
    expected = _reference(demo_bundle, images)
    for kept in ([0, 1, 2, 3], [1, 2, 3]):
        for row in (1, 2, 3, 0):
            backend.image_buffer(1, row % 2)[0] = images[row]
            backend.run_stage(0, 1, row % 2)
            if row in kept:
                backend.set_aside(0, row, row % 2)
        if 0 not in kept:
            backend.keep_rows(0, np.array(kept), ASIDE)
        for k in range(1, stages):
            answer = backend.run_stage(k, len(kept), ASIDE)
            wanted = expected[k]["confidence"][kept]
            np.testing.assert_allclose(answer.confidence, wanted, atol=1e-4)


def test_memory_to_set_frames_aside(demo_bundle: Path) -> None:
    """Is taken when it is needed, once, and counted."""
    backend = _open(demo_bundle, 4)
    before, image = backend.bytes_resident, backend.image_buffer(4).nbytes
    backend.run_stage(0, 1)
    for row in range(4):
        backend.set_aside(0, row, 0)
    assert backend.bytes_resident == before + image
    backend.close()


def test_max_batch(backend: OnnxRuntimeBackend) -> None:
    """As many frames as asked for."""
    assert backend.max_batch == BATCH
    assert len(backend.image_buffer(BATCH)) == BATCH


def test_close_frees(demo_bundle: Path) -> None:
    """After close nothing is held."""
    backend = _open(demo_bundle, 1)
    assert backend.bytes_resident > 0
    backend.close()
    assert backend.bytes_resident == 0


def test_stage_that_is_no_graph(tmp_path: Path) -> None:
    """ONNX Runtime's own errors become ours."""
    path = tmp_path / "stage1.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"ONNX Runtime .* refused a stage"):
        open_session(str(path), threads=1)


def test_stage_of_another_shape(demo_bundle: Path) -> None:
    """A graph that cannot run on what the manifest promises."""
    bundle = Bundle(demo_bundle)
    spec = bundle.manifest.stages[0]
    wrong = spec.inputs[0].model_copy(update={"shape": ("N", 1, 7, 7)})
    broken = spec.model_copy(update={"inputs": (wrong,)})
    backend = OnnxRuntimeBackend([bundle.stage_path(0)], [broken], 1, threads=1)
    with pytest.raises(BackendError, match="stage 1 failed in ONNX Runtime"):
        backend.run_stage(0, 1)


def test_shared_scratch_changes_no_answer(demo_bundle: Path) -> None:
    """With room for batches stages share scratch memory; answers stay the same, bit by bit."""
    bundle = Bundle(demo_bundle)
    paths = [bundle.stage_path(i) for i in range(len(bundle.manifest.stages))]
    images = np.random.default_rng(0).normal(size=(1, 1, 48, 48)).astype(np.float32)
    answers = []
    for max_batch in (1, 8):
        backend = OnnxRuntimeBackend(paths, bundle.manifest.stages, max_batch, 1)
        backend.image_buffer(1)[:] = images
        answers.append([float(backend.run_stage(k, 1).confidence[0]) for k in range(len(paths))])
        backend.close()
    assert answers[0] == answers[1]


def test_stages_that_do_not_fit(own_bundle: Path) -> None:
    """Stage 1 would write what stage 2 reads as another type: refused, before anything runs."""

    def change(manifest: dict[str, Any]) -> None:
        features = next(t for t in manifest["stages"][1]["inputs"] if t["name"] == "features")
        features["dtype"] = "float16"

    edit_manifest(own_bundle, change)
    with pytest.raises(BundleError, match=r"stage 2 reads 'features' as float16 .*stage 1 hands"):
        Runtime(own_bundle)
