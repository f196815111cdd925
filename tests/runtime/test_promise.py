"""How the promise of a running Runtime stands, and what is reported when that changes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge import Prediction, Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.policy.live.controller import Controller
from dvt_edge.policy.live.promise import Promise
from dvt_edge.policy.live.solving import Plan, Request, solve_again
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.conditions_watch import CHECK_FRAMES
from dvt_edge.runtime.events import (
    AuditEvent,
    BudgetBroken,
    BudgetKept,
    Change,
    FramesStopped,
    OtherConditions,
    SameConditions,
    SolvingFailed,
)
from tests.conftest import HandClock
from tests.runtime.conftest import FakeBackend, Live


@pytest.fixture
def clock(clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """Also where waiting and the pace are timed, and in plain numbers, which bear infinity."""
    for module in ("cascade_loop", "session", "runtime"):
        path = f"dvt_edge.runtime.{module}.perf_counter"
        monkeypatch.setattr(path, lambda: float(clock()))
    return clock


def _kinds(live: Live) -> list[type]:
    return [type(event) for event in live.heard]


def test_a_promise_that_holds(live: Live) -> None:
    """Nothing is said of a few frames; then what was measured."""
    live.runtime.set_budget()
    assert live.runtime.promise.state == "UNKNOWN"
    assert live.runtime.promise.sentence == (
        "Promised: mean latency of 2.5 ms, back to back with frames of 4x4. UNKNOWN: 0 frames are "
        "too few, 128 suffice."
    )
    answers = live.stream(1000)
    promise = live.runtime.promise
    assert (promise.state, promise.frames, live.heard) == ("HOLDS", 1000, [])
    (measured,) = promise.measured
    assert measured.measured == pytest.approx(np.mean([p.latency_ms for p in answers]))
    assert measured.low < 2.5 < measured.high
    assert promise.sentence.endswith(f" ms{measured.interval}. HOLDS.")


def test_broken_and_kept_again(live: Live) -> None:
    """Without ``adapt``: events with figures, once each way."""
    live.stream(1000)
    live.backend.takes_ms *= 1.1
    live.stream(600, seed=1)
    (broken,) = live.heard
    assert isinstance(broken, BudgetBroken)
    assert 1000 < broken.frame <= 1300
    assert broken.limit == 2.5
    assert broken.measured == pytest.approx(2.75, rel=0.1)
    promise = live.runtime.promise
    assert promise.state == "BROKEN"
    assert promise.since == pytest.approx(1000, abs=50)
    assert promise.sentence.endswith(f" BROKEN since frame {promise.since}.")
    assert promise.why == broken.reason
    live.backend.takes_ms /= 1.1
    live.stream(2000, seed=2)
    assert _kinds(live) == [BudgetBroken, BudgetKept]
    assert live.runtime.promise.state == "HOLDS"
    assert list(live.runtime.events) == live.heard


@pytest.mark.parametrize("adapt", [False, True])
def test_what_the_caller_waits_for_counts(live: Live, clock: HandClock, adapt: bool) -> None:
    """Whatever happens between an answer's latency and its return is part of the budget."""

    def linger(_answer: object) -> None:
        clock.ms += 0.4

    live.runtime.set_budget(adapt=adapt)
    live.runtime.watch(on_answer=linger)
    before = clock.ms
    live.stream(3000)
    spent = (clock.ms - before) / 3000
    if adapt:
        assert spent == pytest.approx(2.5, rel=0.03)
    else:
        assert spent == pytest.approx(2.9, rel=0.05)
        assert BudgetBroken in _kinds(live)


def test_another_budget_starts_anew(live: Live) -> None:
    live.backend.takes_ms *= 2
    states: list[str] = []
    for _ in range(2):
        live.stream(300)
        states.append(live.runtime.promise.state)
        live.runtime.set_budget(latency_ms=9.0)
        assert live.runtime.promise.frames == 0
    assert states == ["BROKEN", "HOLDS"]


@pytest.mark.parametrize(
    ("budget", "state", "words"),
    [
        ({"latency_ms": 4.5, "statistic": "p95"}, "HOLDS", "p95 latency of 4.5 ms"),
        ({"latency_ms": 8.5, "statistic": "max"}, "HOLDS", "Measured over the last 500 frames: 4"),
        ({"min_accuracy": 0.7}, "UNKNOWN", "cannot be seen without labels; set audit"),
        ({"min_accuracy": 0.7, "audit": 0.5}, "HOLDS", "audited early answers agree"),
        ({"max_stage": 2}, "UNKNOWN", "no limit that can be measured"),
        ({"fps": 300, "latency_ms": 2.5}, "HOLDS", "2.667 ms (300 fps at 80 % utilisation)"),
        ({"latency_ms": 3.0, "audit": 0.1}, "HOLDS", "audited early answers agree"),
    ],
)
def test_kinds_of_budgets(live: Live, budget: dict[str, Any], state: str, words: str) -> None:
    live.runtime.set_budget(BudgetConfig(**budget))
    live.stream(500)
    promise = live.runtime.promise
    assert (promise.state, live.heard) == (state, [])
    assert words in promise.sentence


def test_nothing_is_promised_of_given_thresholds(live: Live) -> None:
    live.runtime.use(live.runtime.solution)
    live.stream(200)
    assert live.runtime.promise.state == "UNKNOWN"


def test_energy(live: Live, live_bundle: Path, tmp_path: Path) -> None:
    """From the table and the exits taken, however long they take."""
    bundle = Bundle(shutil.copytree(live_bundle, tmp_path / "bundle"))
    bundle.store(COSTS, live.runtime.costs.model_copy(update={"energy_mj": (5.0, 12.0, 27.0)}))
    with Runtime(bundle.folder, backend=live.backend) as live.runtime:
        live.runtime.watch(on_event=live.heard.append)
        live.runtime.set_budget(BudgetConfig(energy_mj=14.0))
        live.backend.takes_ms *= 3
        live.stream(1000)
        assert (live.runtime.promise.state, live.heard) == ("HOLDS", [])
        live.backend.inner.confidence[:, :2] = 0.0
        live.stream(300)
        assert _kinds(live) == [BudgetBroken]
        assert "mean energy of the last" in live.heard[0].reason


def test_answers_that_are_kept_are_frames(live: Live) -> None:
    live.runtime.set_budget(video=True)
    kept = [not live.classify(20).stage_latency_ms for _ in range(2000)]
    assert sum(kept) > 100
    assert live.runtime.promise.frames == 2000
    assert live.runtime.promise.state == "HOLDS"


# with adapting


def test_adapting_keeps_the_promise(live: Live) -> None:
    """Thresholds move, the promise is not broken meanwhile, and the certificate is not claimed."""
    live.runtime.set_budget(latency_ms=3.0, adapt=True)
    live.stream(500)
    live.backend.takes_ms *= 1.5
    live.stream(3000, seed=1)
    assert set(_kinds(live)) == {Change}
    promise = live.runtime.promise
    assert promise.state == "HOLDS"
    assert promise.measured[0].measured == pytest.approx(3.0, rel=0.05)


def test_what_adapting_cannot_keep_is_broken(live: Live) -> None:
    """Until it can: even exit 1 takes more than the budget."""
    live.runtime.set_budget(latency_ms=3.0, adapt=True)
    live.stream(200)
    live.backend.takes_ms *= 4
    live.stream(500, seed=1)
    assert _kinds(live).count(BudgetBroken) == 1
    promise = live.runtime.promise
    assert promise.state == "BROKEN"
    assert "; even leaving at exit 1 takes more than the budget." in promise.sentence
    live.backend.takes_ms /= 4
    live.stream(3000, seed=2)
    assert _kinds(live).count(BudgetKept) == 1
    assert live.runtime.promise.state == "HOLDS"


def test_a_broken_mean_is_adapted_to(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no check of the controller finds cause: the promise goes before its tolerance."""
    monkeypatch.setattr("dvt_edge.policy.live.drift.Drift.reason", lambda self, *given: None)
    live.runtime.set_budget(adapt=True)
    live.backend.takes_ms *= 1.2
    live.stream(9000)
    broken, change, kept = live.heard
    assert isinstance(broken, BudgetBroken)
    assert isinstance(change, Change)
    assert change.reason.startswith(broken.reason)
    assert isinstance(kept, BudgetKept)


@pytest.mark.parametrize("adapt", [False, True])
def test_thresholds_that_an_audit_raised_suspend_it(live: Live, adapt: bool) -> None:
    """Latency comes second then; where it is over its limit beyond chance, it is broken."""
    live.runtime.set_budget(latency_ms=3.5, audit=0.2, adapt=adapt)
    class_id = live.backend.inner.class_id
    class_id[:, :-1] = (class_id[:, -1:] + 1) % 10
    for seed in range(300):
        live.stream(1, seed)
        if any(isinstance(event, AuditEvent) for event in live.heard):
            break
    promise = live.runtime.promise
    assert promise.state == "SUSPENDED"
    assert promise.why == "an audit raised the thresholds, and latency comes second"
    live.stream(3000)
    assert live.runtime.promise.state == "BROKEN"


# conditions


def test_frames_of_another_size_suspend_it(live: Live) -> None:
    """Until they are as measured again; an event each way."""
    live.stream(500)
    large = np.full((16, 16), 20, np.uint8)
    for _ in range(2 * CHECK_FRAMES):
        live.runtime.classify(large)
    promise = live.runtime.promise
    assert promise.state == "SUSPENDED"
    assert promise.sentence.endswith(
        "SUSPENDED because a frame is 16x16, costs were measured with 4x4."
    )
    live.stream(500)
    assert live.runtime.promise.state == "HOLDS"
    assert _kinds(live) == [OtherConditions, SameConditions]


def test_frames_that_come_slower_suspend_it(live: Live, clock: HandClock) -> None:
    live.stream(500)
    for frames, pause_ms, state in ((100, 30.0, "SUSPENDED"), (100, 0.0, "HOLDS")):
        for seed in range(frames):
            clock.ms += pause_ms
            live.stream(1, seed)
        assert live.runtime.promise.state == state
    assert _kinds(live) == [OtherConditions, SameConditions]


def test_a_camera_that_stops(live: Live, clock: HandClock) -> None:
    """Ask meanwhile, from another thread; the next frame reports it."""
    live.stream(500)
    clock.ms += 12_300
    with ThreadPoolExecutor(1) as pool:
        promise: Promise = pool.submit(lambda: live.runtime.promise).result()
    assert promise.state == "SUSPENDED"
    assert promise.sentence.endswith("SUSPENDED because no frame came for 12.3 s.")
    assert live.heard == []
    live.stream(200, seed=1)
    (event,) = live.heard
    assert isinstance(event, FramesStopped)
    assert live.runtime.promise.state == "HOLDS"


def test_conditions_are_the_costs_own(
    own_bundle: Path, known_costs: Callable[..., Costs], fake_backend: type[FakeBackend]
) -> None:
    changes = {"paced_fps": 30.0, "frame_shape": (480, 640)}
    Bundle(own_bundle).store(COSTS, known_costs(Bundle(own_bundle)).model_copy(update=changes))
    backend = fake_backend(np.full((1, 3), 0.9), shape=(1, 48, 48))
    with Runtime(own_bundle, backend=backend) as runtime:
        assert ", at 30 fps with frames of 640x480." in runtime.promise.sentence


def test_a_certificate_is_told(live: Live) -> None:
    live.runtime.set_budget(latency_ms=3.9, confidence_level=0.9)
    found = live.runtime.certificate
    assert found is not None
    words = f"with probability {1 - found.delta:g} from {found.n} records"
    assert words in live.runtime.promise.sentence


def test_watchers_may_ask(live: Live) -> None:
    """They are called when the frame is done."""
    states: list[str] = []

    def ask(answer: Prediction) -> None:
        states.append(live.runtime.promise.state)

    stop = live.runtime.watch(on_answer=ask)
    live.stream(200)
    stop()
    assert (states[0], states[-1]) == ("UNKNOWN", "HOLDS")


# clocks


@pytest.mark.parametrize("adapt", [False, True])
@pytest.mark.parametrize("odd_s", [np.nan, np.inf, -3600.0, 0.0, 3600.0])
def test_a_clock_that_jumps(
    live: Live, clock: HandClock, monkeypatch: pytest.MonkeyPatch, odd_s: float, adapt: bool
) -> None:
    """Thresholds stay, and so does what is measured: one odd frame is no hour of slow ones."""
    live.runtime.set_budget(adapt=adapt)
    live.stream(600)
    before, measured = live.runtime.thresholds, live.runtime.promise.measured[0]
    run_stage = live.backend.run_stage

    def jump(stage: int, count: int, slot: int = 0) -> Any:
        clock.ms += 1e3 * odd_s if np.isfinite(odd_s) else odd_s
        return run_stage(stage, count, slot)

    for seed in range(2):
        now = clock.ms
        monkeypatch.setattr(live.backend, "run_stage", jump)
        live.stream(1, seed)
        monkeypatch.setattr(live.backend, "run_stage", run_stage)
        clock.ms = now if not np.isfinite(odd_s) else clock.ms
        live.stream(100, seed)
    after = live.runtime.promise.measured[0]
    assert live.runtime.thresholds == before
    assert not {Change, BudgetBroken} & set(_kinds(live))
    assert after.measured < measured.measured + 2 * 130 * 2.5 / after.frames
    assert after.measured > measured.measured - 0.5


def test_the_clock_on_the_wall_is_not_asked(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Daylight saving or a first contact with a time server change nothing."""
    live.runtime.set_budget(adapt=True)
    live.stream(500)
    for jump_s in (-3600.0, 86_400.0 * 365):
        measured, now = live.runtime.promise.measured, time.time() + jump_s
        monkeypatch.setattr(time, "time", lambda now=now: now)
        monkeypatch.setattr(time, "time_ns", lambda now=now: int(1e9 * now))
        assert live.runtime.promise.measured == measured
        live.stream(500)
    assert live.heard == []
    assert live.runtime.promise.state == "HOLDS"


# solving that fails


def _slow_down(live: Live) -> None:
    live.runtime.set_budget(adapt=True)
    live.stream(200)
    live.backend.takes_ms *= 1.5


def test_solving_that_fails_is_tried_again(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reported once; frames are answered meanwhile by the thresholds in force."""
    tried: list[Request] = []

    def fails(request: Request) -> Plan:
        tried.append(request)
        if len(tried) < 4:
            raise MemoryError("no room")
        return solve_again(request)

    monkeypatch.setattr("dvt_edge.runtime.session.solve_again", fails)
    _slow_down(live)
    before = live.runtime.thresholds
    for _ in range(250):
        if len(tried) < 3:
            live.stream(8)
            assert live.runtime.thresholds == before
    assert len(tried) == 3
    (failed,) = [event for event in live.heard if isinstance(event, SolvingFailed)]
    assert failed.reason.startswith("thresholds could not be solved again (MemoryError: no room);")
    live.stream(3000)
    assert any(isinstance(event, Change) for event in live.heard)
    assert live.runtime.thresholds != before
    assert _kinds(live).count(SolvingFailed) == 1


def test_no_thread_can_be_started(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(work: Callable[[], None]) -> None:
        raise RuntimeError("can't start new thread")

    usual = vars(__import__("dvt_edge.runtime.session", fromlist=["x"]))["in_background"]
    monkeypatch.setattr("dvt_edge.runtime.session.in_background", none_left)
    _slow_down(live)
    live.stream(200)
    assert SolvingFailed in _kinds(live)
    assert "can't start new thread" in live.heard[-1].reason
    monkeypatch.setattr("dvt_edge.runtime.session.in_background", usual)
    live.stream(3000)
    assert Change in _kinds(live)


def test_a_thread_that_dies(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real one: nothing of it is left behind, in particular no traceback on standard error."""
    threads = ThreadPoolExecutor(1)

    def broken(request: Request) -> Plan:
        raise ZeroDivisionError

    with threads:
        monkeypatch.setattr(
            "dvt_edge.runtime.session.in_background", lambda work: threads.submit(work).result()
        )
        monkeypatch.setattr("dvt_edge.runtime.session.solve_again", broken)
        _slow_down(live)
        live.stream(400)
    assert SolvingFailed in _kinds(live)


def test_a_request_that_is_abandoned_is_asked_again(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at once and over and over: ever later, as after other changes."""
    at: list[int] = []
    frame = [0]
    observe = Controller.observe

    def counted(self: Controller, *given: Any, **named: Any) -> Any:
        frame[0] += 1
        return observe(self, *given, **named)

    def fails(request: Request) -> Plan:
        at.append(frame[0])
        raise MemoryError

    monkeypatch.setattr(Controller, "observe", counted)
    monkeypatch.setattr("dvt_edge.runtime.session.solve_again", fails)
    _slow_down(live)
    live.stream(4000)
    waits = np.diff(at)
    assert (waits >= 128).all()
    assert waits[-1] >= 1024
