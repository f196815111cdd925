"""Counting on stage graphs: parameters, multiply-accumulates, layers by class and precision."""

from __future__ import annotations

import math
from collections import Counter
from typing import Literal

import onnx
from onnx import shape_inference

from dvt_edge.bundle.engine_records import Precision
from dvt_edge.bundle.manifest import StageSpec, TensorSpec

_TYPES: dict[int, Literal["float32", "float16", "int32", "int8"]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float16",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT8: "int8",
}
_CLASSES = {
    "patch_embed": "tokens",
    "relation_reuse": "reuse",
    "feature_reuse": "reuse",
    "relations": "reuse",
    "relation_": "reuse",
    "attn/": "attention products",
    "attn": "attention",
    "mlp": "mlp",
    "head": "head",
    "exit": "head",
}
"""Class of a layer by the first of these that is part of its name."""


def stage_spec(model: onnx.ModelProto, file: str = "") -> StageSpec:
    """Tensor names, shapes and counts of one stage graph, whatever its precision."""
    graph = model.graph
    layers = layer_precisions(model)
    found = {precision for counts in layers.values() for precision in counts}
    precision: Precision = "fp16" if _half_inputs(model) else "fp32"
    if "int8" in found:
        precision = "int8"
    return StageSpec(
        file=file,
        inputs=tuple(_tensor(value) for value in graph.input),
        outputs=tuple(_tensor(value) for value in graph.output),
        parameters=sum(
            math.prod(t.dims) for t in graph.initializer if t.data_type != onnx.TensorProto.INT64
        ),
        macs=count_macs(model),
        precision=precision,
        layers=layers,
    )


def native_spec(model: onnx.ModelProto, reference: StageSpec) -> StageSpec:
    """The same of a stage on native operators; counts are those of ``reference``, its Q/DQ graph,
    for operators hide their products."""
    reuse = reference.layers.get("reuse", {})
    layers = reference.layers | ({"reuse": {"int8": sum(reuse.values())}} if reuse else {})
    return reference.model_copy(
        update={
            "inputs": tuple(_tensor(value) for value in model.graph.input),
            "outputs": tuple(_tensor(value) for value in model.graph.output),
            "layers": layers,
            "native": True,
        }
    )


def layer_precisions(model: onnx.ModelProto) -> dict[str, dict[str, int]]:
    """Matrix products and convolutions by class and by the precision that the graph asks for."""
    made_by = {output: node for node in model.graph.node for output in node.output}
    weights = {t.name: t.data_type for t in model.graph.initializer}
    counts: dict[str, Counter[str]] = {}
    for node in model.graph.node:
        if node.op_type not in ("MatMul", "Conv"):
            continue
        source = made_by.get(node.input[1])
        if source is not None and source.op_type == "DequantizeLinear":
            precision = "int8"
        else:
            types = {weights[name] for name in node.input if name in weights}
            half = onnx.TensorProto.FLOAT16 in types or (not types and _half_inputs(model))
            precision = "fp16" if half else "fp32"
        kind = next((k for part, k in _CLASSES.items() if part in node.name), "other")
        counts.setdefault(kind, Counter())[precision] += 1
    return {kind: dict(counter) for kind, counter in counts.items()}


def _half_inputs(model: onnx.ModelProto) -> bool:
    """Whether the body, in which activations meet, is float16: then so are all inputs."""
    kinds = {value.type.tensor_type.elem_type for value in model.graph.input}
    return kinds == {onnx.TensorProto.FLOAT16}


def operator_counts(model: onnx.ModelProto) -> dict[str, int]:
    """How often each ONNX operator occurs, the most frequent first."""
    return dict(Counter(node.op_type for node in model.graph.node).most_common())


def count_macs(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of all matrix products and convolutions at batch 1."""
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    for value in (*fixed.graph.input, *fixed.graph.output):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_value = 1
    del fixed.graph.value_info[:]
    inferred = shape_inference.infer_shapes(fixed, strict_mode=True, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*inferred.input, *inferred.value_info, *inferred.output)
    } | {t.name: list(t.dims) for t in inferred.initializer}
    total = 0
    for node in inferred.node:
        if node.op_type == "MatMul":
            total += math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Conv":
            total += math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])
    return total


def _tensor(value: onnx.ValueInfoProto) -> TensorSpec:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param or d.dim_value for d in tensor.shape.dim)
    return TensorSpec(name=value.name, shape=shape, dtype=_TYPES[tensor.elem_type])
