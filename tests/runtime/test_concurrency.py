"""Many threads at once: right answers, and nobody waits for ever."""

from __future__ import annotations

import faulthandler
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge import Prediction, Runtime
from dvt_edge.errors import ClosedError
from dvt_edge.profile import BudgetConfig
from tests.runtime.conftest import spread_scenes

Frame = npt.NDArray[np.uint8]
Exits = list[list[tuple[int, float]]]
LIMITS = (1.2, 2.0, 4.0)
"""Milliseconds: the first stage alone, a mixture, nearly all of them."""


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    """A deadlock ends the process after a minute, with what each thread waits for."""
    assert sys.__stderr__ is not None
    faulthandler.dump_traceback_later(60, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(scope="module")
def frames(samples: Path) -> list[Frame]:
    return spread_scenes(samples, 24)


@pytest.fixture(scope="module")
def exits(costed_bundle: Path, frames: list[Frame]) -> Exits:
    """[frame][exit]: class and confidence, by one thread."""
    with Runtime(costed_bundle) as runtime:
        runtime.use(runtime.replay((np.inf,) * (runtime.records.exits - 1) + (-np.inf,)))
        answers = [runtime.classify(frame) for frame in frames]
    return [list(zip(p.classes, p.confidences, strict=True)) for p in answers]


def _check(exits: Exits, at: int, p: Prediction) -> None:
    """What the exit that was taken answers, by the thresholds that the answer names."""
    taken = p.exit_stage - 1
    assert (p.class_id, p.confidence) == exits[at][taken]
    assert all(exits[at][k][1] < p.thresholds[k] for k in range(taken))
    assert p.confidence >= p.thresholds[taken]


def _together(*works: Callable[[], object]) -> None:
    """Run each in a thread of its own; all start at once, and what they raise is raised."""
    start = threading.Barrier(len(works))

    def run(work: Callable[[], object]) -> None:
        start.wait()
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(run, work) for work in works]:
            done.result()


def _classifying(runtime: Runtime, frames: list[Frame], exits: Exits) -> Callable[[], None]:
    def work() -> None:
        for at, frame in enumerate(frames):
            _check(exits, at, runtime.classify(frame))

    return work


def test_many_threads_on_one(costed_bundle: Path, frames: list[Frame], exits: Exits) -> None:
    """Singly, in batches and as a stream: everybody gets the answer to his own frame."""

    def batches() -> None:
        for at, p in enumerate(runtime.classify_batch(frames)):
            _check(exits, at, p)

    def stream() -> None:
        for at, p in enumerate(runtime.classify_each(frames)):
            _check(exits, at, p)

    with Runtime(costed_bundle) as runtime:
        runtime.set_budget(BudgetConfig(latency_ms=2.0))
        singly = _classifying(runtime, frames, exits)
        _together(*[singly] * 8, batches, batches, stream, stream)


def test_several_runtimes(costed_bundle: Path, frames: list[Frame], exits: Exits) -> None:
    """Each under its own budget, two threads on each; opened and closed side by side."""

    def work(limit: float) -> Callable[[], None]:
        def run() -> None:
            with Runtime(costed_bundle) as runtime:
                runtime.set_budget(BudgetConfig(latency_ms=limit))
                mine = runtime.thresholds
                singly = _classifying(runtime, frames, exits)
                _together(singly, singly)
                assert runtime.thresholds == mine

        return run

    _together(*[work(limit) for limit in LIMITS])


def test_budgets_change_meanwhile(costed_bundle: Path, frames: list[Frame], exits: Exits) -> None:
    """Every answer is by the thresholds of one budget, never by a mixture of two."""
    with Runtime(costed_bundle) as runtime:
        known = set()
        for limit in LIMITS:
            runtime.set_budget(BudgetConfig(latency_ms=limit))
            known.add(runtime.thresholds)
        assert len(known) == len(LIMITS)
        finished = threading.Event()

        def change() -> None:
            while not finished.is_set():
                for limit in LIMITS:
                    runtime.set_budget(BudgetConfig(latency_ms=limit))

        def classify() -> None:
            for _ in range(3):
                for at, frame in enumerate(frames):
                    p = runtime.classify(frame)
                    _check(exits, at, p)
                    assert p.thresholds in known

        with ThreadPoolExecutor(6) as pool:
            changing = [pool.submit(change) for _ in range(2)]
            try:
                for done in [pool.submit(classify) for _ in range(4)]:
                    done.result()
            finally:
                finished.set()
            for done in changing:
                done.result()


@pytest.mark.parametrize("regroup_ms", [0.0, 5.0])
def test_close_meanwhile(
    costed_bundle: Path, frames: list[Frame], exits: Exits, regroup_ms: float
) -> None:
    """Each frame is answered rightly or refused as closed; closing twice at once is closing."""
    for round_ in range(3):
        runtime = Runtime(costed_bundle, regroup_ms=regroup_ms)
        runtime.set_budget(BudgetConfig(latency_ms=2.0))
        first = threading.Semaphore(0)

        def classify(runtime: Runtime = runtime, first: threading.Semaphore = first) -> int:
            count = 0
            while True:
                at = count % len(frames)
                try:
                    answer = runtime.classify(frames[at])
                except ClosedError:
                    return count
                finally:
                    first.release()
                _check(exits, at, answer)
                count += 1

        def change(runtime: Runtime = runtime) -> None:
            try:
                while True:
                    for limit in LIMITS:
                        runtime.set_budget(BudgetConfig(latency_ms=limit))
            except ClosedError:
                return

        with ThreadPoolExecutor(7) as pool:
            working = [pool.submit(classify) for _ in range(4)] + [pool.submit(change)]
            for _ in range(round_ * 6):
                first.acquire()
            closing = [pool.submit(runtime.close) for _ in range(2)]
            for done in [*working, *closing]:
                done.result()
        with pytest.raises(ClosedError):
            runtime.classify(frames[0])
