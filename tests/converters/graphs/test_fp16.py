"""Float16 bodies: types, opsets, and answers like those of the float32 graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper, shape_inference
from onnx.reference import ReferenceEvaluator
from onnx.utils import Extractor

from dvt_edge.converters.graphs.chain import Chain, Tensors, open_graph, run_graph
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.converters.graphs.fp16 import FP16_OPSET, fp16_body
from dvt_edge.converters.graphs.stage_graph import Target
from dvt_edge.converters.quantizing.insert_qdq import TENSORRT_OPS, quantizable_layers, quantize
from dvt_edge.models import Cascade, CascadeConfig, StageConfig
from dvt_edge.profile import ExitsConfig
from tests.conftest import stage_graphs

Graphs = list[onnx.ModelProto]
Make = Callable[..., Graphs]
TOKENIZERS = ("patch", "conv", "t2t")
IMAGES = 8
EXIT = {"norm.weight", "norm.bias", "head.weight", "head.bias", "exit/zeros"}
STATISTICS = {f"patch_embed.attention{i}/norm{j}.epsilon" for i in (1, 2) for j in (1, 2)}


@pytest.fixture(scope="module")
def graphs(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Make:
    """A function ``(tokenizer, target, quantized=False, exits=None)`` giving three stages."""

    def make(
        tokenizer: str, target: Target, quantized: bool = False, exits: ExitsConfig | None = None
    ) -> Graphs:
        stages = tuple(
            StageConfig(grid=grid, width=16, depth=2, heads=2, mlp_ratio=2) for grid in (1, 2, 4)
        )
        changes: dict[str, Any] = {"image_size": 32, "stages": stages} if tokenizer == "t2t" else {}
        cascade = random_cascade(tiny_config(tokenizer=tokenizer, **changes))
        made = stage_graphs(cascade, exits, target)
        if not quantized:
            return made
        layers = [quantizable_layers(graph, TENSORRT_OPS) for graph in made]
        return [
            quantize(graph, dict.fromkeys(covered.values(), 6.0), covered)
            for graph, covered in zip(made, layers, strict=True)
        ]

    return make


def _images(graph: onnx.ModelProto) -> npt.NDArray[np.float32]:
    shape = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim[1:]]
    return np.random.default_rng(3).normal(size=(IMAGES, *shape)).astype(np.float32)


def _types(values: Any) -> dict[str, int]:
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_types(graphs: Make, tokenizer: str, target: Target, quantized: bool) -> None:
    """Everything is float16 but the exit; images, reuse tensors and weights above all."""
    for stage in graphs(tokenizer, target, quantized):
        half = fp16_body(stage)
        assert set(_types(half.graph.input).values()) == {TensorProto.FLOAT16}
        outputs = _types(half.graph.output)
        assert list(outputs) == list(_types(stage.graph.output))
        kept = {"logits": TensorProto.FLOAT, "confidence": TensorProto.FLOAT}
        kept["class_id"] = TensorProto.INT32
        for name, dtype in outputs.items():
            assert dtype == kept.get(name, TensorProto.FLOAT16), name
        floats = {t.name for t in half.graph.initializer if t.data_type == TensorProto.FLOAT}
        assert floats == EXIT | (STATISTICS if tokenizer == "t2t" else set())
        weights = {t.name: t.data_type for t in half.graph.initializer if t.dims}
        assert TensorProto.FLOAT16 in weights.values()
        assert (TensorProto.INT8 in weights.values()) == quantized
        assert half.opset_import[0].version == (FP16_OPSET if quantized else 17)
        assert stage_spec(half, "").precision == ("int8" if quantized else "fp16")
        shape_inference.infer_shapes(half, strict_mode=True, check_type=True)


@pytest.mark.parametrize("kind", ["max_softmax", "margin", "entropy"])
@pytest.mark.parametrize("fit", [False, True])
def test_every_exit_stays_float32(graphs: Make, kind: str, fit: bool) -> None:
    """Whatever confidence is, it is computed in float32 from float32 logits."""
    exits = ExitsConfig(confidence=kind, fit_temperature=fit)
    stage = graphs("patch", "tensorrt", True, exits)[2]
    half = shape_inference.infer_shapes(fp16_body(stage), strict_mode=True)
    types = _types((*half.graph.value_info, *half.graph.output))
    inner = [n for n in half.graph.node if n.name.startswith(("exit/", "head"))]
    assert len(inner) > 3
    for node in inner:
        for name in node.output:
            assert types[name] != TensorProto.FLOAT16, node.name


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_answers_are_those_of_float32(
    graphs: Make, tokenizer: str, target: Target, quantized: bool
) -> None:
    """Run by ONNX Runtime: within float16's rounding; with Q/DQ a level may flip here and there."""
    stages = graphs(tokenizer, target, quantized)
    images = _images(stages[0])
    exact = list(Chain(stages).run(images))
    found = list(Chain([fp16_body(stage) for stage in stages]).run(images.astype(np.float16)))
    for expected, outputs in zip(exact, found, strict=True):
        scale = np.abs(expected["logits"]).max()
        error = np.abs(outputs["logits"] - expected["logits"])
        assert error.max() <= (0.1 if quantized else 0.01) * scale
        assert np.abs(outputs["confidence"] - expected["confidence"]).max() < 0.05
        clear = np.sort(expected["logits"])[:, -1] - np.sort(expected["logits"])[:, -2]
        sure = clear > 2 * error.max()
        np.testing.assert_array_equal(outputs["class_id"][sure], expected["class_id"][sure])
        assert outputs["confidence"].dtype == np.float32
        for name in expected:
            if name.startswith("next_"):
                assert outputs[name].dtype == np.float16


@pytest.mark.parametrize("target", get_args(Target))
def test_scales_are_the_same_in_both(graphs: Make, target: Target) -> None:
    """So INT8 levels of weights and activations are, whichever serialisation a board takes."""
    for stage in graphs("conv", target, True):
        half = fp16_body(stage)
        both = [{t.name: t for t in model.graph.initializer} for model in (stage, half)]
        scales = [name for name in both[0] if name.endswith("/scale")]
        assert len(scales) > 10
        for name in scales:
            exact = numpy_helper.to_array(both[0][name])
            rounded = numpy_helper.to_array(both[1][f"{name}/float16"])
            assert [str(v.dtype) for v in (exact, rounded)] == ["float32", "float16"]
            np.testing.assert_array_equal(exact, rounded.astype(np.float32))
        levels = [name for name, t in both[0].items() if t.data_type == TensorProto.INT8]
        assert levels
        for name in levels:
            assert both[0][name] == both[1][name]


def test_graph_is_left_as_it_was(graphs: Make) -> None:
    stage = graphs("patch", "tensorrt", True)[1]
    before = stage.SerializeToString()
    fp16_body(stage)
    assert stage.SerializeToString() == before
    assert stage.opset_import[0].version == 17


def _run(model: onnx.ModelProto, feeds: Tensors) -> Tensors:
    return run_graph(open_graph(model), feeds)


def _rounded_at_every_step(model: onnx.ModelProto, output: str, images: Any) -> Any:
    """One inner tensor, every operator rounding to its type; ONNX Runtime leaves casts out."""
    inferred = shape_inference.infer_shapes(model, strict_mode=True)
    part = Extractor(inferred).extract_model(["image"], [output])
    with np.errstate(over="ignore"):  # attention's guard may become infinite, its quotient zero
        found = ReferenceEvaluator(part).run([output], {"image": images})
    assert isinstance(found, list)
    return found[0]


@pytest.mark.parametrize(("layer", "inner"), [("attention1/norm1", 1), ("attention2/norm1", 0)])
def test_variances_of_flat_patches_are_not_rounded_away(
    graphs: Make, layer: str, inner: int
) -> None:
    """A bright sky: the mean of squares less the squared mean, 6.25 less 6.25 and a little.

    In float16 that difference would be zero or a multiple of 0.004, and the LayerNorm that is
    folded away with it would scale noise up. So the t2t tokenizer's statistics stay in float32.
    """
    stage = graphs("t2t", "tensorrt")[0]
    rng = np.random.default_rng(5)
    images = (2.5 + 0.02 * rng.normal(size=(4, 1, 32, 32))).astype(np.float16)
    name = f"patch_embed.{layer}/variance"
    output = next(n.output[0] for n in stage.graph.node if n.name == name)
    expected = _rounded_at_every_step(stage, output, images.astype(np.float32))
    found = _rounded_at_every_step(fp16_body(stage), output, images)
    assert found.dtype == np.float32
    if inner:  # at the border it is padded with zeros
        expected, found = expected[..., 1:-1, 1:-1], found[..., 1:-1, 1:-1]
        assert 1e-4 < expected.min() < expected.max() < 1e-3
    np.testing.assert_allclose(found, expected, rtol=0.05)


@pytest.mark.parametrize("kind", ["zeros", "flat", "flat with one corner"])
def test_degenerate_images_stay_finite(graphs: Make, kind: str) -> None:
    for tokenizer in TOKENIZERS:
        stage = graphs(tokenizer, "tensorrt", True)[0]
        images = np.full(_images(stage).shape, 0 if kind == "zeros" else 2.64, np.float32)
        if kind == "flat with one corner":
            images[..., :2, :2] = -2.1
        found = _run(fp16_body(stage), {"image": images.astype(np.float16)})
        assert all(np.isfinite(values).all() for values in found.values())
