"""FP32 stage graph -> the same graph with explicit INT8 quantize/dequantize pairs.

Linears (and, for TensorRT, the patch convolutions) get symmetric INT8: weights per output channel,
activations per tensor, zero point 0, bias left in float. Attention products, softmax, LayerNorm,
GELU and the residual additions stay as they are: quantizing those is what costs accuracy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

INT8_MAX = 127


ONNXRUNTIME_OPS = ("MatMul",)
"""ONNX Runtime's INT8 convolution wants a quantized bias, which TensorRT refuses; the two small
patch convolutions stay in float there."""
TENSORRT_OPS = ("MatMul", "Conv")


def quantizable_layers(model: onnx.ModelProto, ops: Collection[str]) -> dict[str, str]:
    """Name of every layer that INT8 makes faster -> the activation that it reads, in graph order.

    These are the stage's own layers among the operators ``ops``. The head stays in float: it is
    tiny and every threshold reads its output. So do the relation convolutions, whose few channels
    do not fill an INT8 unit.
    """
    return {
        node.name: node.input[0]
        for node in model.graph.node
        if node.op_type in ops
        and node.input[1] == f"{node.name}.weight"
        and not node.name.startswith(("head", "relation_reuse"))
    }


def quantize(
    model: onnx.ModelProto, ranges: Mapping[str, float], layers: Collection[str]
) -> onnx.ModelProto:
    """Insert Q/DQ pairs before all ``layers``, which :func:`quantizable_layers` names.

    ``ranges`` gives the clipping value (> 0) of every activation that they read.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    ready: dict[str, str] = {}
    for node in graph.node:
        if node.name in layers:
            source = node.input[0]
            if source not in ready:
                ready[source] = _activation_pair(graph, nodes, source, ranges[source])
            node.input[0] = ready[source]
            axis = 1 if node.op_type == "MatMul" else 0
            node.input[1] = _weight_pair(graph, nodes, weights[node.input[1]], axis)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(result, full_check=True)
    return result


def _activation_pair(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], source: str, limit: float
) -> str:
    scale = _constant(graph, f"{source}/scale", np.float32(activation_step(limit)))
    zero = _constant(graph, f"{source}/zero_point", np.int8(0))
    levels, back = f"{source}/int8", f"{source}/dequantized"
    nodes.append(
        helper.make_node("QuantizeLinear", [source, scale, zero], [levels], f"{source}/quantize")
    )
    nodes.append(
        helper.make_node("DequantizeLinear", [levels, scale, zero], [back], f"{source}/dequantize")
    )
    return back


def activation_step(limit: float) -> float:
    """The step between codes of an activation that is clipped at ``limit``."""
    exact = float(exact_scale(limit / INT8_MAX))
    return max(exact, float(np.finfo(np.float16).smallest_subnormal))


def _weight_pair(
    graph: onnx.GraphProto, nodes: list[onnx.NodeProto], tensor: onnx.TensorProto, axis: int
) -> str:
    name, weight = tensor.name, numpy_helper.to_array(tensor)
    levels, scales = quantize_weight(weight, axis)
    tensor.CopyFrom(numpy_helper.from_array(levels, name))
    scale = _constant(graph, f"{name}/scale", scales)
    zero = _constant(graph, f"{name}/zero_point", np.zeros(len(scales), np.int8))
    back = f"{name}/dequantized"
    nodes.append(
        helper.make_node(
            "DequantizeLinear", [name, scale, zero], [back], f"{name}/dequantize", axis=axis
        )
    )
    return back


def quantize_weight(
    weight: npt.NDArray[np.float32], axis: int
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """INT8 levels and the scale of every channel along ``axis``; a channel of zeros has scale 1.

    So has one whose scale is below float16's smallest.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    peak = np.abs(weight).max(axis=others, keepdims=True)
    scales = exact_scale(peak / INT8_MAX)
    scales[scales == 0] = 1
    levels = np.clip(np.rint(weight / scales), -INT8_MAX, INT8_MAX).astype(np.int8)
    return levels, scales.reshape(-1)


def exact_scale(scale: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """``scale`` rounded to a float16 value, so that float32 and float16 graphs hold the same one.

    Values beyond float16's range become its largest. Subnormal ones are rounded up: steps are so
    coarse there that a smaller scale would clip.
    """
    about = np.finfo(np.float16)
    exact = np.asarray(scale)
    half = np.minimum(exact, about.max).astype(np.float16)
    short = (half > 0) & (half < about.smallest_normal) & (half < exact)
    up = np.nextafter(half, about.max)
    rounded: npt.NDArray[np.float32] = np.where(short, up, half).astype(np.float32)
    return rounded


def _constant(graph: onnx.GraphProto, name: str, value: npt.ArrayLike) -> str:
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name
