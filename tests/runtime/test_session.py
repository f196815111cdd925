"""Deadlines, adapting, audits, video and broken logits through the Runtime, on a made clock."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge import Prediction, Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.errors import BudgetError, FrameError
from dvt_edge.policy import Records, replay
from dvt_edge.policy.live.audit import AuditEvent
from dvt_edge.policy.live.controller import Change, Controller
from dvt_edge.profile import BudgetConfig, ColorOrder
from dvt_edge.runtime.events import BudgetBroken, Event, NotFinite
from dvt_edge.runtime.preprocess import frame_shape
from dvt_edge.runtime.session import in_background
from tests.conftest import HandClock
from tests.runtime.conftest import FakeBackend, Live

Frame = npt.NDArray[np.uint8]


def _mean_ms(answers: list[Prediction]) -> float:
    return float(np.mean([p.latency_ms for p in answers]))


def _disagree(live: Live) -> None:
    """From now on the early exits never answer what the last one does."""
    class_id = live.backend.inner.class_id
    class_id[:, :-1] = (class_id[:, -1:] + 1) % 10


# deadlines


@pytest.mark.parametrize(
    ("deadline_ms", "stages"),
    [
        (0.001, 1),  # the first stage always runs
        (2.19, 1),  # 1 ms is gone, the second stage's p99 is 1.2 ms
        (2.2, 2),
        (4.39, 2),  # 2 ms are gone, the third stage's p99 is 2.4 ms
        (4.4, 3),
        (np.inf, 3),
        (None, 3),
    ],
)
@pytest.mark.parametrize("given", ["argument", "budget"])
def test_deadline_decides_which_stages_start(
    live: Live, deadline_ms: float | None, stages: int, given: str
) -> None:
    """A frame that needs all stages gets those that fit, as the argument or the budget says."""
    value = live.value(3)
    if given == "budget" and deadline_ms != np.inf:
        live.runtime.set_budget(deadline_ms=deadline_ms)
        answer, ran = live.stages_of(value)
    else:
        answer, ran = live.stages_of(value, deadline_ms=deadline_ms)
    assert ran == list(range(1, stages + 1))
    assert answer.exit_stage == len(answer.stage_latency_ms) == stages
    assert answer.class_id == live.runtime.records.prediction[value, stages - 1]
    assert answer.truncated == (stages < 3)
    if answer.truncated:
        assert answer.reason
        assert answer.reason.startswith(f"stage {stages + 1} needs ")
        assert f"(truncated): {answer.reason}; " in answer.explain()
    else:
        assert answer.reason is None
        assert "the last exit takes every image" in answer.explain()


def test_argument_goes_before_the_budgets_deadline(live: Live) -> None:
    """A call's own deadline counts, for that call."""
    live.runtime.set_budget(deadline_ms=0.5)
    value = live.value(3)
    assert live.classify(value).truncated
    assert not live.classify(value, deadline_ms=1e6).truncated
    assert live.classify(value).truncated


def test_frames_that_leave_in_time_are_not_truncated(live: Live) -> None:
    """A deadline changes nothing for a frame whose exit comes before it."""
    for stage in (1, 2):
        answer = live.classify(live.value(stage), deadline_ms=2.3)
        assert (answer.exit_stage, answer.truncated, answer.reason) == (stage, False, None)


@pytest.mark.parametrize("deadline_ms", [0, -1.0, np.nan, -np.inf, "3", True, [3], 3j])
def test_deadline_that_is_no_time(live: Live, deadline_ms: Any) -> None:
    """Refused before anything runs; the Runtime goes on."""
    live.backend.inner.runs.clear()
    with pytest.raises(BudgetError, match="a deadline is a positive number of milliseconds"):
        live.classify(0, deadline_ms=deadline_ms)
    with pytest.raises(BudgetError, match="a deadline is a positive number of milliseconds"):
        next(live.runtime.classify_each([], deadline_ms=deadline_ms))
    assert live.backend.inner.runs == []
    assert live.classify(live.value(1)).exit_stage == 1


def test_deadline_counts_on_slower_stages(live: Live) -> None:
    """With ``adapt``, p99s grow with the slowdown that was seen."""
    live.runtime.set_budget(latency_ms=20.0, deadline_ms=20.0, adapt=True)
    live.backend.takes_ms *= 4
    live.stream(64)
    live.backend.inner.confidence[0, :2] = np.nan  # leaves at no early exit
    # 8 ms are gone after two stages; the third needs 4 x 2.4 ms, of 17 or of 18 ms.
    assert live.classify(0, deadline_ms=17.0).truncated
    assert not live.classify(0, deadline_ms=18.0).truncated


def test_deadline_on_real_stages(costed_bundle: Path) -> None:
    """With ONNX Runtime and the real clock: next to no time gives the first exit's answer."""
    frame = np.zeros((48, 48), np.uint8)
    with Runtime(costed_bundle) as runtime:
        runtime.use(runtime.replay((np.inf, np.inf, -np.inf)))
        full = runtime.classify(frame, deadline_ms=np.inf)
        assert (full.exit_stage, full.truncated) == (3, False)
        cut = runtime.classify(frame, deadline_ms=1e-6)
    assert (cut.exit_stage, cut.truncated) == (1, True)
    assert cut.confidence == full.confidences[0]
    assert "stage 2 needs 1 ms (p99) and no time is left" in cut.explain()


# adapt


def test_adapting_to_slower_stages(live: Live) -> None:
    """Stages take twice as long: a change is announced soon and the mean returns to the budget."""
    live.runtime.set_budget(latency_ms=3.0, adapt=True)
    before = live.runtime.solution
    live.stream(300)
    assert live.heard == []
    live.backend.takes_ms *= 2
    answers = live.stream(100, seed=1)
    assert live.heard
    change = live.heard[0]
    assert isinstance(change, Change)
    assert list(live.runtime.events) == live.heard
    assert "times as long as profiled" in change.reason
    assert not change.certificate_holds
    after = answers[-1].thresholds
    assert after != tuple(before.thresholds)
    assert after[0] < before.thresholds[0]
    later = live.stream(600, seed=2)
    assert _mean_ms(later[-300:]) == pytest.approx(3.0, rel=0.03)
    for p in later:
        assert p.confidence >= p.thresholds[p.exit_stage - 1]


def test_noise_alone_changes_nothing(live: Live) -> None:
    """Latencies that scatter by 30 % and a mix that scatters by chance are no reason to act."""
    live.runtime.set_budget(latency_ms=3.0, adapt=True)
    live.backend.noise = 0.3
    thresholds = {p.thresholds for p in live.stream(1500)}
    assert live.heard == []
    assert thresholds == {tuple(live.runtime.solution.thresholds)}


def test_without_adapt_nothing_moves(live: Live) -> None:
    """Off by default; that the budget is broken is said all the same."""
    live.backend.takes_ms *= 2
    assert len({p.thresholds for p in live.stream(300)}) == 1
    assert [type(event) for event in live.heard] == [BudgetBroken]


@pytest.mark.parametrize("max_stage", [1, 2])
def test_adapting_keeps_max_stage(live: Live, max_stage: int) -> None:
    """Time to spare does not open a stage that the budget forbids."""
    live.runtime.set_budget(latency_ms=3.0, max_stage=max_stage, adapt=True)
    live.backend.takes_ms /= 3
    live.backend.inner.runs.clear()
    answers = live.stream(400)
    assert any(isinstance(event, Change) for event in live.heard)
    assert max(stage for stage, _ in live.backend.inner.runs) == max_stage - 1
    assert {len(p.thresholds) for p in answers} == {3}
    assert {p.thresholds[max_stage - 1 :] for p in answers} == {(-np.inf,) * (4 - max_stage)}


# audit


def test_share_of_audited_frames(live: Live) -> None:
    """Some frames that would leave at once run all stages, and get the last exit's answer."""
    live.runtime.set_budget(latency_ms=2.0, audit=0.1)
    records, audited = live.runtime.records, 0
    leaves = records.confidence[:, 0] >= live.runtime.thresholds[0]
    agrees = records.prediction[:, 0] == records.prediction[:, 2]  # so that audits find nothing
    value = int(np.flatnonzero(leaves & agrees)[0])
    expected = records.prediction[value]
    for _ in range(500):
        answer, ran = live.stages_of(value)
        if answer.reason is None:
            assert (ran, answer.class_id) == ([1], expected[0])
            continue
        audited += 1
        assert ran == [1, 2, 3]
        assert (answer.exit_stage, answer.class_id) == (3, expected[2])
        assert "it was audited, which runs all stages" in answer.explain()
        assert not answer.truncated
    assert audited == pytest.approx(50, abs=1)


@pytest.mark.parametrize("adapt", [False, True])
def test_disagreement_raises_thresholds(live: Live, adapt: bool) -> None:
    """Early answers that are no longer the last exit's: an event, then higher thresholds."""
    live.runtime.set_budget(latency_ms=2.5, audit=0.3, adapt=adapt)
    before = np.array(live.runtime.solution.thresholds)
    live.stream(400)
    assert live.heard == []
    _disagree(live)
    for seed in range(300):
        live.heard.clear()
        live.stream(1, seed)
        if any(isinstance(event, AuditEvent) for event in live.heard):
            break
    event = live.heard[0]
    assert isinstance(event, AuditEvent)
    assert event.agreement.upper < event.promised
    assert "audited early answers agree with the last exit" in event.reason
    after = np.array(live.classify(0).thresholds)
    assert (after >= before).all()
    assert (after > before).any()
    if adapt:
        change = live.heard[1]
        assert isinstance(change, Change)
        assert change.reason.startswith(event.reason)
        assert not change.certificate_holds
    live.stream(1500)
    assert (
        replay(live.runtime.records, (1, 2, 4), live.classify(0).thresholds).exit_fraction[0]
        < 0.5 * replay(live.runtime.records, (1, 2, 4), before).exit_fraction[0]
    )


def test_audits_that_agree_change_nothing(live: Live) -> None:
    """The stream is what the records are."""
    live.runtime.set_budget(audit=0.5)
    assert len({p.thresholds for p in live.stream(1000)}) == 1
    assert live.heard == []


@pytest.mark.parametrize(
    "budget",
    [
        {"max_stage": 2, "latency_ms": 1.5},
        {"latency_ms": 5.0, "statistic": "max", "min_accuracy": 0.6},
    ],
    ids=["max_stage", "max latency"],
)
def test_audits_keep_hard_limits(live: Live, budget: dict[str, Any]) -> None:
    """A stage that the budget forbids runs neither for audits nor after an alarm."""
    live.runtime.set_budget(BudgetConfig(audit=0.5, **budget))
    live.backend.inner.class_id[:, 0] = (live.backend.inner.class_id[:, 1] + 1) % 10
    live.backend.inner.runs.clear()
    answers = live.stream(300)
    assert any(isinstance(event, AuditEvent) for event in live.heard)
    assert {p.exit_stage for p in answers} <= {1, 2}
    assert {stage for stage, _ in live.backend.inner.runs} == {0, 1}
    assert {p.thresholds[1:] for p in answers} == {(-np.inf, -np.inf)}


def test_truncated_audits_are_not_counted(live: Live) -> None:
    """A deadline cuts an audit short: nothing was learned about the last exit."""
    live.runtime.set_budget(latency_ms=3.0, audit=0.5, deadline_ms=3.0)
    class_id = live.backend.inner.class_id
    class_id[:, 0] = (class_id[:, 1] + 1) % 10
    answers = live.stream(300)
    assert max(p.exit_stage for p in answers) == 2
    assert live.heard == []


def test_a_broken_listener_does_not_stop_the_policy(
    live_bundle: Path, live_records: Records, fake_backend: type[FakeBackend]
) -> None:
    """What ``on_event`` raises reaches the caller; higher thresholds are in force all the same."""

    def broken(event: Event) -> None:
        raise RuntimeError("mine")

    def classify_all() -> None:
        for v in range(len(live_records)):
            runtime.classify(np.full((4, 4), v, np.uint8))

    wrong = (live_records.prediction[:, -1:] + [[1, 1, 0]]) % 10
    backend = fake_backend(live_records.confidence, wrong)
    with Runtime(live_bundle, backend=backend) as runtime:
        runtime.watch(on_event=broken)
        before = runtime.set_budget(latency_ms=3.0, audit=0.5).thresholds
        with pytest.raises(RuntimeError, match="mine"):
            classify_all()
        after = runtime.classify(np.zeros((4, 4), np.uint8)).thresholds
    assert (np.array(after) >= before).all()
    assert after != tuple(before)


def test_a_listener_may_use_the_runtime(
    live_bundle: Path, live_records: Records, fake_backend: type[FakeBackend]
) -> None:
    """It is told when the frame is done, so ``on_event`` may classify without waiting for ever."""
    heard: list[Event] = []
    inside: list[int] = []

    def listen(event: Event) -> None:
        heard.append(event)
        if not inside:
            inside.append(runtime.classify(np.zeros((4, 4), np.uint8)).exit_stage)
            runtime.set_budget(max_stage=2)

    wrong = (live_records.prediction[:, -1:] + [[1, 1, 0]]) % 10
    backend = fake_backend(live_records.confidence, wrong)
    with Runtime(live_bundle, backend=backend) as runtime:
        runtime.watch(on_event=listen)
        runtime.set_budget(latency_ms=3.0, audit=0.5)
        for v in range(len(live_records)):
            runtime.classify(np.full((4, 4), v, np.uint8))
        assert heard
        assert inside
        assert runtime.budget.max_stage == 2


# video


def _learned(live: Live, value: int) -> None:
    """A still picture, until keeping answers is believed to pay."""
    for _ in range(2000):
        if not live.classify(value).stage_latency_ms:
            return
    pytest.fail("no answer was ever kept")


def test_still_pictures_keep_their_answer(live: Live) -> None:
    """No stage runs; the answer is the last one, its age is bounded."""
    live.runtime.set_budget(video=True)
    value = live.value(3)
    fresh, ran = live.stages_of(value)
    assert ran == [1, 2, 3]
    _learned(live, value)
    kept, longest = 0, 0
    for _ in range(200):
        answer, ran = live.stages_of(value)
        assert (answer.class_id, answer.exit_stage) == (fresh.class_id, 3)
        if ran:
            assert answer.reason is None
            longest = max(longest, kept)
            kept = 0
            continue
        kept += 1
        assert answer.stage_latency_ms == ()
        assert answer.preprocess_ms == answer.latency_ms == 0
        assert not answer.truncated
        assert answer.reason
        assert answer.reason.startswith("the frame hardly changed (mean difference 0 of 255")
        assert f"by exception: {answer.reason}; " in answer.explain()
    assert 5 <= longest <= 10


@pytest.mark.parametrize("order", ["nv12", "yuyv"])
def test_still_yuv_pictures_keep_their_answer(live: Live, order: ColorOrder) -> None:
    """Pictures are compared by their Y; colours alone make no other scene."""
    live.runtime.set_budget(video=True)
    frames = [np.full(frame_shape(48, 48, order), 128, np.uint8) for _ in range(2)]
    if order == "nv12":
        frames[1][48:] = 100
    else:
        frames[1][..., 1] = 100
    kept = [
        not live.runtime.classify(frames[i % 2], color_order=order).stage_latency_ms
        for i in range(2000)
    ]
    assert any(kept)


def test_energy_is_estimated_for_what_ran(live: Live, live_bundle: Path, tmp_path: Path) -> None:
    """From the table, by exit, audits included; nothing for an answer that was kept."""
    assert live.classify(20).energy_mj is None
    bundle = Bundle(shutil.copytree(live_bundle, tmp_path / "bundle"))
    energy = {"energy_mj": (5.0, 12.0, 27.0)}
    bundle.store(COSTS, live.runtime.costs.model_copy(update=energy))
    live.runtime = Runtime(bundle.folder, backend=live.backend)
    for exit_stage, mj in ((1, 5.0), (2, 12.0), (3, 27.0)):
        assert live.classify(live.value(exit_stage)).energy_mj == mj
    live.runtime.set_budget(video=True)
    for _ in range(2000):
        answer, ran = live.stages_of(20)
        assert (answer.energy_mj is None) is not bool(ran)
        if not ran:
            return
    pytest.fail("no answer was ever kept")


def test_a_cut_runs_stages(live: Live) -> None:
    """Another scene is answered afresh, also right after an answer that was kept."""
    live.runtime.set_budget(video=True)
    _learned(live, 20)
    answer, ran = live.stages_of(220)
    assert ran
    assert answer.class_id == live.runtime.records.prediction[220, answer.exit_stage - 1]


def test_old_answers_are_not_kept(live: Live, clock: HandClock) -> None:
    """A still picture after a pause is answered afresh."""
    live.runtime.set_budget(video=True)
    _learned(live, 20)
    clock.ms += 10_000
    assert live.stages_of(20)[1]


def test_comparing_that_costs_more_than_it_saves(
    live: Live, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is kept, comparing stops for a while, and its time is part of the latency."""
    looks = 0

    def slow(frame: Frame) -> npt.NDArray[np.float32]:
        nonlocal looks
        looks += 1
        clock.ms += 50.0
        return np.zeros((24, 24), np.float32)

    monkeypatch.setattr("dvt_edge.runtime.session.thumbnail", slow)
    live.runtime.set_budget(video=True)
    value = live.value(1)
    assert live.classify(value).latency_ms == pytest.approx(51.0)
    assert all(live.classify(value).stage_latency_ms for _ in range(2500))
    assert looks < 2200
    assert live.classify(value).latency_ms == pytest.approx(1.0)


def test_video_is_off_by_default(live: Live) -> None:
    """Without the key every frame runs."""
    assert all(live.classify(20).stage_latency_ms for _ in range(1000))


def test_video_refuses_what_is_no_frame(live: Live) -> None:
    """As without video, also while answers are kept; the stream goes on."""
    live.runtime.set_budget(video=True)
    _learned(live, 20)
    for frame in (None, np.zeros((4, 4)), np.zeros((0, 4), np.uint8)):
        with pytest.raises(FrameError):
            live.runtime.classify(frame)
    assert live.classify(20).class_id in live.runtime.records.prediction[20]


def test_video_with_audits(live: Live) -> None:
    """Audited frames run all stages although the picture stands still."""
    live.runtime.set_budget(video=True, audit=0.1)
    _learned(live, 20)
    answers = [live.classify(20) for _ in range(200)]
    audited = [p for p in answers if p.reason and "audited" in p.reason]
    assert len(audited) == pytest.approx(20, abs=1)
    assert all(len(p.stage_latency_ms) == 3 for p in audited)
    assert any(not p.stage_latency_ms for p in answers)


@pytest.mark.parametrize("broken", [np.nan, None])
def test_answers_that_are_not_kept(live: Live, broken: float | None) -> None:
    """Neither one that is not finite nor one that a deadline cut off stands for the next frame."""
    live.runtime.set_budget(video=True)
    value = live.value(3)
    _learned(live, value)
    live.backend.clock.ms += 10_000  # the next frame runs
    if broken is None:
        assert live.classify(value, deadline_ms=0.1).truncated
    else:
        live.backend.inner.confidence[value] = broken
        live.classify(value)
    assert live.stages_of(value)[1]


# logits that are not finite


def test_nan_goes_on_and_is_reported(live: Live) -> None:
    """A broken exit lets nothing leave; the frame is answered by a later one."""
    value = live.value(1)
    live.backend.inner.confidence[value] = (np.nan, np.nan, 0.5)
    live.runtime.use(live.runtime.replay((0.1, 0.1, -np.inf)))
    answer, ran = live.stages_of(value)
    assert ran == [1, 2, 3]
    assert (answer.exit_stage, answer.confidence) == (3, 0.5)
    assert [type(event) for event in live.heard] == [NotFinite, NotFinite]
    assert [event.reason for event in live.heard] == [
        f"exit {k} gave logits that are NaN or infinite; the frame went on" for k in (1, 2)
    ]
    assert list(live.runtime.events) == live.heard


def test_nan_at_the_last_exit(live: Live) -> None:
    """There is an answer, and a warning not to rely on it."""
    live.backend.inner.confidence[7] = np.nan
    answer = live.classify(7)
    assert answer.exit_stage == 3
    assert np.isnan(answer.confidence)
    assert live.heard[-1].reason.endswith("infinite; do not rely on the answer")
    assert "do not rely on the answer" in answer.explain()


def test_nan_with_everything_on(live: Live) -> None:
    """Adapting, audits, video and a deadline bear broken exits."""
    live.runtime.set_budget(adapt=True, audit=0.2, video=True, deadline_ms=10.0)
    live.backend.inner.confidence[:, 0] = np.nan
    answers = live.stream(300)
    assert min(p.exit_stage for p in answers) > 1
    assert {type(event) for event in live.heard} >= {NotFinite}
    assert len(live.runtime.events) == min(256, len(live.heard))


def test_latency_holds_what_adapting_takes(
    live: Live, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller waits for it: it is part of the answer's latency, and of what the next frame is
    booked as."""
    live.runtime.set_budget(adapt=True)
    booked: list[float] = []
    observe = Controller.observe

    def slow(self: Controller, *given: Any, **keywords: Any) -> Any:
        booked.append(given[2])
        clock.ms += 0.5
        return observe(self, *given, **keywords)

    monkeypatch.setattr(Controller, "observe", slow)
    answers = [live.classify(live.value(1)) for _ in range(3)]
    assert [p.latency_ms for p in answers] == pytest.approx([1.5] * 3)
    assert booked == pytest.approx([1.0, 1.5, 1.5])


@pytest.mark.parametrize("adapt", [False, True])
def test_thresholds_come_back_when_audits_agree_again(live: Live, adapt: bool) -> None:
    """One bad period does not cost the budget for good."""
    live.runtime.set_budget(adapt=adapt, audit=0.3)
    right = live.backend.inner.class_id.copy()
    live.stream(300)
    _disagree(live)
    live.stream(900)
    assert any(isinstance(event, AuditEvent) for event in live.heard)
    live.backend.inner.class_id[:] = right
    live.stream(3000)
    live.heard.clear()
    if adapt:
        assert _mean_ms(live.stream(3000)) == pytest.approx(2.5, rel=0.05)
    else:  # audited frames come on top
        assert live.runtime.thresholds == tuple(live.runtime.solution.thresholds)


def test_solving_again_does_not_hold_up_a_frame(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for another thread; what that finds is in force from the next frame on."""
    waiting: list[Callable[[], None]] = []
    monkeypatch.setattr("dvt_edge.runtime.session.in_background", waiting.append)
    live.runtime.set_budget(adapt=True)
    before = live.runtime.thresholds
    live.backend.takes_ms *= 1.5
    live.stream(600)
    assert len(waiting) == 1
    assert live.runtime.thresholds == before
    waiting[0]()
    live.stream(1)
    assert isinstance(live.heard[-1], Change)
    assert live.runtime.thresholds != before


def test_solving_again_in_a_real_thread(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dvt_edge.runtime.session.in_background", in_background)
    live.runtime.set_budget(adapt=True)
    live.backend.takes_ms *= 1.5
    until = perf_counter() + 20
    while not any(isinstance(event, Change) for event in live.heard):
        live.stream(8)
        assert perf_counter() < until
