"""Images [B, C, S, S] -> tokens [B, grid^2, D]: a convolution, or the performers of T2T-ViT.

Shape letters: B batch, C channels, S image size, D width, T tokens of a grid.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvt_edge.models.config import CascadeConfig

TOKEN_WIDTH = 64
"""Width of T2T's intermediate tokens."""
RANDOM_FEATURES = 32
"""Random features of T2T's performers."""
PERFORMER_EPSILON = 1e-8
"""Added to the performers' denominator, as in the release."""


class PatchTokenizer(nn.Module):
    """A convolution with kernel = stride, after an optional stem."""

    def __init__(self, config: CascadeConfig, index: int) -> None:
        super().__init__()
        kernel, padding = config.patch_geometry(index)
        channels = config.channels
        self.stem: nn.Sequential | None = None
        if config.tokenizer == "conv":
            self.stem = nn.Sequential(
                nn.Conv2d(channels, config.stem_width, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(config.stem_width),
                nn.ReLU(),
            )
            channels = config.stem_width
        self.proj = nn.Conv2d(channels, config.stages[index].width, kernel, kernel, padding)

    def forward(self, images: Tensor) -> Tensor:
        x = images if self.stem is None else self.stem(images)
        y: Tensor = self.proj(x)  # (B, D, grid, grid)
        return y.flatten(2).transpose(1, 2)


class Performer(nn.Module):
    """One transformer layer with linear attention: one head, positive random features.

    Source: Choromanski et al., "Rethinking Attention with Performers", ICLR 2021 (arXiv
    2009.14794), in the form that T2T-ViT uses: the value, not the input, is the residual.
    """

    def __init__(self, inputs: int, epsilon: float) -> None:
        super().__init__()
        width = TOKEN_WIDTH
        self.norm1 = nn.LayerNorm(inputs, eps=epsilon)
        self.kqv = nn.Linear(inputs, 3 * width)
        self.w = nn.Parameter(
            nn.init.orthogonal_(torch.empty(RANDOM_FEATURES, width)) * math.sqrt(RANDOM_FEATURES),
            requires_grad=False,
        )
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=epsilon)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, dim=-1)  # each (B, T, 64)
        device = "cpu" if x.is_meta else x.device.type
        with torch.autocast(device, enabled=False):  # the exponentials overflow in half
            phi_k, phi_q, value = self._phi(k.float()), self._phi(q.float()), v.float()
            total = phi_q @ phi_k.sum(dim=1).unsqueeze(-1)  # (B, T, 1)
            mixed = phi_q @ (phi_k.transpose(1, 2) @ value)  # (B, T, 64)
            y = mixed / (total + PERFORMER_EPSILON)
        y = v + self.proj(y)
        z: Tensor = y + self.mlp(self.norm2(y))
        return z

    def _phi(self, x: Tensor) -> Tensor:
        """Random features (B, T, 32) whose products approximate exp(q k^T)."""
        half_norm = x.square().sum(dim=-1, keepdim=True) / 2
        return torch.exp(x @ self.w.float().T - half_norm) / math.sqrt(RANDOM_FEATURES)


class T2TTokenizer(nn.Module):
    """Tokens-to-token: three overlapping unfolds with a performer between them.

    Source: Yuan et al., "Tokens-to-Token ViT", ICCV 2021 (arXiv 2101.11986).
    """

    def __init__(self, config: CascadeConfig, index: int) -> None:
        super().__init__()
        self.geometry = config.unfold_geometry(index)
        kernel = self.geometry[0]
        self.attention1 = Performer(config.channels * kernel * kernel, config.norm_eps)
        self.attention2 = Performer(TOKEN_WIDTH * 9, config.norm_eps)
        self.project = nn.Linear(TOKEN_WIDTH * 9, config.stages[index].width)

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride, padding = self.geometry
        x = F.unfold(images, kernel, stride=stride, padding=padding).transpose(1, 2)
        for attention in (self.attention1, self.attention2):
            x = attention(x)  # (B, T, 64)
            side = math.isqrt(x.shape[1])
            x = x.transpose(1, 2).reshape(x.shape[0], TOKEN_WIDTH, side, side)
            x = F.unfold(x, 3, stride=2, padding=1).transpose(1, 2)
        y: Tensor = self.project(x)
        return y


def sinusoid(tokens: int, width: int) -> Tensor:
    """Fixed position embeddings [1, tokens, width]: sine in even columns, cosine in odd ones.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 3.5.
    """
    column = np.arange(width)
    angle = np.arange(tokens)[:, None] / 10000 ** (2 * (column // 2) / width)
    table = np.where(column % 2 == 0, np.sin(angle), np.cos(angle))
    return torch.from_numpy(table[None].astype(np.float32))
