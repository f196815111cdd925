"""Cascade -> one FP32 ONNX graph per stage, with the algebra that saves time folded in.

Every graph takes ``image`` [N, C, S, S] (normalised) and, from the second stage on, ``features``
and ``relations`` of the stage before; it gives ``confidence`` [N] float32 (largest softmax
probability by default), ``class_id`` [N] int32, ``logits`` [N, classes], and ``features`` and
``relations`` under the names ``next_features`` and ``next_relations`` where the next stage reads
them.

Relations are attention logits. For ONNX Runtime they are handed on as such, one tensor of all
layers. For TensorRT it is ``queries`` and ``keys`` of all layers and, from the third stage on,
``coarse_relations``, the reused part that was added to the logits: the next stage multiplies and
adds. A logit that leaves the graph cannot stay inside a fused attention kernel, queries and keys
can: ``docs/adr/0001-relations-hand-over.md`` has the figures.

What differs from the PyTorch model, and changes nothing but rounding:

- the upsampling is a product with a constant matrix (``dvt_edge.models.upsampling``), for
  relations layer by layer; the tokenizers are in ``dvt_edge.converters.graphs.tokenizer_graph``;
- the softmax scale is folded into q, batch norm into the stem's convolution, v's bias into the
  projection's (softmax rows sum to one); k's bias is left out where only softmax reads the logits;
- all layers' feature-reuse MLPs share one normalisation and one first GEMM, their LayerNorm's
  affine part being folded into it, and one upsampling product;
- a stage whose tokens are not read computes its last layer for the class token only, whose
  context is zero: that layer's feature-reuse MLP is left out.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from dvt_edge.converters.graphs.builder import GraphBuilder
from dvt_edge.converters.graphs.tokenizer_graph import tokens_from_image
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.config import StageConfig
from dvt_edge.models.upsampling import feature_matrix, relation_matrix
from dvt_edge.profile import ExitsConfig

Array: TypeAlias = npt.NDArray[np.float32]
Weights: TypeAlias = dict[str, Array]

Target = Literal["onnxruntime", "tensorrt"]
"""Whose habits a graph is written for; what it computes is the same."""

BATCH = "N"
TEMPERATURE = "exit.temperature"


def stage_graph_from_cascade(
    cascade: Cascade,
    index: int,
    exits: ExitsConfig | None = None,
    target: Target = "onnxruntime",
) -> onnx.ModelProto:
    """The FP32 graph of stage ``index`` (from 0) with dynamic batch ``N``.

    ``exits`` says what ``confidence`` is; with ``fit_temperature`` the graph holds a temperature of
    1 that :func:`set_temperature` replaces. All stages of a cascade take the same ``target``.
    """
    return _StageGraph(cascade, index, exits or ExitsConfig(), target).build()


def set_temperature(model: onnx.ModelProto, temperature: float) -> None:
    """Replace the temperature of a stage graph that was made with ``fit_temperature``."""
    constant = next(t for t in model.graph.initializer if t.name == TEMPERATURE)
    value = np.asarray(temperature, np.float32)
    constant.CopyFrom(onnx.numpy_helper.from_array(value, TEMPERATURE))


class _StageGraph:
    """One stage under construction. Shape comments: N batch, T tokens, D width, H heads, h = D/H;
    the stage before is marked ``'``."""

    def __init__(self, cascade: Cascade, index: int, exits: ExitsConfig, target: Target) -> None:
        config = cascade.config
        self.exits = exits
        self.for_tensorrt = target == "tensorrt"
        self.config, self.index = config, index
        self.stage = config.stages[index]
        self.upstream = config.stages[index - 1] if index else None
        last = index + 1 == len(config.stages)
        self.gives_features = config.feature_reuse and not last
        self.gives_relations = config.relation_reuse and not last
        self.ends_in_class = not (self.gives_features or self.gives_relations)
        self.weights: Weights = {
            name: tensor.detach().float().numpy()
            for name, tensor in cascade.stages[index].state_dict().items()
        }
        self.g = GraphBuilder(f"stage{index + 1}")
        # Of all layers so far, for the next stage.
        self.logits: list[str] = []
        self.queries: list[str] = []
        self.keys: list[str] = []
        self.coarse: str | None = None

    def build(self) -> onnx.ModelProto:
        g, config, stage = self.g, self.config, self.stage
        size = config.image_size
        image = g.input("image", [BATCH, config.channels, size, size])
        contexts = self._reused_features()
        reused = self._reused_relations()
        x = self._tokens(image)
        for layer in range(stage.depth):
            x = self._block(
                x,
                layer,
                contexts[layer] if layer < len(contexts) else None,
                reused[layer] if reused else None,
                class_only=self.ends_in_class and layer + 1 == stage.depth,
            )
        self._exit(x)
        if self.gives_features:
            g.output("next_features", x, [BATCH, stage.tokens, stage.width])
        if self.gives_relations:
            self._hand_over_relations()
        return g.build()

    def _hand_over_relations(self) -> None:
        tokens, channels = self.stage.tokens, self.stage.relation_channels
        if not self.for_tensorrt:
            self._hand_over("relations", self.logits, [channels, tokens, tokens])
            return
        head = self.stage.width // self.stage.heads
        self._hand_over("queries", self.queries, [channels, tokens, head])
        self._hand_over("keys", self.keys, [channels, head, tokens])
        if self.coarse is not None:
            assert self.upstream is not None
            side = self.upstream.tokens
            self.g.output("next_coarse_relations", self.coarse, [BATCH, channels, side, side])

    def _hand_over(self, name: str, layers: list[str], shape: list[int]) -> None:
        joined = self.g.node("Concat", layers, name=f"{name}/concat", axis=1)
        self.g.output(f"next_{name}", joined, [BATCH, *shape])

    def _linear(self, name: str) -> tuple[Array, Array | None]:
        """Weight [inputs, outputs] and bias of a linear layer of the stage."""
        return self.weights[f"{name}.weight"].T, self.weights.get(f"{name}.bias")

    def _norm(self, x: str, name: str) -> str:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return self.g.layer_norm(x, weight, bias, self.config.norm_eps, name)

    def _tokens(self, image: str) -> str:
        g, w = self.g, self.weights
        x = tokens_from_image(g, image, w, self.config, self.index)
        # The class token is the same for every image: pad a zero row in front, then one addition
        # brings the class token and all position embeddings.
        pads = g.constant("patch_embed.pads", np.asarray([0, 1, 0, 0, 0, 0], np.int64))
        x = g.node("Pad", [x, pads], name="patch_embed/class_row")  # (N, T, D)
        start = w["pos_embed"].copy()
        start[:, 0] += w["cls_token"][:, 0]
        return g.node("Add", [x, g.constant("start", start)], name="patch_embed/start")

    def _reused_features(self) -> list[str]:
        """Contexts E_l, each (N, T, reuse_width), of all layers whose tokens are all computed."""
        depth = self.stage.depth - self.ends_in_class  # the class token's context is zero
        if self.upstream is None or not self.config.feature_reuse or not depth:
            return []
        g, config, up = self.g, self.config, self.upstream
        features = g.input("features", [BATCH, up.tokens, up.width])
        ones, zeros = np.ones(up.width, np.float32), np.zeros(up.width, np.float32)
        x = g.layer_norm(features, ones, zeros, config.norm_eps, "feature_reuse.norm")
        weights, biases = [], []
        for layer in range(depth):
            prefix = f"blocks.{layer}.feature_reuse"
            weight = self.weights[f"{prefix}.mlp.fc1.weight"].T
            bias = self.weights[f"{prefix}.mlp.fc1.bias"]
            norm, shift = self.weights[f"{prefix}.norm.weight"], self.weights[f"{prefix}.norm.bias"]
            weights.append(norm[:, None] * weight)
            biases.append(shift @ weight + bias)
        x = g.linear(
            x, np.concatenate(weights, axis=1), np.concatenate(biases), "feature_reuse.fc1"
        )
        x = g.gelu(x, "feature_reuse.gelu")  # (N, T', L * reuse_hidden)
        hidden = g.split(x, [config.reuse_hidden] * depth, -1, "feature_reuse/split_hidden")
        contexts = [
            g.linear(
                part, *self._linear(f"blocks.{i}.feature_reuse.mlp.fc2"), f"feature_reuse.fc2.{i}"
            )
            for i, part in enumerate(hidden)
        ]
        joined = g.node("Concat", contexts, name="feature_reuse/concat", axis=-1)
        matrix = g.constant("feature_upsample", feature_matrix(up.grid, self.stage.grid))
        finer = g.node("MatMul", [matrix, joined], name="feature_reuse/upsample")
        return g.split(finer, [config.reuse_width] * depth, -1, "feature_reuse/split")

    def _reused_relations(self) -> list[str]:
        """Transformed relations of all layers before upsampling, each (N, H, T', T')."""
        if self.upstream is None or not self.config.relation_reuse:
            return []
        g, w, stage = self.g, self.weights, self.stage
        x = self._relations_of(self.upstream)
        for i in (1, 2):
            name = f"relation_reuse.conv{i}"
            x = g.conv(x, w[f"{name}.weight"], w[f"{name}.bias"], name)
            x = g.gelu(x, "relation_reuse.gelu") if i == 1 else x
        self.coarse = x
        return g.split(x, [stage.heads] * stage.depth, 1, "relation_reuse/split")

    def _relations_of(self, up: StageConfig) -> str:
        """Attention logits of all layers of the stage before: (N, L'H', T', T')."""
        g, channels, tokens = self.g, up.relation_channels, up.tokens
        if not self.for_tensorrt:
            return g.input("relations", [BATCH, channels, tokens, tokens])
        head = up.width // up.heads
        queries = g.input("queries", [BATCH, channels, tokens, head])
        keys = g.input("keys", [BATCH, channels, head, tokens])
        x = g.node("MatMul", [queries, keys], name="relations/rebuilt")
        if self.index > 1:  # the stage before reused relations itself
            before = self.config.stages[self.index - 2]
            coarse = g.input("coarse_relations", [BATCH, channels, before.tokens, before.tokens])
            matrix = relation_matrix(before.grid, up.grid)
            left = g.constant("coarse_rows", matrix)
            right = g.constant("coarse_columns", matrix.T)
            rows = g.node("MatMul", [left, coarse], name="relations/coarse_rows")
            finer = g.node("MatMul", [rows, right], name="relations/coarse_columns")
            x = g.node("Add", [x, finer], name="relations/add_coarse")
        return x

    def _upsampled_relations(self, coarse: str, name: str, class_only: bool) -> str:
        """One layer's R_l: (N, H, T', T') -> (N, H, T, T), or (N, H, 1, T) with ``class_only``.

        Layer by layer the maps stay in the cache, and the split above copies the coarse ones only.
        """
        g = self.g
        assert self.upstream is not None
        matrix = relation_matrix(self.upstream.grid, self.stage.grid)
        if class_only:  # the class token's row is its own upstream row
            rows = g.first_token(coarse, f"{name}/class_relations", axis=2)
        else:
            left = g.constant("relation_rows", matrix)
            rows = g.node("MatMul", [left, coarse], name=f"{name}/relation_rows")
        right = g.constant("relation_columns", matrix.T)
        return g.node("MatMul", [rows, right], name=f"{name}/relation_columns")

    def _block(
        self, x: str, layer: int, context: str | None, reused: str | None, class_only: bool
    ) -> str:
        """One layer: tokens (N, T, D), or (N, 1, D) with ``class_only``."""
        g, name = self.g, f"blocks.{layer}"
        attended = self._attention(
            self._norm(x, f"{name}.norm1"), f"{name}.attn", reused, class_only
        )
        if class_only:
            x = g.first_token(x, f"{name}/class_token")
        x = g.node("Add", [x, attended], name=f"{name}/add_attention")
        y = x
        if class_only and self.upstream is not None and self.config.feature_reuse:
            pads = np.asarray([0, 0, 0, 0, 0, self.config.reuse_width], np.int64)
            y = g.node("Pad", [x, g.constant("no_context", pads)], name=f"{name}/no_context")
        elif context:
            y = g.node("Concat", [x, context], name=f"{name}/with_context", axis=-1)
        y = self._norm(y, f"{name}.norm2")
        y = g.gelu(g.linear(y, *self._linear(f"{name}.mlp.fc1"), f"{name}.mlp.fc1"), f"{name}.gelu")
        y = g.linear(y, *self._linear(f"{name}.mlp.fc2"), f"{name}.mlp.fc2")
        return g.node("Add", [x, y], name=f"{name}/add_mlp")

    def _attention(self, x: str, name: str, reused: str | None, class_only: bool) -> str:
        g, heads, width = self.g, self.stage.heads, self.stage.width
        head = width // heads
        weight, bias = self._linear(f"{name}.qkv")
        # Where nothing follows one of q, k and v alone, TensorRT's planner takes the product apart
        # and dequantizes its weights at run time; the scale or k's bias is put there to follow k.
        scaled_keys = self.for_tensorrt and bias is None
        scale = np.ones(3 * width, np.float32)
        if not scaled_keys:
            scale[:width] = 1 / math.sqrt(head)
        weight, bias = weight * scale, None if bias is None else bias * scale
        if class_only:
            queries = g.linear(
                g.first_token(x, f"{name}/class_token"), weight[:, :width], None, f"{name}.q"
            )
            q = self._heads(queries, 1, f"{name}.q")[0]  # (N, H, 1, h)
            k, v = self._heads(g.linear(x, weight[:, width:], None, f"{name}.kv"), 2, f"{name}.kv")
        else:
            q, k, v = self._heads(g.linear(x, weight, None, f"{name}.qkv"), 3, f"{name}.qkv")
        proj, proj_bias = self._linear(f"{name}.proj")
        if bias is not None:
            of_q, of_k, of_v = bias.reshape(3, heads, 1, head)
            q = g.node("Add", [q, g.constant(f"{name}.q.bias", of_q)], name=f"{name}.q/add_bias")
            # Where only softmax reads the logits it takes k's share of every row away again.
            if self.gives_relations or (self.for_tensorrt and class_only):
                k = g.node(
                    "Add", [k, g.constant(f"{name}.k.bias", of_k)], name=f"{name}.k/add_bias"
                )
            shift = of_v.reshape(-1) @ proj  # the weights of a row sum to one
            proj_bias = shift if proj_bias is None else proj_bias + shift
        if scaled_keys:
            factor = g.constant(f"{name}.k.scale", np.float32(1 / math.sqrt(head)))
            k = g.node("Mul", [k, factor], name=f"{name}.k/scaled")
        k = g.transpose(k, [0, 1, 3, 2], f"{name}/k_transposed")
        logits = g.node("MatMul", [q, k], name=f"{name}/logits")  # (N, H, T, T)
        if reused:
            reused = self._upsampled_relations(reused, name, class_only)
            logits = g.node("Add", [logits, reused], name=f"{name}/add_relations")
        self.logits.append(logits)
        self.queries.append(q)
        self.keys.append(k)
        weights = g.node("Softmax", [logits], name=f"{name}/softmax", axis=-1)
        mixed = g.node("MatMul", [weights, v], name=f"{name}/mix")
        mixed = g.transpose(mixed, [0, 2, 1, 3], f"{name}/join_heads")
        mixed = g.reshape(mixed, [0, 0, width], f"{name}/joined")
        return g.linear(mixed, proj, proj_bias, f"{name}.proj")

    def _heads(self, x: str, parts: int, name: str) -> list[str]:
        """(N, T, parts * D) -> ``parts`` times (N, H, T, h).

        Taken apart along the first axis: then the planner keeps the whole GEMM in INT8.
        """
        g, heads = self.g, self.stage.heads
        head = self.stage.width // heads
        x = g.reshape(x, [0, 0, parts, heads, head], f"{name}/split_heads")
        x = g.transpose(x, [2, 0, 3, 1, 4], f"{name}/parts_first")
        axis = g.constant("axis_0", np.asarray([0], np.int64))
        return [
            g.node("Squeeze", [part, axis], name=f"{name}/part{i}")
            for i, part in enumerate(g.split(x, [1] * parts, 0, f"{name}/split"))
        ]

    def _exit(self, x: str) -> None:
        g, classes = self.g, self.config.classes
        x = self._norm(g.first_token(x, "exit/class_token"), "norm")
        x = g.linear(x, *self._linear("head"), "head")
        logits = g.reshape(x, [0, classes], "exit/logits")
        g.output("logits", logits, [BATCH, classes])
        winner = g.node("ArgMax", [logits], name="exit/winner", axis=-1, keepdims=0)
        winner = g.node("Cast", [winner], name="exit/class_id", to=TensorProto.INT32)
        g.output("confidence", self._confidence(logits), [BATCH])
        g.output("class_id", winner, [BATCH], TensorProto.INT32)

    def _confidence(self, logits: str) -> str:
        """(N, classes) -> (N): what ``exits.confidence`` says."""
        g, classes = self.g, self.config.classes
        if self.exits.fit_temperature:
            one = g.constant(TEMPERATURE, np.float32(1))
            logits = g.node("Div", [logits, one], name="exit/cooled")
        p = g.node("Softmax", [logits], name="exit/softmax", axis=-1)
        if self.exits.confidence == "max_softmax":
            sure = g.node("ReduceMax", [p], name="exit/best", axes=[-1], keepdims=1)
        elif self.exits.confidence == "margin":
            two = g.constant("two", np.asarray([2], np.int64))
            best = g.node("TopK", [p, two], name="exit/best", outputs=["best", "best_at"])
            first, second = g.split(best, [1, 1], 1, "exit/best_two")
            sure = g.node("Sub", [first, second], name="exit/margin")
        else:
            tiny = g.constant("tiny", np.float32(np.finfo(np.float32).tiny))
            logs = g.node("Log", [g.node("Max", [p, tiny], name="exit/positive")], name="exit/log")
            terms = g.node("Mul", [p, logs], name="exit/terms")
            scale = g.constant("entropy_scale", np.full((classes, 1), 1 / math.log(classes)))
            lack = g.node("MatMul", [terms, scale], name="exit/entropy")  # (N, 1), -1..0
            one = g.constant("one", np.float32(1))
            sure = g.node("Add", [lack, one], name="exit/sure")
        # Rows whose logits are not all finite become NaN, so that they do not leave early: zero
        # times infinity is NaN. Softmax alone would hide a logit of minus infinity.
        zeros = g.constant("exit/zeros", np.zeros((classes, 1), np.float32))
        none = g.node("MatMul", [logits, zeros], name="exit/not_finite")  # (N, 1), 0 or NaN
        checked = g.node("Add", [sure, none], name="exit/checked")
        return g.reshape(checked, [-1], "exit/confidence")
