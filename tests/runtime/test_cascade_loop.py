"""The cascade loop on a fake backend: who leaves where, and what is not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvt_edge.errors import FrameError
from dvt_edge.profile import InputConfig
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import Preprocessor
from tests.runtime.conftest import FakeBackend

Frame = npt.NDArray[np.uint8]
PLAIN = InputConfig(resize=4, crop=4, mean=(0.0,), std=(1.0,), color_order="gray")
NAMES = tuple(f"class {i}" for i in range(10))
# Value of the frame -> confidence at each of three exits.
CONFIDENCE = [
    [0.9, 0.0, 0.0],  # 0 leaves at the first exit
    [0.1, 0.9, 0.0],  # 1 leaves at the second
    [0.1, 0.1, 0.9],  # 2 needs all
    [0.1, 0.1, 0.0],  # 3 is unsure to the end
    [np.nan, np.nan, np.nan],  # 4 is broken
    [0.5, 0.0, 0.0],  # 5 reaches the threshold exactly
    [np.nan, 0.9, 0.0],  # 6 is broken at the first exit
]
EXITS = [1, 2, 3, 3, 3, 1, 2]
THRESHOLDS = (0.5, 0.5, -np.inf)


def _loop(backend: FakeBackend) -> CascadeLoop:
    return CascadeLoop(backend, Preprocessor(PLAIN), NAMES)


def _run_many(
    loop: CascadeLoop, frames: Sequence[object], thresholds: tuple[float, ...]
) -> list[Prediction]:
    return loop.run_many_prepared(len(frames), thresholds, loop.prepare_many(frames))


def _answer(p: Prediction) -> tuple[int, str, str, int, tuple[float, ...]]:
    return p.class_id, p.label, repr(p.confidence), p.exit_stage, p.thresholds


@pytest.mark.parametrize("value", range(len(CONFIDENCE)))
def test_one_runs_only_what_is_needed(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame], value: int
) -> None:
    """The stages after the exit are not run; NaN never leaves early."""
    backend = fake_backend(CONFIDENCE)
    answer = _loop(backend).run_one(value_frame(value), THRESHOLDS)
    stage = EXITS[value] - 1
    assert answer.exit_stage == EXITS[value]
    assert backend.runs == [(k, 1) for k in range(EXITS[value])]
    assert answer.class_id == (value + stage) % 10
    assert answer.label == NAMES[answer.class_id]
    np.testing.assert_equal(answer.confidence, float(np.float32(CONFIDENCE[value][stage])))
    assert answer.thresholds == THRESHOLDS
    assert backend.kept == []


@pytest.mark.parametrize("value", range(len(CONFIDENCE)))
def test_latencies_add_up(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame], value: int
) -> None:
    """One time per stage that ran, none negative, all inside the whole."""
    loop = _loop(fake_backend(CONFIDENCE))
    frame = value_frame(value)
    for p in [loop.run_one(frame, THRESHOLDS), *_run_many(loop, [frame, frame], THRESHOLDS)]:
        assert len(p.stage_latency_ms) == p.exit_stage
        assert min(p.preprocess_ms, *p.stage_latency_ms) >= 0
        assert p.latency_ms >= p.preprocess_ms + sum(p.stage_latency_ms) - 1e-9


def test_many_runs_each_stage_on_those_left(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """Rows of the original order go on; what leaves is answered."""
    backend = fake_backend(CONFIDENCE)
    frames = [value_frame(v) for v in (2, 0, 1, 0, 3, 6)]
    answers = _run_many(_loop(backend), frames, THRESHOLDS)
    assert [p.exit_stage for p in answers] == [3, 1, 2, 1, 3, 2]
    assert [p.class_id for p in answers] == [4, 0, 2, 0, 5, 7]
    assert backend.runs == [(0, 6), (1, 4), (2, 2)]
    assert backend.kept == [(0, [0, 2, 4, 5]), (1, [0, 2])]


def test_many_stops_when_all_have_left(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """A batch of easy frames runs one stage."""
    backend = fake_backend(CONFIDENCE)
    _run_many(_loop(backend), [value_frame(0)] * 5, THRESHOLDS)
    assert backend.runs == [(0, 5)]
    assert backend.kept == []


def test_many_moves_nothing_when_all_stay(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """A batch of hard frames is not copied."""
    backend = fake_backend(CONFIDENCE)
    answers = _run_many(_loop(backend), [value_frame(v) for v in (3, 4, 2)], THRESHOLDS)
    assert backend.runs == [(0, 3), (1, 3), (2, 3)]
    assert backend.kept == []
    assert [p.exit_stage for p in answers] == [3, 3, 3]


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 2**32 - 1), stages=st.integers(1, 4), count=st.integers(1, 8))
def test_many_equals_one(
    fake_backend: type[FakeBackend],
    value_frame: Callable[[int], Frame],
    seed: int,
    stages: int,
    count: int,
) -> None:
    """A batch gives every frame the answer that it gets alone, in input order."""
    rng = np.random.default_rng(seed)
    levels = np.append(rng.random(6), np.nan)
    confidence, class_id = (
        levels[rng.integers(0, 7, (20, stages))],
        rng.integers(0, 10, (20, stages)),
    )
    thresholds = (*levels[rng.integers(0, 6, stages - 1)].tolist(), -np.inf)
    loop = _loop(fake_backend(confidence, class_id))
    frames = [value_frame(int(v)) for v in rng.integers(0, 20, count)]
    alone = [_answer(loop.run_one(frame, thresholds)) for frame in frames]
    assert [_answer(p) for p in _run_many(loop, frames, thresholds)] == alone


def test_threshold_between_neighbouring_floats(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """Thresholds lie halfway between confidences, which float32 cannot hold: both ways agree."""
    floats = [np.float32(0.99)]
    while len(floats) < 20:
        floats.append(np.nextafter(floats[-1], np.float32(1)))
    loop = _loop(fake_backend([[float(value), 1.0] for value in floats], max_batch=len(floats)))
    frames = [value_frame(v) for v in range(len(floats))]
    for k in range(len(floats) - 1):
        thresholds = ((float(floats[k]) + float(floats[k + 1])) / 2, -np.inf)
        expected = [2] * (k + 1) + [1] * (len(floats) - k - 1)
        assert [loop.run_one(f, thresholds).exit_stage for f in frames] == expected
        assert [p.exit_stage for p in _run_many(loop, frames, thresholds)] == expected


def test_infinite_thresholds(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """+inf: nobody leaves, however sure; -inf: everybody does."""
    loop = _loop(fake_backend([[1.0, 1.0, 1.0]]))
    frame = value_frame(0)
    assert loop.run_one(frame, (np.inf, np.inf, -np.inf)).exit_stage == 3
    assert loop.run_one(frame, (np.inf, -np.inf, -np.inf)).exit_stage == 2
    assert _run_many(loop, [frame], (-np.inf, np.inf, -np.inf))[0].exit_stage == 1


def test_answers_do_not_change_with_the_next_frame(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """A prediction holds values, not views into the backend's memory."""
    loop = _loop(fake_backend(CONFIDENCE))
    first = loop.run_one(value_frame(0), THRESHOLDS)
    before = _answer(first)
    loop.run_one(value_frame(1), THRESHOLDS)
    assert _answer(first) == before
    assert type(first.confidence) is float
    assert type(first.class_id) is int


def test_bad_frame_runs_nothing(
    fake_backend: type[FakeBackend], value_frame: Callable[[int], Frame]
) -> None:
    """A frame that is no image is refused before any stage runs, alone and in a batch."""
    backend = fake_backend(CONFIDENCE)
    loop = _loop(backend)
    with pytest.raises(FrameError):
        loop.run_one("no frame", THRESHOLDS)
    with pytest.raises(FrameError):
        _run_many(loop, [value_frame(0), np.zeros((4, 4))], THRESHOLDS)
    assert backend.runs == []
    assert loop.run_one(value_frame(0), THRESHOLDS).exit_stage == 1
