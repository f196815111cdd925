"""What a cascade looks like: plain data, no torch."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, model_validator

from dvt_edge.files.datasets import class_numbers
from dvt_edge.files.documents import Document


class StageConfig(Document):
    """One Vision Transformer of the cascade."""

    grid: int = Field(ge=1, le=64)
    """Tokens along each side: the stage sees ``grid * grid`` patches and one class token."""
    width: int = Field(ge=8, le=4096)
    """Embedding width D; a multiple of ``heads``."""
    depth: int = Field(ge=1, le=96)
    """Number of transformer layers L."""
    heads: int = Field(ge=1, le=64)
    """Attention heads H per layer."""
    mlp_ratio: float = Field(default=4.0, gt=0, le=16)
    """Hidden width of the MLP over ``width``."""

    @model_validator(mode="after")
    def _heads_divide_width(self) -> StageConfig:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        return self

    @property
    def tokens(self) -> int:
        return 1 + self.grid * self.grid

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def relation_channels(self) -> int:
        """Attention maps of the whole stage: ``depth * heads``, layer-major."""
        return self.depth * self.heads


class CascadeConfig(Document):
    """A Dynamic Vision Transformer: stages with more and more tokens over one input image."""

    image_size: int = Field(ge=4, le=4096)
    """Height and width of the square input in pixels."""
    channels: int = Field(default=3, ge=1, le=16)
    """Input channels: 3 for colour, 1 for gray."""
    classes: int = Field(ge=2, le=100_000)
    """Number of classes."""
    stages: tuple[StageConfig, ...] = Field(min_length=1, max_length=8)
    """From the fewest tokens to the most."""
    feature_reuse: bool = True
    """Later stages read the last features of the stage before."""
    relation_reuse: bool = True
    """Later stages add the transformed attention logits of the stage before to their own."""
    reuse_hidden: int = Field(default=128, ge=1, le=4096)
    """Hidden width of the feature-reuse MLP (128 in the paper's release)."""
    reuse_width: int = Field(default=48, ge=1, le=4096)
    """Width of the reused features that join the MLP's input (48 in the paper's release)."""
    qkv_bias: bool = True
    """Whether the query/key/value projection has a bias."""
    norm_eps: float = Field(default=1e-6, gt=0, lt=0.1)
    """Epsilon of every LayerNorm."""
    tokenizer: Literal["patch", "conv", "t2t"] = "patch"
    """How the image becomes tokens: ``patch`` is one convolution with kernel = stride; ``conv``
    puts a 3x3 convolution with stride 2, batch norm and ReLU before it (Xiao et al. 2021, arXiv
    2106.14881), which learns much faster from few images; ``t2t`` is T2T-ViT's tokens-to-token with
    performers (Yuan et al. 2021, arXiv 2101.11986), whose position embeddings are fixed
    sinusoids."""
    stem_width: int = Field(default=32, ge=1, le=1024)
    """Channels between the two convolutions of the ``conv`` tokenizer."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in class order. Left out for training on folders, they are the folders'
    names; for other data, numbers are shown."""

    @model_validator(mode="after")
    def _tokens_increase(self) -> CascadeConfig:
        grids = [stage.grid for stage in self.stages]
        if any(b <= a for a, b in itertools.pairwise(grids)):
            raise ValueError(f"the grids must increase from stage to stage, found {grids}")
        if grids[-1] > self.patch_input_size:
            raise ValueError(
                f"grid {grids[-1]} is finer than what the patch convolution sees "
                f"({self.patch_input_size} px)"
            )
        if self.tokenizer == "t2t":
            for index, grid in enumerate(grids):
                found = self.unfold_grids(index)[-1]
                if found != grid:
                    raise ValueError(
                        f"the t2t tokenizer cannot cut {self.image_size} px into {grid}x{grid} "
                        f"tokens (nearest {found}x{found}); change image_size or the grid"
                    )
        if self.class_names is not None and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} class_names for {self.classes} classes")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """What the classes are called, in class order."""
        return self.class_names or class_numbers(self.classes)

    @property
    def patch_input_size(self) -> int:
        """Height and width that the patch convolution sees, in pixels."""
        return -(-self.image_size // 2) if self.tokenizer == "conv" else self.image_size

    def patch_geometry(self, stage: int) -> tuple[int, int]:
        """Kernel (= stride) and padding of a stage's patch convolution, in pixels."""
        grid = self.stages[stage].grid
        kernel = -(-self.patch_input_size // grid)
        padding = -(-(kernel * grid - self.patch_input_size) // 2)
        return kernel, padding

    def unfold_geometry(self, stage: int) -> tuple[int, int, int]:
        """Kernel, stride and padding of the first unfold of a stage's ``t2t`` tokenizer, in pixels.

        The two unfolds after it have kernel 3, stride 2 and padding 1. At 224 pixels these are the
        release's numbers: 14/8/3, 11/6/5 and 7/4/2 for 7, 10 and 14 tokens a side.
        """
        stride = -(-self.image_size // (4 * self.stages[stage].grid))
        kernel = -(-7 * stride // 4)
        # The release pads its middle stage (stride 6) by 5 where the rule says 3.
        return kernel, stride, 5 if stride == 6 else -(-(kernel - stride) // 2)

    def unfold_grids(self, stage: int) -> tuple[int, int, int]:
        """Tokens along each side after each of the three unfolds of a ``t2t`` tokenizer."""
        kernel, stride, padding = self.unfold_geometry(stage)
        first = (self.image_size + 2 * padding - kernel) // stride + 1
        second = -(-first // 2)
        return first, second, -(-second // 2)
