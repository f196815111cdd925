"""The Dynamic Vision Transformer in plain PyTorch.

Source: Wang et al., "Not All Images are Worth 16x16 Words: Dynamic Transformers for Efficient
Image Recognition", NeurIPS 2021 (arXiv 2105.15075).

Shape letters: B batch, T = 1 + grid^2 tokens, D width, L layers, H heads, h = D / H; the stage
before is marked ``'``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dvt_edge.errors import CheckpointError
from dvt_edge.models.architectures import adapted, architecture
from dvt_edge.models.checkpoint import read_checkpoint, write_checkpoint
from dvt_edge.models.config import CascadeConfig, StageConfig
from dvt_edge.models.official import recognise, refuse_integers
from dvt_edge.models.tokenizers import PatchTokenizer, T2TTokenizer, sinusoid
from dvt_edge.models.upsampling import feature_matrix, relation_matrix


class StageOutput(NamedTuple):
    """What one stage gives: its answer, and what it hands on."""

    logits: Tensor
    """[B, classes], before softmax."""
    features: Tensor
    """[B, T, D]: the tokens after the last layer, before the final norm."""
    relations: Tensor | None
    """[B, L * H, T, T]: attention logits of all layers before softmax, layer-major, reused part
    included; None in the last stage and without relation reuse, where they are not read."""


class Attention(nn.Module):
    """Multi-head self-attention whose logits can be added to and handed on."""

    def __init__(self, stage: StageConfig, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = stage.heads
        self.scale = (stage.width // stage.heads) ** -0.5
        self.qkv = nn.Linear(stage.width, 3 * stage.width, bias=qkv_bias)
        self.proj = nn.Linear(stage.width, stage.width)

    def forward(self, x: Tensor, reused: Tensor | None) -> tuple[Tensor, Tensor]:
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, T, h)
        logits = (q * self.scale) @ k.transpose(-2, -1)  # (B, H, T, T)
        if reused is not None:
            logits = logits + reused
        mixed = logits.softmax(dim=-1) @ v
        return self.proj(mixed.transpose(1, 2).reshape(b, t, d)), logits


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class FeatureReuse(nn.Module):
    """Upstream features -> one context per token of this stage: E_l of the paper."""

    def __init__(self, upstream: StageConfig, config: CascadeConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(upstream.width, eps=config.norm_eps)
        self.mlp = Mlp(upstream.width, config.reuse_hidden, config.reuse_width)

    def forward(self, features: Tensor, upsample: Tensor) -> Tensor:
        context: Tensor = self.mlp(self.norm(features))
        return upsample @ context  # (B, T, reuse_width), class row zero


class RelationReuse(nn.Module):
    """Upstream attention logits -> what is added to this stage's logits: R_l of the paper."""

    def __init__(self, upstream: StageConfig, stage: StageConfig) -> None:
        super().__init__()
        hidden = 3 * stage.relation_channels
        self.conv1 = nn.Conv2d(upstream.relation_channels, hidden, 1)
        self.conv2 = nn.Conv2d(hidden, stage.relation_channels, 1)

    def forward(self, relations: Tensor, upsample: Tensor) -> Tensor:
        mixed: Tensor = self.conv2(F.gelu(self.conv1(relations)))  # (B, L * H, T', T')
        return upsample @ mixed @ upsample.T  # (B, L * H, T, T)


class Block(nn.Module):
    """One transformer layer; from the second stage on its MLP also reads reused features."""

    def __init__(
        self, stage: StageConfig, config: CascadeConfig, upstream: StageConfig | None
    ) -> None:
        super().__init__()
        self.feature_reuse = (
            FeatureReuse(upstream, config) if upstream and config.feature_reuse else None
        )
        context = config.reuse_width if self.feature_reuse else 0
        self.norm1 = nn.LayerNorm(stage.width, eps=config.norm_eps)
        self.attn = Attention(stage, config.qkv_bias)
        self.norm2 = nn.LayerNorm(stage.width + context, eps=config.norm_eps)
        self.mlp = Mlp(stage.width + context, stage.mlp_width, stage.width)

    def forward(
        self, x: Tensor, features: Tensor | None, upsample: Tensor, reused: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        attended, logits = self.attn(self.norm1(x), reused)
        x = x + attended
        inputs = x
        if self.feature_reuse is not None and features is not None:
            inputs = torch.cat([x, self.feature_reuse(features, upsample).to(x.dtype)], dim=-1)
        return x + self.mlp(self.norm2(inputs)), logits


class Stage(nn.Module):
    """One Vision Transformer with an exit, fed by the stage before it."""

    feature_upsample: Tensor
    relation_upsample: Tensor

    def __init__(self, config: CascadeConfig, index: int) -> None:
        super().__init__()
        stage = config.stages[index]
        upstream = config.stages[index - 1] if index else None
        tokenizer = T2TTokenizer if config.tokenizer == "t2t" else PatchTokenizer
        self.patch_embed = tokenizer(config, index)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, stage.width))
        self.pos_embed = nn.Parameter(
            sinusoid(stage.tokens, stage.width), requires_grad=config.tokenizer != "t2t"
        )
        self.relation_reuse = (
            RelationReuse(upstream, stage) if upstream and config.relation_reuse else None
        )
        self.blocks = nn.ModuleList(Block(stage, config, upstream) for _ in range(stage.depth))
        self.norm = nn.LayerNorm(stage.width, eps=config.norm_eps)
        self.head = nn.Linear(stage.width, config.classes)
        self.hands_on_relations = config.relation_reuse and index + 1 < len(config.stages)
        self.heads = stage.heads
        source = upstream.grid if upstream else stage.grid
        for name, matrix in (
            ("feature_upsample", feature_matrix(source, stage.grid)),
            ("relation_upsample", relation_matrix(source, stage.grid)),
        ):
            self.register_buffer(name, torch.from_numpy(matrix), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        if self.pos_embed.requires_grad:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor, upstream: StageOutput | None) -> StageOutput:
        x = self.patch_embed(images)  # (B, grid^2, D)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1).to(x.dtype), x], dim=1)
        x = x + self.pos_embed
        features = upstream.features if upstream else None
        reused: tuple[Tensor, ...] = ()
        if self.relation_reuse is not None and upstream and upstream.relations is not None:
            mixed = self.relation_reuse(upstream.relations, self.relation_upsample)
            reused = mixed.split(self.heads, dim=1)  # L times (B, H, T, T)
        relations = []
        for layer, block in enumerate(self.blocks):
            x, logits = block(x, features, self.feature_upsample, reused[layer] if reused else None)
            relations.append(logits)
        answer = self.head(self.norm(x[:, 0]))
        return StageOutput(
            answer, x, torch.cat(relations, dim=1) if self.hands_on_relations else None
        )


class Cascade(nn.Module):
    """Stages with more and more tokens over the same image, every stage with an exit.

    Calling it runs *all* stages, as training, calibration and evaluation need; leaving early is
    the runtime's work. Source: Wang et al., NeurIPS 2021.
    """

    def __init__(self, config: CascadeConfig) -> None:
        super().__init__()
        self.config = config
        self.stages = nn.ModuleList(Stage(config, i) for i in range(len(config.stages)))

    def forward(self, images: Tensor) -> list[StageOutput]:
        """Run every stage on ``images`` [B, channels, image_size, image_size], normalised.

        Returns one :class:`StageOutput` per stage.
        """
        outputs: list[StageOutput] = []
        upstream: StageOutput | None = None
        for stage in self.stages:
            upstream = stage(images, upstream)
            outputs.append(upstream)
        return outputs

    def share_start(self) -> None:
        """Give every later stage the first stage's initial weights wherever the shapes agree.

        One set of draws, or one pretrained backbone in the first stage, starts the whole cascade.
        """
        first = self.stages[0].state_dict()
        for stage in list(self.stages)[1:]:
            own = stage.state_dict()
            own.update({k: v for k, v in first.items() if k in own and v.shape == own[k].shape})
            stage.load_state_dict(own)

    def save(
        self,
        path: str | Path,
        *,
        half: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write weights and configuration as one safetensors file; an old file is replaced whole.

        ``half`` stores the weights in float16. ``metadata`` is kept in the header as JSON;
        :func:`~dvt_edge.models.checkpoint.read_metadata` reads it.
        Raises :class:`~dvt_edge.errors.CheckpointError` if the folder cannot be written.
        """
        write_checkpoint(Path(path), self.config, self.state_dict(), half=half, metadata=metadata)

    @classmethod
    def load(cls, path: str | Path) -> Cascade:
        """Read a cascade written by :meth:`save`, in float32 and eval mode.

        Raises :class:`~dvt_edge.errors.CheckpointError` for a file that is missing, truncated, a
        pickle, or not a dvt-edge checkpoint, and for weights that are integers.
        """
        config, tensors = read_checkpoint(Path(path))
        expected = tensor_shapes(config)
        wrong = expected.keys() ^ tensors.keys()
        wrong |= {n for n, t in tensors.items() if expected.get(n, t.shape) != t.shape}
        if wrong:
            raise CheckpointError(
                f"{path}: {len(wrong)} tensors are missing, unexpected or misshapen: "
                f"{', '.join(sorted(wrong)[:8])}"
            )
        try:
            return cls.from_tensors(config, tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from None

    @classmethod
    def load_official(cls, state: Mapping[str, Tensor], architecture: str | None = None) -> Cascade:
        """A cascade with the weights of a state dict of the authors' release, in eval mode.

        Names may begin with ``module.``, and the head may have any number of classes. Without
        ``architecture`` (a name of the registry) the tensors' names and shapes decide which it is.

        Raises :class:`~dvt_edge.errors.CheckpointError` naming every missing, unexpected or
        misshapen tensor, and :class:`~dvt_edge.errors.ConfigError` for an unknown architecture.
        """
        found = recognise(state, architecture, tensor_shapes)
        return cls.from_tensors(found.config, {k: v.clone() for k, v in found.tensors.items()})

    @classmethod
    def from_tensors(cls, config: CascadeConfig, tensors: Mapping[str, Tensor]) -> Cascade:
        """A cascade in float32 and eval mode that takes over ``tensors``, which fit ``config``.

        Raises :class:`~dvt_edge.errors.CheckpointError` for weights that are integers.
        """
        with torch.device("meta"):  # no draws for weights that are replaced at once
            cascade = cls(config)
        expected = cascade.state_dict()
        refuse_integers({k: t for k, t in tensors.items() if expected[k].is_floating_point()})
        own = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
        cascade.load_state_dict(own, assign=True)
        return cascade.eval()


def tensor_shapes(config: CascadeConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a cascade, without making one."""
    with torch.device("meta"):
        return {k: tuple(t.shape) for k, t in Cascade(config).state_dict().items()}


def create(
    name_or_config: str | CascadeConfig,
    *,
    classes: int | None = None,
    image_size: int | None = None,
    grids: Sequence[int] | None = None,
) -> Cascade:
    """A cascade with fresh weights, by the name of an architecture or by its configuration.

    ``classes``, ``image_size`` (pixels) and ``grids`` (tokens a side, one per stage) replace what
    the architecture says. Another image size keeps the grids: the patches grow with it.

    Raises :class:`~dvt_edge.errors.ConfigError`, with the nearest name, for an unknown name, and
    for sizes that do not go together.
    """
    if isinstance(name_or_config, str):
        name_or_config = architecture(name_or_config)
    return Cascade(adapted(name_or_config, classes, image_size, grids))
