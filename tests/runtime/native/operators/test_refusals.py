"""What is refused, and when."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from dvt_edge.models.upsampling import upsampling_1d
from dvt_edge.runtime.native import operator_library
from tests.runtime.native.operators.reference import (
    NAN,
    RELATION_CONSTANTS,
    SETS,
    Array,
    attention_inputs,
    linear_inputs,
    open_node,
    relation_inputs,
)

pytestmark = pytest.mark.skipif(
    operator_library.path() is None, reason=str(operator_library.unavailable())
)


def _with(inputs: Mapping[str, Array | None], **changed: Array | None) -> dict[str, Array | None]:
    return {**inputs, **changed}


LINEAR = linear_inputs([5], 32, 32)
LINEAR_CONSTANTS = ["w", "scale", "bias"]
ATTENTION = {"heads": 2, "head_width": 32, "scale": 1.0}


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes", "words"),
    [
        (
            "Linear",
            _with(LINEAR, w=np.zeros((30, 32), np.int8)),
            LINEAR_CONSTANTS,
            {},
            "multiple of 4",
        ),
        (
            "Linear",
            _with(LINEAR, w=np.zeros((32, 40), np.int8)),
            LINEAR_CONSTANTS,
            {},
            "multiple of 4",
        ),
        (
            "Linear",
            _with(LINEAR, w=np.zeros((2, 4, 4), np.int8)),
            LINEAR_CONSTANTS,
            {},
            "two dimensions",
        ),
        (
            "Linear",
            _with(LINEAR, w=np.full((32, 32), NAN, np.int8)),
            LINEAR_CONSTANTS,
            {},
            "holds -128",
        ),
        (
            "Linear",
            _with(LINEAR, scale=np.ones(31, np.float32)),
            LINEAR_CONSTANTS,
            {},
            "expected [32]",
        ),
        (
            "Linear",
            _with(LINEAR, bias=np.full(32, np.nan, np.float32)),
            LINEAR_CONSTANTS,
            {},
            "finite",
        ),
        ("Linear", LINEAR, ["scale", "bias"], {}, "w must be a constant"),
        ("Linear", LINEAR, LINEAR_CONSTANTS, {"zero_point": 128}, "expected -127 to 127"),
        (
            "RelationMlp",
            _with(relation_inputs(1, 4, 8, 4, 5), w2=np.ones((4, 7), np.int8)),
            RELATION_CONSTANTS,
            {},
            "the rows of w1",
        ),
        (
            "RelationMlp",
            _with(relation_inputs(1, 4, 8, 4, 5), table=np.full(256, NAN, np.int8)),
            RELATION_CONSTANTS,
            {},
            "stands for NaN",
        ),
        ("Attention", attention_inputs(1, 5, 2, 32), [], {**ATTENTION, "heads": 0}, "heads is 0"),
        ("Attention", attention_inputs(1, 5, 2, 32), [], {**ATTENTION, "head_width": 48}, "of 32"),
        (
            "Attention",
            attention_inputs(1, 5, 2, 32),
            [],
            {**ATTENTION, "scale": 0.0},
            "scale is 0",
        ),
        (
            "Attention",
            _with(attention_inputs(1, 5, 2, 32, 1), upsample=np.ones((2, 3), np.float32)),
            ["upsample"],
            ATTENTION,
            "more than two non-zeros",
        ),
        (
            "NormQuantize",
            {
                "x": np.ones((1, 2, 16), np.float32),
                "g": np.ones(17, np.float32),
                "b": np.ones(17, np.float32),
            },
            ["g", "b"],
            {},
            "multiple of 16",
        ),
        ("Quantize", {"x": np.ones(3, np.float32)}, [], {}, "expected more than 0"),
    ],
)
def test_refused_when_the_session_opens(
    op: str, inputs: dict[str, Array], constants: list[str], attributes: Any, words: str
) -> None:
    dtype = np.float32 if op in ("Linear", "RelationMlp") else np.int8
    with pytest.raises(Exception, match=f"dvt_edge:{op}: ") as caught:
        open_node(op, inputs, constants, [dtype], **attributes)
    assert words in str(caught.value)


SMALL = attention_inputs(1, 5, 2, 32, 1)


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes", "words"),
    [
        ("Linear", _with(LINEAR, x=np.zeros((5, 28), np.int8)), LINEAR_CONSTANTS, {}, "rows of w"),
        (
            "Linear",
            _with(LINEAR, residual=np.zeros((1, 32), np.float32)),
            LINEAR_CONSTANTS,
            {},
            "expected the shape of y",
        ),
        (
            "RelationMlp",
            _with(relation_inputs(1, 4, 8, 4, 5), x=np.zeros((1, 5, 5, 5), np.int8)),
            RELATION_CONSTANTS,
            {},
            "the columns of w1",
        ),
        ("Attention", SMALL, ["upsample"], {**ATTENTION, "first": 3}, "does not fit"),
        ("Attention", _with(SMALL, upsample=None), [], ATTENTION, "upsample must be a constant"),
        (
            "Attention",
            _with(SMALL, upsample=upsampling_1d(1, 3)),
            ["upsample"],
            ATTENTION,
            "do not fit upsample",
        ),
        ("Attention", SMALL, ["upsample"], {**ATTENTION, "heads": 4}, "or more"),
        (
            "NormQuantize",
            {
                "x": np.ones((1, 2, 24), np.float32),
                "g": np.ones(32, np.float32),
                "b": np.ones(32, np.float32),
            },
            ["g", "b"],
            {},
            "multiple of 16",
        ),
    ],
)
def test_refused_when_it_runs(
    op: str, inputs: dict[str, Array], constants: list[str], attributes: Any, words: str
) -> None:
    dtype = np.float32 if op in ("Linear", "RelationMlp") else np.int8
    session = open_node(op, inputs, constants, [dtype], **attributes)
    feeds = {i.name: inputs[i.name] for i in session.get_inputs()}
    with pytest.raises(Exception, match=f"dvt_edge:{op}: ") as caught:
        session.run(None, feeds)
    assert words in str(caught.value)


class _ApiBase(ctypes.Structure):
    _fields_ = (("get_api", ctypes.c_void_p), ("get_version", ctypes.c_void_p))


def test_an_older_onnx_runtime_gets_a_status() -> None:
    """One that does not know the interface asked for is told so, through the oldest interface."""
    asked: list[int] = []
    said: list[tuple[int, bytes]] = []

    def create_status(code: int, message: bytes) -> int:
        said.append((code, message))
        return 4711

    def get_api(version: int) -> int | None:
        asked.append(version)
        return ctypes.addressof(table) if version == 1 else None

    pointer = ctypes.c_void_p
    status = ctypes.CFUNCTYPE(pointer, ctypes.c_int, ctypes.c_char_p)(create_status)
    api = ctypes.CFUNCTYPE(pointer, ctypes.c_uint32)(get_api)
    table = (pointer * 1)(ctypes.cast(status, pointer).value)
    register = ctypes.CDLL(str(operator_library.path())).RegisterCustomOps
    register.restype = ctypes.c_void_p
    base = _ApiBase(ctypes.cast(api, pointer).value, None)
    assert register(None, ctypes.byref(base)) == 4711
    assert asked == [18, 1]
    assert said == [(1, b"dvt_edge's operators need ONNX Runtime 1.18 or later")]


def test_instruction_sets() -> None:
    """Plain C++ is always there, and last; another name is refused."""
    assert SETS[-1] == operator_library.PLAIN
    with pytest.raises(ValueError, match="no instruction set abacus"):
        operator_library.use("abacus")
