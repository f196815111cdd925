"""Image -> tokens in a stage graph: patch convolutions, and T2T's performers channel-first.

T2T as the release writes it unfolds the image pixel by pixel, which neither ONNX Runtime nor
TensorRT runs well. The same numbers come from convolutions: a Linear over an unfolded patch *is* a
strided convolution, and the LayerNorm between the two leaves the convolution's output to be scaled
by 1 / sigma of each patch once its kernels are centred:

    LN(x) W + b = ((x - mean(x)) / sigma * g + s) W + b = (x K) / sigma + (s W + b),
    K = g W - column means of g W,        sigma^2 = mean(x^2) - mean(x)^2 + eps

Means over a patch, padding included as the unfold includes it, are average pools. Everything stays
[N, channels, tokens] up to the stage's own tokens; no tensor is unfolded, and nothing is gathered.

The performer's exponentials overflow in FP16. Its output does not change when exp(a_qm) exp(b_tm)
becomes exp(a_qm + c_m - d_q) exp(b_tm - c_m), with c_m the largest b_tm over tokens t and d_q the
largest a_qm + c_m over features m, if the epsilon in the denominator is multiplied by exp(-d_q).
All exponents are then at most zero, and the denominator is between 1/T and the number of features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from dvt_edge.converters.graphs.builder import GraphBuilder
from dvt_edge.models.config import CascadeConfig
from dvt_edge.models.tokenizers import PERFORMER_EPSILON, RANDOM_FEATURES, TOKEN_WIDTH

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]

_BATCH_NORM_EPSILON = 1e-5


def tokens_from_image(
    g: GraphBuilder, image: str, weights: Weights, config: CascadeConfig, index: int
) -> str:
    """Add the tokenizer of stage ``index``: ``image`` [N, C, S, S] -> [N, grid^2, D].

    ``weights`` are the stage's tensors by their names in the stage.
    """
    own = _below("patch_embed.", weights)
    if config.tokenizer == "patch":
        return _patch_product(g, image, own, config, index)
    if config.tokenizer == "t2t":
        x = _tokens_to_token(g, image, own, config, index)
    else:
        scale = own["stem.1.weight"] / np.sqrt(own["stem.1.running_var"] + _BATCH_NORM_EPSILON)
        shift = own["stem.1.bias"] - own["stem.1.running_mean"] * scale
        weight = own["stem.0.weight"] * scale.reshape(-1, 1, 1, 1)
        x = g.conv(image, weight, shift, "patch_embed.stem", stride=2, padding=1)
        x = g.node("Relu", [x], name="patch_embed.stem/relu")
        kernel, padding = config.patch_geometry(index)
        weight, bias = own["proj.weight"], own["proj.bias"]
        x = g.conv(x, weight, bias, "patch_embed.proj", stride=kernel, padding=padding)
    x = g.reshape(x, [0, config.stages[index].width, -1], "patch_embed/flatten")
    return g.transpose(x, [0, 2, 1], "patch_embed/tokens")  # (N, grid^2, D)


def _below(prefix: str, weights: Weights) -> Weights:
    """Tensors whose names begin with ``prefix``, by the rest of the name."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def _patch_product(
    g: GraphBuilder, image: str, w: Weights, config: CascadeConfig, index: int
) -> str:
    """A convolution with kernel = stride as one product over patches, which INT8 speeds up too."""
    kernel, padding = config.patch_geometry(index)
    grid, channels = config.stages[index].grid, config.channels
    rest = kernel * grid - config.image_size - padding  # the far side; negative cuts pixels off
    if padding or rest:
        pads = np.asarray([0, 0, padding, padding, 0, 0, rest, rest], np.int64)
        image = g.node(
            "Pad", [image, g.constant("patch_embed.border", pads)], name="patch_embed/pad"
        )
    x = g.reshape(image, [0, channels, grid, kernel, grid, kernel], "patch_embed/cut")
    x = g.transpose(x, [0, 2, 4, 1, 3, 5], "patch_embed/patches_first")
    x = g.reshape(x, [0, grid * grid, channels * kernel * kernel], "patch_embed/patches")
    weight = w["proj.weight"].reshape(config.stages[index].width, -1).T
    return g.linear(x, weight, w["proj.bias"], "patch_embed.proj")


def _tokens_to_token(
    g: GraphBuilder, image: str, w: Weights, config: CascadeConfig, index: int
) -> str:
    kernel, stride, padding = config.unfold_geometry(index)
    first, second, _ = config.unfold_grids(index)
    epsilon = config.norm_eps
    x = _performer(
        g, image, w, "attention1", epsilon, (config.channels, kernel, stride, padding, first)
    )
    x = _performer(g, x, w, "attention2", epsilon, (TOKEN_WIDTH, 3, 2, 1, second))
    weight = w["project.weight"].reshape(-1, TOKEN_WIDTH, 3, 3)
    return g.conv(x, weight, w["project.bias"], "patch_embed.project", stride=2, padding=1)


def _performer(
    g: GraphBuilder,
    x: str,
    weights: Weights,
    layer: str,
    epsilon: float,
    unfold: tuple[int, int, int, int, int],
) -> str:
    """Unfold and performer: [N, C, n', n'] -> [N, 64, n, n]; ``unfold`` is C, kernel, stride,
    padding, n."""
    w = _below(f"{layer}.", weights)
    name = f"patch_embed.{layer}"
    k, q, v = _keys_queries_values(g, x, w, name, epsilon, unfold)
    side = unfold[-1]
    y = _linear_attention(g, (k, q, v), w, name, side * side)
    y = g.reshape(y, [0, TOKEN_WIDTH, side, side], f"{name}/grid")
    return _add_mlp(g, y, w, name, epsilon)


def _keys_queries_values(
    g: GraphBuilder,
    x: str,
    w: Weights,
    name: str,
    epsilon: float,
    unfold: tuple[int, int, int, int, int],
) -> list[str]:
    """Unfold, LayerNorm and Linear as one convolution: three times (N, 64, T)."""
    channels, kernel, stride, padding, side = unfold
    scaled = w["kqv.weight"] * w["norm1.weight"]
    bias = w["kqv.bias"] + w["kqv.weight"] @ w["norm1.bias"]
    kernels = (scaled - scaled.mean(axis=1, keepdims=True)).reshape(-1, channels, kernel, kernel)
    kqv = g.conv(x, kernels, None, f"{name}.kqv", stride=stride, padding=padding)
    means = {}
    for what, source in (("mean", x), ("mean_square", g.node("Mul", [x, x], name=f"{name}/x2"))):
        over = g.node("ReduceMean", [source], name=f"{name}/{what}_channels", axes=[1], keepdims=1)
        means[what] = g.node(
            "AveragePool",
            [over],
            name=f"{name}/{what}",
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[padding] * 4,
            count_include_pad=1,
        )  # (N, 1, n, n)
    rate = _inverse_sigma(g, means["mean"], means["mean_square"], epsilon, f"{name}/norm1")
    kqv = g.node("Mul", [kqv, rate], name=f"{name}/kqv_scaled")
    shift = g.constant(f"{name}.kqv.shift", bias.reshape(-1, 1, 1))
    kqv = g.node("Add", [kqv, shift], name=f"{name}/kqv_shifted")
    kqv = g.reshape(kqv, [0, 3 * TOKEN_WIDTH, side * side], f"{name}/flat")
    return g.split(kqv, [TOKEN_WIDTH] * 3, 1, f"{name}/parts")


def _linear_attention(
    g: GraphBuilder, kqv: tuple[str, str, str], w: Weights, name: str, tokens: int
) -> str:
    """v + proj(phi(q) (phi(k)^T v) / (phi(q) sum phi(k) + 1e-8)): (N, 64, T)."""
    k, q, v = kqv
    # phi(k) and phi(q), shifted so that no exponent is above zero: (N, 32, T)
    log_k, log_q = (_log_features(g, t, w["w"], f"{name}/{p}") for t, p in ((k, "k"), (q, "q")))
    peak_k = g.node("ReduceMax", [log_k], name=f"{name}/k_max", axes=[2], keepdims=1)
    phi_k = g.node("Exp", [g.node("Sub", [log_k, peak_k], name=f"{name}/k_sub")], name=f"{name}/k")
    log_q = g.node("Add", [log_q, peak_k], name=f"{name}/q_add")
    peak_q = g.node("ReduceMax", [log_q], name=f"{name}/q_max", axes=[1], keepdims=1)
    phi_q = g.node("Exp", [g.node("Sub", [log_q, peak_q], name=f"{name}/q_sub")], name=f"{name}/q")

    # Sums over tokens as means, and proj applied to the small matrix between them.
    phi_k_t = g.transpose(phi_k, [0, 2, 1], f"{name}/k_transposed")  # (N, T, 32)
    outer = g.node("MatMul", [v, phi_k_t], name=f"{name}/vk")  # (N, 64, 32)
    outer = g.node(
        "MatMul", [g.constant(f"{name}.proj", w["proj.weight"] / tokens), outer], name=f"{name}/pvk"
    )
    mixed = g.node("MatMul", [outer, phi_q], name=f"{name}/mix")  # (N, 64, T)
    sums = g.node("ReduceMean", [phi_k], name=f"{name}/k_mean", axes=[2], keepdims=1)
    sums = g.transpose(sums, [0, 2, 1], f"{name}/k_mean_transposed")
    total = g.node("MatMul", [sums, phi_q], name=f"{name}/total")  # (N, 1, T)
    log_epsilon = math.log(PERFORMER_EPSILON * RANDOM_FEATURES / tokens)
    guard = g.node(
        "Sub",
        [g.constant(f"{name}.log_epsilon", np.float32(log_epsilon)), peak_q],
        name=f"{name}/guard_log",
    )
    guard = g.node("Exp", [guard], name=f"{name}/guard")
    total = g.node("Add", [total, guard], name=f"{name}/denominator")
    y = g.node("Div", [mixed, total], name=f"{name}/divide")
    y = g.node("Add", [y, v], name=f"{name}/residual")
    return g.node(
        "Add",
        [y, g.constant(f"{name}.proj.bias", w["proj.bias"].reshape(-1, 1))],
        name=f"{name}/proj_bias",
    )


def _add_mlp(g: GraphBuilder, y: str, w: Weights, name: str, epsilon: float) -> str:
    """y + MLP(LN(y)) over the channels of (N, 64, n, n), the LayerNorm folded as above."""
    scaled = w["mlp.0.weight"] * w["norm2.weight"]
    bias = w["mlp.0.bias"] + w["mlp.0.weight"] @ w["norm2.bias"]
    centred = (scaled - scaled.mean(axis=1, keepdims=True))[:, :, None, None]
    z = g.conv(y, centred, None, f"{name}.mlp.fc1")
    mean = g.node("ReduceMean", [y], name=f"{name}/y_mean", axes=[1], keepdims=1)
    square = g.node("Mul", [y, y], name=f"{name}/y2")
    square = g.node("ReduceMean", [square], name=f"{name}/y_mean_square", axes=[1], keepdims=1)
    rate = _inverse_sigma(g, mean, square, epsilon, f"{name}/norm2")
    z = g.node("Mul", [z, rate], name=f"{name}/fc1_scaled")
    shift = g.constant(f"{name}.mlp.fc1.shift", bias.reshape(-1, 1, 1))
    z = g.gelu(g.node("Add", [z, shift], name=f"{name}/fc1_shifted"), f"{name}/gelu")
    z = g.conv(z, w["mlp.2.weight"][:, :, None, None], w["mlp.2.bias"], f"{name}.mlp.fc2")
    return g.node("Add", [y, z], name=f"{name}/add_mlp")


def _inverse_sigma(g: GraphBuilder, mean: str, square: str, epsilon: float, name: str) -> str:
    """1 / sqrt(square - mean^2 + epsilon), the variance kept from rounding below zero."""
    mean2 = g.node("Mul", [mean, mean], name=f"{name}/mean2")
    variance = g.node("Sub", [square, mean2], name=f"{name}/variance")
    variance = g.node("Relu", [variance], name=f"{name}/at_least_zero")
    constant = g.constant(f"{name}.epsilon", np.float32(epsilon))
    deviation = g.node("Add", [variance, constant], name=f"{name}/add_epsilon")
    deviation = g.node("Sqrt", [deviation], name=f"{name}/sigma")
    return g.node("Reciprocal", [deviation], name=f"{name}/rate")


def _log_features(g: GraphBuilder, x: str, w: Array, name: str) -> str:
    """w x - |x|^2 / 2 for ``x`` (N, 64, T): logarithms of the random features (N, 32, T)."""
    product = g.node("MatMul", [g.constant(f"{name}.w", w), x], name=f"{name}_random")
    square = g.node("ReduceSumSquare", [x], name=f"{name}_norm2", axes=[1], keepdims=1)
    half = g.node("Mul", [square, g.constant("half", np.float32(0.5))], name=f"{name}_half_norm2")
    return g.node("Sub", [product, half], name=f"{name}_log")
