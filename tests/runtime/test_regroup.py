"""Frames of several threads whose later stages run together: the same answers, and who waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dvt_edge import Prediction, Runtime
from dvt_edge.errors import BackendError, ClosedError, ConfigError
from dvt_edge.policy import Records
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.backends.protocol import StageAnswer
from dvt_edge.runtime.events import Regrouping
from dvt_edge.runtime.regroup import Regroup
from dvt_edge.runtime.session import AUDITED
from tests.conftest import HandClock
from tests.runtime.conftest import VALUES, Batching, FakeBackend, spread_scenes

FOREVER_MS = 600_000.0
"""Whoever waits so long fails the test."""
THRESHOLDS = (0.6, 0.6, -math.inf)


@dataclass
class Grouped:
    """A Runtime whose frames wait for one another, and the backend under it."""

    runtime: Runtime
    backend: FakeBackend
    pool: ThreadPoolExecutor

    @property
    def regroup(self) -> Regroup:
        assert self.runtime.regroup is not None
        return self.runtime.regroup

    def classify(self, value: int, **arguments: Any) -> Prediction:
        return self.runtime.classify(np.full((4, 4), value, np.uint8), **arguments)

    def start(self, value: int, **arguments: Any) -> Future[Prediction]:
        """In another thread; returns once the frame was set aside."""
        before = len(self.backend.aside)
        answer = self.pool.submit(self.classify, value, **arguments)
        until = perf_counter() + 20
        while len(self.backend.aside) == before:
            assert perf_counter() < until
            sleep(0.001)
        return answer

    def value(self, exit_stage: int, skip: int = 0) -> int:
        """A frame that leaves at ``exit_stage``."""
        leaves = self.runtime.records.confidence >= np.array(THRESHOLDS)
        return int(np.flatnonzero(leaves.argmax(axis=1) == exit_stage - 1)[skip])

    def check(self, answer: Prediction, value: int) -> None:
        """It is what the records say."""
        confidence, classes = self.backend.confidence[value], self.backend.class_id[value]
        ran = answer.exit_stage
        assert answer.confidences == tuple(confidence[:ran].tolist())
        assert answer.classes == tuple(classes[:ran].tolist())
        assert (answer.class_id, answer.confidence) == (classes[ran - 1], confidence[ran - 1])
        assert len(answer.stage_latency_ms) == ran
        exits = np.append(confidence[:-1] >= answer.thresholds[:-1], True)
        assert ran == 1 + int(exits.argmax()) or answer.reason


Make = Callable[..., Grouped]


@pytest.fixture
def make(live_bundle: Path, live_records: Records) -> Iterator[Make]:
    """A function that opens a Runtime whose later stages pay together, whatever was measured."""
    opened: list[Grouped] = []

    def make(regroup_ms: float = FOREVER_MS, *, most: int = 2, max_batch: int = 8) -> Grouped:
        backend = FakeBackend(
            live_records.confidence.copy(), live_records.prediction.copy(), max_batch=max_batch
        )
        runtime = Runtime(live_bundle, backend=backend, regroup_ms=regroup_ms)
        runtime.use(runtime.replay(THRESHOLDS))
        opened.append(Grouped(runtime, backend, ThreadPoolExecutor(8)))
        opened[-1].regroup.most = most
        for noted in (backend.runs, backend.kept, backend.aside):
            noted.clear()
        return opened[-1]

    yield make
    for grouped in opened:
        grouped.runtime.close()
        grouped.pool.shutdown()


def test_two_run_together(make: Make) -> None:
    """The first waits, the second makes it run; each thread gets its own answer."""
    grouped = make()
    grouped.regroup.arrive()  # somebody else is at work
    values = grouped.value(3), grouped.value(3, skip=1)
    first = grouped.start(values[0])
    second = grouped.classify(values[1])
    for answer, value in zip((first.result(20), second), values, strict=True):
        grouped.check(answer, value)
    assert grouped.backend.runs == [(0, 1), (0, 1), (1, 2), (2, 2)]
    assert grouped.backend.aside == [1, 0]
    assert grouped.backend.kept == []
    assert grouped.regroup.sizes == {2: 1}
    assert first.result().regroup_wait_ms > 0 == second.regroup_wait_ms
    assert first.result().latency_ms > first.result().regroup_wait_ms


def test_each_leaves_where_it_would_alone(make: Make) -> None:
    """Of three, one at exit 2; the others go on without it."""
    grouped = make(most=3)
    grouped.regroup.arrive()
    values = grouped.value(2), grouped.value(3), grouped.value(3, skip=1)
    first = [grouped.start(value) for value in values[:2]]
    last = grouped.classify(values[2])
    for answer, value in zip([*(each.result(20) for each in first), last], values, strict=True):
        grouped.check(answer, value)
    assert grouped.backend.runs[3:] == [(1, 3), (2, 2)]
    assert grouped.backend.kept == [(1, [0, 2])]  # the last one came into row 0


def test_nobody_else_is_there(make: Make) -> None:
    """Then nothing waits and nothing is copied."""
    grouped = make()
    for exit_stage in (1, 2, 3):
        answer = grouped.classify(grouped.value(exit_stage))
        assert (answer.exit_stage, answer.regroup_wait_ms) == (exit_stage, 0.0)
    assert grouped.backend.aside == []


def test_nobody_comes_in_time(make: Make) -> None:
    """Somebody is at work, for longer than one waits."""
    grouped = make(1.0)
    grouped.regroup.arrive()
    value = grouped.value(3)
    answer = grouped.classify(value)
    grouped.check(answer, value)
    assert answer.latency_ms > answer.regroup_wait_ms >= 1.0
    assert grouped.backend.runs == [(0, 1), (1, 1), (2, 1)]
    assert (grouped.backend.aside, grouped.backend.kept) == ([1], [(0, [1])])


def test_the_others_leave_early(make: Make) -> None:
    """Whoever waits goes on as soon as there is nobody to wait for."""
    grouped = make()
    grouped.regroup.arrive()
    answer = grouped.start(grouped.value(3))
    grouped.check(grouped.classify(grouped.value(1)), grouped.value(1))
    assert not answer.done()
    grouped.regroup.leave()
    grouped.check(answer.result(20), grouped.value(3))


def test_a_slot_is_free_while_its_frame_waits(make: Make) -> None:
    """More cameras than slots: all of them get into one group."""
    grouped = make(most=6)
    grouped.regroup.arrive()
    values = [grouped.value(3, skip) for skip in range(6)]
    answers = [grouped.start(value) for value in values[:5]]
    grouped.check(grouped.classify(values[5]), values[5])
    for answer, value in zip(answers, values, strict=False):
        grouped.check(answer.result(20), value)
    assert grouped.regroup.sizes == {6: 1}


def test_a_batch_lets_those_go_that_wait(make: Make) -> None:
    """It writes where they lie."""
    grouped = make()
    grouped.regroup.arrive()
    value = grouped.value(3)
    answer = grouped.start(value)
    frames = [np.full((4, 4), other, np.uint8) for other in range(8)]
    for other, found in enumerate(grouped.runtime.classify_batch(frames)):
        grouped.check(found, other)
    grouped.check(answer.result(20), value)


def test_close_lets_those_go_that_wait(make: Make) -> None:
    """With their answers; then nothing comes any more."""
    grouped = make()
    grouped.regroup.arrive()
    answer = grouped.start(grouped.value(3))
    grouped.runtime.close()
    grouped.check(answer.result(20), grouped.value(3))
    with pytest.raises(ClosedError):
        grouped.classify(0)


def test_a_stage_that_fails_is_everybodys_error(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those whose frames it had; the next ones are answered."""
    grouped = make()
    grouped.regroup.arrive()
    run_stage = grouped.backend.run_stage

    def fail(stage: int, count: int, slot: int = 0) -> StageAnswer:
        if count == 2:
            raise BackendError("out of memory")
        return run_stage(stage, count, slot)

    monkeypatch.setattr(grouped.backend, "run_stage", fail)
    answer = grouped.start(grouped.value(3))
    with pytest.raises(BackendError, match="out of memory"):
        grouped.classify(grouped.value(3))
    with pytest.raises(BackendError, match="out of memory"):
        answer.result(20)
    grouped.regroup.leave()
    grouped.check(grouped.classify(grouped.value(3)), grouped.value(3))


def test_frames_of_a_video_do_not_wait(make: Make) -> None:
    """Which answer is kept depends on the one before."""
    grouped = make()
    grouped.regroup.arrive()
    grouped.runtime.set_budget(BudgetConfig(latency_ms=1000.0, video=True))
    assert grouped.classify(grouped.value(3)).regroup_wait_ms == 0.0
    assert grouped.backend.aside == []


def test_audited_frames(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run all stages, together with others that do not."""
    grouped = make()
    runtime = grouped.runtime
    runtime.set_budget(BudgetConfig(latency_ms=1000.0, audit=0.5))
    easy = int(runtime.records.confidence[:, 0].argmax())
    hard = int(np.flatnonzero(runtime.records.confidence[:, 0] < runtime.thresholds[0])[0])
    audits = iter([True, False])
    monkeypatch.setattr(runtime._session._audit, "due", lambda: next(audits))
    grouped.regroup.arrive()
    audited = grouped.start(easy)
    other = grouped.classify(hard)
    assert (audited.result(20).exit_stage, audited.result().reason) == (3, AUDITED)
    assert other.reason is None
    grouped.check(audited.result(), easy)
    grouped.check(other, hard)
    assert grouped.regroup.sizes == {2: 1}


def test_answers_are_those_without(make: Make) -> None:
    """Whatever comes in whatever order from however many threads: class, exit and confidences are
    the records', and nobody waits in the end."""
    made = {regroup_ms: make(regroup_ms) for regroup_ms in (0.2, 5.0)}
    frames = st.lists(st.integers(0, VALUES - 1), min_size=1, max_size=12)
    limit = st.sampled_from([0.0, 0.3, 0.6, 0.9, math.inf])

    @settings(max_examples=60)
    @given(
        values=st.lists(frames, min_size=1, max_size=6),
        limits=st.tuples(limit, limit),
        most=st.integers(2, 8),
        regroup_ms=st.sampled_from(sorted(made)),
    )
    # Six threads whose frames all go on: large groups are no matter of chance.
    @example(values=6 * [12 * [0]], limits=(math.inf, math.inf), most=8, regroup_ms=5.0)
    def agree(
        values: list[list[int]], limits: tuple[float, float], most: int, regroup_ms: float
    ) -> None:
        grouped = made[regroup_ms]
        grouped.regroup.most = most
        grouped.runtime.use(grouped.runtime.replay((*limits, -math.inf)))

        def work(own: list[int]) -> list[Prediction]:
            return [grouped.classify(value) for value in own]

        for own, answers in zip(values, grouped.pool.map(work, values, timeout=60), strict=True):
            for value, answer in zip(own, answers, strict=True):
                grouped.check(answer, value)
                assert not answer.reason
        assert grouped.regroup._active == 0

    agree()
    assert any(size > 2 for grouped in made.values() for size in grouped.regroup.sizes)


def test_the_demo(costed_bundle: Path, samples: Path) -> None:
    """On ONNX Runtime, from four threads."""
    frames = spread_scenes(samples, 60)
    budget = BudgetConfig(latency_ms=1.5)
    with Runtime(costed_bundle) as runtime:
        runtime.set_budget(budget)
        solution = runtime.solution
        expected = [runtime.classify(frame) for frame in frames]
    assert {p.exit_stage for p in expected} >= {1, 2}
    with Runtime(costed_bundle, regroup_ms=5.0) as runtime, ThreadPoolExecutor(4) as pool:
        assert runtime.regroup is not None
        runtime.use(solution)
        runtime.regroup.most = 4
        found = list(pool.map(runtime.classify, frames))
        assert sum(size * count for size, count in runtime.regroup.sizes.items() if size > 1) > 0
    assert [(p.class_id, p.exit_stage) for p in found] == [
        (p.class_id, p.exit_stage) for p in expected
    ]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.confidences, other.confidences, atol=1e-4)


# On a made clock


MakeTimed = Callable[..., Grouped]


@pytest.fixture
def timed(
    live_bundle: Path, live_records: Records, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeTimed]:
    """A function that opens a Runtime whose stages take 1, 1 and 2 ms, and for each further frame
    of a batch ``more`` times as much."""
    monkeypatch.setattr("dvt_edge.runtime.regroup.RealClock", lambda: clock)
    opened: list[Grouped] = []

    def make(more: float = 0.0) -> Grouped:
        inner = FakeBackend(live_records.confidence.copy(), live_records.prediction.copy())
        backend = Batching(inner, clock, more=more)
        runtime = Runtime(live_bundle, backend=backend, regroup_ms=4.0)
        runtime.use(runtime.replay(THRESHOLDS))
        inner.runs.clear()
        inner.aside.clear()
        opened.append(Grouped(runtime, inner, ThreadPoolExecutor(2)))
        return opened[-1]

    yield make
    for grouped in opened:
        grouped.runtime.close()
        grouped.pool.shutdown()


@pytest.mark.parametrize(("more", "most"), [(0.5, 4), (1.0, 1)])
def test_whether_it_pays_is_measured(timed: MakeTimed, more: float, most: int) -> None:
    """Where it does not, nothing waits; an event says which."""
    grouped = timed(more)
    assert (grouped.regroup.most, grouped.regroup.pays) == (most, most > 1)
    events = [event for event in grouped.runtime.events if isinstance(event, Regrouping)]
    assert events == [Regrouping(most, grouped.regroup.reason)]
    grouped.regroup.arrive()
    if most > 1:
        said = "frames of several cameras wait up to 4 ms for one another: the later stages take "
        assert grouped.regroup.reason == (
            f"{said}7.5 ms for 4 frames together and 12 ms for 4 alone; from two threads 8 frames "
            "take 26 ms if they wait for one another and 32 ms if not"
        )
    else:
        said = "no frame waits for others: the later stages take "
        assert grouped.regroup.reason == f"{said}6 ms for 2 frames together and 6 ms for 2 alone"
        grouped.check(grouped.classify(grouped.value(3)), grouped.value(3))
        assert grouped.backend.aside == []


@pytest.mark.parametrize(("over_ms", "pays"), [(0.0, True), (0.5, True), (1.0, False)])
def test_handing_over_is_measured(
    timed: MakeTimed,
    clock: HandClock,
    monkeypatch: pytest.MonkeyPatch,
    over_ms: float,
    pays: bool,
) -> None:
    """What is saved of the stages, 1.5 ms of 8 for each pair, must outweigh what threads lose by
    waiting for one another."""
    wait = Regroup._wait

    def slow(self: Regroup, group: Any) -> None:
        wait(self, group)
        clock.ms += over_ms

    monkeypatch.setattr(Regroup, "_wait", slow)
    grouped = timed(0.5)
    assert grouped.regroup.pays == pays
    assert ("no frame waits for others" in grouped.regroup.reason) == (not pays)
    assert grouped.regroup.sizes == {}
    assert grouped.regroup._active == 0


@pytest.mark.parametrize(
    ("deadline_ms", "waits", "exits"),
    [
        (None, True, 3),
        (math.inf, True, 3),
        (8.41, True, 3),  # 1 ms gone, 4 of waiting, 1 for stage 2, and the p99 of stage 3: 2.4 ms
        (8.39, False, 3),
        (2.19, False, 1),  # not even alone
    ],
)
def test_deadlines(timed: MakeTimed, deadline_ms: float | None, waits: bool, exits: int) -> None:
    """A frame whose deadline waiting would break does not wait."""
    grouped = timed()
    grouped.regroup.arrive()
    value = grouped.value(3)
    if waits:
        answer = grouped.start(value, deadline_ms=deadline_ms)
        grouped.regroup.leave()
        found = answer.result(20)
    else:
        found = grouped.classify(value, deadline_ms=deadline_ms)
        assert grouped.backend.aside == []
    grouped.check(found, value)
    assert (found.exit_stage, found.truncated) == (exits, exits < 3)


def test_a_deadline_that_passes_while_it_waits(timed: MakeTimed, clock: HandClock) -> None:
    """However that came about: the answer so far, and the others are not held up."""
    grouped = timed()
    grouped.regroup.arrive()
    values = grouped.value(3), grouped.value(3, skip=1)
    late = grouped.start(values[0], deadline_ms=9.0)
    other = grouped.start(values[1])
    clock.ms += 20.0
    grouped.regroup.leave()
    answers = late.result(20), other.result(20)
    assert [(p.exit_stage, p.truncated) for p in answers] == [(1, True), (3, False)]
    for answer, value in zip(answers, values, strict=True):
        grouped.check(answer, value)


def test_adapting_does_not_take_waiting_for_slowness(
    timed: MakeTimed, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 ms of waiting are in the latency; not in what adapting sees."""
    grouped = timed()
    seen: list[tuple[float, float]] = []
    runtime = grouped.runtime
    runtime.set_budget(BudgetConfig(latency_ms=2.5, adapt=True))
    controller = runtime._session._controller
    assert controller is not None
    observe = controller.observe

    def noted(exit_stage: int, stages: Any, latency_ms: float, *rest: Any, **more: Any) -> Any:
        seen.append((latency_ms, sum(stages)))
        return observe(exit_stage, stages, latency_ms, *rest, **more)

    monkeypatch.setattr(controller, "observe", noted)
    leaves = runtime.records.confidence >= runtime.solution.thresholds
    grouped.regroup.arrive()
    answer = grouped.start(int(np.flatnonzero(leaves.argmax(axis=1) == 2)[0]))
    clock.ms += 3.0
    grouped.regroup.leave()
    found = answer.result(20)
    assert found.latency_ms == pytest.approx(7.0)
    assert found.regroup_wait_ms == pytest.approx(3.0)
    ((latency_ms, stages_ms),) = seen
    assert latency_ms == pytest.approx(4.0)
    assert stages_ms == pytest.approx(4.0)


# Whether there is any


@pytest.mark.parametrize(
    ("max_batch", "whole", "remedy"),
    [
        (1, False, "add 2 to engine.batch_sizes and build again"),
        (8, True, "engine.graph: conditional runs the whole cascade at once; set it to stages"),
    ],
)
def test_where_it_cannot_be_done(
    live_bundle: Path, live_records: Records, max_batch: int, whole: bool, remedy: str
) -> None:
    """An event says so, with the remedy, and frames are answered as ever."""
    backend = FakeBackend(live_records.confidence, live_records.prediction, max_batch=max_batch)
    if whole:

        def run_whole(thresholds: Any, slot: int) -> Any:
            return [backend.run_stage(0, 1, slot)], []

        backend.run_whole = run_whole
    with Runtime(live_bundle, backend=backend, regroup_ms=4.0) as runtime:
        assert runtime.regroup is not None
        assert not runtime.regroup.pays
        assert remedy in runtime.regroup.reason
        runtime.regroup.arrive()
        assert runtime.classify(np.zeros((4, 4), np.uint8)).regroup_wait_ms == 0.0


@pytest.mark.parametrize("regroup_ms", [None, 0, 0.0])
def test_off(live_bundle: Path, live_records: Records, regroup_ms: float | None) -> None:
    backend = FakeBackend(live_records.confidence, live_records.prediction)
    with Runtime(live_bundle, backend=backend, regroup_ms=regroup_ms) as runtime:
        assert runtime.regroup is None
        assert not any(isinstance(event, Regrouping) for event in runtime.events)


@pytest.mark.parametrize("regroup_ms", [-1.0, math.nan, math.inf, True, "5", []])
def test_no_time(live_bundle: Path, live_records: Records, regroup_ms: Any) -> None:
    backend = FakeBackend(live_records.confidence, live_records.prediction)
    with pytest.raises(ConfigError, match="regroup_ms is a positive number of milliseconds"):
        Runtime(live_bundle, backend=backend, regroup_ms=regroup_ms)
    assert backend.closed == 1
