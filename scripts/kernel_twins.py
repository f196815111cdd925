"""The kernels' arithmetic on the CPU, thread by thread: what the CUDA kernels must answer.

Only tests and ``scripts/gpu_kernels.py`` call these; they need the native library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.runtime.native.calls import Pixels, check
from dvt_edge.runtime.native.library import PreprocessPlan, library, unavailable


def _declared() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError(str(unavailable()))
    plan, pointer = ctypes.POINTER(PreprocessPlan), ctypes.c_void_p
    integer, long = ctypes.c_int, ctypes.c_int64
    integers, longs = ctypes.POINTER(integer), ctypes.POINTER(long)
    gather_arguments = [ctypes.POINTER(pointer), longs, integer, pointer, integer]
    decide = [pointer, integer, ctypes.c_double, pointer]
    for name, result, arguments in (
        ("dvt_limit_instructions", None, [integer]),
        ("dvt_preprocess_reference", integer, [plan, pointer, pointer, integer, long]),
        ("dvt_axis_table", integer, [plan, integer, pointer]),
        ("dvt_tile", long, [plan, long, integers, integers]),
        ("dvt_decide", integer, decide),
        ("dvt_decide_reference", integer, decide),
        ("dvt_gather", None, gather_arguments),
        ("dvt_gather_reference", None, gather_arguments),
    ):
        function = getattr(found, name)
        function.restype = result
        function.argtypes = arguments
    return found


def limit_instructions(limit: int) -> None:
    """Which instructions :func:`preprocess` may use where the processor has them: 0 what all
    processors have, 1 AVX2, 2 all."""
    _declared().dvt_limit_instructions(limit)


def preprocess_reference(
    plan: PreprocessPlan, frame: Pixels, out: npt.NDArray[Any], block: int, shared_bytes: int
) -> None:
    """:func:`preprocess` as the CUDA kernel's threads do it, ``block`` of them; slow."""
    check(
        _declared().dvt_preprocess_reference(
            ctypes.byref(plan), frame.ctypes.data, out.ctypes.data, block, shared_bytes
        )
    )


def axis_table(plan: PreprocessPlan, axis: int) -> npt.NDArray[np.int32]:
    """What the CUDA kernel reads about one axis (0 columns, 1 rows): int32 [crop, 2 + taps]; each
    row holds a window's first pixel, its pixels, and weights with 22 fractional bits."""
    taps = _declared().dvt_axis_table(ctypes.byref(plan), axis, None)
    if taps < 0:
        raise ValueError("a field of the plan is out of its range")
    table = np.empty((plan.crop, 2 + taps), np.int32)
    _declared().dvt_axis_table(ctypes.byref(plan), axis, table.ctypes.data)
    return table


def tile(plan: PreprocessPlan, shared_bytes: int) -> tuple[int, int, int] | None:
    """Width and height in pixels of the CUDA kernel's tile, and the bytes of shared memory that it
    needs; None where not even one pixel's window fits into ``shared_bytes``."""
    width, height = ctypes.c_int(), ctypes.c_int()
    needed = _declared().dvt_tile(
        ctypes.byref(plan), shared_bytes, ctypes.byref(width), ctypes.byref(height)
    )
    return (width.value, height.value, int(needed)) if needed else None


def staying_rows(
    confidence: npt.NDArray[np.float32], threshold: float, *, reference: bool = False
) -> npt.NDArray[np.int32]:
    """Indexes, increasing, of the rows whose confidence does not reach ``threshold``.

    NaN reaches no threshold but -inf. ``reference`` does it as the CUDA kernel's threads do.
    """
    confidence = np.ascontiguousarray(confidence, np.float32)
    rows = np.empty(len(confidence), np.int32)
    call = _declared().dvt_decide_reference if reference else _declared().dvt_decide
    return rows[: call(confidence.ctypes.data, len(confidence), threshold, rows.ctypes.data)]


def gather(
    arrays: Sequence[npt.NDArray[Any]],
    rows: npt.NDArray[np.integer[Any]],
    *,
    reference: bool = False,
) -> None:
    """Move ``rows``, increasing, of each C-contiguous array to its front, in place.

    ``reference`` does it as the CUDA kernel's threads do.
    """
    count = len(arrays)
    bases = (ctypes.c_void_p * count)(*(a.ctypes.data for a in arrays))
    sizes = (ctypes.c_int64 * count)(*(a.strides[0] for a in arrays))
    indexes = np.ascontiguousarray(rows, np.int32)
    call = _declared().dvt_gather_reference if reference else _declared().dvt_gather
    call(bases, sizes, count, indexes.ctypes.data, len(indexes))
