"""Two frames in flight: one is preprocessed while the stages run for the other."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge import Prediction, Runtime
from dvt_edge.errors import ClosedError, FrameError
from dvt_edge.profile import BudgetConfig
from tests.runtime.conftest import FakeBackend, spread_scenes

Frame = npt.NDArray[np.uint8]


@pytest.fixture
def runtime(costed_bundle: Path) -> Iterator[Runtime]:
    """The demo under a budget that makes frames leave at different exits."""
    with Runtime(costed_bundle) as opened:
        opened.set_budget(BudgetConfig(latency_ms=2.0))
        yield opened


@pytest.fixture(scope="module")
def frames(samples: Path) -> list[Frame]:
    return spread_scenes(samples, 40)


def _essence(p: Prediction) -> tuple[int, int, float]:
    return p.class_id, p.exit_stage, p.confidence


def test_each_answers_in_order(runtime: Runtime, frames: list[Frame]) -> None:
    """As one by one, from any iterable; also by two loops at once, of which one works ahead."""
    expected = [_essence(runtime.classify(frame)) for frame in frames]
    assert [_essence(p) for p in runtime.classify_each(iter(frames))] == expected
    pairs = zip(runtime.classify_each(frames), runtime.classify_each(frames), strict=True)
    assert [(_essence(a), _essence(b)) for a, b in pairs] == [(e, e) for e in expected]
    assert [*runtime.classify_each([])] == []


def test_each_works_one_frame_ahead(runtime: Runtime, frames: list[Frame]) -> None:
    """The next frame is fetched while the stages run; the one after that is not."""
    fetched: list[int] = []

    def source() -> Iterator[Frame]:
        for number, frame in enumerate(frames):
            fetched.append(number)
            yield frame

    answers = runtime.classify_each(source())
    for number in range(4):
        next(answers)
        deadline = perf_counter() + 10
        while len(fetched) < number + 2:
            assert perf_counter() < deadline
            sleep(0.001)
        sleep(0.02)
        assert fetched == list(range(number + 2))
    # What waits is prepared in a slot of its own: others may classify meanwhile, and so may it.
    assert _essence(runtime.classify(frames[0])) == _essence(runtime.classify(frames[0]))
    assert _essence(next(answers)) == _essence(runtime.classify(frames[4]))


def test_each_may_be_left(runtime: Runtime, frames: list[Frame]) -> None:
    """In the middle, again and again: whatever was prepared is given back."""
    for _ in range(5):
        for _ in runtime.classify_each(frames):
            break
    assert len([*runtime.classify_each(frames)]) == len(frames)
    with ThreadPoolExecutor(2) as pool:  # both slots are free
        assert all(pool.map(runtime.classify, frames[:6]))


def test_each_raises_at_the_frame_in_question(runtime: Runtime, frames: list[Frame]) -> None:
    """What came before is answered; afterwards the Runtime goes on."""

    def source(last: object) -> Iterator[object]:
        yield frames[0]
        if isinstance(last, Exception):
            raise last
        yield last

    for last, error in (("no frame", FrameError), (OSError("the camera is gone"), OSError)):
        answers = runtime.classify_each(source(last))
        assert next(answers).class_id == runtime.classify(frames[0]).class_id
        with pytest.raises(error):
            next(answers)
        with pytest.raises(StopIteration):
            next(answers)
    assert runtime.classify(frames[0])


def test_close_while_a_frame_is_prepared(costed_bundle: Path, frames: list[Frame]) -> None:
    """Closing does not wait for what only lies ready, and what comes then is refused."""
    runtime = Runtime(costed_bundle)
    answers = runtime.classify_each(frames)
    next(answers)
    runtime.close()
    with pytest.raises(ClosedError):
        next(answers)


def test_the_next_frame_is_prepared_while_stages_run(
    costed_bundle: Path, fake_backend: type[FakeBackend]
) -> None:
    """Two slots: one thread is held within a stage, another gets through with preprocessing; a
    third waits for a slot."""
    backend = fake_backend([[0.9, 0.0, 0.0]] * 3, shape=(1, 48, 48))
    running, go_on = threading.Event(), threading.Event()
    written: list[int] = []
    run_stage, image_buffer = backend.run_stage, backend.image_buffer

    def slow(stage: int, count: int, slot: int = 0) -> Any:
        running.set()
        assert go_on.wait(20)
        return run_stage(stage, count, slot)

    def noted(count: int, slot: int = 0) -> Any:
        written.append(slot)
        return image_buffer(count, slot)

    with Runtime(costed_bundle, backend=backend) as runtime, ThreadPoolExecutor(3) as pool:
        runtime.use(runtime.replay((0.5, 0.5, -math.inf)))
        backend.run_stage, backend.image_buffer = slow, noted  # type: ignore[method-assign]
        frame = np.zeros((48, 48), np.uint8)
        answers = [pool.submit(runtime.classify, frame)]
        assert running.wait(20)
        answers += [pool.submit(runtime.classify, frame) for _ in range(2)]
        deadline = perf_counter() + 20
        while len(written) < 2:
            assert perf_counter() < deadline
            sleep(0.001)
        sleep(0.05)
        assert sorted(written) == [0, 1]
        go_on.set()
        assert [answer.result().exit_stage for answer in answers] == [1, 1, 1]
    assert len(written) == 3
