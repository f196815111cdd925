"""Stage graph -> the same graph with an FP16 body, for TensorRT.

Strongly typed networks take types from the graph: a float32 scale would leave float32 products and
attention in pieces. Images, reuse tensors, weights and Q/DQ scales become float16. What rounding
would spoil stays float32: the exit, whose confidence is compared with thresholds, and the variances
of the ``t2t`` tokenizer, small differences of large squares.
"""

from __future__ import annotations

import re

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FP16_OPSET = 19
"""First opset whose Q/DQ takes float16 scales; ONNX Runtime refuses them before."""

_FLOAT32_NODES = re.compile(
    r"norm$|head|exit/|output/(logits|confidence|class_id)|patch_embed\.attention\d/"
    r"(x2|y2|mean|y_mean|norm\d/|mean_square|y_mean_square)"
)
"""Names of nodes that compute in float32."""

_FLOAT32_OUTPUTS = ("logits", "confidence")


def fp16_body(model: onnx.ModelProto) -> onnx.ModelProto:
    """``model`` (float32, with or without Q/DQ) with a float16 body, inputs and reuse outputs.

    A graph with Q/DQ is written in opset :data:`FP16_OPSET`, another in the opset it has.
    ``logits`` and ``confidence`` stay float32.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    if any(node.op_type == "DequantizeLinear" for node in result.graph.node):
        _raise_opset(result)
    _Fp16Body(result.graph).convert()
    onnx.checker.check_model(result, full_check=True)
    return result


def _raise_opset(model: onnx.ModelProto) -> None:
    """From opset 17 to :data:`FP16_OPSET`: reductions take their axes as an input since 18."""
    model.opset_import[0].version = FP16_OPSET
    model.ir_version = 9
    for node in model.graph.node:
        if not node.op_type.startswith("Reduce"):
            continue
        for position, attribute in enumerate(node.attribute):
            if attribute.name == "axes":
                name = f"{node.name}.axes"
                axes = numpy_helper.from_array(np.asarray(attribute.ints, np.int64), name)
                model.graph.initializer.append(axes)
                node.input.append(name)
                del node.attribute[position]
                break


class _Fp16Body:
    """One conversion: follows the types of all tensors in graph order and casts where they meet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.constants = {t.name: t for t in graph.initializer}
        self.types: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.kept: dict[str, onnx.TensorProto] = {}

    def convert(self) -> None:
        graph = self.graph
        for value in graph.input:
            value.type.tensor_type.elem_type = TensorProto.FLOAT16
            self.types[value.name] = TensorProto.FLOAT16
        for value in graph.output:
            tensor = value.type.tensor_type
            if tensor.elem_type == TensorProto.FLOAT and value.name not in _FLOAT32_OUTPUTS:
                tensor.elem_type = TensorProto.FLOAT16
        for node in graph.node:
            float32 = _FLOAT32_NODES.match(node.name)
            dtype = TensorProto.FLOAT if float32 else TensorProto.FLOAT16
            node.input[:] = [self._as(name, dtype) for name in node.input]
            self.nodes.append(node)
            for name in node.output:
                self.types[name] = self._result_type(node, dtype)
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.kept.values())

    def _result_type(self, node: onnx.NodeProto, dtype: int) -> int:
        if node.op_type == "Cast":
            to: int = helper.get_node_attr_value(node, "to")
            return to
        if node.op_type == "ArgMax":
            return TensorProto.INT64
        if node.op_type == "QuantizeLinear":
            return TensorProto.INT8
        if node.op_type == "Identity":
            return self.types[node.input[0]]
        return dtype

    def _as(self, name: str, dtype: int) -> str:
        """Name under which the floating-point tensor ``name`` has the type ``dtype``."""
        if name in self.constants:
            return self._constant(name, dtype)
        if self.types[name] in (dtype, TensorProto.INT8, TensorProto.INT32, TensorProto.INT64):
            return name
        cast = f"{name}/as_{TensorProto.DataType.Name(dtype).lower()}"
        if cast not in self.types:
            self.nodes.append(helper.make_node("Cast", [name], [cast], cast, to=dtype))
            self.types[cast] = dtype
        return cast

    def _constant(self, name: str, dtype: int) -> str:
        tensor = self.constants[name]
        if tensor.data_type != TensorProto.FLOAT or dtype == TensorProto.FLOAT:
            self.kept[name] = tensor
            return name
        half = f"{name}/float16"
        if half not in self.kept:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            self.kept[half] = numpy_helper.from_array(array, half)
        return half
