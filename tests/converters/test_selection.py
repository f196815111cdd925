"""The faster precision whose answers pass, with a backend whose answers and times are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.engine_records import Precision
from dvt_edge.bundle.manifest import StageSpec, TensorSpec
from dvt_edge.converters import selection
from dvt_edge.converters.build import build
from dvt_edge.converters.selection import (
    LEAST_RUNS,
    Candidate,
    Parity,
    choose_native,
    choose_precisions,
    choose_preprocessing,
)
from dvt_edge.errors import BackendError, BuildError
from dvt_edge.policy.records import Records
from dvt_edge.profile import EngineConfig, Profile
from dvt_edge.runtime.backends.protocol import StageAnswer
from dvt_edge.runtime.native.calls import TakeFrame
from dvt_edge.runtime.native.library import library, unavailable
from dvt_edge.runtime.runtime import Runtime
from tests.conftest import HandClock

IMAGES = 40
STAGES = 2


def _candidate(stage: int, kind: Precision | Literal["native"]) -> Candidate:
    image = TensorSpec(name="image", shape=("N", 1, 1, 1), dtype="float32")
    spec = StageSpec(file="", inputs=(image,), outputs=(), parameters=0, macs=0)
    if kind == "native":
        spec = spec.model_copy(update={"precision": "int8", "native": True})
    else:
        spec = spec.model_copy(update={"precision": kind})
    return Candidate(Path(f"{stage + 1}.{kind}"), spec)


@dataclass
class Stage:
    """What one stage in one precision does."""

    ms: float = 1.0
    class_id: npt.NDArray[np.int32] | None = None
    """[IMAGES]; as in the records if None."""
    confidence: npt.NDArray[np.float32] | None = None
    error: Exception | None = None


@dataclass
class Bench:
    """Opens backends of given stages, and moves the clock as they run."""

    records: Records
    stages: dict[str, Stage] = field(default_factory=dict)
    """By the candidate's path, such as ``1.int8``; what is not there is as in the records."""
    now: float = 0.0
    opened: list[FakeBackend] = field(default_factory=list)
    fails_to_open: str = ""

    def open(
        self, engine: EngineConfig, paths: Sequence[Path], specs: Any, *, max_batch: int
    ) -> FakeBackend:
        assert max_batch == 1
        kinds = ["native" if spec.native else spec.precision for spec in specs]
        assert [f"{k + 1}.{kind}" for k, kind in enumerate(kinds)] == [path.name for path in paths]
        names = [path.name for path in paths]
        if self.fails_to_open in names[-1:]:
            raise BuildError("this precision cannot be opened")
        self.opened.append(FakeBackend(self, names))
        return self.opened[-1]

    def choose(self, **changes: Any) -> tuple[list[str], list[Any]]:
        """Names of the chosen candidates, and the table."""
        images = np.arange(IMAGES, dtype=np.float32).reshape(IMAGES, 1, 1, 1)
        values: dict[str, Any] = {"thresholds": np.array([0.5, -np.inf]), "tolerance_points": 5.0}
        parity = Parity(images, self.records, **(values | changes))
        candidates = [[_candidate(k, "int8"), _candidate(k, "fp16")] for k in range(STAGES)]
        chosen, table = choose_precisions(candidates, parity, EngineConfig())
        assert all(backend.closed == 1 for backend in self.opened)
        return [candidate.path.name for candidate in chosen], table

    def choose_native(self) -> tuple[bool, list[Any]]:
        """Whether the native stages are taken, and the table."""
        images = np.arange(IMAGES, dtype=np.float32).reshape(IMAGES, 1, 1, 1)
        parity = Parity(images, self.records, np.array([0.5, -np.inf]), 5.0)
        stages = [_candidate(k, "int8") for k in range(STAGES)]
        native = [_candidate(k, "native") for k in range(STAGES)]
        found = choose_native(stages, native, parity, EngineConfig())
        assert all(backend.closed == 1 for backend in self.opened)
        return found


class FakeBackend:
    """:class:`~dvt_edge.runtime.backends.protocol.Backend`: the image is its own number."""

    max_batch = 1
    bytes_resident = 0
    time_stages = False
    take_frame = None
    run_whole = None

    def __init__(self, bench: Bench, names: list[str]) -> None:
        self.bench, self.names = bench, names
        self.image = np.zeros((1, 1, 1, 1), np.float32)
        self.next_stage = 0
        self.closed = 0

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        assert count == 1
        self.next_stage = 0
        return self.image

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        assert (count, self.closed) == (1, 0)
        assert stage in (self.next_stage, self.next_stage - 1)  # after the one before, or again
        self.next_stage = stage + 1
        does = self.bench.stages.get(self.names[stage], Stage())
        if does.error is not None:
            raise does.error
        self.bench.now += does.ms / 1e3
        records, image = self.bench.records, int(self.image[0, 0, 0, 0])
        classes = records.prediction[:, stage] if does.class_id is None else does.class_id
        sure = records.confidence[:, stage] if does.confidence is None else does.confidence
        return StageAnswer(sure[image : image + 1], classes[image : image + 1])

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        raise NotImplementedError

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        raise NotImplementedError

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


class Timed:
    """A backend whose stage takes its time on ``clock``, and which may take frames itself."""

    gpu: str | None = "a GPU"
    stage_ms: float | None = None
    time_stages = False
    run_whole = None
    name, max_batch, bytes_resident = "TensorRT 10", 1, 0

    def __init__(self, clock: HandClock, stage_ms: float, *, takes: bool) -> None:
        self.clock, self.took_ms = clock, stage_ms
        self.take_frame: TakeFrame | None = self._take if takes else None
        self.image = np.full((1, 1, 48, 48), np.nan, np.float32)
        self.taken = 0
        self.closed = 0

    def _take(self, plan: object, frame: object, slot: int) -> bool:
        self.taken += 1
        return True

    def image_buffer(self, count: int, slot: int = 0) -> npt.NDArray[np.float32]:
        return self.image

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        assert stage == 0
        self.clock.ms += self.took_ms
        return StageAnswer(np.ones(1, np.float32), np.zeros(1, np.int32))

    def logits(self, stage: int, count: int) -> npt.NDArray[np.float32]:
        raise NotImplementedError

    def keep_rows(self, stage: int, rows: npt.NDArray[np.intp], slot: int = 0) -> None:
        raise NotImplementedError

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self.closed += 1


@pytest.mark.skipif(library() is None, reason=str(unavailable()))
@pytest.mark.parametrize(("on_device_ms", "expected"), [(1.0, "device"), (3.0, "host")])
def test_frames_become_images_where_that_is_faster(
    demo_bundle: Path, on_device_ms: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stage 1 takes 2 ms behind the host's images; what the device does beside is in its time."""
    clock = HandClock()
    opened = [Timed(clock, 2.0, takes=False), Timed(clock, on_device_ms, takes=True)]
    given: list[bool] = []

    def open_stages(*_: object, preprocess: bool, **__: object) -> Timed:
        given.append(preprocess)
        return opened[len(given) - 1]

    monkeypatch.setattr(selection, "open_stages", open_stages)
    monkeypatch.setattr(selection, "perf_counter", clock.now)
    place, times = choose_preprocessing(_candidate(0, "int8"), Bundle(demo_bundle).manifest)
    assert place == expected
    assert times == pytest.approx({"host": 2.0, "device": on_device_ms})
    assert given == [False, True]
    assert opened[1].taken > LEAST_RUNS
    assert not np.isnan(opened[0].image).any()
    assert np.isnan(opened[1].image).all()  # the host made none
    assert [backend.closed for backend in opened] == [1, 1]


def test_a_gpu_that_cannot_make_images(demo_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened before is closed."""
    first = Timed(HandClock(), 1.0, takes=False)

    def open_stages(*_: object, preprocess: bool, **__: object) -> Timed:
        if preprocess:
            raise BackendError("the kernels are for other GPUs")
        return first

    monkeypatch.setattr(selection, "open_stages", open_stages)
    with pytest.raises(BackendError, match="other GPUs"):
        choose_preprocessing(_candidate(0, "int8"), Bundle(demo_bundle).manifest)
    assert first.closed == 1


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Labelled records in which stage 1 is right for nine images of ten, stage 2 always."""
    label = np.arange(IMAGES, dtype=np.int32) % 5
    prediction = np.stack([label, label], axis=1)
    prediction[::10, 0] = 9
    confidence = np.full((IMAGES, STAGES), 0.9, np.float32)
    confidence[::2, 0] = 0.2
    bench = Bench(Records(confidence, prediction, label))
    monkeypatch.setattr(selection, "perf_counter", lambda: bench.now)
    monkeypatch.setattr(selection, "open_stages", bench.open)
    return bench


def test_faster_one_is_kept(bench: Bench) -> None:
    """Stage by stage, each behind the stages chosen before it."""
    bench.stages = {
        "1.int8": Stage(ms=1),
        "1.fp16": Stage(ms=2),
        "2.int8": Stage(ms=4),
        "2.fp16": Stage(ms=3),
    }
    chosen, table = bench.choose()
    assert chosen == ["1.int8", "2.fp16"]
    assert [(row.stage, row.precision, row.chosen, row.remark) for row in table] == [
        (1, "int8", True, "faster"),
        (1, "fp16", False, "slower"),
        (2, "int8", False, "slower"),
        (2, "fp16", True, "faster"),
    ]
    assert [row.latency_ms for row in table] == pytest.approx([1, 2, 4, 3])
    assert all(row.same_class == row.same_exit == 1 for row in table)
    names = [["1.int8"], ["1.fp16"], ["1.int8", "2.int8"], ["1.int8", "2.fp16"]]
    assert [backend.names for backend in bench.opened] == names


def _some(values: npt.ArrayLike, rows: slice, value: float) -> Any:
    changed = np.array(values)
    changed[rows] = value
    return changed


@pytest.mark.parametrize(
    ("spoil", "remark"),
    [
        (
            lambda r: Stage(ms=0.1, class_id=_some(r.prediction[:, 0], slice(1, 20, 2), 9)),
            r"loses 25\.00 points of top-1",
        ),
        (
            lambda r: Stage(ms=0.1, confidence=_some(r.confidence[:, 0], slice(0, 8), 0.6)),
            r"changes 10\.0 % of the decisions",
        ),
        (
            lambda r: Stage(ms=0.1, confidence=_some(r.confidence[:, 0], slice(0, 1), np.nan)),
            "confidence is not finite",
        ),
        (
            lambda r: Stage(ms=0.1, confidence=_some(r.confidence[:, 0], slice(1, 2), np.inf)),
            "confidence is not finite",
        ),
    ],
    ids=["classes", "decisions", "nan", "infinity"],
)
def test_faster_one_that_fails_is_not(
    bench: Bench, spoil: Callable[[Records], Stage], remark: str
) -> None:
    bench.stages = {"1.int8": spoil(bench.records)}
    chosen, table = bench.choose()
    assert chosen[0] == "1.fp16"
    assert (table[0].chosen, table[1].chosen, table[1].remark) == (False, True, "faster")
    bench.stages["1.fp16"] = bench.stages["1.int8"]
    with pytest.raises(
        BuildError, match=rf"stage 1: no precision passes \(int8: {remark}.*fp16: {remark}"
    ):
        bench.choose()
    assert all(backend.closed == 1 for backend in bench.opened)


@pytest.mark.parametrize(
    ("wrong", "tolerance", "passes"), [(2, 5.0, True), (3, 5.0, False), (3, 7.5, True)]
)
def test_tolerance(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    wrong: int,
    tolerance: float,
    passes: bool,
) -> None:
    """Of top-1, were there no doubt about it: exactly as much is allowed."""
    monkeypatch.setattr(selection, "SURE_ERRORS", 0.0)
    classes = np.array(bench.records.prediction[:, 0])
    classes[1 : 2 * wrong : 2] = 8
    bench.stages = {"1.int8": Stage(ms=0.1, class_id=classes)}
    chosen, table = bench.choose(tolerance_points=tolerance)
    assert (chosen[0] == "1.int8") == passes
    assert table[0].same_class == pytest.approx(1 - wrong / IMAGES)


@pytest.mark.parametrize(("wrong", "passes"), [(4, True), (5, False)])
def test_loss_must_be_sure(bench: Bench, wrong: int, passes: bool) -> None:
    """Four images of forty may be chance: 10 points, give or take 2 * 4.7. Five are 12.5, 2 * 5.2
    of which may be."""
    classes = np.array(bench.records.prediction[:, 0])
    classes[1 : 2 * wrong : 2] = 8
    bench.stages = {"1.int8": Stage(ms=0.1, class_id=classes)}
    chosen, _ = bench.choose(tolerance_points=1.0)
    assert (chosen[0] == "1.int8") == passes


def test_other_wrong_answers_do_no_harm(bench: Bench) -> None:
    """Top-1 counts, not which mistake it is."""
    bench.stages = {
        "1.int8": Stage(0.1, _some(bench.records.prediction[:, 0], slice(0, 40, 10), 7))
    }
    chosen, table = bench.choose(tolerance_points=0.0)
    assert chosen[0] == "1.int8"
    assert table[0].same_class == pytest.approx(0.9)


def test_without_labels_the_last_exit_is_right(bench: Bench) -> None:
    bench.records = Records(bench.records.confidence, bench.records.prediction, None)
    bench.stages = {"2.int8": Stage(0.1, _some(bench.records.prediction[:, 1], slice(0, 10), 9))}
    chosen, table = bench.choose()
    assert chosen == ["1.int8", "2.fp16"]
    assert table[2].remark == "loses 25.00 points of top-1"


@pytest.mark.parametrize("name", ["1.int8", "1.fp16", "2.fp16"])
def test_backends_are_closed_on_errors(bench: Bench, name: str) -> None:
    bench.stages = {name: Stage(error=RuntimeError("the device is gone"))}
    with pytest.raises(RuntimeError, match="the device is gone"):
        bench.choose()
    assert bench.opened
    assert all(backend.closed == 1 for backend in bench.opened)


@pytest.mark.parametrize("name", ["1.fp16", "2.fp16"])
def test_backends_are_closed_when_one_does_not_open(bench: Bench, name: str) -> None:
    bench.fails_to_open = name
    with pytest.raises(BuildError, match="cannot be opened"):
        bench.choose()
    assert bench.opened
    assert all(backend.closed == 1 for backend in bench.opened)


def test_measuring_ends(bench: Bench) -> None:
    """Slow stages are measured a few times, others not for ever."""
    bench.stages = {"1.int8": Stage(ms=1000), "1.fp16": Stage(ms=1500)}
    chosen, table = bench.choose()
    assert chosen[0] == "1.int8"
    assert table[0].latency_ms == pytest.approx(1000)
    assert bench.now < 200


def test_progress(bench: Bench) -> None:
    calls: list[tuple[object, ...]] = []
    candidates = [[_candidate(k, "int8")] for k in range(STAGES)]
    images = np.zeros((IMAGES, 1, 1, 1), np.float32)
    images[:, 0, 0, 0] = range(IMAGES)
    parity = Parity(images, bench.records, np.array([0.5, -np.inf]), 1.0)
    choose_precisions(candidates, parity, EngineConfig(), lambda *call: calls.append(call))
    assert calls == [("precision per stage", done, 2) for done in (0, 1, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_auto_with_onnxruntime(
    tiny_profile: Callable[..., Profile], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """From the profile to the Runtime, whichever precision is found faster."""
    at = ("int8", "fp32").index(precision)
    monkeypatch.setattr(
        selection, "_median_ms", lambda backends, stage: [1.0 + (i != at) for i in range(2)]
    )
    # random weights are less sure of themselves than trained ones
    monkeypatch.setattr(selection, "MOST_CHANGED_DECISIONS", 1.0)
    profile = tiny_profile(engine={"backend": "onnxruntime", "precision": "auto", "threads": 1})
    bundle = build(profile).bundle
    manifest = Bundle(bundle.folder).manifest
    assert [stage.precision for stage in manifest.stages] == [precision] * 3
    assert manifest.quantization.precision == "auto"
    # Widths that are no multiples of 32 exclude native stages.
    choices = [row for row in manifest.choices if row.precision != "native"]
    assert [row.precision for row in choices] == ["int8", "fp32"] * 3
    assert [row.precision for row in manifest.choices if row.chosen] == [precision] * 3
    assert not build(profile).rebuilt
    with np.load(profile.calibration.data) as archive:
        frames = archive["images"]
    records = bundle.records()
    with Runtime(profile) as runtime:
        runtime.use(runtime.replay((np.inf, np.inf, -np.inf)))
        found = [runtime.classify(frame).confidences for frame in frames[:10]]
    np.testing.assert_allclose(found, records.confidence[:10], atol=1e-3)
    if precision == "fp32":
        assert manifest.quantization.changed_decisions == 0


class TestNative:
    """All stages on native operators, or none."""

    @pytest.mark.parametrize(("second_ms", "taken"), [(2.9, True), (3.1, False)])
    def test_the_sum_decides(self, bench: Bench, second_ms: float, taken: bool) -> None:
        """One stage may be slower."""
        bench.stages = {
            "1.int8": Stage(ms=2),
            "2.int8": Stage(ms=2),
            "1.native": Stage(ms=1),
            "2.native": Stage(ms=second_ms),
        }
        found, table = bench.choose_native()
        assert found == taken
        remark = "faster" if taken else "slower"
        assert [(row.stage, row.precision, row.chosen, row.remark) for row in table] == [
            (1, "native", taken, remark),
            (2, "native", taken, remark),
        ]
        assert [row.latency_ms for row in table] == pytest.approx([1, second_ms])

    def test_one_stage_that_fails_takes_the_others_with_it(self, bench: Bench) -> None:
        wrong = _some(bench.records.prediction[:, 0], slice(1, 20, 2), 9)
        bench.stages = {"1.native": Stage(ms=0.1, class_id=wrong), "2.native": Stage(ms=0.1)}
        found, table = bench.choose_native()
        assert not found
        assert [row.chosen for row in table] == [False, False]
        assert table[0].remark == "loses 25.00 points of top-1"
        assert table[1].remark == "passes, another stage does not"

    def test_stages_that_cannot_be_opened(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(engine: object, paths: Sequence[Path], *_: object, **__: object) -> FakeBackend:
            if paths[0].name == "1.native":
                raise BackendError("w has 5 columns")
            return bench.open(
                EngineConfig(), paths, [_candidate(k, "int8").spec for k in (0, 1)], max_batch=1
            )

        monkeypatch.setattr(selection, "open_stages", refuse)
        found, table = bench.choose_native()
        assert not found
        assert [(row.latency_ms, row.remark) for row in table] == 2 * [(None, "w has 5 columns")]
