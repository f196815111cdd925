"""Tokenizers in the graphs: equal to PyTorch, without unfolds, safe in half precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from dvt_edge.converters.graphs.builder import GraphBuilder
from dvt_edge.converters.graphs.tokenizer_graph import tokens_from_image
from dvt_edge.models import Cascade, CascadeConfig, StageConfig
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session

Array = npt.NDArray[np.float32]


def _config(tokenizer: str, size: int, grids: tuple[int, ...]) -> CascadeConfig:
    stages = tuple(StageConfig(grid=grid, width=16, depth=1, heads=2) for grid in grids)
    values: dict[str, Any] = {"image_size": size, "classes": 5, "tokenizer": tokenizer}
    return CascadeConfig(stages=stages, norm_eps=1e-5, **values)


def _graph(cascade: Cascade, index: int) -> onnx.ModelProto:
    g, config = GraphBuilder("tokenizer"), cascade.config
    image = g.input("image", ["N", config.channels, config.image_size, config.image_size])
    weights = {k: v.numpy() for k, v in cascade.stages[index].state_dict().items()}
    tokens = tokens_from_image(g, image, weights, config, index)
    stage = config.stages[index]
    g.output("tokens", tokens, ["N", stage.grid**2, stage.width])
    return g.build()


def _unit_gain(cascade: Cascade) -> Cascade:
    """Linear weights as large as training leaves them: outputs about as large as inputs."""
    for module in cascade.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data.mul_(3 / module.in_features**0.5)
    return cascade


def _compare(cascade: Cascade, index: int, images: Array) -> None:
    session = open_session(_graph(cascade, index).SerializeToString(), threads=1)
    (found,) = session.run(["tokens"], {"image": images})
    with torch.no_grad():
        tokenizer = cascade.get_submodule(f"stages.{index}.patch_embed")
        expected = tokenizer(torch.from_numpy(images)).numpy()
    assert found.shape == expected.shape
    assert np.isfinite(found).all()
    assert np.abs(found - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())


@pytest.mark.parametrize(
    ("tokenizer", "size", "grids"),
    [
        ("patch", 32, (1, 4, 32)),
        ("patch", 30, (4, 7, 9)),  # padded on both sides, pixels cut off at the far one
        ("conv", 30, (3, 4, 7)),
        ("t2t", 32, (1, 2, 4)),
        ("t2t", 48, (2, 3)),  # strides 6 and 4, as in the release
        ("t2t", 224, (10,)),
    ],
)
@pytest.mark.parametrize("kind", ["noise", "zeros", "flat with one corner"])
def test_tokens_equal_pytorch(
    random_cascade: Callable[..., Cascade],
    tokenizer: str,
    size: int,
    grids: tuple[int, ...],
    kind: str,
) -> None:
    cascade = _unit_gain(random_cascade(_config(tokenizer, size, grids)))
    images = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    if kind != "noise":
        images[:] = 0 if kind == "zeros" else np.array([[[2.2]], [[2.4]], [[2.6]]])
        images[..., :2, :2] = 0
    for index in range(len(grids)):
        _compare(cascade, index, images)


@pytest.mark.parametrize("scale", [1, 4, 40])
def test_performer_exponents(random_cascade: Callable[..., Cascade], scale: float) -> None:
    """Keys and queries so long that exp(w q - |q|^2 / 2) under- or overflows: the graph's exponents
    stay at most zero, and its tokens are finite and PyTorch's."""
    cascade = _unit_gain(random_cascade(_config("t2t", 32, (2,))))
    for layer in ("attention1", "attention2"):
        cascade.get_parameter(f"stages.0.patch_embed.{layer}.kqv.weight").data.mul_(scale)
    graph = _graph(cascade, 0)
    exponents = [
        n.input[0] for n in graph.graph.node if n.op_type == "Exp" and "guard" not in n.name
    ]
    assert len(exponents) == 4
    images = np.random.default_rng(1).normal(size=(2, 3, 32, 32)).astype(np.float32)
    _compare(cascade, 0, images)
    for name in exponents:
        graph.graph.output.add().name = name
    session = open_session(graph.SerializeToString(), threads=1)
    for values in session.run(exponents, {"image": images}):
        assert values.max() <= 1e-5 * np.abs(values).max()


def test_nothing_is_gathered(random_cascade: Callable[..., Cascade]) -> None:
    ops = {node.op_type for node in _graph(random_cascade(_config("t2t", 32, (2,))), 0).graph.node}
    assert not ops & {"Gather", "GatherND", "ScatterND", "Slice", "Concat", "Loop"}
