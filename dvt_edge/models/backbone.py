"""A new cascade from one pretrained Vision Transformer: every stage starts as that backbone.

Position embeddings are interpolated to each stage's grid. Patch kernels are resampled so that a
stage's convolution gives, on a larger patch, what the backbone's gives on that patch scaled down.
What a backbone does not have (reuse) starts at zero, so that each stage first computes what the
backbone computes on that grid, up to the statistics of one LayerNorm over D + reuse_width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from dvt_edge.errors import CheckpointError
from dvt_edge.models.cascade import Cascade, Stage
from dvt_edge.models.official import misfits, refuse_integers

_DISTILLED = ("dist_token", "head_dist.weight", "head_dist.bias")
_POSITIONS = "pos_embed"
_PATCHES = "patch_embed.proj.weight"
_HEAD = ("head.weight", "head.bias")


def start_from_backbone(cascade: Cascade, state: Mapping[str, Tensor]) -> None:
    """Give every stage of ``cascade`` the weights of ``state``, a ViT or DeiT under timm's names.

    A distillation token is dropped; the head is taken where the number of classes is the same, and
    stays fresh otherwise.

    Raises :class:`~dvt_edge.errors.CheckpointError` with every missing, unexpected or misshapen
    tensor, for weights that are integers, and for the T2T tokenizer, for which no such backbone
    exists.
    """
    if cascade.config.tokenizer != "patch":
        raise CheckpointError(
            f"a ViT backbone has a patch convolution, the cascade the '{cascade.config.tokenizer}' "
            "tokenizer; choose an architecture with tokenizer 'patch' such as dvt_deit_small"
        )
    backbone = {k: v for k, v in state.items() if k not in _DISTILLED}
    _check_names(cascade, backbone)
    refuse_integers(backbone)
    backbone = {k: v.float() for k, v in backbone.items()}
    extra = 2 if "dist_token" in state else 1
    for index in range(len(cascade.stages)):
        stage = cascade.stages[index]
        assert isinstance(stage, Stage)
        _start_stage(stage, backbone, cascade.config.stages[index].grid, extra)


def resampled_kernel(weight: Tensor, size: int) -> Tensor:
    """Patch kernel [D, C, k, k] -> [D, C, size, size].

    The inner product of the result with a patch is that of ``weight`` with the patch scaled from
    ``size`` to k by antialiased bilinear interpolation.
    """
    # Interpolation along one dimension as a matrix [k, size], from that of the unit vectors.
    image = torch.eye(size)[:, None, :, None].expand(-1, -1, -1, 2)
    scaled = F.interpolate(image, (weight.shape[-1], 2), mode="bilinear", antialias=True)
    scale = scaled[:, 0, :, 0].T
    return torch.einsum("dcij,ia,jb->dcab", weight, scale, scale)


def resampled_positions(table: Tensor, grid: int, extra: int = 1) -> Tensor:
    """Position embeddings [1, extra + g^2, D] -> [1, 1 + grid^2, D], bicubic; of the ``extra`` rows
    (class, distillation) the first is kept."""
    old = math.isqrt(table.shape[1] - extra)
    patches = table[:, extra:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, (grid, grid), mode="bicubic", antialias=True)
    return torch.cat([table[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)


def _check_names(cascade: Cascade, backbone: Mapping[str, Tensor]) -> None:
    """Compare with the first stage, which has no reuse; positions and kernels may differ in
    size, and the head in classes."""
    expected, found = (
        {name: tuple(tensor.shape) for name, tensor in state.items() if name not in _HEAD}
        for state in (cascade.stages[0].state_dict(), backbone)
    )
    positions, patches = found.get(_POSITIONS, ()), found.get(_PATCHES, ())
    if len(positions) == 3 and positions[2] == expected[_POSITIONS][2]:
        expected[_POSITIONS] = positions
    if len(patches) == 4 and patches[:2] == expected[_PATCHES][:2] and patches[2] == patches[3]:
        expected[_PATCHES] = patches
    lines = misfits(found, expected)
    if lines:
        raise CheckpointError(
            f"{len(lines)} tensors do not fit the cascade's stages: {'; '.join(lines)}. Choose the "
            "architecture that has the backbone's width, depth and MLP"
        )


def _start_stage(stage: Stage, backbone: Mapping[str, Tensor], grid: int, extra: int) -> None:
    own = stage.state_dict()
    width = own["cls_token"].shape[-1]
    for key, tensor in own.items():
        if key == _POSITIONS:
            tensor.copy_(resampled_positions(backbone[key], grid, extra))
        elif key == _PATCHES:
            tensor.copy_(resampled_kernel(backbone[key], tensor.shape[-1]))
        elif key in _HEAD:
            if key in backbone and backbone[key].shape == tensor.shape:
                tensor.copy_(backbone[key])
        elif key.startswith("relation_reuse.conv2."):
            tensor.zero_()
        elif key in backbone and backbone[key].shape == tensor.shape:
            tensor.copy_(backbone[key])
        elif re.search(r"\.norm2\.(weight|bias)$", key):
            # 48 columns near zero make the deviation smaller by sqrt(D / (D + 48)).
            scale = math.sqrt(width / len(tensor)) if key.endswith("weight") else 1.0
            tensor[:width] = backbone[key] * scale
        elif key.endswith(".mlp.fc1.weight") and "feature_reuse" not in key:
            tensor[:, :width] = backbone[key]
            tensor[:, width:] = 0
