"""The native functions for NumPy arrays. Each needs :func:`library`; callers check it first."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.native.library import NO_MEMORY, OK, GatherPlan, PreprocessPlan, library

LAYOUTS: dict[ColorOrder, int] = {"bgr": 0, "rgb": 1, "gray": 2, "nv12": 3, "yuyv": 4}
FILTERS = {"bilinear": 0, "bicubic": 1}
OUTPUTS: dict[np.dtype[Any], int] = {
    np.dtype(np.uint8): 0,
    np.dtype(np.float32): 1,
    np.dtype(np.float16): 2,
}
LARGEST_SIDE = 1 << 24
"""Of a frame, px: beyond it Pillow's single-precision boxes are no longer exact either."""

Pixels = npt.NDArray[np.uint8]

TakeFrame = Callable[[PreprocessPlan, Pixels, int], bool]
"""Takes a frame for a slot, to make its image as the plan says; False where it cannot."""


def make_plan(
    config: InputConfig,
    order: ColorOrder,
    picture: tuple[int, int],
    resized: tuple[int, int],
    row_stride: int,
    dtype: npt.DTypeLike,
) -> PreprocessPlan | None:
    """A plan for frames of one size and layout; None where they are too large for one.

    ``picture`` and ``resized`` are height and width in pixels, ``row_stride`` is in bytes, and
    ``dtype`` is of the output: uint8 levels [crop, crop(, 3)], or float32 or float16
    [channels, crop, crop], normalised.
    """
    if max(picture) > LARGEST_SIDE or max(resized) >= 1 << 31:
        return None
    std = np.asarray(config.std, np.float32)
    scale, shift = 1 / (255 * std), -np.asarray(config.mean, np.float32) / std
    return PreprocessPlan(
        row_stride,
        LAYOUTS[order],
        *picture,
        config.channels,
        *resized,
        (resized[0] - config.crop) // 2,
        (resized[1] - config.crop) // 2,
        config.crop,
        FILTERS[config.interpolation],
        OUTPUTS[np.dtype(dtype)],
        (ctypes.c_float * 3)(*scale.tolist()),
        (ctypes.c_float * 3)(*shift.tolist()),
    )


def preprocess(
    plan: PreprocessPlan, frame: Pixels, out: npt.NDArray[Any], threads: int = 1
) -> None:
    """Write ``frame`` into ``out``, C-contiguous, as ``plan`` says; on at most ``threads`` threads,
    fewer where the frame is small.

    A frame's rows are packed, and ``plan.row_stride`` bytes apart. Raises :class:`MemoryError`.
    """
    found = library()
    assert found is not None, "callers check library() first"
    check(found.dvt_preprocess(ctypes.byref(plan), frame.ctypes.data, out.ctypes.data, threads))


def axis_table(plan: PreprocessPlan, axis: int) -> npt.NDArray[np.int32]:
    """What the CUDA kernel reads about one axis (0 columns, 1 rows): int32 [crop, 2 + taps]; each
    row holds a window's first pixel, its pixels, and weights with 22 fractional bits."""
    found = library()
    assert found is not None, "callers check library() first"
    taps = found.dvt_axis_table(ctypes.byref(plan), axis, None)
    if taps < 0:
        raise ValueError("a field of the plan is out of its range")
    table = np.empty((plan.crop, 2 + taps), np.int32)
    found.dvt_axis_table(ctypes.byref(plan), axis, table.ctypes.data)
    return table


def tile(plan: PreprocessPlan, shared_bytes: int) -> tuple[int, int, int] | None:
    """Width and height in pixels of the CUDA kernel's tile, and the bytes of shared memory that it
    needs; None where not even one pixel's window fits into ``shared_bytes``."""
    found = library()
    assert found is not None, "callers check library() first"
    width, height = ctypes.c_int(), ctypes.c_int()
    needed = found.dvt_tile(
        ctypes.byref(plan), shared_bytes, ctypes.byref(width), ctypes.byref(height)
    )
    return (width.value, height.value, int(needed)) if needed else None


def gather_plan(
    tensors: Sequence[tuple[int, int]], rows: npt.NDArray[np.integer[Any]]
) -> GatherPlan:
    """Move ``rows``, increasing, to the front of each of ``tensors``: address, bytes of a row."""
    plan = GatherPlan(arrays=len(tensors), count=len(rows))
    for i, (address, row_bytes) in enumerate(tensors):
        plan.base[i], plan.row_bytes[i] = address, row_bytes
    np.ctypeslib.as_array(plan.rows)[: len(rows)] = rows
    return plan


def check(status: int) -> None:
    if status == NO_MEMORY:
        raise MemoryError("no memory to preprocess the frame; make the frames smaller")
    if status != OK:
        raise ValueError("a field of the plan is out of its range")
