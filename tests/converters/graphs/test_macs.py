"""Multiply-accumulates of the graphs against PyTorch's own counter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dvt_edge.converters.graphs.facts import count_macs
from dvt_edge.models import Cascade, CascadeConfig, StageOutput
from dvt_edge.models.architectures import ARCHITECTURES
from tests.conftest import stage_graphs


def _torch_macs(config: CascadeConfig) -> list[int]:
    with torch.device("meta"):
        cascade, image = Cascade(config), torch.zeros(1, config.channels, *[config.image_size] * 2)
    counts = []
    upstream: StageOutput | None = None
    for stage in cascade.to("meta").stages:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            upstream = stage(image, upstream)
        counts.append(counter.get_total_flops() // 2)
    return counts


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        pytest.param("dvt_deit_small", (1143, 2558, 5596), marks=pytest.mark.slow),
        ("dvt_t2t_vit_12", (468, 1018, 2305)),
        ("dvt_t2t_vit_14", (1201, 2685, 5957)),
    ],
)
def test_released_architectures(name: str, millions: tuple[int, ...]) -> None:
    """The table in ``docs/models.md``."""
    assert [round(count / 1e6) for count in _torch_macs(ARCHITECTURES[name])] == list(millions)


def test_graph_counts_what_pytorch_counts(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> None:
    """Equal in every stage but the last, whose last layer has only the class token's row; the
    graphs' check that the logits are finite adds one for each class."""
    config = tiny_config()
    cascade = random_cascade(config)
    found = [count_macs(graph) for graph in stage_graphs(cascade)]
    expected = _torch_macs(config)
    assert found[:2] == [count + config.classes for count in expected[:2]]
    assert 0.6 * expected[2] < found[2] < expected[2]
