"""What the operators compute, by NumPy, and sessions of one node."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from dvt_edge.models.upsampling import upsampling_1d
from dvt_edge.runtime.native import operator_library

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

SETS = operator_library.instruction_sets()
NAN = -128
"""The code of a value that is not a number."""
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8}
IDENTITY = np.arange(-128, 128).astype(np.int8)


def open_node(
    op: str,
    inputs: Mapping[str, Array | None],
    constants: Sequence[str],
    outputs: Sequence[type],
    threads: int = 1,
    **attributes: Any,
) -> ort.InferenceSession:
    """One node over ``inputs``, in order; None is left out, ``constants`` are in the graph."""
    names = [name if value is not None else "" for name, value in inputs.items()]
    there = {name: value for name, value in inputs.items() if value is not None}
    node = helper.make_node(
        op, names, [f"y{i}" for i in range(len(outputs))], op, domain="dvt_edge", **attributes
    )
    graph = helper.make_graph(
        [node],
        op,
        [
            helper.make_tensor_value_info(name, TYPES[value.dtype], [None] * value.ndim)
            for name, value in there.items()
            if name not in constants
        ],
        [
            helper.make_tensor_value_info(f"y{i}", TYPES[np.dtype(dtype)], None)
            for i, dtype in enumerate(outputs)
        ],
        [numpy_helper.from_array(there[name], name) for name in constants if name in there],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("dvt_edge", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(operator_library.path()))
    return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def run(
    instruction_set: str,
    op: str,
    inputs: Mapping[str, Array | None],
    constants: Sequence[str],
    outputs: Sequence[type],
    **attributes: Any,
) -> list[Array]:
    operator_library.use(instruction_set)
    session = open_node(op, inputs, constants, outputs, **attributes)
    wanted = {i.name for i in session.get_inputs()}
    return session.run(None, {name: inputs[name] for name in wanted})


def codes(rng: np.random.Generator, *shape: int) -> Codes:
    return rng.integers(-127, 128, shape).astype(np.int8)


def floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def nearest_code(y: Floats) -> Codes:
    """What NumPy makes of the definition."""
    codes = np.clip(np.rint(np.nan_to_num(y)), -127, 127).astype(np.int8)
    codes[np.isnan(y)] = NAN
    return codes


def linear_inputs(rows: Sequence[int], depth: int, columns: int, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": codes(rng, *rows, depth),
        "w": codes(rng, depth, columns),
        "scale": (rng.random(columns) * 1e-3 + 1e-5).astype(np.float32),
        "bias": floats(rng, columns),
    }


def linear_expected(given: Mapping[str, Array], zero_point: int = 0) -> Floats:
    w = given["w"].astype(np.int64)
    x = given["x"].astype(np.int64)
    y: Floats = ((x - zero_point) @ w).astype(np.float32) * given["scale"] + given["bias"]
    y[(x == NAN).any(axis=-1)] = np.nan
    return y


def relation_inputs(
    images: int, inputs: int, hidden: int, outputs: int, tokens: int, seed: int = 0
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": codes(rng, images, inputs, tokens, tokens),
        "w1": codes(rng, hidden, inputs),
        "scale1": (rng.random(hidden) * 0.02 / math.sqrt(inputs)).astype(np.float32),
        "bias1": 9 * floats(rng, hidden),
        "table": codes(rng, 256),
        "w2": codes(rng, outputs, hidden),
        "scale2": (rng.random(outputs) * 1e-3).astype(np.float32),
        "bias2": floats(rng, outputs),
    }


RELATION_CONSTANTS = ["w1", "scale1", "bias1", "table", "w2", "scale2", "bias2"]


def attention_inputs(
    images: int, tokens: int, heads: int, head: int, source: int = 0, seed: int = 0
) -> dict[str, Array | None]:
    """As a stage has them: q, k and v beside each other, relations of twice as many heads."""
    rng = np.random.default_rng(seed)
    qkv = floats(rng, images, tokens, 3 * heads * head)
    qkv[..., : heads * head] /= np.float32(math.sqrt(head))
    inputs: dict[str, Array | None] = {"qkv": qkv, "same": qkv, "relations": None, "upsample": None}
    if source:
        coarse = 1 + source * source
        inputs["relations"] = floats(rng, images, 2 * heads, coarse, coarse)
        inputs["upsample"] = upsampling_1d(source, math.isqrt(tokens - 1))
    return inputs
