"""Every operator in every instruction set of this processor, against NumPy."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dvt_edge.models.upsampling import feature_matrix, relation_matrix, upsampling_1d
from dvt_edge.runtime.native import operator_library

pytestmark = pytest.mark.skipif(
    operator_library.path() is None, reason=str(operator_library.unavailable())
)

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]

SETS = operator_library.instruction_sets()
NAN = -128
"""The code of a value that is not a number."""
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.int8): TensorProto.INT8}
IDENTITY = np.arange(-128, 128).astype(np.int8)


@pytest.fixture(autouse=True)
def _fastest_again() -> Iterator[None]:
    yield
    operator_library.use(None)


def _session(
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


def _run(
    instruction_set: str,
    op: str,
    inputs: Mapping[str, Array | None],
    constants: Sequence[str],
    outputs: Sequence[type],
    **attributes: Any,
) -> list[Array]:
    operator_library.use(instruction_set)
    session = _session(op, inputs, constants, outputs, **attributes)
    wanted = {i.name for i in session.get_inputs()}
    return session.run(None, {name: inputs[name] for name in wanted})


def _codes(rng: np.random.Generator, *shape: int) -> Codes:
    return rng.integers(-127, 128, shape).astype(np.int8)


def _floats(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape).astype(np.float32)


def _nearest_code(y: Floats) -> Codes:
    """What NumPy makes of the definition."""
    codes = np.clip(np.rint(np.nan_to_num(y)), -127, 127).astype(np.int8)
    codes[np.isnan(y)] = NAN
    return codes


# ---- Linear -------------------------------------------------------------------------------------


def _linear_inputs(
    rows: Sequence[int], depth: int, columns: int, seed: int = 0
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": _codes(rng, *rows, depth),
        "w": _codes(rng, depth, columns),
        "scale": (rng.random(columns) * 1e-3 + 1e-5).astype(np.float32),
        "bias": _floats(rng, columns),
    }


def _linear_expected(given: Mapping[str, Array], zero_point: int = 0) -> Floats:
    w = given["w"].astype(np.int64)
    x = given["x"].astype(np.int64)
    y: Floats = ((x - zero_point) @ w).astype(np.float32) * given["scale"] + given["bias"]
    y[(x == NAN).any(axis=-1)] = np.nan
    return y


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
    inputs = _linear_inputs(rows, depth, columns)
    expected = _linear_expected(inputs)
    (y,) = _run(name, "Linear", inputs, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, expected)
    residual = _floats(np.random.default_rng(1), *rows, columns)
    given_ = {**inputs, "residual": residual}
    (y,) = _run(name, "Linear", given_, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, expected + residual)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize(("rows", "depth", "columns"), LINEAR_SHAPES)
def test_linear_table(name: str, rows: list[int], depth: int, columns: int) -> None:
    inputs = _linear_inputs(rows, depth, columns)
    inputs["scale"] *= np.float32(200 / math.sqrt(depth))
    table = _codes(np.random.default_rng(2), 256)
    expected = table[_nearest_code(_linear_expected(inputs)).astype(np.int64) + 128]
    inputs["table"] = table
    (y,) = _run(name, "LinearTable", inputs, ["w", "scale", "bias", "table"], [np.int8])
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
    inputs = _linear_inputs([rows], depth, columns, seed)
    expected = _linear_expected(inputs, zero_point)
    for name in SETS:
        (y,) = _run(
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
    (y,) = _run(name, "Linear", inputs, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, _linear_expected(inputs))


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("at", [0, 63, 64, 99])
def test_linear_nan(name: str, at: int) -> None:
    """A code of -128 anywhere in a row makes the whole row NaN, and no other."""
    inputs = _linear_inputs([9], 100, 48)
    inputs["x"][4, at] = NAN
    (y,) = _run(name, "Linear", inputs, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_array_equal(y, _linear_expected(inputs))
    assert np.isnan(y[4]).all()
    inputs["table"] = IDENTITY.clip(-127)
    (codes,) = _run(name, "LinearTable", inputs, ["w", "scale", "bias", "table"], [np.int8])
    assert (codes[4] == NAN).all()
    assert (codes[[0, 1, 2, 3, 5, 6, 7, 8]] != NAN).all()


def test_linear_equals_qdq() -> None:
    """ONNX Runtime's own quantized MatMul gives the same, but for the last bit."""
    inputs = _linear_inputs([101], 384, 128)
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
    (y,) = _run(SETS[0], "Linear", given_, ["w", "scale", "bias"], [np.float32])
    np.testing.assert_allclose(y, expected, rtol=2e-6, atol=2e-6)


# ---- RelationMlp --------------------------------------------------------------------------------


def _relation_inputs(
    images: int, inputs: int, hidden: int, outputs: int, tokens: int, seed: int = 0
) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "x": _codes(rng, images, inputs, tokens, tokens),
        "w1": _codes(rng, hidden, inputs),
        "scale1": (rng.random(hidden) * 0.02 / math.sqrt(inputs)).astype(np.float32),
        "bias1": 9 * _floats(rng, hidden),
        "table": _codes(rng, 256),
        "w2": _codes(rng, outputs, hidden),
        "scale2": (rng.random(outputs) * 1e-3).astype(np.float32),
        "bias2": _floats(rng, outputs),
    }


RELATION_CONSTANTS = ["w1", "scale1", "bias1", "table", "w2", "scale2", "bias2"]


def _relation_expected(given: Mapping[str, Array], zero_point: int) -> Floats:
    def product(w: Array, x: Array, scale: Array, bias: Array) -> Floats:
        sums = np.einsum("oc,nchw->nohw", w.astype(np.int64), x.astype(np.int64))
        y: Floats = sums.astype(np.float32) * scale[:, None, None] + bias[:, None, None]
        return y

    codes = _nearest_code(product(given["w1"], given["x"], given["scale1"], given["bias1"]))
    hidden = given["table"][codes.astype(np.int64) + 128].astype(np.int64) - zero_point
    y = product(given["w2"], hidden, given["scale2"], given["bias2"])
    return np.where((given["x"] == NAN).any(axis=1, keepdims=True), np.float32(np.nan), y)


RELATION_SHAPES = [
    # images, channels in, hidden, out, tokens
    (1, 6, 18, 6, 10),  # the demo
    (2, 6, 30, 10, 37),
    (1, 72, 216, 72, 50),  # DeiT-S
    (1, 48, 144, 48, 50),
    (1, 84, 252, 84, 17),
    (3, 1, 1, 1, 1),
    (1, 5, 7, 3, 9),
    (1, 4, 8, 4, 8),
]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", RELATION_SHAPES)
@pytest.mark.parametrize("zero_point", [0, -101, 127])
def test_relation_mlp(name: str, shape: tuple[int, ...], zero_point: int) -> None:
    inputs = _relation_inputs(*shape)
    inputs["x"][0, -1, -1, -1] = NAN
    expected = _relation_expected(inputs, zero_point)
    for threads in (1, 2):
        (y,) = _run(
            name,
            "RelationMlp",
            inputs,
            RELATION_CONSTANTS,
            [np.float32],
            zero_point=zero_point,
            threads=threads,
        )
        np.testing.assert_array_equal(y, expected)
    assert np.isnan(y).sum() == shape[3]


# ---- Attention ----------------------------------------------------------------------------------


def _attention_inputs(
    images: int, tokens: int, heads: int, head: int, source: int = 0, seed: int = 0
) -> dict[str, Array | None]:
    """As a stage has them: q, k and v beside each other, relations of twice as many heads."""
    rng = np.random.default_rng(seed)
    qkv = _floats(rng, images, tokens, 3 * heads * head)
    qkv[..., : heads * head] /= np.float32(math.sqrt(head))
    inputs: dict[str, Array | None] = {"qkv": qkv, "same": qkv, "relations": None, "upsample": None}
    if source:
        coarse = 1 + source * source
        inputs["relations"] = _floats(rng, images, 2 * heads, coarse, coarse)
        inputs["upsample"] = upsampling_1d(source, math.isqrt(tokens - 1))
    return inputs


def _attention_expected(
    inputs: Mapping[str, Array | None], heads: int, head: int, first: int = 0
) -> tuple[Array, Array]:
    """The mixed values [N, T, H h] and the logits [N, H, T, T], in double precision."""
    qkv, relations, upsample = inputs["qkv"], inputs["relations"], inputs["upsample"]
    assert qkv is not None
    images, tokens, _ = qkv.shape
    q, k, v = (
        qkv.astype(np.float64).reshape(images, tokens, 3, heads, head).transpose(2, 0, 3, 1, 4)
    )
    logits = q @ k.transpose(0, 1, 3, 2)
    if relations is not None:
        assert upsample is not None
        matrix = relation_matrix(upsample.shape[1], len(upsample)).astype(np.float64)
        logits = logits + matrix @ relations[:, first : first + heads] @ matrix.T
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return (weights @ v).transpose(0, 2, 1, 3).reshape(images, tokens, -1), logits


ATTENTION_SHAPES = [
    # images, grid, heads, head width, grid before
    (1, 3, 2, 64, 0),  # the demo
    (2, 6, 2, 64, 3),
    (1, 12, 2, 64, 6),
    (1, 7, 6, 64, 0),  # DeiT-S
    (1, 10, 6, 64, 7),
    (1, 14, 2, 64, 10),
    (1, 14, 4, 32, 7),
    (2, 4, 1, 32, 4),  # the same grid again
    (1, 5, 3, 96, 1),
    (1, 18, 1, 32, 17),  # a row of the grid is more than one vector
    (1, 1, 1, 32, 1),
]
TOLERANCE = {"half": 0.03, "single": 1e-4}
"""Of the mixed values before rounding, which are of the order of one; relative for logits."""


def _tolerance(name: str) -> float:
    return TOLERANCE["half" if name == "avx512_bf16" else "single"]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", ATTENTION_SHAPES)
def test_attention(name: str, shape: tuple[int, int, int, int, int]) -> None:
    images, grid, heads, head, source = shape
    tokens = 1 + grid * grid
    inputs = _attention_inputs(images, tokens, heads, head, source)
    first = heads if source else 0
    expected, logits = _attention_expected(inputs, heads, head, first)
    scale, logit_scale = 60.0, 12.0
    mixed, codes = _run(
        name,
        "Attention",
        inputs,
        ["upsample"],
        [np.int8, np.int8],
        heads=heads,
        head_width=head,
        first=first,
        scale=scale,
        logit_scale=logit_scale,
    )
    near = 0.5 + scale * _tolerance(name)
    assert np.abs(mixed - np.clip(scale * expected, -127, 127)).max() <= near
    near = 0.5 + logit_scale * _tolerance(name)
    assert np.abs(codes - np.clip(logit_scale * logits, -127, 127)).max() <= near


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("source", [0, 3])
def test_attention_of_the_class_token_alone(name: str, source: int) -> None:
    """The last layer where only the class is read: queries come from a tensor of their own."""
    inputs = _attention_inputs(2, 37, 2, 64, source)
    attributes = {"heads": 2, "head_width": 64, "scale": 50.0}
    whole = _run(name, "Attention", inputs, ["upsample"], [np.int8], threads=2, **attributes)[0]
    assert inputs["qkv"] is not None
    alone: dict[str, Array | None] = {
        "q": inputs["qkv"][:, :1, :128],
        "kv": inputs["qkv"][:, :, 128:],
        "relations": inputs["relations"],
        "upsample": inputs["upsample"],
    }
    (mixed,) = _run(name, "Attention", alone, ["upsample"], [np.int8], **attributes)
    np.testing.assert_array_equal(mixed, whole[:, :1])


@pytest.mark.parametrize("name", SETS)
def test_attention_of_large_logits(name: str) -> None:
    """A softmax that is all on one token, and one over logits far from zero."""
    rng = np.random.default_rng(0)
    qkv = _floats(rng, 1, 17, 96)
    qkv[0, :, :32] = 0
    qkv[0, :, 0] = 30
    qkv[0, :, 32] = -90
    qkv[0, 5, 32] = 90
    inputs = {"qkv": qkv, "same": qkv}
    (mixed,) = _run(name, "Attention", inputs, [], [np.int8], heads=1, head_width=32, scale=40.0)
    near = 0.5 + 40 * 2**-8 * np.abs(qkv[0, 5, 64:]).max()
    assert np.abs(mixed[0] - np.clip(40 * qkv[0, 5, 64:], -127, 127)).max() <= near


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("part", ["q", "k", "v", "relations"])
def test_attention_nan(name: str, bad: float, part: str) -> None:
    """NaN and infinity become -128 in whatever depends on them, and nowhere else."""
    inputs = _attention_inputs(1, 37, 2, 64, 3)
    qkv, relations = inputs["qkv"], inputs["relations"]
    assert qkv is not None
    assert relations is not None
    if part == "relations":
        relations[0, 0, 0, 0] = bad  # the class token's row, and column
    else:
        qkv[0, 4, {"q": 0, "k": 128, "v": 256}[part]] = bad
    mixed, codes = _run(
        name,
        "Attention",
        inputs,
        ["upsample"],
        [np.int8, np.int8],
        heads=2,
        head_width=64,
        scale=40.0,
        logit_scale=10.0,
    )
    assert (mixed[0, :, 64:] != NAN).all()  # the other head
    assert (codes[0, 1] != NAN).all()
    if part == "v":
        assert (codes != NAN).all()
        assert (np.delete(mixed, 0, axis=2) != NAN).all()
        assert (mixed[0, :, 0] == NAN).all() or np.isinf(bad)
    if part == "q":
        assert (np.delete(mixed, 4, axis=1) != NAN).all()
        assert (mixed[0, 4, :64] == NAN).all()
    if part == "k" and np.isnan(bad):
        assert (mixed[0, :, :64] == NAN).all()
        assert (np.delete(codes[0, 0], 4, axis=1) != NAN).all()
        assert (codes[0, 0, :, 4] == NAN).all()
    if part == "relations" and np.isnan(bad):
        assert (mixed[0, 0, :64] == NAN).all()
        assert (mixed[0, 1:] != NAN).all()


@settings(deadline=None, max_examples=25)
@given(
    images=st.integers(1, 3),
    grid=st.integers(1, 9),
    coarser=st.integers(0, 4),
    heads=st.integers(1, 3),
    head=st.sampled_from([32, 64]),
    seed=st.integers(0, 9),
)
def test_attention_property(
    images: int, grid: int, coarser: int, heads: int, head: int, seed: int
) -> None:
    """Any grids: in all sets."""
    inputs = _attention_inputs(images, 1 + grid * grid, heads, head, max(grid - coarser, 1), seed)
    attributes = {"heads": heads, "head_width": head, "scale": 50.0, "first": 1}
    expected, _ = _attention_expected(inputs, heads, head, 1)
    for name in SETS:
        (mixed,) = _run(name, "Attention", inputs, ["upsample"], [np.int8], **attributes)
        near = 0.5 + 50 * _tolerance(name)
        assert np.abs(mixed - np.clip(50 * expected, -127, 127)).max() <= near, name


# ---- NormQuantize and Quantize ------------------------------------------------------------------


def _norm_expected(
    x: Array, gamma: Array, beta: Array, epsilon: float, context: Array | None = None
) -> Array:
    """The values before rounding, in double precision."""
    z = x.astype(np.float64)
    wide = len(gamma) - x.shape[-1]
    if wide:
        z = np.concatenate([z, np.zeros((*x.shape[:-1], wide)) if context is None else context], -1)
    d = z - z.mean(axis=-1, keepdims=True)
    y: Array = d / np.sqrt((d * d).mean(axis=-1, keepdims=True) + epsilon) * gamma + beta
    return y


NORM_SHAPES = [
    # images, grid, width, context width, grid before
    (1, 3, 128, 0, 0),
    (2, 6, 128, 48, 3),
    (1, 12, 128, 48, 6),
    (1, 10, 384, 48, 7),
    (3, 14, 256, 48, 10),
    (1, 2, 32, 16, 1),
    (1, 5, 16, 0, 0),
]


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("threads", [1, 2])
def test_norm_quantize(name: str, shape: tuple[int, ...], threads: int) -> None:
    """Near NumPy, and equal to plain C++ bit for bit; all inputs there are."""
    images, grid, width, wide, source = shape
    rng = np.random.default_rng(0)
    tokens = 1 + grid * grid
    inputs: dict[str, Array | None] = {
        "x": _floats(rng, images, tokens, width) + np.float32(0.3),
        "gamma": 30 * _floats(rng, width + wide),
        "beta": 10 * _floats(rng, width + wide),
        "residual": _floats(rng, images, tokens, width),
        "context": None,
        "upsample": None,
    }
    context = None
    if source:
        coarse = _floats(rng, images, 1 + source * source, wide)
        inputs["context"], inputs["upsample"] = coarse, upsampling_1d(source, grid)
        context = feature_matrix(source, grid).astype(np.float64) @ coarse
    constants = ["gamma", "beta", "upsample"]
    x, residual, gamma, beta = (inputs[k] for k in ("x", "residual", "gamma", "beta"))
    assert x is not None
    assert residual is not None
    assert gamma is not None
    assert beta is not None
    for first in (residual, residual[:1]):
        inputs["residual"] = first
        found = {}
        for run in (name, operator_library.PLAIN):
            found[run] = _run(
                run,
                "NormQuantize",
                inputs,
                constants,
                [np.int8, np.float32],
                epsilon=1e-6,
                threads=threads,
            )
        codes, sums = found[name]
        np.testing.assert_array_equal(sums, x + first)
        expected = np.clip(_norm_expected(x + first, gamma, beta, 1e-6, context), -127, 127)
        assert np.abs(codes - expected).max() <= 0.501
        np.testing.assert_array_equal(codes, found[operator_library.PLAIN][0])
    inputs["residual"] = None
    (codes,) = _run(name, "NormQuantize", inputs, constants, [np.int8], epsilon=1e-6)
    expected = np.clip(_norm_expected(x, gamma, beta, 1e-6, context), -127, 127)
    assert np.abs(codes - expected).max() <= 0.501


@pytest.mark.parametrize("name", SETS)
def test_norm_of_the_class_token_alone(name: str) -> None:
    """Its context is zero, with or without the others' at hand."""
    rng = np.random.default_rng(0)
    x = _floats(rng, 2, 1, 64)
    gamma, beta = 30 * _floats(rng, 96), _floats(rng, 96)
    inputs: dict[str, Array | None] = {"x": x, "gamma": gamma, "beta": beta}
    (alone,) = _run(name, "NormQuantize", inputs, ["gamma", "beta"], [np.int8], epsilon=1e-5)
    assert np.abs(alone - np.clip(_norm_expected(x, gamma, beta, 1e-5), -127, 127)).max() <= 0.501
    inputs |= {"none": None, "context": _floats(rng, 2, 10, 32), "upsample": upsampling_1d(3, 6)}
    constants = ["gamma", "beta", "upsample"]
    (codes,) = _run(name, "NormQuantize", inputs, constants, [np.int8], epsilon=1e-5)
    np.testing.assert_array_equal(codes, alone)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_norm_nan(name: str, bad: float) -> None:
    """NaN or infinity anywhere in a row, the context included, make all of it NaN."""
    rng = np.random.default_rng(0)
    x, context = _floats(rng, 1, 37, 64), _floats(rng, 1, 10, 32)
    x[0, 3, 63] = bad
    context[0, 9, 5] = bad  # the last token's corner of the finer grid depends on it
    inputs = {
        "x": x,
        "gamma": np.ones(96, np.float32),
        "beta": np.zeros(96, np.float32),
        "residual": None,
        "context": context,
        "upsample": upsampling_1d(3, 6),
    }
    constants = ["gamma", "beta", "upsample"]
    (codes,) = _run(name, "NormQuantize", inputs, constants, [np.int8])
    assert (codes[0, 3] == NAN).all()
    assert (codes[0, 36] == NAN).all()
    assert (codes[0, [0, 1, 2, 4, 5, 6]] != NAN).all()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 100, 70000])
def test_quantize(name: str, count: int) -> None:
    """To the nearest, ties to even, within -127 to 127; NaN becomes -128."""
    x = 40 * _floats(np.random.default_rng(0), count)
    special = [0.5, 1.5, -0.5, 2.5, 1e30, -1e30, np.inf, -np.inf, np.nan, 63.5, -63.49]
    x[: len(special)] = special[:count]
    (codes,) = _run(name, "Quantize", {"x": x}, [], [np.int8], scale=2.0)
    np.testing.assert_array_equal(codes, _nearest_code(2 * x))


# ---- what is refused ----------------------------------------------------------------------------


def _with(inputs: Mapping[str, Array | None], **changed: Array | None) -> dict[str, Array | None]:
    return {**inputs, **changed}


LINEAR = _linear_inputs([5], 32, 32)
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
            _with(_relation_inputs(1, 4, 8, 4, 5), w2=np.ones((4, 7), np.int8)),
            RELATION_CONSTANTS,
            {},
            "the rows of w1",
        ),
        (
            "RelationMlp",
            _with(_relation_inputs(1, 4, 8, 4, 5), table=np.full(256, NAN, np.int8)),
            RELATION_CONSTANTS,
            {},
            "stands for NaN",
        ),
        ("Attention", _attention_inputs(1, 5, 2, 32), [], {**ATTENTION, "heads": 0}, "heads is 0"),
        ("Attention", _attention_inputs(1, 5, 2, 32), [], {**ATTENTION, "head_width": 48}, "of 32"),
        (
            "Attention",
            _attention_inputs(1, 5, 2, 32),
            [],
            {**ATTENTION, "scale": 0.0},
            "scale is 0",
        ),
        (
            "Attention",
            _with(_attention_inputs(1, 5, 2, 32, 1), upsample=np.ones((2, 3), np.float32)),
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
        _session(op, inputs, constants, [dtype], **attributes)
    assert words in str(caught.value)


SMALL = _attention_inputs(1, 5, 2, 32, 1)


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
            _with(_relation_inputs(1, 4, 8, 4, 5), x=np.zeros((1, 5, 5, 5), np.int8)),
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
    session = _session(op, inputs, constants, [dtype], **attributes)
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
