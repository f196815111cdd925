"""Q/DQ insertion: which layers, how, and how far the weights move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import numpy_helper

from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.quantizing.insert_qdq import (
    ONNXRUNTIME_OPS,
    TENSORRT_OPS,
    quantizable_layers,
    quantize,
    quantize_weight,
)
from dvt_edge.models import Cascade, CascadeConfig
from tests.conftest import stage_graphs

BACKENDS = {"onnxruntime": ONNXRUNTIME_OPS, "tensorrt": TENSORRT_OPS}
RANGE = 4.0
LAYERS = ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"]


@pytest.fixture(scope="module")
def graphs(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> list[onnx.ModelProto]:
    """FP32 stages of a cascade with every kind of layer."""
    cascade = random_cascade(tiny_config(tokenizer="conv", image_size=20))
    return stage_graphs(cascade)


def _quantized(
    graph: onnx.ModelProto, ops: tuple[str, ...], clip: float = RANGE
) -> onnx.ModelProto:
    layers = quantizable_layers(graph, ops)
    return quantize(graph, dict.fromkeys(layers.values(), clip), layers)


def _constants(model: onnx.ModelProto) -> dict[str, npt.NDArray[np.generic]]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def _quantized_layers(model: onnx.ModelProto) -> set[str]:
    """Layers both of whose inputs come from a DequantizeLinear."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    return {
        node.name
        for node in model.graph.node
        if node.op_type in ("MatMul", "Conv")
        and all(
            name in made_by and made_by[name].op_type == "DequantizeLinear"
            for name in node.input[:2]
        )
    }


def _expected_layers(stage: int, ops: tuple[str, ...]) -> set[str]:
    depth = 2
    layers = {f"blocks.{i}.{name}" for i in range(depth) for name in LAYERS}
    if stage:
        layers.add("feature_reuse.fc1")
        layers |= {f"feature_reuse.fc2.{i}" for i in range(depth)}
    if stage == 2:  # the last stage's last layer works for the class token alone: no context
        layers -= {"blocks.1.attn.qkv", "feature_reuse.fc2.1"}
        layers |= {"blocks.1.attn.q", "blocks.1.attn.kv"}
    if ops is TENSORRT_OPS:
        layers |= {"patch_embed.stem", "patch_embed.proj"}
    return layers


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_that_are_quantized(graphs: list[onnx.ModelProto], backend: str, stage: int) -> None:
    """Neither head nor relation convolutions nor products of two activations nor upsampling."""
    model = _quantized(graphs[stage], BACKENDS[backend])
    assert _quantized_layers(model) == _expected_layers(stage, BACKENDS[backend])
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.name not in _quantized_layers(model) and node.op_type != "DequantizeLinear":
            sources = {made_by.get(name) for name in node.input}
            assert "DequantizeLinear" not in sources, node.name


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantization_is_symmetric_int8(graphs: list[onnx.ModelProto], backend: str) -> None:
    """Weights per output channel, activations per tensor, zero points 0, biases in float."""
    for graph in graphs:
        model, before = _quantized(graph, BACKENDS[backend]), _constants(graph)
        constants = _constants(model)
        quantized = _quantized_layers(model)
        assert quantized
        for name in quantized:
            weight, scale = constants[f"{name}.weight"], constants[f"{name}.weight/scale"]
            node = next(n for n in model.graph.node if n.name == f"{name}.weight/dequantize")
            axis = node.attribute[0].i
            channels = before[f"{name}.weight"].shape[axis]
            assert axis == (0 if name.startswith("patch_embed") else 1)
            assert weight.dtype == np.int8
            assert weight.min() >= -127
            assert scale.dtype == np.float32
            assert scale.shape == (channels,)
            zero = constants[f"{name}.weight/zero_point"]
            assert zero.dtype == np.int8
            assert not zero.any()
            np.testing.assert_allclose(
                np.abs(weight.astype(int)).max(
                    axis=tuple(i for i in range(weight.ndim) if i != axis)
                ),
                127,
            )
        for node in model.graph.node:
            if node.op_type == "QuantizeLinear":
                assert constants[node.input[1]] == np.float32(np.float16(RANGE / 127))
                assert constants[node.input[2]].dtype == np.int8
                assert constants[node.input[2]] == 0
        for name, value in before.items():
            if name.endswith(".bias"):
                np.testing.assert_array_equal(constants[name], value)


def test_activation_read_twice_is_quantized_once(graphs: list[onnx.ModelProto]) -> None:
    model = _quantized(graphs[2], ONNXRUNTIME_OPS)
    sources = [n.input[0] for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(sources) == len(set(sources))
    assert sorted(sources) == sorted(set(quantizable_layers(graphs[2], ONNXRUNTIME_OPS).values()))


def test_original_graph_is_kept(graphs: list[onnx.ModelProto]) -> None:
    before = graphs[1].SerializeToString(deterministic=True)
    _quantized(graphs[1], TENSORRT_OPS)
    assert graphs[1].SerializeToString(deterministic=True) == before


def test_missing_range_is_an_error(graphs: list[onnx.ModelProto]) -> None:
    with pytest.raises(KeyError):
        quantize(graphs[0], {}, quantizable_layers(graphs[0], ONNXRUNTIME_OPS))


@pytest.mark.parametrize("backend", BACKENDS)
def test_quantized_stages_run_and_stay_close(graphs: list[onnx.ModelProto], backend: str) -> None:
    images = np.random.default_rng(0).normal(size=(4, 1, 20, 20)).astype(np.float32)
    stages = [_quantized(graph, BACKENDS[backend]) for graph in graphs]
    for exact, coarse in zip(Chain(graphs).run(images), Chain(stages).run(images), strict=True):
        difference = np.abs(exact["logits"] - coarse["logits"]).max()
        assert 0 < difference < 0.35 * np.abs(exact["logits"]).max()


def test_clipping_too_tight_is_seen(graphs: list[onnx.ModelProto]) -> None:
    """The ranges are what decides: a thousandth of them ruins the answers."""
    images = np.random.default_rng(0).normal(size=(4, 1, 20, 20)).astype(np.float32)
    exact = next(Chain(graphs[:1]).run(images))["logits"]
    good, bad = (
        next(Chain([_quantized(graphs[0], ONNXRUNTIME_OPS, r)]).run(images))
        for r in (RANGE, RANGE / 1000)
    )
    assert np.abs(bad["logits"] - exact).max() > 3 * np.abs(good["logits"] - exact).max()


finite = st.floats(-1e4, 1e4, width=32)
weights = arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=6), elements=finite)


@given(weights, st.data())
def test_weights_move_by_half_a_step_at_most(
    weight: npt.NDArray[np.float32], data: st.DataObject
) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    levels, scales = quantize_weight(weight, axis)
    assert levels.dtype == np.int8
    assert levels.min() >= -127
    assert scales.shape == (weight.shape[axis],)
    assert (scales > 0).all()
    step = scales.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]).astype(float)
    error = np.abs(levels * step - weight)
    assert (error <= step * (0.5 + 1e-4)).all()


@pytest.mark.parametrize("value", [5e-6, 1e-5, 1e-4, 2e-3])
def test_scales_of_tiny_weights_do_not_clip(value: float) -> None:
    """Float16's steps are coarse there: a scale rounded down would cut a third of the weight."""
    levels, scales = quantize_weight(np.full((1, 1), value, np.float32), 1)
    assert abs(float(levels[0, 0]) * float(scales[0]) - value) <= 0.5001 * scales[0]
    assert np.float16(scales[0]) == scales[0]


@given(weights)
def test_sign_of_the_weights_is_the_sign_of_the_levels(weight: npt.NDArray[np.float32]) -> None:
    """Symmetric: the negated weight has the negated levels and the same scales."""
    levels, scales = quantize_weight(weight, 0)
    negated, same = quantize_weight(-weight, 0)
    np.testing.assert_array_equal(negated, -levels)
    np.testing.assert_array_equal(same, scales)


def test_channels_do_not_share_a_scale() -> None:
    weight = np.array([[1.0, 1000.0], [-0.5, 127.0]], np.float32)
    levels, scales = quantize_weight(weight, 1)
    np.testing.assert_allclose(scales, [1 / 127, 1000 / 127], rtol=2**-11)
    np.testing.assert_array_equal(levels, [[127, 127], [-64, 16]])


@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-37])
def test_channel_of_nothing_has_scale_one(value: float) -> None:
    """A scale below float16's smallest would be zero in a float16 graph."""
    levels, scales = quantize_weight(np.full((3, 2), value, np.float32), 1)
    assert not levels.any()
    np.testing.assert_array_equal(scales, [1, 1])
