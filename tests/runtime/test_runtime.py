"""The Runtime on the demo bundle: sources, budgets, threads, batches, and what is refused."""

from __future__ import annotations

import copy
import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge import Prediction, Profile, Runtime
from dvt_edge.bundle.bundle import Bundle, file_sha256, write_records
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS, RECORDS
from dvt_edge.errors import (
    BackendError,
    BudgetError,
    BundleError,
    ClosedError,
    ConfigError,
    DataError,
    FrameError,
)
from dvt_edge.machine.driver import Driver
from dvt_edge.policy import Records
from dvt_edge.profile import BudgetConfig, ColorOrder
from dvt_edge.runtime.backends import opening
from dvt_edge.runtime.backends.protocol import SLOTS
from dvt_edge.runtime.events import CostsRefused, Event
from dvt_edge.runtime.measuring.measure import FIRST_ROUNDS
from tests.conftest import edit_manifest
from tests.runtime.conftest import FakeBackend, spoil, spread_scenes

Frame = npt.NDArray[np.uint8]
MIDDLE = BudgetConfig(latency_ms=2.0)
"""Exits of the bundle cost 1, 2 and 4 ms."""


@pytest.fixture
def runtime(costed_bundle: Path) -> Iterator[Runtime]:
    """The demo under a budget that makes frames leave at different exits."""
    with Runtime(costed_bundle) as opened:
        opened.set_budget(MIDDLE)
        yield opened


@pytest.fixture(scope="module")
def frames(samples: Path) -> list[Frame]:
    """A few dozen test scenes."""
    return spread_scenes(samples, 40)


def _answers(predictions: list[Prediction]) -> list[tuple[int, int]]:
    return [(p.class_id, p.exit_stage) for p in predictions]


def test_sources_agree(
    write_profile: Callable[..., Path], own_bundle: Path, frames: list[Frame]
) -> None:
    """A profile's path as text or Path, a Profile, and a bundle folder: one behaviour."""
    path = write_profile()
    edit_manifest(own_bundle, lambda manifest: manifest["budget"].update(latency_ms=2.0))
    answers = []
    for source in (path, str(path), Profile.from_yaml(path), own_bundle, str(own_bundle)):
        with Runtime(source) as opened:
            answers.append((opened.solution.cost, _answers(opened.classify_batch(frames))))
    assert all(answer == answers[0] for answer in answers)


def test_profile_budget_beats_the_bundles(
    write_profile: Callable[..., Path], own_bundle: Path
) -> None:
    """A budget edited in the YAML holds without a new build."""
    path = write_profile(budget={"latency_ms": 1.0})
    edit_manifest(own_bundle, lambda manifest: manifest["budget"].update(latency_ms=4.0))
    with Runtime(path) as from_profile, Runtime(own_bundle) as from_bundle:
        assert from_profile.solution.exit_fraction[0] == 1
        assert from_bundle.solution.exit_fraction[0] < 1


def test_fields_are_consistent(runtime: Runtime, frames: list[Frame]) -> None:
    """Labels, exits, thresholds and latencies of every prediction fit together."""
    names = runtime.bundle.manifest.class_names
    exits = set()
    for p in [*(runtime.classify(f) for f in frames), *runtime.classify_batch(frames)]:
        assert p.label == names[p.class_id]
        assert 0 < p.confidence <= 1 + 1e-6
        assert p.thresholds == tuple(runtime.solution.thresholds)
        at = p.exit_stage - 1
        assert p.confidence >= p.thresholds[at]
        assert len(p.stage_latency_ms) == p.exit_stage
        assert p.latency_ms >= p.preprocess_ms + sum(p.stage_latency_ms) - 1e-9
        exits.add(p.exit_stage)
    assert len(exits) > 1, "the budget should spread the frames over the exits"


def test_batch_equals_single(runtime: Runtime, frames: list[Frame]) -> None:
    """More frames than the largest batch size; answers in input order."""
    size = max(runtime.bundle.manifest.engine.batch_sizes)
    many = (frames * (2 * size // len(frames) + 1))[: size + 5]
    single = [runtime.classify(frame) for frame in many]
    batch = runtime.classify_batch(many)
    assert _answers(batch) == _answers(single)
    np.testing.assert_allclose(
        [p.confidence for p in batch], [p.confidence for p in single], atol=1e-4
    )


def test_batch_is_cut_into_parts(
    costed_bundle: Path,
    fake_backend: type[FakeBackend],
) -> None:
    """No part is larger than the backend's batch, the last one holds the rest."""
    backend = fake_backend(np.ones((1, 3)), shape=(1, 48, 48), max_batch=4)
    with Runtime(costed_bundle, backend=backend) as opened:
        opened.set_budget(BudgetConfig(latency_ms=1.0))
        stack = np.zeros((11, 48, 48), np.uint8)
        backend.runs.clear()
        assert len(opened.classify_batch(list(stack))) == 11
        assert [count for _, count in backend.runs] == [4, 4, 3]
        backend.runs.clear()
        assert opened.classify_batch([]) == []
        assert backend.runs == []
    assert backend.closed == 1


def test_array_of_frames(runtime: Runtime, frames: list[Frame]) -> None:
    """A stack [N, H, W] is a sequence of frames."""
    stack = np.stack(frames)
    assert _answers(runtime.classify_batch(stack)) == _answers(runtime.classify_batch(frames))


def test_threads_agree(runtime: Runtime, frames: list[Frame]) -> None:
    """Several threads give the answers that one gives."""
    expected = _answers([runtime.classify(frame) for frame in frames])

    def work(worker: int) -> list[tuple[int, int]]:
        if worker % 2:
            return _answers(runtime.classify_batch(frames))
        return _answers([runtime.classify(frame) for frame in frames])

    with ThreadPoolExecutor(6) as pool:
        for answers in pool.map(work, range(6)):
            assert answers == expected


def test_budget_changed_by_another_thread(runtime: Runtime, frames: list[Frame]) -> None:
    """A frame is judged by one budget's thresholds, never by a mixture."""
    valid = {
        tuple(runtime.set_budget(BudgetConfig(latency_ms=ms)).thresholds) for ms in (1.0, 2.0, 4.0)
    }

    def classify(worker: int) -> set[tuple[float, ...]]:
        return {runtime.classify(frame).thresholds for frame in frames}

    with ThreadPoolExecutor(3) as pool:
        seen = [pool.submit(classify, i) for i in range(2)]
        for _ in range(3):
            for ms in (1.0, 2.0, 4.0):
                runtime.set_budget(BudgetConfig(latency_ms=ms))
        assert set().union(*(s.result() for s in seen)) <= valid


def test_tighter_budget_moves_exits_earlier(runtime: Runtime, frames: list[Frame]) -> None:
    """Less to spend: earlier exits, and the expected mean keeps to the budget."""
    mean_exit, accuracy, cost = [], [], []
    for ms in (4.0, 3.0, 2.0, 1.5, 1.0):
        solution = runtime.set_budget(BudgetConfig(latency_ms=ms))
        assert solution is runtime.solution
        assert solution.cost <= ms * (1 + 1e-9)
        accuracy.append(solution.accuracy)
        cost.append(solution.cost)
        mean_exit.append(np.mean([p.exit_stage for p in runtime.classify_batch(frames)]))
    assert max(np.diff(accuracy)) <= 0.01  # what is maximised is expected, this is counted
    assert cost == sorted(cost, reverse=True)
    assert mean_exit[0] > mean_exit[-1] == 1


def test_infeasible_budget_keeps_the_thresholds(runtime: Runtime, frames: list[Frame]) -> None:
    """The error names the smallest possible budget, which then works."""
    before, solution = runtime.classify(frames[0]).thresholds, runtime.solution
    with pytest.raises(BudgetError, match=r"smallest possible is 1 ms, with an accuracy of"):
        runtime.set_budget(BudgetConfig(latency_ms=0.999))
    assert runtime.solution is solution
    assert runtime.classify(frames[0]).thresholds == before
    assert runtime.set_budget(BudgetConfig(latency_ms=1.0)).cost == pytest.approx(1)


def test_infeasible_budget_at_the_start(
    costed_bundle: Path,
    write_profile: Callable[..., Path],
    fake_backend: type[FakeBackend],
) -> None:
    """The Runtime does not open, and frees what it had opened."""
    path = write_profile(budget={"latency_ms": 0.5})
    backend = fake_backend(np.ones((1, 3)), shape=(1, 48, 48))
    with pytest.raises(BudgetError, match="smallest possible is 1"):
        Runtime(path, backend=backend)
    assert backend.closed == 1


def test_unneeded_stages_are_not_run(costed_bundle: Path, fake_backend: type[FakeBackend]) -> None:
    """With a budget of the first exit only the first stage is run."""
    backend = fake_backend(np.full((1, 3), 0.5), shape=(1, 48, 48))
    with Runtime(costed_bundle, backend=backend) as opened:
        frame = np.full((48, 48), 33, np.uint8)
        # Costs were known, so nothing is measured; but every stage has run before the first frame.
        assert backend.runs == [(0, 1), (1, 1), (2, 1)] * SLOTS * FIRST_ROUNDS
        backend.runs.clear()
        opened.set_budget(BudgetConfig(latency_ms=1.0))
        backend.confidence[:] = 1.0
        opened.classify(frame)
        assert backend.runs == [(0, 1)]


def test_costs_are_measured_where_unknown(
    own_bundle: Path, fake_backend: type[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without stored costs the exits are timed at the start, and nothing is written."""
    monkeypatch.setattr("dvt_edge.runtime.runtime.QUICK_MEASUREMENT_S", 1e-9)
    (own_bundle / COSTS).unlink()
    backend = fake_backend(np.ones((1, 3)), shape=(1, 48, 48))
    with Runtime(own_bundle, backend=backend) as opened:
        assert [len(cost.stage_ms) for cost in opened.costs.exits] == [1, 2, 3]
    assert {stage for stage, _ in backend.runs} == {0, 1, 2}
    assert not (own_bundle / COSTS).exists()


def test_measure_keeps_the_thresholds(runtime: Runtime, known_costs: Callable[..., Costs]) -> None:
    """Measuring again tells; it does not change what is in force."""
    before = runtime.solution
    shares: list[float] = []

    def seen(what: str, done: float, total: float, remark: str = "") -> None:
        shares.append(done / total)

    costs = runtime.measure(0.01, seen)
    assert [len(exit_.stage_ms) for exit_ in costs.exits] == [1, 2, 3]
    assert shares
    assert runtime.solution is before
    assert runtime.costs == known_costs(runtime.bundle)


def test_color_order(runtime: Runtime, frames: list[Frame]) -> None:
    """The demo is gray: colour frames count as BGR unless the call says RGB."""
    rgb = np.stack([frames[0], frames[1], frames[2]], axis=2)
    as_rgb = runtime.classify(rgb, color_order="rgb")
    as_bgr = runtime.classify(rgb[..., ::-1])
    assert as_rgb.confidence == as_bgr.confidence
    assert runtime.classify(rgb).confidence != as_rgb.confidence
    assert runtime.classify_batch([rgb], color_order="rgb")[0].class_id == as_rgb.class_id


def test_yuv_frames(runtime: Runtime, frames: list[Frame]) -> None:
    """A camera's YUV frame of a gray scene is answered as the scene is."""
    gray = np.stack([frames[0]] * 3, axis=2)
    expected = runtime.classify(gray)
    light = np.round(16 + frames[0] * (219 / 255)).astype(np.uint8)
    height, width = light.shape
    nv12 = np.vstack([light, np.full((height // 2, width), 128, np.uint8)])
    yuyv = np.dstack([light, np.full_like(light, 128)])
    layouts: tuple[tuple[Frame, ColorOrder], ...] = ((nv12, "nv12"), (yuyv, "yuyv"))
    for frame, order in layouts:
        answer = runtime.classify(frame, color_order=order)
        assert answer.class_id == expected.class_id
        assert answer.confidence == pytest.approx(expected.confidence, abs=0.05)
        assert runtime.classify_batch([frame], color_order=order)[0].class_id == expected.class_id


def test_unknown_layout(runtime: Runtime, frames: list[Frame]) -> None:
    """The message lists the layouts there are."""
    with pytest.raises(FrameError, match=r"unknown layout 'yuv420'.* nv12, yuyv"):
        runtime.classify(frames[0], color_order="yuv420")  # type: ignore[arg-type]
    with pytest.raises(FrameError, match=r"unknown layout 'yuv420'.* nv12, yuyv"):
        runtime.classify_batch(frames[:1], color_order="yuv420")  # type: ignore[arg-type]


@pytest.mark.parametrize("frame", [None, "a.png", np.zeros((4, 4)), np.zeros((0, 4), np.uint8)])
def test_bad_frames(runtime: Runtime, frames: list[Frame], frame: object) -> None:
    """A bad frame is refused; the Runtime goes on."""
    expected = runtime.classify(frames[0])
    with pytest.raises(FrameError):
        runtime.classify(frame)
    with pytest.raises(FrameError):
        runtime.classify_batch([frames[0], frame])
    assert runtime.classify(frames[0]).confidence == expected.confidence


def test_batch_needs_a_sequence(runtime: Runtime, frames: list[Frame]) -> None:
    """A generator has no length."""
    with pytest.raises(DataError, match="sequence of frames, found generator"):
        runtime.classify_batch(frame for frame in frames)  # type: ignore[arg-type]


def test_closed(costed_bundle: Path, frames: list[Frame]) -> None:
    """After the with block every use says so; closing again does nothing."""
    with Runtime(costed_bundle) as opened:
        opened.classify(frames[0])
    uses: list[Callable[[], object]] = [
        lambda: opened.classify(frames[0]),
        lambda: opened.classify_batch(frames),
        lambda: opened.classify_batch([]),
        lambda: opened.measure(0.01),
        lambda: opened.set_budget(latency_ms=5.0),
        lambda: opened.use(opened.solution),
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="closed; open another one"):
            use()
    opened.close()


def test_closed_after_an_error(costed_bundle: Path, fake_backend: type[FakeBackend]) -> None:
    """An exception in the with block frees the memory as well."""
    backend = fake_backend(np.ones((1, 3)), shape=(1, 48, 48))
    with pytest.raises(RuntimeError, match="mine"), Runtime(costed_bundle, backend=backend):
        raise RuntimeError("mine")
    assert backend.closed == 1


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("input", {"mean": [0.5]}),
        ("input", {"interpolation": "bicubic"}),
        ("engine", {"threads": 2}),
        ("engine", {"precision": "fp32"}),
    ],
)
def test_profile_that_does_not_match(
    write_profile: Callable[..., Path],
    demo_profile_values: Callable[..., dict[str, Any]],
    section: str,
    change: dict[str, Any],
) -> None:
    """A profile whose bundle was built otherwise asks for a build, naming the section."""
    path = write_profile(**{section: demo_profile_values()[section] | change})
    with pytest.raises(BundleError, match=f"built with another '{section}' .*dvt-edge build"):
        Runtime(path)


def test_profile_without_bundle(write_profile: Callable[..., Path], tmp_path: Path) -> None:
    """Nothing was built yet."""
    path = write_profile(output=str(tmp_path / "nothing"))
    with pytest.raises(BundleError, match=r"nothing: no bundle here .*dvt-edge build"):
        Runtime(path)


def test_source_that_is_nothing(tmp_path: Path) -> None:
    """A path where there is nothing, and a folder that is no bundle."""
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        Runtime(tmp_path / "gone.yaml")
    with pytest.raises(BundleError, match="no bundle here"):
        Runtime(tmp_path)


@pytest.mark.parametrize("source", [None, 5, b"bundle", True, {"output": "bundle"}])
def test_source_of_another_type(source: Any) -> None:
    """Neither a path nor a profile."""
    with pytest.raises(ConfigError, match=r"expected a profile, the path of its YAML file or a"):
        Runtime(source)


@pytest.mark.parametrize("seconds", [0, -1, np.nan, np.inf, "1", None, True])
def test_measure_needs_time(runtime: Runtime, seconds: Any) -> None:
    """Nothing can be measured in no time, and nobody waits for ever."""
    with pytest.raises(ConfigError, match=r"measure\(\) takes a positive number of seconds, found"):
        runtime.measure(seconds)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_no_copies(
    runtime: Runtime, frames: list[Frame], copied: Callable[[Runtime], object]
) -> None:
    """Closing a copy would close the original."""
    with pytest.raises(ConfigError, match="a Runtime cannot be copied or pickled; open another"):
        copied(runtime)
    runtime.classify(frames[0])


def test_class_names_do_not_fit(own_bundle: Path) -> None:
    """A manifest that was edited: seen when it opens, not at the first frame of that class."""
    edit_manifest(own_bundle, lambda m: m["class_names"].pop())
    with pytest.raises(BundleError, match=r"class_names has 9 names, stage1\S*\.onnx answers"):
        Runtime(own_bundle)


def test_changed_stage(own_bundle: Path, write_profile: Callable[..., Path]) -> None:
    """A bundle whose stage was swapped is not run."""
    shutil.copy(own_bundle / "stage1.onnx", own_bundle / "stage2.onnx")
    for source in (own_bundle, write_profile()):
        with pytest.raises(BundleError, match=r"stage2\.onnx: changed since the build \(SHA-256"):
            Runtime(source)


def _make_portable(manifest: dict[str, Any]) -> None:
    manifest["engine"]["backend"] = "tensorrt"
    manifest["stand_ins"] = manifest["stages"]


def test_portable_bundle_is_refused(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU, the host half of a build for TensorRT names what finishes it."""
    monkeypatch.setattr(opening, "read_driver", lambda: Driver("12.6", ()))
    edit_manifest(own_bundle, _make_portable)
    with pytest.raises(BackendError, match=r"portable half .* for tensorrt; .* --phase device"):
        Runtime(own_bundle)


def test_portable_bundle_without_a_driver(
    own_bundle: Path,
    frames: list[Frame],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its graphs stand in for the engines, on the CPU; a warning says so."""
    with Runtime(own_bundle) as runtime:
        expected = runtime.classify_batch(frames[:3])
    monkeypatch.setattr(opening, "read_driver", lambda: None)
    edit_manifest(own_bundle, _make_portable)
    with Runtime(own_bundle) as runtime:
        answers = runtime.classify_batch(frames[:3])
    assert [a.class_id for a in answers] == [e.class_id for e in expected]
    assert "no NVIDIA driver here, so its stages run on the CPU" in caplog.text


def test_unusable_stage(own_bundle: Path) -> None:
    """A stage that the engine cannot read is our error, in one line."""
    spoil(own_bundle, *{path.name for path in own_bundle.glob("stage1*.onnx")})
    with pytest.raises(BackendError, match="refused a stage"):
        Runtime(own_bundle)


def test_exits_that_are_never_worth_it(own_bundle: Path, frames: list[Frame]) -> None:
    """Where early exits are always wrong and the budget is wide, all frames go to the end."""
    old = Bundle(own_bundle).records()
    wrong = old.prediction.copy()
    assert old.label is not None
    wrong[:, :-1] = (old.label[:, None] + 1) % 10
    wrong[:, -1] = old.label
    write_records(own_bundle / RECORDS, Records(old.confidence, wrong, old.label))
    digest = file_sha256(own_bundle / RECORDS)
    edit_manifest(own_bundle, lambda manifest: manifest["files"].update({RECORDS: digest}))
    with Runtime(own_bundle) as opened:
        opened.set_budget(BudgetConfig(latency_ms=4.0))
        assert {p.exit_stage for p in opened.classify_batch(frames)} == {3}


def test_a_runtime_tells_what_it_refuses(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an event, once, with what to do; then it measures. Where there are none it is silent."""
    monkeypatch.setattr("dvt_edge.runtime.runtime.QUICK_MEASUREMENT_S", 0.01)
    path = own_bundle / COSTS
    here = Costs.model_validate_json(path.read_text(encoding="utf-8")).machine
    path.write_text(path.read_text(encoding="utf-8").replace(here, "a board"))
    with Runtime(own_bundle) as runtime:
        heard: list[Event] = []
        runtime.watch(on_event=heard.append)
        assert runtime.costs.machine == here
        runtime.classify(np.zeros((48, 48), np.uint8))
        assert heard == []  # it happened before anyone listened
        [event] = runtime.events
    assert isinstance(event, CostsRefused)
    assert "measured on 'a board', this is" in event.reason
    assert "dvt-edge profile" in event.reason
    path.unlink()
    with Runtime(own_bundle) as runtime:
        assert not runtime.events
