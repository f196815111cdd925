"""Counting on stage graphs: parameters and multiply-accumulates."""

from __future__ import annotations

import math
from typing import Literal

import onnx
from onnx import shape_inference

from dvt_edge.bundle import StageSpec, TensorSpec

_TYPES: dict[int, Literal["float32", "int32"]] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.INT32: "int32",
}


def stage_spec(model: onnx.ModelProto, file: str) -> StageSpec:
    """Tensor names, shapes and counts of one FP32 or quantized stage graph."""
    graph = model.graph
    return StageSpec(
        file=file,
        inputs=tuple(_tensor(value) for value in graph.input),
        outputs=tuple(_tensor(value) for value in graph.output),
        parameters=sum(
            math.prod(t.dims) for t in graph.initializer if t.data_type != onnx.TensorProto.INT64
        ),
        macs=count_macs(model),
    )


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
