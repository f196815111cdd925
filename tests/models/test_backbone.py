"""A cascade that starts from one Vision Transformer."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from dvt_edge.errors import CheckpointError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.backbone import resampled_kernel, resampled_positions, start_from_backbone

State = dict[str, torch.Tensor]
Configs = Callable[..., CascadeConfig]


@pytest.fixture
def backbone(tiny_official: Configs, random_cascade: Callable[..., Cascade]) -> State:
    """A ViT under timm's names: 32 px, patches of 8 px, grid 4, width 16, two layers."""
    one = tiny_official().stages[1:2]
    cascade = random_cascade(tiny_official(stages=one))
    state = {k.removeprefix("stages.0."): v for k, v in cascade.state_dict().items()}
    return {k: 0.3 * v if "norm" not in k else v for k, v in state.items()}


@pytest.mark.parametrize("size", [4, 8, 11, 16])
def test_kernel_sees_the_scaled_patch(size: int) -> None:
    torch.manual_seed(0)
    weight, patch = torch.randn(5, 3, 8, 8), torch.randn(1, 3, size, size)
    scaled = F.interpolate(patch, (8, 8), mode="bilinear", antialias=True)
    expected = (weight * scaled).sum(dim=(1, 2, 3))
    found = (resampled_kernel(weight, size) * patch).sum(dim=(1, 2, 3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_positions_keep_the_class_row_and_linear_slopes() -> None:
    rows = torch.linspace(0, 1, 4).view(4, 1).expand(4, 4).reshape(1, 16, 1)
    table = torch.cat([torch.full((1, 1, 1), 9.0), torch.zeros(1, 1, 1), rows], dim=1)
    found = resampled_positions(table, 7, extra=2)
    assert found.shape == (1, 50, 1)
    assert found[0, 0, 0] == 9
    grid = found[0, 1:, 0].view(7, 7)
    torch.testing.assert_close(grid, grid[:, :1].expand(7, 7))
    assert (grid[1:, 0] > grid[:-1, 0]).all()


def test_same_grid_is_kept(tiny_official: Configs, backbone: State) -> None:
    """The stage on the backbone's own grid has its weights, its reuse does nothing yet, and it
    answers nearly as the backbone does."""
    cascade = Cascade(tiny_official()).eval()
    start_from_backbone(cascade, backbone)
    middle = cascade.stages[1].state_dict()
    for key in ("pos_embed", "patch_embed.proj.weight", "blocks.1.attn.qkv.weight", "head.weight"):
        torch.testing.assert_close(middle[key], backbone[key])
    assert not middle["relation_reuse.conv2.weight"].any()
    assert not middle["blocks.0.mlp.fc1.weight"][:, 16:].any()
    alone = Cascade(tiny_official(stages=tiny_official().stages[1:2])).eval()
    start_from_backbone(alone, backbone)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        cascaded, single = cascade(images)[1].logits, alone(images)[0].logits
    assert (cascaded - single).norm() < 0.2 * single.norm()


def test_distilled_backbone(tiny_official: Configs, backbone: State) -> None:
    table = backbone["pos_embed"]
    backbone["pos_embed"] = torch.cat([table[:, :1], table[:, :1] + 5, table[:, 1:]], dim=1)
    backbone |= {"dist_token": torch.zeros(1, 1, 16), "head_dist.weight": torch.zeros(7, 16)}
    cascade = Cascade(tiny_official())
    start_from_backbone(cascade, backbone)
    torch.testing.assert_close(cascade.stages[1].state_dict()["pos_embed"], table)


def test_other_classes_keep_a_fresh_head(tiny_official: Configs, backbone: State) -> None:
    cascade = Cascade(tiny_official(classes=3))
    start_from_backbone(cascade, backbone)
    assert cascade.get_parameter("stages.0.head.weight").shape == (3, 16)


def test_misfits_are_named(tiny_official: Configs, backbone: State) -> None:
    backbone["fc_norm.weight"] = backbone.pop("norm.weight")
    backbone["blocks.0.mlp.fc1.weight"] = torch.zeros(64, 16)
    message = re.compile(
        r"3 tensors .*missing norm\.weight \[16\].*"
        r"misshapen blocks\.0\.mlp\.fc1\.weight \[64, 16\], expected \[32, 16\].*"
        r"unexpected fc_norm\.weight \[16\]"
    )
    with pytest.raises(CheckpointError, match=message):
        start_from_backbone(Cascade(tiny_official()), backbone)


def test_t2t_has_no_patch_convolution(tiny_official: Configs, backbone: State) -> None:
    with pytest.raises(CheckpointError, match="'t2t' tokenizer"):
        start_from_backbone(Cascade(tiny_official("t2t")), backbone)
