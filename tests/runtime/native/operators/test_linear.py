"""Products with their epilogues."""

from __future__ import annotations

import math

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dvt_edge.runtime.native import operator_library
from tests.runtime.native.operators.reference import (
    IDENTITY,
    NAN,
    SETS,
    Array,
    codes,
    floats,
    linear_expected,
    linear_inputs,
    nearest_code,
    run,
)

pytestmark = pytest.mark.skipif(
    operator_library.path() is None, reason=str(operator_library.unavailable())
)


LINEAR_SHAPES = [
    # rows, depth, columns
    ([1], 4, 16),
    ([1, 1], 32, 32),
    ([10], 128, 384),  # the demo's first stage
    ([2, 37], 176, 256),
    ([50], 384, 1152),
    ([1, 101], 432, 1536),
    ([197], 1536, 384),
    ([3, 13], 96, 48),  # three panels of 16
    ([7], 20, 80),
    ([200], 100, 112),
    ([5], 4096, 16),
    ([0, 7], 32, 32),  # an empty batch
]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rows", "depth", "columns"), LINEAR_SHAPES)
def test_linear(name: str, rows: list[int], depth: int, columns: int) -> None:
    """Equal to NumPy bit for bit, with and without a residual."""
    inputs = linear_inputs(rows, depth, columns)
    expected = linear_expected(inputs)
    (y,) = run(name, "Linear", inputs, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, expected)
    residual = floats(np.random.default_rng(1), *rows, columns)
    given_ = {**inputs, "residual": residual}
    (y,) = run(name, "Linear", given_, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, expected + residual)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rows", "depth", "columns"), LINEAR_SHAPES)
def test_linear_table(name: str, rows: list[int], depth: int, columns: int) -> None:
    inputs = linear_inputs(rows, depth, columns)
    inputs["scale"] *= np.float32(200 / math.sqrt(depth))
    table = codes(np.random.default_rng(2), 256)
    expected = table[nearest_code(linear_expected(inputs)).astype(np.int64) + 128]
    inputs["table"] = table
    (y,) = run(name, "LinearTable", inputs, ["w", "scale", "bias", "table"], [np.int8])
    np.testing.assert_array_equal(y, expected)


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 230),
    depth=st.integers(1, 40).map(lambda n: 4 * n),
    columns=st.integers(1, 20).map(lambda n: 16 * n),
    zero_point=st.integers(-127, 127),
    threads=st.integers(1, 3),
    seed=st.integers(0, 9),
)
def test_linear_property(
    rows: int, depth: int, columns: int, zero_point: int, threads: int, seed: int
) -> None:
    """Any shape and zero point; all sets and numbers of threads."""
    inputs = linear_inputs([rows], depth, columns, seed)
    expected = linear_expected(inputs, zero_point)
    for name in SETS:
        (y,) = run(
            name,
            "Linear",
            inputs,
            ["w", "scale", "bias"],
            [np.float32],
            zero_point=zero_point,
            threads=threads,
        )
        np.testing.assert_array_equal(y, expected, err_msg=name)


@pytest.mark.parametrize("name", SETS)
def test_linear_extremes(name: str) -> None:
    """The largest sums that INT8 codes can give, in both signs."""
    depth = 65536
    x = np.full((3, depth), 127, np.int8)
    x[1] = -127
    w = np.full((depth, 16), -127, np.int8)
    w[:, 8:] = 127
    inputs: dict[str, Array] = {
        "x": x,
        "w": w,
        "scale": np.ones(16, np.float32),
        "bias": np.zeros(16, np.float32),
    }
    (y,) = run(name, "Linear", inputs, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, linear_expected(inputs))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("at", [0, 63, 64, 99])
def test_linear_nan(name: str, at: int) -> None:
    """A code of -128 anywhere in a row makes the whole row NaN, and no other."""
    inputs = linear_inputs([9], 100, 48)
    inputs["x"][4, at] = NAN
    (y,) = run(name, "Linear", inputs, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, linear_expected(inputs))
    assert np.isnan(y[4]).all()
    inputs["table"] = IDENTITY.clip(-127)
    (codes,) = run(name, "LinearTable", inputs, ["w", "scale", "bias", "table"], [np.int8])
    assert (codes[4] == NAN).all()
    assert (codes[[0, 1, 2, 3, 5, 6, 7, 8]] != NAN).all()


def test_linear_equals_qdq() -> None:
    """ONNX Runtime's own quantized MatMul gives the same, but for the last bit."""
    inputs = linear_inputs([101], 384, 128)
    x_scale = np.float32(0.0173)
    w_scale = inputs["scale"]
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "xs", "xz"], ["xf"]),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wf"], axis=1),
        helper.make_node("MatMul", ["xf", "wf"], ["m"]),
        helper.make_node("Add", ["m", "b"], ["y"]),
    ]
    constants = {
        "xs": x_scale,
        "xz": np.int8(0),
        "w": inputs["w"],
        "ws": w_scale,
        "wz": np.zeros(len(w_scale), np.int8),
        "b": inputs["bias"],
    }
    graph = helper.make_graph(
        nodes,
        "qdq",
        [helper.make_tensor_value_info("x", TensorProto.INT8, [101, 384])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [101, 128])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": inputs["x"]})
    given_ = {**inputs, "scale": x_scale * w_scale}
    (y,) = run(SETS[0], "Linear", given_, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)
