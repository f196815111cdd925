"""Which layers lose the most through INT8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx

from dvt_edge.converters.graphs.chain import Tensors, model_outputs
from dvt_edge.converters.quantizing.insert_qdq import QuantizedOps, quantizable_layers, quantize
from dvt_edge.progress import Progress, silent


def most_sensitive(
    graph: onnx.ModelProto,
    ranges: Mapping[str, float],
    ops: QuantizedOps,
    feeds: Sequence[Tensors],
    progress: Progress = silent,
) -> list[str]:
    """Layers that ``ops`` covers, the one whose quantization moves the logits most first.

    Each layer is quantized alone, on ``feeds``, the stage's inputs for a few images; what counts is
    the mean squared change of the logits.
    """
    layers = quantizable_layers(graph, ops)
    expected = _logits(graph, feeds)
    damage = []
    for done, layer in enumerate(layers):
        alone = ops.without(name for name in layers if name != layer)
        found = _logits(quantize(graph, ranges, alone), feeds)
        damage.append(float(np.mean((found - expected) ** 2)))
        progress("sensitive layers", done + 1, len(layers))
    return [layers[i] for i in np.argsort(damage, kind="stable")[::-1]]


def _logits(model: onnx.ModelProto, feeds: Sequence[Tensors]) -> npt.NDArray[np.float32]:
    return np.concatenate([outputs["logits"] for outputs in model_outputs(model, feeds)])
