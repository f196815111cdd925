"""Waiting for another thread's frame is part of the latency, and taken off a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, sleep
from typing import Any

import pytest

from dvt_edge import Prediction
from tests.conftest import HandClock
from tests.runtime.conftest import Live


@pytest.fixture
def readings() -> list[float]:
    """What the Runtime read off the clock: first when a frame comes, then when its stages start."""
    return []


@pytest.fixture
def clock(clock: HandClock, readings: list[float], monkeypatch: pytest.MonkeyPatch) -> HandClock:
    """Also where waiting is timed."""

    def read() -> float:
        readings.append(clock())
        return readings[-1]

    monkeypatch.setattr("dvt_edge.runtime.runtime.perf_counter", read)
    return clock


@dataclass
class Held:
    """A Runtime within a stage of one frame, which goes on when it is told to."""

    live: Live
    pool: ThreadPoolExecutor
    first: Future[Prediction]
    go_on: threading.Event
    readings: list[float]

    def start(self, work: Callable[[], Prediction]) -> Future[Prediction]:
        """Begin ``work`` in another thread; returns once it has looked at the clock."""
        before = len(self.readings)
        answer = self.pool.submit(work)
        until = perf_counter() + 20
        while len(self.readings) == before:
            assert perf_counter() < until
            sleep(0.001)
        return answer

    def come(self, exit_stage: int, **arguments: Any) -> Future[Prediction]:
        """Another frame, which will leave at ``exit_stage`` and has to wait."""
        value = self.live.value(exit_stage)
        return self.start(lambda: self.live.classify(value, **arguments))


@pytest.fixture
def held(live: Live, readings: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    running, go_on, at_first = threading.Event(), threading.Event(), [True]
    run_stage = live.backend.run_stage

    def slow(stage: int, count: int, slot: int = 0) -> Any:
        if at_first.pop() if at_first else False:
            running.set()
            assert go_on.wait(20)
        return run_stage(stage, count, slot)

    monkeypatch.setattr(live.backend, "run_stage", slow)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(live.classify, live.value(1))
        assert running.wait(20)
        yield Held(live, pool, first, go_on, readings)
        go_on.set()


def test_waiting_is_part_of_the_latency(held: Held, clock: HandClock) -> None:
    """7 ms in which another frame is within a stage, 1 ms more for it, then 4 ms of its own."""
    second = held.come(3)
    clock.ms += 7.0
    held.go_on.set()
    assert held.first.result().latency_ms == pytest.approx(8.0)
    answer = second.result()
    assert answer.latency_ms == pytest.approx(12.0)
    assert sum(answer.stage_latency_ms) == pytest.approx(4.0)


def test_waiting_is_taken_off_a_deadline(held: Held, clock: HandClock) -> None:
    """Of 12 ms, 8 are waited for and 2 gone after two stages: the third's p99 does not fit."""
    second = held.come(3, deadline_ms=12.0)
    clock.ms += 7.0
    held.go_on.set()
    answer = second.result()
    assert (answer.exit_stage, answer.truncated) == (2, True)
    assert answer.latency_ms == pytest.approx(10.0)
    assert not held.live.classify(held.live.value(3), deadline_ms=12.0).truncated


def test_waiting_for_a_slot_counts(held: Held, clock: HandClock) -> None:
    """A third frame has no place to be prepared in; its clock runs all the same."""
    second = held.come(3)
    answer = held.come(1)
    clock.ms += 7.0
    held.go_on.set()
    took = answer.result().latency_ms
    assert second.result().latency_ms >= 12.0 - 1e-6
    assert took >= 9.0 - 1e-6


def test_waiting_counts_where_frames_are_compared(held: Held, clock: HandClock) -> None:
    """With ``video``, in which frames are prepared only where that is needed."""
    held.live.runtime.set_budget(video=True)
    second = held.come(3)
    clock.ms += 7.0
    held.go_on.set()
    assert second.result().latency_ms == pytest.approx(12.0)


def test_frames_that_lie_ready_do_not_age(live: Live, clock: HandClock) -> None:
    """Prepared ahead, and taken when the caller comes back: that is no latency."""
    value, answers = live.value(1), []
    for answer in live.runtime.classify_each(live.frame(value) for _ in range(20)):
        answers.append(answer.latency_ms)
        sleep(0.002)  # the next one is prepared meanwhile
        clock.ms += 100.0
    assert answers == pytest.approx([1.0] * 20)


def test_waiting_between_two_of_each(held: Held, clock: HandClock) -> None:
    """For another caller's frame, by the loop that works ahead: that counts."""
    frames = [held.live.frame(held.live.value(1))]
    answer = held.start(lambda: next(held.live.runtime.classify_each(frames)))
    clock.ms += 7.0
    held.go_on.set()
    assert answer.result().latency_ms == pytest.approx(9.0)


def test_the_promise_holds_waiting(held: Held, clock: HandClock) -> None:
    """What callers wait for is what they are promised."""
    second = held.come(3)
    clock.ms += 300.0
    held.go_on.set()
    answers = [held.first.result(), second.result(), *held.live.stream(126)]
    (measured,) = held.live.runtime.promise.measured
    assert measured.measured == pytest.approx(sum(p.latency_ms for p in answers) / 128)
