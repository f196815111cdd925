"""FP32 stage graphs -> the same stages in INT8 on dvt-edge's own operators for ONNX Runtime.

Weights and ranges are those of the Q/DQ graphs (:mod:`dvt_edge.converters.quantizing.insert_qdq`),
which stay the reference. ``docs/adr/0003-native-operators.md`` describes the operators. What
differs from the Q/DQ graphs:

- GELU is a table between two INT8 tensors. What it gives is never below -0.17, so its codes have a
  zero point and nearly twice the resolution; its input is cut where GELU is as good as zero;
- the relation MLP is quantized, and relations are handed on as INT8, each layer with a step of its
  own that the next stage's first weights take in;
- attention multiplies bfloat16 where the processor has it;
- the tokenizers' convolutions and the exit are copied as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from dvt_edge.bundle.manifest import NATIVE_DOMAIN
from dvt_edge.converters.quantizing.insert_qdq import (
    INT8_MAX,
    ONNXRUNTIME_OPS,
    activation_step,
    quantizable_layers,
    quantize_weight,
)
from dvt_edge.models.config import CascadeConfig
from dvt_edge.models.upsampling import upsampling_1d

Array = npt.NDArray[np.float32]
Ranges = Mapping[str, float]

RELATION_GELU = "relation_reuse.gelu/half:0"
CODES = 2 * INT8_MAX
"""Steps from the lowest code to the highest; -128 stands for NaN."""
_COPIED = ("exit", "norm", "head")
_OUTPUTS = ("logits", "confidence", "class_id", "next_features")


def native_activations(graph: onnx.ModelProto) -> list[str]:
    """Those whose ranges a native stage needs beyond the Q/DQ graph's."""
    made = {output for node in graph.graph.node for output in node.output}
    names = [RELATION_GELU] if RELATION_GELU in made else []
    if any(value.name == "next_relations" for value in graph.graph.output):
        names += _logits(graph)
    return names


def native_stages(
    graphs: Sequence[onnx.ModelProto], config: CascadeConfig, ranges: Sequence[Ranges]
) -> list[onnx.ModelProto]:
    """All stages of a cascade; ``graphs`` are FP32, written for ONNX Runtime.

    ``ranges`` gives each stage's clipping values of the activations that the linear layers read and
    of :func:`native_activations`. The stages fit each other only: relations pass as INT8.
    """
    stages: list[onnx.ModelProto] = []
    steps: Array | None = None
    for index, (graph, known) in enumerate(zip(graphs, ranges, strict=True)):
        stage = _NativeStage(graph, config, index, known, steps)
        stages.append(stage.build())
        steps = stage.relation_steps
    return stages


def _logits(graph: onnx.ModelProto) -> list[str]:
    """What each layer's softmax reads, and the layer hands on."""
    return [node.input[0] for node in graph.graph.node if node.name.endswith(".attn/softmax")]


@dataclass(frozen=True)
class GeluTable:
    """GELU between INT8 codes."""

    codes: npt.NDArray[np.int8]
    """[256]: the output's, by the input's + 128."""
    input_step: float
    input_zero: float
    """Code of an input of 0, not always whole."""
    output_step: float
    output_zero: int


def gelu_table(limit: float) -> GeluTable:
    """The table for outputs that are clipped at ``limit`` (> 0)."""
    x = np.linspace(-8, limit + 2, 1 << 14)
    y = _gelu(x)
    low = float(y.min())
    output_step = (limit - low) / CODES
    output_zero = -INT8_MAX - round(low / output_step)
    first = float(x[np.argmax(np.abs(y) >= output_step / 2)])  # below, GELU rounds to zero
    last = float(x[np.argmax(y >= limit)])
    input_step = (last - first) / CODES
    input_zero = -INT8_MAX - first / input_step
    exact = _gelu((np.arange(-128, 128) - input_zero) * input_step)
    codes = np.clip(np.rint(exact / output_step) + output_zero, -INT8_MAX, INT8_MAX)
    return GeluTable(codes.astype(np.int8), input_step, input_zero, output_step, output_zero)


def _gelu(x: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    return np.asarray([value * (1 + math.erf(value / math.sqrt(2))) / 2 for value in x.tolist()])


class _NativeStage:
    """One stage under construction; names and shapes are those of the FP32 graph."""

    def __init__(
        self,
        model: onnx.ModelProto,
        config: CascadeConfig,
        index: int,
        ranges: Ranges,
        handed_steps: Array | None,
    ) -> None:
        self.model, self.config, self.ranges = model, config, ranges
        self.stage = config.stages[index]
        self.upstream = config.stages[index - 1] if index else None
        self.handed_steps = handed_steps
        self.known = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.sources = quantizable_layers(model, ONNXRUNTIME_OPS)
        outputs = {value.name for value in model.graph.output}
        self.ends_in_class = not outputs & {"next_features", "next_relations"}
        self.relation_steps: Array | None = None
        """[L H]: of the relations that are handed on, by channel."""
        if "next_relations" in outputs:
            steps = [activation_step(ranges[name]) for name in _logits(model)]
            self.relation_steps = np.repeat(np.asarray(steps, np.float32), self.stage.heads)
        self.levels: dict[str, tuple[npt.NDArray[np.int8], Array]] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def build(self) -> onnx.ModelProto:
        contexts, relations = self._contexts(), self._relations()
        x = self._tokens()
        logits: list[str] = []
        for layer in range(self.stage.depth):
            context = contexts[layer] if layer < len(contexts) else None
            class_only = self.ends_in_class and layer + 1 == self.stage.depth
            start = None if layer else "start"
            x = self._block(x, start, layer, context, relations, class_only, logits)
        for node in self.model.graph.node:
            kind, _, name = node.name.partition("/")
            if kind.partition(".")[0] in _COPIED or (kind == "output" and name in _OUTPUTS):
                self._copy(node)
        if self.relation_steps is not None:
            self._node("Concat", logits, "relations/concat", ["next_relations"], axis=1)
        return self._finished()

    def _finished(self) -> onnx.ModelProto:
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        graph = result.graph
        for value in (*graph.input, *graph.output):
            if value.name in ("relations", "next_relations"):
                value.type.tensor_type.elem_type = TensorProto.INT8
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(
            numpy_helper.from_array(np.ascontiguousarray(value), name)
            for name, value in self.constants.items()
        )
        result.opset_import.append(helper.make_opsetid(NATIVE_DOMAIN, 1))
        onnx.checker.check_model(result, full_check=True)
        return result

    # Nodes ----------------------------------------------------------------------------------------

    def _constant(self, name: str, value: npt.ArrayLike) -> str:
        array = np.asarray(value)
        self.constants[name] = array.astype(np.float32) if array.dtype.kind == "f" else array
        return name

    def _node(
        self, op: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **of: Any
    ) -> str:
        names = list(outputs or [f"{name}:0"])
        self.nodes.append(helper.make_node(op, list(inputs), names, name, **of))
        return names[0]

    def _native(
        self, op: str, inputs: Sequence[str], name: str, outputs: Sequence[str] = (), **of: Any
    ) -> str:
        return self._node(op, inputs, name, outputs, domain=NATIVE_DOMAIN, **of)

    def _copy(self, node: onnx.NodeProto) -> None:
        self.nodes.append(node)
        for name in node.input:
            if name in self.known:
                self.constants[name] = self.known[name]

    def _levels(self, layer: str) -> tuple[npt.NDArray[np.int8], Array]:
        """INT8 weight [inputs, outputs] and scale [outputs] of a linear layer, as in the Q/DQ
        graph; made once, also where each part of the layer is an operator."""
        if layer not in self.levels:
            self.levels[layer] = quantize_weight(self.known[f"{layer}.weight"], axis=1)
        return self.levels[layer]

    def _step(self, layer: str) -> float:
        """Of the codes that linear layer ``layer`` reads, as in the Q/DQ graph."""
        return activation_step(self.ranges[self.sources[layer]])

    def _linear(
        self,
        layer: str,
        codes: str,
        output: str,
        *,
        step: float | None = None,
        zero_point: int = 0,
        bias: Array | None = None,
        residual: str | None = None,
    ) -> str:
        """Codes of ``step`` to floats."""
        levels, scales = self._levels(layer)
        if bias is None:
            bias = self.known.get(f"{layer}.bias", np.zeros(len(scales), np.float32))
        inputs = [
            codes,
            self._constant(f"{layer}.weight", levels),
            self._constant(f"{layer}.scale", scales * (step or self._step(layer))),
            self._constant(f"{layer}.bias", bias),
            *([residual] if residual else []),
        ]
        return self._native("Linear", inputs, layer, [output], zero_point=zero_point)

    def _with_gelu(
        self, layer: str, codes: str, next_layer: str, columns: slice = slice(None)
    ) -> tuple[str, GeluTable]:
        """A linear layer's ``columns`` with GELU, to the codes that ``next_layer`` reads."""
        table = gelu_table(INT8_MAX * self._step(next_layer))
        levels, scales = self._levels(layer)
        name = f"{next_layer}/gelu"
        scale = scales[columns] * self._step(layer) / table.input_step
        bias = self.known[f"{layer}.bias"][columns] / table.input_step + table.input_zero
        inputs = [
            codes,
            self._constant(f"{name}.weight", levels[:, columns]),
            self._constant(f"{name}.scale", scale),
            self._constant(f"{name}.bias", bias),
            self._constant(f"{name}.table", table.codes),
        ]
        return self._native("LinearTable", inputs, name), table

    def _norm(
        self,
        x: str,
        weight: Array,
        bias: Array,
        step: float,
        name: str,
        *,
        start: str | None = None,
        context: str | None = None,
    ) -> str:
        """LayerNorm of ``x``, plus ``start`` or beside ``context``, to codes of ``step``.

        The sum with ``start`` is named as in the FP32 graph.
        """
        inputs = [
            x,
            self._constant(f"{name}.weight", weight / step),
            self._constant(f"{name}.bias", bias / step),
        ]
        outputs = [f"{name}/codes"]
        if start:
            inputs.append(self._constant(start, self.known[start]))
            outputs.append("patch_embed/start:0")
        if context:
            inputs += ["", context, self._upsampling()]
        epsilon = self.config.norm_eps
        return self._native("NormQuantize", inputs, name, outputs, epsilon=epsilon)

    def _upsampling(self) -> str:
        assert self.upstream is not None
        matrix = upsampling_1d(self.upstream.grid, self.stage.grid)
        return self._constant("upsampling", matrix)

    def _class_row(self, x: str, name: str) -> str:
        bounds = [
            self._constant(f"bound_{value}", np.asarray([value], np.int64)) for value in (0, 1, 1)
        ]
        return self._node("Slice", [x, *bounds], name)

    # The stage ------------------------------------------------------------------------------------

    def _tokens(self) -> str:
        """Before the class token and the position embeddings are added: (N, T, D)."""
        layer = "patch_embed.proj"
        for node in self.model.graph.node:
            if node.name == layer and self._takes(layer):
                scale = 1 / self._step(layer)
                codes = self._native("Quantize", node.input[:1], f"{layer}/quantize", scale=scale)
                self._linear(layer, codes, f"{layer}/add_bias:0")
            elif node.name == "patch_embed/start" or (
                node.name == f"{layer}/add_bias" and self._takes(layer)
            ):
                pass  # part of another operator
            elif node.name.startswith("patch_embed"):
                self._copy(node)
        return "patch_embed/class_row:0"

    def _takes(self, layer: str) -> bool:
        """Whether it is a product, no convolution, of a depth that `Linear` takes."""
        return layer in self.sources and self.known[f"{layer}.weight"].shape[0] % 4 == 0

    def _contexts(self) -> list[str]:
        """Contexts of the layers that have one, at the stage before's tokens."""
        layer = "feature_reuse.fc1"
        if layer not in self.sources:
            return []
        assert self.upstream is not None
        ones = np.ones(self.upstream.width, np.float32)
        zeros = np.zeros_like(ones)
        codes = self._norm("features", ones, zeros, self._step(layer), "feature_reuse.norm")
        hidden, contexts = self.config.reuse_hidden, []
        for i in range(self.known[f"{layer}.weight"].shape[1] // hidden):
            second = f"feature_reuse.fc2.{i}"
            columns = slice(i * hidden, (i + 1) * hidden)
            part, table = self._with_gelu(layer, codes, second, columns)
            step, zero_point = table.output_step, table.output_zero
            contexts.append(
                self._linear(second, part, f"{second}:0", step=step, zero_point=zero_point)
            )
        return contexts

    def _relations(self) -> str | None:
        """Transformed relations of all layers before upsampling: (N, L H, T', T')."""
        if self.handed_steps is None:
            return None
        name = "relation_reuse"
        table = gelu_table(INT8_MAX * activation_step(self.ranges[RELATION_GELU]))
        first, second = (self.known[f"{name}.conv{i}.weight"][:, :, 0, 0] for i in (1, 2))
        # Weights take in the steps of their inputs; about the mean, lest scales become subnormal.
        mean = float(self.handed_steps.mean())
        levels1, scales1 = quantize_weight(first * (self.handed_steps / mean), axis=0)
        levels2, scales2 = quantize_weight(second, axis=0)
        bias = self.known[f"{name}.conv1.bias"] / table.input_step + table.input_zero
        inputs = [
            "relations",
            self._constant(f"{name}.conv1.weight", levels1),
            self._constant(f"{name}.conv1.scale", scales1 * mean / table.input_step),
            self._constant(f"{name}.conv1.bias", bias),
            self._constant(f"{name}.table", table.codes),
            self._constant(f"{name}.conv2.weight", levels2),
            self._constant(f"{name}.conv2.scale", scales2 * table.output_step),
            self._constant(f"{name}.conv2.bias", self.known[f"{name}.conv2.bias"]),
        ]
        return self._native("RelationMlp", inputs, name, zero_point=table.output_zero)

    def _block(
        self,
        x: str,
        start: str | None,
        layer: int,
        context: str | None,
        relations: str | None,
        class_only: bool,
        logits: list[str],
    ) -> str:
        """One layer: tokens (N, T, D), or (N, 1, D) with ``class_only``; appends its logits."""
        name = f"blocks.{layer}"
        attention = f"{name}.attn"
        weight, bias = (self.known[f"{name}.norm1.{part}"] for part in ("weight", "bias"))
        reads = f"{attention}.kv" if class_only else f"{attention}.qkv"
        step = self._step(reads)
        codes = self._norm(x, weight, bias, step, f"{name}.norm1", start=start)
        if start:
            x = "patch_embed/start:0"
        of_q, of_k = self._attention_biases(attention)
        if class_only:
            row = self._class_row(codes, f"{attention}/class_codes")
            queries = self._linear(f"{attention}.q", row, f"{attention}.q:0", step=step, bias=of_q)
            bias = np.concatenate([of_k, np.zeros_like(of_k)])
            x = self._class_row(x, f"{name}/class_token")
        else:
            queries = f"{reads}:0"
            bias = np.concatenate([of_q, of_k, np.zeros_like(of_k)])
        keys_values = self._linear(reads, codes, f"{reads}:0", bias=bias)
        inputs = [queries, keys_values]
        if relations:
            inputs += [relations, self._upsampling()]
        outputs, settings = [f"{attention}/codes"], {}
        if self.relation_steps is not None:
            outputs.append(f"{attention}/logit_codes")
            logits.append(outputs[-1])
            settings["logit_scale"] = 1 / float(self.relation_steps[layer * self.stage.heads])
        mixed = self._native(
            "Attention",
            inputs,
            attention,
            outputs,
            heads=self.stage.heads,
            head_width=self.stage.width // self.stage.heads,
            first=layer * self.stage.heads if relations else 0,
            scale=1 / self._step(f"{attention}.proj"),
            **settings,
        )
        x = self._linear(f"{attention}.proj", mixed, f"{name}/add_attention:0", residual=x)
        weight, bias = (self.known[f"{name}.norm2.{part}"] for part in ("weight", "bias"))
        step = self._step(f"{name}.mlp.fc1")
        codes = self._norm(x, weight, bias, step, f"{name}.norm2", context=context)
        hidden, table = self._with_gelu(f"{name}.mlp.fc1", codes, f"{name}.mlp.fc2")
        return self._linear(
            f"{name}.mlp.fc2",
            hidden,
            f"{name}/add_mlp:0",
            step=table.output_step,
            zero_point=table.output_zero,
            residual=x,
        )

    def _attention_biases(self, name: str) -> tuple[Array, Array]:
        """Of q, scaled, and of k, each [D]; v's is in the projection's."""
        zeros = np.zeros(self.stage.width, np.float32)
        q, k = (self.known.get(f"{name}.{part}.bias", zeros).reshape(-1) for part in ("q", "k"))
        return q, k
