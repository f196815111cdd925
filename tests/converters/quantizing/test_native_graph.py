"""Stages on native operators, against the Q/DQ and FP32 graphs that they are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvt_edge.bundle.manifest import check_handed_on
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import native_spec, stage_spec
from dvt_edge.converters.quantizing.calibration import activation_ranges
from dvt_edge.converters.quantizing.insert_qdq import (
    ONNXRUNTIME_OPS,
    quantizable_layers,
    quantize,
)
from dvt_edge.converters.quantizing.native_graph import (
    gelu_table,
    native_activations,
    native_stages,
)
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.config import CascadeConfig, StageConfig
from dvt_edge.profile import ExitsConfig
from dvt_edge.runtime.native import operator_library
from tests.conftest import stage_graphs

needs_operators = pytest.mark.skipif(
    operator_library.unavailable() is not None, reason=str(operator_library.unavailable())
)

STAGES = (
    StageConfig(grid=2, width=32, depth=1, heads=1, mlp_ratio=1),
    StageConfig(grid=3, width=128, depth=3, heads=2, mlp_ratio=2.5),
    StageConfig(grid=4, width=96, depth=2, heads=3, mlp_ratio=3),
    StageConfig(grid=7, width=64, depth=1, heads=2, mlp_ratio=2),
)
"""Head widths 32 and 64, and any number of layers and heads."""
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "four stages": {},
    "one stage": {"stages": STAGES[1:2]},
    "two stages": {"stages": STAGES[1:3]},
    "features only": {"relation_reuse": False},
    "relations only": {"feature_reuse": False},
    "no reuse": {"feature_reuse": False, "relation_reuse": False},
    "convolutions first": {"tokenizer": "conv", "stem_width": 6, "image_size": 27},
    "tokens to token": {"tokenizer": "t2t", "image_size": 48, "stages": STAGES[1:3]},
    "padded patches": {"image_size": 18, "stages": STAGES[1:3]},
    "no qkv bias": {"qkv_bias": False},
    "colour": {"channels": 3, "image_size": 14},
    "two classes": {"classes": 2},
}
OUTPUTS = ("logits", "confidence", "class_id", "next_features", "next_relations")


class Made(NamedTuple):
    """One cascade three times over, and images."""

    config: CascadeConfig
    graphs: list[onnx.ModelProto]
    qdq: list[onnx.ModelProto]
    native: list[onnx.ModelProto]
    images: npt.NDArray[np.float32]


def _made(cascade: Cascade, exits: ExitsConfig | None = None) -> Made:
    config = cascade.config
    graphs = stage_graphs(cascade, exits)
    shape = (24, config.channels, config.image_size, config.image_size)
    images = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    qdq: list[onnx.ModelProto] = []
    ranges: list[dict[str, float]] = []
    for graph in graphs:
        layers = quantizable_layers(graph, ONNXRUNTIME_OPS)
        names = [*layers.values(), *native_activations(graph)]
        ranges.append(activation_ranges(graph, names, [Chain(qdq).next_feeds(images)]))
        qdq.append(quantize(graph, ranges[-1], layers))
    return Made(config, graphs, qdq, native_stages(graphs, config, ranges), images)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def made(
    request: pytest.FixtureRequest,
    tiny_config: Callable[..., CascadeConfig],
    random_cascade: Callable[..., Cascade],
) -> Made:
    changes: dict[str, Any] = {"stages": STAGES, "reuse_hidden": 48, "reuse_width": 16}
    return _made(random_cascade(tiny_config(**(changes | ARCHITECTURES[request.param]))))


def _run(models: Sequence[onnx.ModelProto], images: npt.NDArray[np.float32]) -> list[Any]:
    return list(Chain(models).run(images))


@needs_operators
def test_they_are_as_near_to_float_as_the_qdq_graphs(made: Made) -> None:
    """By the mean square over all logits of an exit: both kinds round at the same places."""
    exact, qdq, native = (_run(m, made.images) for m in (made.graphs, made.qdq, made.native))
    for k, outputs in enumerate(native):
        logits = exact[k]["logits"]
        errors = [float(np.std(o[k]["logits"] - logits)) for o in (qdq, native)]
        assert errors[1] < 1.6 * errors[0] + 0.01 * float(logits.std())
        agree = outputs["class_id"] == outputs["logits"].argmax(-1)
        assert agree.all()
        softmax = np.exp(outputs["logits"] - outputs["logits"].max(-1, keepdims=True))
        np.testing.assert_allclose(
            outputs["confidence"], softmax.max(-1) / softmax.sum(-1), atol=1e-5
        )


@needs_operators
def test_relations_pass_in_a_quarter_of_the_bytes(made: Made) -> None:
    specs = [
        native_spec(native, stage_spec(q)) for native, q in zip(made.native, made.qdq, strict=True)
    ]
    check_handed_on(specs)
    for model, spec in zip(made.qdq, specs, strict=True):
        floats = {t.name: t for t in stage_spec(model).outputs}
        for tensor in spec.outputs:
            is_relations = tensor.name == "next_relations"
            assert tensor.dtype == ("int8" if is_relations else floats[tensor.name].dtype)
            assert tensor.shape == floats[tensor.name].shape
            if is_relations:
                assert 4 * tensor.bytes_per_image == floats[tensor.name].bytes_per_image
        assert spec.native
        assert spec.macs == stage_spec(model).macs


@needs_operators
def test_a_batch_answers_as_its_images_do(made: Made) -> None:
    together = _run(made.native, made.images[:5])
    for row in range(5):
        for many, one in zip(together, _run(made.native, made.images[row : row + 1]), strict=True):
            for name in OUTPUTS:
                if name in many:  # ONNX Runtime's own convolutions differ in the last digits
                    np.testing.assert_allclose(
                        many[name][row], one[name][0], rtol=1e-3, atol=1e-4, err_msg=name
                    )


@needs_operators
def test_nan_reaches_the_confidence(made: Made) -> None:
    """Of its own image, at every exit."""
    images = made.images[:2].copy()
    images[1, 0, 0, 0] = math.nan
    for outputs in _run(made.native, images):
        assert np.isfinite(outputs["confidence"]).tolist() == [True, False]


@needs_operators
def test_a_temperature_is_taken_over(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> None:
    cascade = random_cascade(tiny_config(stages=STAGES[1:3], reuse_hidden=48, reuse_width=16))
    made = _made(cascade, ExitsConfig(fit_temperature=True, confidence="margin"))
    assert all(
        any(t.name == "exit.temperature" for t in model.graph.initializer) for model in made.native
    )
    assert len(_run(made.native, made.images)) == 2


@given(limit=st.floats(1e-3, 200))
def test_gelu_table(limit: float) -> None:
    """Within half a step of the output, and half one of the input, of which GELU makes at most
    1.13 times as much."""
    table = gelu_table(limit)
    x = np.linspace(-2 - limit, limit + 2, 4001)
    inputs = np.clip(np.rint(x / table.input_step + table.input_zero), -127, 127).astype(int)
    found = (table.codes[inputs + 128].astype(float) - table.output_zero) * table.output_step
    erf = np.asarray([math.erf(v / math.sqrt(2)) for v in x])
    expected = np.minimum(x * (1 + erf) / 2, limit)
    allowed = 0.5 * table.output_step + 0.57 * table.input_step
    # The lowest code may be half a step short of GELU's minimum, as its zero is a whole code.
    assert np.abs(found - expected).max() < allowed + 0.51 * table.output_step
    assert table.codes.min() >= -127
    assert abs(table.output_zero) <= 127


def test_what_native_stages_need_to_know(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> None:
    """Logits that the next stage reads, and the hidden layer of the relation MLP."""
    first, last = (
        native_activations(graph)
        for graph in stage_graphs(random_cascade(tiny_config(stages=STAGES[1:3])))
    )
    assert first == [f"blocks.{layer}.attn/logits:0" for layer in range(3)]
    assert last == ["relation_reuse.gelu/half:0"]
