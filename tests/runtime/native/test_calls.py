"""The fast CPU code against the kernels' arithmetic, thread by thread, and against NumPy."""

from __future__ import annotations

import ctypes
from typing import Any

import kernel_twins
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.native import calls
from dvt_edge.runtime.native.library import (
    DriverCalls,
    PreprocessPlan,
    library,
    unavailable,
)
from dvt_edge.runtime.preprocess import Preprocessor, frame_shape
from tests.runtime.conftest import COLOR

pytestmark = pytest.mark.skipif(library() is None, reason=str(unavailable()))

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
SHARED = 48 << 10
"""Bytes of shared memory that every GPU has."""


def _frame(*shape: int, seed: int = 0) -> Pixels:
    """Noise, half of it black and white, where a cubic overshoots most."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, shape, np.uint8)
    return np.where(rng.random(shape) < 0.5, noise, (noise > 127) * np.uint8(255))


def _config(channels: int, resize: int, crop: int, interpolation: str = "bicubic") -> InputConfig:
    values = COLOR.model_dump() | {"resize": resize, "crop": crop, "interpolation": interpolation}
    if channels == 1:
        values |= {"mean": (0.13,), "std": (0.26,), "color_order": "gray"}
    return InputConfig.model_validate(values)


def _plan(
    frame: Pixels, order: ColorOrder, config: InputConfig, resized: tuple[int, int], dtype: Any
) -> PreprocessPlan:
    height = len(frame) * 2 // 3 if order == "nv12" else len(frame)
    plan = calls.make_plan(
        config, order, (height, frame.shape[1]), resized, frame.strides[0], dtype
    )
    assert plan is not None
    return plan


def _out(config: InputConfig, dtype: Any) -> npt.NDArray[Any]:
    return np.full((config.channels, config.crop, config.crop), 77, dtype)


@settings(deadline=None, max_examples=300)
@given(
    order=st.sampled_from(sorted(calls.LAYOUTS)),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    channels=st.sampled_from([1, 3]),
    resized=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    margin=st.integers(0, 50),
    interpolation=st.sampled_from(["bilinear", "bicubic"]),
    dtype=st.sampled_from([np.uint8, np.float16, np.float32]),
    block=st.integers(1, 130),
    shared=st.sampled_from([1 << 10, 4 << 10, SHARED]),
    seed=st.integers(0, 5),
)
def test_fast_equals_kernel_arithmetic(
    order: ColorOrder,
    height: int,
    width: int,
    channels: int,
    resized: tuple[int, int],
    margin: int,
    interpolation: str,
    dtype: Any,
    block: int,
    shared: int,
    seed: int,
) -> None:
    """Bit by bit, for any layout, size, ratio of the sides, block size and tile; with this
    processor's instructions and with the code for all processors."""
    crop = max(4, min(resized) - margin)
    config = _config(channels, max(crop, 4), crop, interpolation)
    frame = _frame(*frame_shape(height, width, order), seed=seed)
    plan = _plan(frame, order, config, resized, dtype)
    slow = _out(config, dtype)
    if calls.tile(plan, shared) is None:
        shared = 1 << 20
    kernel_twins.preprocess_reference(plan, frame, slow, block, shared)
    for limit in range(3):
        fast = _out(config, dtype)
        kernel_twins.limit_instructions(limit)
        try:
            calls.preprocess(plan, frame, fast)
        finally:
            kernel_twins.limit_instructions(2)
        np.testing.assert_array_equal(fast, slow, err_msg=f"limit {limit}")


@pytest.mark.parametrize("order", sorted(calls.LAYOUTS))
@pytest.mark.parametrize("channels", [1, 3])
def test_threads_change_nothing(order: ColorOrder, channels: int) -> None:
    """A frame large enough to be shared out among threads; also more of them than rows."""
    config = _config(channels, 256, 224)
    frame = _frame(*frame_shape(1080, 1310, order))
    plan = _plan(frame, order, config, (256, 311), np.float32)
    alone, together = _out(config, np.float32), _out(config, np.float32)
    calls.preprocess(plan, frame, alone)
    for threads in (2, 3, 7, 1000):
        together[:] = 77
        calls.preprocess(plan, frame, together, threads)
        np.testing.assert_array_equal(together, alone, err_msg=str(threads))


def test_rows_running_upwards() -> None:
    """A flipped view is read where it lies."""
    config = _config(3, 20, 16)
    frame = _frame(33, 40, 3)
    flipped, out = frame[::-1], _out(config, np.float32)
    calls.preprocess(_plan(flipped, "bgr", config, (20, 24), np.float32), flipped, out)
    expected = _out(config, np.float32)
    copy = flipped.copy()
    calls.preprocess(_plan(copy, "bgr", config, (20, 24), np.float32), copy, expected)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("scale", [1e-9, 1e-7, 3e-5, 0.1, 1.0, 77.0, 4e3])
def test_half_precision(scale: float) -> None:
    """Rounded as NumPy rounds: subnormal, ordinary and too large numbers."""
    config = _config(1, 16, 16).model_copy(update={"mean": (0.3,), "std": (1 / scale,)})
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16)
    half, single = _out(config, np.float16), _out(config, np.float32)
    calls.preprocess(_plan(frame, "gray", config, (16, 16), np.float16), frame, half)
    calls.preprocess(_plan(frame, "gray", config, (16, 16), np.float32), frame, single)
    with np.errstate(over="ignore"):
        expected = single.astype(np.float16)
    np.testing.assert_array_equal(half.view(np.uint16), expected.view(np.uint16))
    assert len(np.unique(half)) > 1 or scale < 1e-8


def test_half_precision_ties() -> None:
    """From 2048 on, half precision knows even numbers only: odd ones go to the even mantissa."""
    config = _config(1, 16, 16)
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16)
    plan = _plan(frame, "gray", config, (16, 16), np.float16)
    plan.scale[0], plan.shift[0] = 1, 2048
    out = _out(config, np.float16)
    calls.preprocess(plan, frame, out)
    np.testing.assert_array_equal(out[0], (frame + np.float32(2048)).astype(np.float16))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layout", 5),
        ("layout", -1),
        ("height", 0),
        ("width", (1 << 24) + 1),
        ("channels", 2),
        ("crop", 0),
        ("crop", 21),
        ("top", 5),
        ("left", -1),
        ("resized_height", 15),
        ("filter", 2),
        ("output", 3),
    ],
)
def test_bad_plans(field: str, value: int) -> None:
    """Nothing is read or written where a field is out of its range."""
    config = _config(3, 20, 16)
    frame, out = _frame(20, 20, 3), _out(config, np.float32)
    plan = _plan(frame, "bgr", config, (20, 20), np.float32)
    setattr(plan, field, value)
    with pytest.raises(ValueError, match="out of its range"):
        calls.preprocess(plan, frame, out)
    assert (out == 77).all()
    with pytest.raises(ValueError, match="out of its range"):
        calls.axis_table(plan, 0)
    assert calls.tile(plan, SHARED) is None


def test_odd_yuv_is_a_bad_plan() -> None:
    """The chroma of half a pair lies nowhere."""
    config = _config(3, 20, 16)
    frame = _frame(30, 21)
    plan = _plan(frame, "nv12", config, (20, 21), np.float32)
    with pytest.raises(ValueError, match="out of its range"):
        calls.preprocess(plan, frame, _out(config, np.float32))


def test_too_large_for_a_plan() -> None:
    """Sizes that 32 bits cannot hold are left to Pillow."""
    config = _config(3, 20, 16)
    assert calls.make_plan(config, "bgr", (1, 1 << 25), (20, 100), 3, np.uint8) is None
    assert calls.make_plan(config, "bgr", (1, 100), (20, 1 << 31), 3, np.uint8) is None


def test_axis_table() -> None:
    """Windows lie inside the frame, go forward, and their weights sum to one."""
    config = _config(3, 256, 224)
    plan = _plan(_frame(540, 960, 3), "bgr", config, (256, 455), np.float32)
    for axis, size in ((0, 960), (1, 540)):
        table = calls.axis_table(plan, axis)
        first, count = table[:, 0], table[:, 1]
        assert (first >= 0).all()
        assert (first + count <= size).all()
        assert (np.diff(first) >= 0).all()
        assert (np.diff(first + count) >= 0).all()
        assert count.max() == table.shape[1] - 2
        np.testing.assert_allclose(table[:, 2:].sum(axis=1) / (1 << 22), 1, atol=1e-5)


def test_tile() -> None:
    """The largest tile that fits; none where a single pixel's window does not."""
    config = _config(3, 256, 224)
    plan = _plan(_frame(1080, 1920, 3), "bgr", config, (256, 455), np.float32)
    width, height, needed = calls.tile(plan, SHARED) or (0, 0, 0)
    assert (width, height) == (32, 16)
    assert needed <= SHARED
    smaller = calls.tile(plan, needed - 1)
    assert smaller is not None
    assert smaller[:2] == (32, 8)
    assert calls.tile(plan, 16 * 3) is None


CONFIDENCES = [
    (0.4, 0.5, False),
    (0.5, 0.5, True),
    (0.6, 0.5, True),
    (np.nan, 0.5, False),
    (np.nan, -np.inf, True),
    (1.0, np.inf, False),
    (0.1, -np.inf, True),
    # The threshold lies between two neighbouring float32 numbers.
    (np.float32(0.7), float(np.float32(0.7)) + 1e-9, False),
]


@pytest.mark.parametrize(("confidence", "threshold", "leaves"), CONFIDENCES)
def test_decision(confidence: float, threshold: float, leaves: bool) -> None:
    """Whoever reaches the threshold leaves; NaN does not, unless all do. As the cascade loop."""
    assert kernel_twins.leaves(confidence, threshold) == leaves
    assert leaves == (float(np.float32(confidence)) >= threshold or threshold == -np.inf)


@settings(deadline=None)
@given(
    kept=st.lists(st.booleans(), min_size=1, max_size=12),
    shapes=st.lists(st.lists(st.integers(1, 5), min_size=0, max_size=3), min_size=1, max_size=4),
    threads=st.sampled_from([1, 3, 256]),
)
def test_gather_equals_numpy(kept: list[bool], shapes: list[list[int]], threads: int) -> None:
    """Several arrays of several types at once, in place, whichever rows stay."""
    rows = np.flatnonzero(kept)
    rng = np.random.default_rng(0)
    types = (np.float32, np.uint8, np.float16, np.int64)
    arrays = [
        rng.integers(0, 100, (len(kept), *shape)).astype(types[i % 4])
        for i, shape in enumerate(shapes)
    ]
    before = [a.copy() for a in arrays]
    kernel_twins.gather(arrays, rows, threads)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array[: len(rows)], old[rows])
        # Behind the rows kept, nothing is touched but what they passed over.
        last = rows[-1] + 1 if len(rows) else 0
        np.testing.assert_array_equal(array[last:], old[last:])


def test_small_frames_of_several_sizes_in_turn() -> None:
    """What is kept from frame to frame belongs to one size; another is worked out anew."""
    config = _config(3, 20, 16)
    frames = [_frame(h, w, 3, seed=h) for h, w in ((40, 50), (50, 40), (40, 50), (9, 200))]
    preprocess = Preprocessor(config)
    for frame in frames:
        found, expected = _out(config, np.float32), _out(config, np.float32)
        preprocess(frame, found)
        Preprocessor(config)(frame, expected)
        np.testing.assert_array_equal(found, expected)


def test_gather_at_its_limits() -> None:
    """As many rows and arrays as a plan holds, with rows of 16 bytes and others."""
    arrays = [
        np.arange(1024 * width, dtype=np.uint8).reshape(1024, width) for width in range(12, 20)
    ]
    before, rows = [a.copy() for a in arrays], np.arange(1024)
    kernel_twins.gather(arrays, rows, 7)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    kernel_twins.gather(arrays, rows[1:], 7)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array[:-1], old[1:])


DRIVER_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
ONE_CALL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


@pytest.mark.parametrize(
    ("event", "fails", "status", "made"),
    [
        (None, {}, 0, ["launch 1 2", "query 2", "query 2", "query 2"]),
        (3, {}, 0, ["launch 1 2", "record 3 2", "wait 3"]),
        (None, {"launch": 700}, 700, ["launch 1 2"]),
        (None, {"query": 719}, 719, ["launch 1 2", "query 2", "query 2", "query 2"]),
        (3, {"record": 400}, 400, ["launch 1 2", "record 3 2"]),
        (3, {"wait": 719}, 719, ["launch 1 2", "record 3 2", "wait 3"]),
    ],
)
def test_launch_and_wait(
    event: int | None, fails: dict[str, int], status: int, made: list[str]
) -> None:
    """Spinning asks until the stream is done; with an event the thread sleeps on it. The first
    failure is the answer."""
    calls_made: list[str] = []

    def call(name: str, *handles: int) -> int:
        calls_made.append(" ".join(map(str, (name, *handles))))
        if name == "query" and calls_made.count(calls_made[-1]) < 3:
            return 600
        return fails.get(name, 0)

    functions = [
        DRIVER_CALL(lambda graph, stream: call("launch", graph, stream)),
        ONE_CALL(lambda stream: call("query", stream)),
        DRIVER_CALL(lambda event, stream: call("record", event, stream)),
        ONE_CALL(lambda event: call("wait", event)),
    ]
    driver = DriverCalls(*(ctypes.cast(f, ctypes.c_void_p).value for f in functions))
    found = library()
    assert found is not None
    assert found.dvt_run_graph(ctypes.byref(driver), 1, 2, event) == status
    assert calls_made == made
