"""Copies are read from a profiler's trace, and judged; nothing that is unclear counts as none."""

from __future__ import annotations

from typing import Any

import pytest
from gpu_claims import judge_crossed
from gpu_trace import Crossed, read_trace

IMAGE = 4608
FRAME: list[dict[str, Any]] = [
    {"ph": "M", "name": "process_name", "args": {"name": "python"}},
    {"ph": "X", "cat": "cuda_runtime", "name": "cudaMemcpyAsync", "args": {"bytes": 99}},
    {
        "ph": "X",
        "cat": "gpu_memcpy",
        "name": "Memcpy HtoD (Pinned -> Device)",
        "args": {"device": 0, "stream": 13, "bytes": IMAGE, "memory bandwidth (GB/s)": 4.1},
    },
    {"ph": "X", "cat": "kernel", "name": "gemm", "args": {"stream": 13}},
    {
        "ph": "X",
        "cat": "gpu_memcpy",
        "name": "Memcpy DtoD (Device -> Device)",
        "args": {"bytes": 64},
    },
    {"ph": "X", "cat": "gpu_memset", "name": "Memset (Device)", "args": {"bytes": 32}},
]
LOGITS = {
    "ph": "X",
    "cat": "gpu_memcpy",
    "name": "Memcpy DtoH (Device -> Pageable)",
    "args": {"bytes": 40},
}
CONTROL = read_trace({"traceEvents": [LOGITS]})


def _judged(crossed: Crossed, control: Crossed = CONTROL, frames: int = 1) -> Any:
    return judge_crossed(crossed, control, sent=frames * IMAGE, downloaded=40)


def test_a_frame() -> None:
    found = read_trace({"traceEvents": FRAME})
    assert found.bytes == {"HtoD": IMAGE, "DtoH": 0, "DtoD": 64}
    assert (found.copies, found.kernels) == (2, 1)
    assert _judged(found).state == "holds"


@pytest.mark.parametrize(
    "event",
    [
        pytest.param(LOGITS, id="an answer was copied"),
        pytest.param(
            {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pageable -> Device)", "args": {"bytes": 4}},
            id="something else went up",
        ),
    ],
)
def test_any_other_byte_fails(event: dict[str, Any]) -> None:
    assert _judged(read_trace({"traceEvents": [*FRAME, event]})).state == "fails"


def test_an_image_that_did_not_go_up_fails() -> None:
    assert _judged(read_trace({"traceEvents": FRAME}), frames=2).state == "fails"


@pytest.mark.parametrize(
    ("crossed", "control"),
    [
        pytest.param(read_trace({"traceEvents": FRAME}), Crossed(), id="control download unseen"),
        pytest.param(Crossed(), CONTROL, id="no work seen"),
    ],
)
def test_a_profiler_that_saw_nothing_proves_nothing(crossed: Crossed, control: Crossed) -> None:
    assert _judged(crossed, control).state == "not tried"


@pytest.mark.parametrize(
    "event",
    [
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "args": {}},
        {"cat": "gpu_memcpy", "name": "copy", "args": {"bytes": 4}},
    ],
)
def test_a_copy_that_cannot_be_read_is_an_error(event: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read_trace({"traceEvents": [event]})
