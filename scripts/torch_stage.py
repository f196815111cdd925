"""A stage's ONNX graph run by torch, on memory that it is given; for the proof alone.

Where no TensorRT at hand knows the GPU, the device backend still has to be proven: its addresses,
mapped answers, gather, capture and replay. So this interprets the few operators of our stage
graphs, one torch call each, on the backend's stream. It is no way to be fast.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch.nn import functional as F

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.errors import BackendError

Tensor = torch.Tensor
Attributes = dict[str, Any]
Operator = Callable[..., Any]
"""Called with the node's attributes and its inputs; gives one tensor or a tuple of them."""

DTYPES = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}


def _reshape(a: Attributes, x: Tensor, shape: Sequence[int]) -> Tensor:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(shape)])


def _slice(
    a: Attributes, x: Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int]
) -> Tensor:
    for start, end, axis in zip(starts, ends, axes, strict=True):
        x = x.narrow(axis, start, end - start)
    return x


def _pad(a: Attributes, x: Tensor, pads: Sequence[int]) -> Tensor:
    """ONNX lists all starts, then all ends; torch the last axis first."""
    pairs = zip(reversed(pads[: x.dim()]), reversed(pads[x.dim() :]), strict=True)
    return F.pad(x, [side for pair in pairs for side in pair])


def _axes(a: Attributes, axes: Sequence[int] | None) -> list[int]:
    """An input since opset 18, an attribute before."""
    return list(a["axes"] if axes is None else axes)


def _reduce_max(a: Attributes, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.amax(_axes(a, axes), keepdim=bool(a["keepdims"]))


def _reduce_mean(a: Attributes, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return x.mean(_axes(a, axes), keepdim=bool(a["keepdims"]))


def _reduce_sum_square(a: Attributes, x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    return (x.float() ** 2).sum(_axes(a, axes), keepdim=bool(a["keepdims"])).to(x.dtype)


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    top, left, bottom, right = a["pads"]
    assert (top, left) == (bottom, right)
    return F.conv2d(x, weight, bias, a["strides"], (top, left))


def _average_pool(a: Attributes, x: Tensor) -> Tensor:
    assert a["count_include_pad"]
    return F.avg_pool2d(x, a["kernel_shape"], a["strides"], a["pads"][:2])


def _layer_norm(a: Attributes, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    assert a["axis"] == -1
    return F.layer_norm(x, scale.shape, scale, shift, a["epsilon"])


def _quantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """Half to even, as ONNX says; the zero point is 0 in all our graphs."""
    return (x.float() / scale.float()).round_().clamp_(-128, 127).to(torch.int8)


def _dequantize(a: Attributes, x: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    if scale.dim():
        scale = scale.reshape([-1 if i == a["axis"] else 1 for i in range(x.dim())])
    return x.to(scale.dtype) * scale


OPERATORS: dict[str, Operator] = {
    "Add": lambda a, x, y: x + y,
    "ArgMax": lambda a, x: x.argmax(a["axis"], keepdim=bool(a["keepdims"])),
    "AveragePool": _average_pool,
    "Cast": lambda a, x: x.to(DTYPES[a["to"]]),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Conv": _conv,
    "DequantizeLinear": _dequantize,
    "Div": lambda a, x, y: x / y,
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Identity": lambda a, x: x,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda a, x, y: x @ y,
    "Mul": lambda a, x, y: x * y,
    "Pad": _pad,
    "QuantizeLinear": _quantize,
    "Reciprocal": lambda a, x: x.reciprocal(),
    "ReduceMax": _reduce_max,
    "ReduceMean": _reduce_mean,
    "ReduceSumSquare": _reduce_sum_square,
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a["axis"]),
    "Split": lambda a, x, sizes: x.split(list(sizes), a["axis"]),
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": lambda a, x, axes: x.squeeze(tuple(axes)),
    "Sub": lambda a, x, y: x - y,
    "Transpose": lambda a, x: x.permute(a["perm"]),
}
"""All that occur in stage graphs for TensorRT, of the demo, T2T-ViT and DeiT, in float16 and INT8;
their inputs are float unless they quantize."""


@dataclass(frozen=True)
class _Step:
    """One node of the graph."""

    run: Operator
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __call__(self, values: dict[str, Any]) -> None:
        result = self.run(self.attributes, *(values[name] for name in self.inputs))
        results = result if isinstance(result, tuple) else (result,)
        values.update(zip(self.outputs, results, strict=True))


class TorchStage:
    """:class:`~dvt_edge.runtime.backends.tensorrt_stage.StageEngine` over a graph.

    ``device`` is ``cuda`` or, where the memory is the host's, ``cpu``. Raises
    :class:`~dvt_edge.errors.BackendError` for an operator that it does not know.
    """

    scratch_bytes = 0
    """torch has memory of its own for intermediate tensors."""
    capturable = True

    def __init__(self, model: onnx.ModelProto, spec: StageSpec, device: str = "cuda") -> None:
        self._spec, self._device = spec, device
        # What a graph writes in between stays this stage's: nothing else is given those blocks.
        self._pool: Any = None
        if device == "cuda":
            _compute_exactly()
            self._pool = torch.cuda.MemPool()
        self._constants = {t.name: self._constant(t) for t in model.graph.initializer}
        self._steps: list[_Step] = []
        for node in model.graph.node:
            if node.op_type not in OPERATORS:
                raise BackendError(
                    f"{spec.file}: torch stages do not know the operator {node.op_type}, which "
                    f"{node.name} is"
                )
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            run = OPERATORS[node.op_type]
            step = _Step(run, attributes, tuple(node.input), tuple(node.output))
            if node.op_type == "DequantizeLinear" and node.input[0] in self._constants:
                step(self._constants)  # weights: once, not for every frame
            else:
                self._steps.append(step)
        # Where each value is read last, so that no more memory is held than needed.
        last = {name: i for i, step in enumerate(self._steps) for name in step.inputs}
        kept = {*self._constants, *(t.name for t in (*spec.inputs, *spec.outputs))}
        self._dropped: list[list[str]] = [[] for _ in self._steps]
        for name, i in last.items():
            if name not in kept:
                self._dropped[i].append(name)

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        bound = {
            t.name: self._at(addresses[t.name], t.shape_at(batch), t.dtype)
            for t in (*self._spec.inputs, *self._spec.outputs)
        }

        def run() -> None:
            values = self._constants | {t.name: bound[t.name] for t in self._spec.inputs}
            with torch.no_grad(), self._on(stream):
                for step, dropped in zip(self._steps, self._dropped, strict=True):
                    step(values)
                    for name in dropped:
                        del values[name]
                for tensor in self._spec.outputs:
                    # By a kernel, not a copy: the host's memory is mapped, and written in place.
                    torch.add(values[tensor.name], 0, out=bound[tensor.name])

        return run

    def warmed_up(self) -> None:
        """Nothing to keep."""

    def close(self) -> None:
        self._constants.clear()
        self._steps.clear()
        if self._device == "cuda":
            # cuBLAS keeps one for each stream that it worked on, and streams come and go. Those of
            # other backends go back to the pools that their graphs hold on to.
            clear = getattr(torch._C, "_cuda_clearCublasWorkspaces", None)
            if clear is not None:
                clear()
            self._pool = None
            torch.cuda.empty_cache()

    def _constant(self, tensor: onnx.TensorProto) -> Any:
        """Weights on the device. Shapes and axes, which are int64, stay on the host as lists:
        reading them from the device would break a capture."""
        array = np.array(numpy_helper.to_array(tensor))
        if array.dtype == np.int64:
            return array.tolist()
        return torch.from_numpy(array).to(self._device)

    @contextlib.contextmanager
    def _on(self, stream: int) -> Iterator[None]:
        """torch's work goes to ``stream``, and its memory comes from this stage's pool."""
        if self._device != "cuda":
            yield
            return
        with (
            torch.cuda.stream(torch.cuda.ExternalStream(stream)),  # type: ignore[no-untyped-call]
            torch.cuda.use_mem_pool(self._pool),
        ):
            yield

    def _at(self, address: int, shape: tuple[int, ...], dtype: str) -> Tensor:
        """The tensor that lies at ``address``, not a copy of it."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if self._device == "cuda":
            tensor = torch.as_tensor(_Memory(address, shape, kind.str), device=self._device)
        else:
            memory = (ctypes.c_char * size).from_address(address)
            array = np.frombuffer(memoryview(memory), kind).reshape(shape)
            tensor = torch.from_numpy(array)
        if tensor.data_ptr() != address:
            raise BackendError(f"{self._spec.file}: torch copied a tensor instead of using it")
        return tensor


class _Memory:
    """Device memory as torch takes it from others."""

    def __init__(self, address: int, shape: tuple[int, ...], kind: str) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": kind,
            "version": 3,
        }


def _compute_exactly() -> None:
    """As the CPU does: products in full float32, float16's sums in float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32 = False
