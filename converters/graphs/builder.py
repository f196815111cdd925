"""A thin layer over ``onnx.helper``: nodes by name, constants, and one declared output each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
"""The first with LayerNormalization."""

Shape = Sequence[int | str]


class GraphBuilder:
    """Collects the nodes of one graph in execution order."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, shape: Shape) -> str:
        """Declare a float32 input."""
        self._inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return name

    def output(self, name: str, source: str, shape: Shape, dtype: int = TensorProto.FLOAT) -> None:
        """Declare that ``source`` leaves the graph under ``name``."""
        self.node("Identity", [source], name=f"output/{name}", outputs=[name])
        self._outputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Add a constant; floats are stored as float32."""
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = array.astype(np.float32)
        self._constants[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        *,
        name: str,
        outputs: Sequence[str] = (),
        **attributes: Any,
    ) -> str:
        """Add a node; its (first) output is called after it unless said otherwise."""
        names = list(outputs or [f"{name}:0"])
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, **attributes))
        return names[0]

    def linear(
        self,
        x: str,
        weight: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32] | None,
        name: str,
    ) -> str:
        """``x @ weight + bias`` with weight [inputs, outputs]; the MatMul carries ``name``.

        The quantizer finds linears by their MatMul's two-dimensional constant.
        """
        y = self.node("MatMul", [x, self.constant(f"{name}.weight", weight)], name=name)
        if bias is None:
            return y
        constant = self.constant(f"{name}.bias", bias)
        return self.node("Add", [y, constant], name=f"{name}/add_bias")

    def conv(
        self,
        x: str,
        weight: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32] | None,
        name: str,
        *,
        stride: int = 1,
        padding: int = 0,
    ) -> str:
        """A square convolution with weight [outputs, inputs, kernel, kernel]."""
        inputs = [x, self.constant(f"{name}.weight", weight)]
        if bias is not None:
            inputs.append(self.constant(f"{name}.bias", bias))
        return self.node(
            "Conv",
            inputs,
            name=name,
            kernel_shape=list(weight.shape[2:]),
            strides=[stride] * 2,
            pads=[padding] * 4,
        )

    def gelu(self, x: str, name: str) -> str:
        """The exact GELU in the form that ONNX Runtime and TensorRT fuse to one kernel."""
        root2 = self.constant("sqrt_2", np.float32(np.sqrt(2)))
        one, half = self.constant("one", np.float32(1)), self.constant("half", np.float32(0.5))
        y = self.node("Div", [x, root2], name=f"{name}/div")
        y = self.node("Erf", [y], name=f"{name}/erf")
        y = self.node("Add", [y, one], name=f"{name}/add")
        y = self.node("Mul", [x, y], name=f"{name}/mul")
        return self.node("Mul", [y, half], name=f"{name}/half")

    def layer_norm(
        self,
        x: str,
        weight: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        epsilon: float,
        name: str,
    ) -> str:
        scale = self.constant(f"{name}.weight", weight)
        shift = self.constant(f"{name}.bias", bias)
        return self.node(
            "LayerNormalization", [x, scale, shift], name=name, axis=-1, epsilon=epsilon
        )

    def reshape(self, x: str, shape: Sequence[int], name: str) -> str:
        """Reshape; 0 keeps a dimension, -1 infers one."""
        target = self.constant(f"{name}.shape", np.asarray(shape, np.int64))
        return self.node("Reshape", [x, target], name=name)

    def transpose(self, x: str, order: Sequence[int], name: str) -> str:
        return self.node("Transpose", [x], name=name, perm=list(order))

    def split(self, x: str, sizes: Sequence[int], axis: int, name: str) -> list[str]:
        if len(sizes) == 1:
            return [x]
        parts = [f"{name}:{i}" for i in range(len(sizes))]
        lengths = self.constant(f"{name}.sizes", np.asarray(sizes, np.int64))
        self.node("Split", [x, lengths], name=name, outputs=parts, axis=axis)
        return parts

    def first_token(self, x: str, name: str, axis: int = 1) -> str:
        """Row 0 of ``axis``, the axis kept."""
        bounds = [
            self.constant(f"bound_{value}", np.asarray([value], np.int64)) for value in (0, 1, axis)
        ]
        return self.node("Slice", [x, *bounds], name=name)

    def build(self) -> onnx.ModelProto:
        """The finished model, checked, with shapes inferred."""
        graph = helper.make_graph(
            self._nodes,
            self._name,
            self._inputs,
            self._outputs,
            initializer=list(self._constants.values()),
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=8,
            producer_name="dvt-edge",
        )
        onnx.checker.check_model(model, full_check=True)
        return model
