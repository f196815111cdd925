"""Whatever the converter writes passes the check of a bundle's graphs, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import onnx
import pytest

from dvt_edge.bundle.graph_check import OPERATORS, check_graph
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import Target, set_temperature
from dvt_edge.converters.quantizing.insert_qdq import TENSORRT_OPS, quantizable_layers, quantize
from dvt_edge.errors import BundleError
from dvt_edge.models import Cascade, CascadeConfig, StageConfig
from dvt_edge.policy.confidence import ConfidenceKind
from dvt_edge.profile import ExitsConfig
from tests.conftest import stage_graphs

Graphs = Callable[..., Iterator[onnx.ModelProto]]
TOKENIZERS = ("patch", "conv", "t2t")


@pytest.fixture
def graphs(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Graphs:
    """A function ``(tokenizer, target)`` giving graphs of all kinds of exits and precisions."""

    def make(tokenizer: str, target: Target) -> Iterator[onnx.ModelProto]:
        stages = tuple(
            StageConfig(grid=grid, width=16, depth=2, heads=2, mlp_ratio=2) for grid in (1, 2, 4)
        )
        changes: dict[str, Any] = {"image_size": 32, "stages": stages} if tokenizer == "t2t" else {}
        cascade = random_cascade(tiny_config(tokenizer=tokenizer, **changes))
        for confidence in get_args(ConfidenceKind):
            exits = ExitsConfig(confidence=confidence, fit_temperature=True)
            for graph in stage_graphs(cascade, exits, target):
                set_temperature(graph, 1.5)
                covered = quantizable_layers(graph, TENSORRT_OPS)
                quantized = quantize(graph, dict.fromkeys(covered.values(), 6.0), covered)
                yield from (graph, quantized, fp16_body(graph), fp16_body(quantized))

    return make


@pytest.mark.parametrize("target", get_args(Target))
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_every_graph_passes(graphs: Graphs, tokenizer: str, target: Target, tmp_path: Path) -> None:
    for graph in graphs(tokenizer, target):
        onnx.save(graph, tmp_path / "stage.onnx")
        check_graph(tmp_path, "stage.onnx")


def test_no_operator_that_none_has(graphs: Graphs) -> None:
    """Those of ONNX's own domain; what nobody writes need not be read."""
    used = {
        node.op_type.encode()
        for tokenizer in TOKENIZERS
        for target in get_args(Target)
        for graph in graphs(tokenizer, target)
        for node in graph.graph.node
    }
    assert used == OPERATORS[b""]


def test_weights_in_another_file(graphs: Graphs, tmp_path: Path) -> None:
    """As onnx writes them."""
    graph = next(graphs("patch", "onnxruntime"))
    onnx.save(graph, tmp_path / "a.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(BundleError, match="it keeps weights in another file"):
        check_graph(tmp_path, "a.onnx")
