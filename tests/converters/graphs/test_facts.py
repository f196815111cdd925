"""Multiply-accumulates and parameters, counted by hand for small graphs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from dvt_edge.bundle.manifest import TensorSpec
from dvt_edge.converters.graphs.builder import GraphBuilder
from dvt_edge.converters.graphs.facts import count_macs, stage_spec
from dvt_edge.converters.quantizing.insert_qdq import TENSORRT_OPS, quantizable_layers, quantize
from dvt_edge.models import Cascade, CascadeConfig, StageConfig
from tests.conftest import stage_graphs

SMALL = StageConfig(grid=2, width=8, depth=1, heads=2, mlp_ratio=2)
FINER = StageConfig(grid=3, width=8, depth=1, heads=2, mlp_ratio=2)

# 5 tokens of width 8, one layer whose MLP is 16 wide; patches of 4x4 on 8x8 gray pixels
PATCHES = 4 * 8 * 16
HEAD = 8 * 3 + 3  # and the check that the logits are finite
FIRST = (
    PATCHES
    + 5 * 8 * 24  # q, k, v
    + 2 * (5 * 5 * 4)  # logits, two heads of width 4
    + 2 * (5 * 5 * 4)  # mix
    + 5 * 8 * 8  # projection
    + 2 * (5 * 8 * 16)  # MLP
    + HEAD
)
ONLY = (  # its last layer works for the class token alone
    PATCHES
    + 8 * 8  # q
    + 5 * 8 * 16  # k, v
    + 2 * 2 * (5 * 4)  # logits and mix
    + 8 * 8
    + 2 * (8 * 16)
    + HEAD
)
LAST = (  # 10 tokens; patches of 3x3; no reused features, as the class token has none
    9 * 8 * 9
    + 2 * (25 * 2 * 6)  # reused relations: 2 -> 6 -> 2 channels of 5x5
    + 2 * (10 * 5)  # upsampled along the columns, for the class token's row
    + 8 * 8
    + 10 * 8 * 16
    + 2 * 2 * (10 * 4)
    + 8 * 8
    + (8 + 2) * 16 + 16 * 8
    + HEAD
)  # fmt: skip


@pytest.fixture(scope="module")
def graphs_of(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Callable[..., list[onnx.ModelProto]]:
    """A function giving the stage graphs of a small cascade of the stages given."""

    def graphs(*stages: StageConfig) -> list[onnx.ModelProto]:
        config = tiny_config(image_size=8, classes=3, stages=stages, reuse_hidden=4, reuse_width=2)
        cascade = random_cascade(config)
        return stage_graphs(cascade)

    return graphs


Graphs = Callable[..., list[onnx.ModelProto]]


def test_macs_of_stages(graphs_of: Graphs) -> None:
    assert [count_macs(g) for g in graphs_of(SMALL)] == [ONLY]
    assert [count_macs(g) for g in graphs_of(SMALL, FINER)] == [FIRST, LAST]


def test_quantized_stages_count_the_same(graphs_of: Graphs) -> None:
    for graph in graphs_of(SMALL, FINER):
        layers = quantizable_layers(graph, TENSORRT_OPS)
        coarse = quantize(graph, dict.fromkeys(layers.values(), 1.0), layers)
        assert count_macs(coarse) == count_macs(graph)


def test_macs_of_products_and_strided_convolutions() -> None:
    g = GraphBuilder("plain")
    x = g.input("x", ["N", 2, 9, 9])
    kernel = g.constant("kernel", np.zeros((4, 2, 3, 3), np.float32))
    y = g.node("Conv", [x, kernel], name="conv", kernel_shape=[3, 3], strides=[2, 2])
    y = g.reshape(y, [0, 4, 16], "rows")  # (N, 4, 4 * 4)
    z = g.transpose(y, [0, 2, 1], "columns")
    g.output("gram", g.node("MatMul", [y, z], name="gram"), ["N", 4, 4])
    model = g.build()
    assert count_macs(model) == 16 * 4 * 2 * 9 + 4 * 4 * 16


def test_counting_leaves_the_batch_dynamic(graphs_of: Graphs) -> None:
    graph = graphs_of(SMALL)[0]
    before = graph.SerializeToString()
    count_macs(graph)
    assert graph.SerializeToString() == before


def test_spec_of_the_first_stage(graphs_of: Graphs) -> None:
    spec = stage_spec(graphs_of(SMALL, FINER)[0], "stage1.onnx")
    assert spec.file == "stage1.onnx"
    assert spec.macs == FIRST
    assert spec.inputs == (TensorSpec(name="image", shape=("N", 1, 8, 8), dtype="float32"),)
    assert {t.name: (t.shape, t.dtype) for t in spec.outputs} == {
        "logits": (("N", 3), "float32"),
        "confidence": (("N",), "float32"),
        "class_id": (("N",), "int32"),
        "next_features": (("N", 5, 8), "float32"),
        "next_relations": (("N", 2, 5, 5), "float32"),
    }


def test_parameters(graphs_of: Graphs) -> None:
    norms, gelu = 3 * 16, 3
    patches, start = 8 * 16 + 8, 5 * 8  # class token and positions are one constant
    attention = 8 * 24 + 8 + 8 * 8 + 8  # of the biases before it only q's is left
    mlp = 8 * 16 + 16 + 16 * 8 + 8
    expected = norms + gelu + patches + start + attention + mlp + 8 * 3 + 3 + 3
    assert stage_spec(graphs_of(SMALL)[0], "stage1.onnx").parameters == expected
