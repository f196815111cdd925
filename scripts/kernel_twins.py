"""The kernels' arithmetic on the CPU, thread by thread: what the CUDA kernels must answer.

Only tests and ``scripts/gpu_kernels.py`` call these; they need the native library.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.runtime.native.calls import Pixels, check, gather_plan
from dvt_edge.runtime.native.library import GatherPlan, PreprocessPlan, library, unavailable


def _declared() -> ctypes.CDLL:
    found = library()
    if found is None:
        raise RuntimeError(str(unavailable()))
    plan, pointer, integer = ctypes.POINTER(PreprocessPlan), ctypes.c_void_p, ctypes.c_int
    for name, result, arguments in (
        ("dvt_limit_instructions", None, [integer]),
        ("dvt_preprocess_reference", integer, [plan, pointer, pointer, integer, ctypes.c_int64]),
        ("dvt_gather_reference", None, [ctypes.POINTER(GatherPlan), integer]),
        ("dvt_leaves_reference", integer, [ctypes.c_float, ctypes.c_double]),
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


def leaves(confidence: float, threshold: float) -> bool:
    """Whether the exit kernel leaves: NaN reaches no threshold but -inf."""
    return bool(_declared().dvt_leaves_reference(confidence, threshold))


def gather(
    arrays: Sequence[npt.NDArray[Any]], rows: npt.NDArray[np.integer[Any]], threads: int
) -> None:
    """Move ``rows``, increasing, of each C-contiguous array to its front, in place, as ``threads``
    threads of the kernel do it."""
    gather_planned(gather_plan([(a.ctypes.data, a.strides[0]) for a in arrays], rows), threads)


def gather_planned(plan: GatherPlan, threads: int) -> None:
    """:func:`gather` by a plan."""
    _declared().dvt_gather_reference(ctypes.byref(plan), threads)
