"""The Runtime over the GPU backend, on a device of host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.errors import ClosedError
from dvt_edge.models import Cascade
from dvt_edge.runtime.backends import device_preprocess
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from dvt_edge.runtime.backends.protocol import machine_name
from dvt_edge.runtime.preprocess import Preprocessor
from tests.runtime.backends.conftest import fp16_stages
from tests.runtime.conftest import spread_scenes

BATCH_SIZES = (1, 4, 8)
FRAMES = 20
CLOSE = 4e-3
"""Between batch sizes, which sum in another order, in float16."""

Frames = list[npt.NDArray[np.uint8]]


class Expected(NamedTuple):
    """What the float16 graphs say, frame by frame, without any of the runtime."""

    thresholds: tuple[float, ...]
    """Such that frames leave everywhere, and none is within :data:`CLOSE` of one."""
    exit_stage: list[int]
    class_id: list[int]
    confidence: list[float]

    def first(self, count: int) -> Expected:
        exits, classes = self.exit_stage[:count], self.class_id[:count]
        return Expected(self.thresholds, exits, classes, self.confidence[:count])


@pytest.fixture(scope="module")
def demo_stages(samples: Path) -> list[onnx.ModelProto]:
    return fp16_stages(Cascade.load(samples / "demo" / "model.safetensors"))


@pytest.fixture(scope="module")
def frames(samples: Path) -> Frames:
    return spread_scenes(samples, FRAMES)


@pytest.fixture(scope="module")
def expected(demo_stages: list[onnx.ModelProto], frames: Frames, costed_bundle: Path) -> Expected:
    preprocess = Preprocessor(Bundle(costed_bundle).manifest.input)
    confidence, class_id = (np.zeros((len(frames), len(demo_stages))) for _ in range(2))
    for row, frame in enumerate(frames):
        image = np.empty((1, *preprocess.shape), np.float16)
        preprocess(frame, image[0])
        for stage, outputs in enumerate(Chain(demo_stages).run(image)):
            confidence[row, stage] = outputs["confidence"][0]
            class_id[row, stage] = outputs["class_id"][0]
    waiting = np.arange(len(frames))
    exits = np.full(len(frames), len(demo_stages))
    thresholds = []
    for stage in range(len(demo_stages) - 1):
        ordered = np.sort(confidence[waiting, stage])
        gaps = np.diff(ordered)[2:-2]
        at = 2 + int(gaps.argmax())
        assert gaps.max() > 2 * CLOSE
        thresholds.append(float(ordered[at : at + 2].mean()))
        leaves = confidence[waiting, stage] >= thresholds[-1]
        exits[waiting[leaves]] = stage + 1
        waiting = waiting[~leaves]
    rows = np.arange(len(frames))
    return Expected(
        (*thresholds, -inf),
        exits.tolist(),
        class_id[rows, exits - 1].astype(int).tolist(),
        confidence[rows, exits - 1].tolist(),
    )


class Opened(NamedTuple):
    runtime: Runtime
    device: Any


@pytest.fixture
def open_runtime(
    demo_stages: list[onnx.ModelProto],
    own_bundle: Path,
    known_costs: Callable[..., Costs],
    new_device: Callable[[], Any],
    expected: Expected,
) -> Iterator[Callable[[], Opened]]:
    """A function that opens one more Runtime, on a device of its own."""
    opened: list[Opened] = []
    specs = [stage_spec(model, f"stage{i}.plan") for i, model in enumerate(demo_stages)]

    def make(preprocess: bool = False) -> Opened:
        device = new_device()
        engines = [device.engine(m, s) for m, s in zip(demo_stages, specs, strict=True)]
        backend: Any = DeviceBackend("TensorRT 10", device, engines, specs, BATCH_SIZES)
        if preprocess:
            backend.preprocess_here(b"code")
        bundle = Bundle(own_bundle)
        costs = known_costs(bundle).model_copy(update={"machine": machine_name(backend)})
        bundle.store(COSTS, costs)
        runtime = Runtime(own_bundle, backend=backend)
        runtime.use(runtime.replay(expected.thresholds))
        opened.append(Opened(runtime, device))
        return opened[-1]

    yield make
    for runtime, device in opened:
        runtime.close()
        assert not device.memory


def _agrees(answers: Sequence[Any], expected: Expected, *, close: float = CLOSE) -> None:
    assert [answer.exit_stage for answer in answers] == expected.exit_stage
    assert [answer.class_id for answer in answers] == expected.class_id
    np.testing.assert_allclose(
        [answer.confidence for answer in answers], expected.confidence, atol=close
    )


def test_one_by_one(open_runtime: Callable[[], Opened], frames: Frames, expected: Expected) -> None:
    assert set(expected.exit_stage) == {1, 2, 3}
    runtime, _ = open_runtime()
    _agrees([runtime.classify(frame) for frame in frames], expected, close=0)


@pytest.mark.parametrize("count", [1, 3, 8, FRAMES])
def test_batches_answer_as_single_frames(
    open_runtime: Callable[[], Opened], frames: Frames, expected: Expected, count: int
) -> None:
    """Whatever leaves, whatever moves together, and in parts of the largest batch."""
    runtime, device = open_runtime()
    answers = runtime.classify_batch(frames[:count])
    _agrees(answers, expected.first(count))
    if count == FRAMES:
        assert device.copies, "no survivor had to move"


def test_only_survivors_run_later_stages(
    open_runtime: Callable[[], Opened], frames: Frames, expected: Expected
) -> None:
    """8 bytes per frame and stage that it needed, which is how they are counted."""
    runtime, device = open_runtime()
    before = device.transfers.to_host
    runtime.classify_batch(frames)
    assert device.transfers.to_host - before == 8 * sum(expected.exit_stage)


def test_several_threads(
    open_runtime: Callable[[], Opened], frames: Frames, expected: Expected
) -> None:
    """Frames and batches in turn from four threads; each gets its own answers."""
    runtime, device = open_runtime()

    def work(number: int) -> list[Any]:
        if number % 2:
            return runtime.classify_batch(frames)
        return [runtime.classify(frame) for frame in frames]

    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(work, range(8)):
            _agrees(answers, expected)
    assert not device.depth


def test_images_made_on_the_device(
    open_runtime: Callable[..., Opened], frames: Frames, expected: Expected
) -> None:
    """Frames answer as they do from the host, to the last bit; the frame goes up instead of the
    image, and to a shared memory nothing."""
    runtime, device = open_runtime(preprocess=True)
    device.launches.clear()
    before = device.transfers.to_device
    _agrees([runtime.classify(frame) for frame in frames], expected, close=0)
    assert [kernel for kernel, *_ in device.launches] == ["dvt_preprocess_kernel"] * len(frames)
    sent = device.transfers.to_device - before
    whole = 0 if device.integrated else sum(frame.nbytes for frame in frames)
    tables = 0 if device.integrated else 100_000  # of both slots, once
    assert whole <= sent <= whole + tables


def test_images_of_batches_are_made_on_the_host(
    open_runtime: Callable[..., Opened], frames: Frames, expected: Expected
) -> None:
    """Also between single frames that are not."""
    runtime, device = open_runtime(preprocess=True)
    for _ in range(2):
        _agrees([runtime.classify(frames[0])], expected.first(1), close=0)
        device.launches.clear()
        _agrees(runtime.classify_batch(frames), expected)
        assert not device.launches


@pytest.mark.parametrize("what", ["gaps", "memory"])
def test_frames_that_the_kernel_cannot_take(
    open_runtime: Callable[..., Opened],
    frames: Frames,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Views with gaps, and windows beyond a block's memory, are made on the host instead."""
    if what == "memory":
        monkeypatch.setattr(device_preprocess, "SHARED_BYTES", 1)
    on_device, device = open_runtime(preprocess=True)
    on_host, _ = open_runtime()
    frame = frames[0]
    if what == "gaps":
        frame = np.repeat(frame, 2, axis=1)[:, : frame.shape[1]]
    device.launches.clear()
    found, expected = on_device.classify(frame), on_host.classify(frame)
    assert (found.confidences, found.classes) == (expected.confidences, expected.classes)
    assert not device.launches


def test_two_frames_in_flight(
    open_runtime: Callable[..., Opened], frames: Frames, expected: Expected
) -> None:
    """Several threads at once, images made on the device and on the host."""
    for preprocess in (True, False):
        runtime, _ = open_runtime(preprocess=preprocess)
        with ThreadPoolExecutor(4) as pool:
            for answers in pool.map(lambda r: list(r.classify_each(frames)), [runtime] * 4):
                _agrees(answers, expected, close=0)


def test_use_after_close(open_runtime: Callable[[], Opened], frames: Frames) -> None:
    runtime, device = open_runtime()
    runtime.classify(frames[0])
    runtime.close()
    runtime.close()
    assert device.closed == 1
    for call in (runtime.classify, lambda frame: runtime.classify_batch([frame])):
        with pytest.raises(ClosedError, match="open another one"):
            call(frames[0])


def test_two_runtimes(
    open_runtime: Callable[[], Opened], frames: Frames, expected: Expected
) -> None:
    """Frames in turn to both, and the second goes on when the first is closed."""
    first, second = open_runtime(), open_runtime()
    answers = [
        (first if row % 2 else second).runtime.classify(frame) for row, frame in enumerate(frames)
    ]
    _agrees(answers, expected, close=0)
    first.runtime.close()
    assert second.device.memory
    _agrees([second.runtime.classify(frame) for frame in frames], expected, close=0)
