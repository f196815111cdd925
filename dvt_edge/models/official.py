"""Checkpoints of the authors' release: their names, shapes and figures, and what they are.

Source: Wang et al., NeurIPS 2021 (arXiv 2105.15075), and the authors' PyTorch release. A stage is
called ``less_less_token``, ``less_token`` or ``normal_token`` there; ``feature_resuse_mlp`` is
their spelling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from pydantic import ValidationError
from torch import Tensor

from dvt_edge.errors import CheckpointError
from dvt_edge.models.architectures import ARCHITECTURES, adapted, architecture
from dvt_edge.models.config import CascadeConfig, StageConfig

STAGE_NAMES = ("less_less_token", "less_token", "normal_token")
FIGURES = ("flops", "anytime_classification", "dynamic_threshold", "budgeted_batch_classification")
"""What an official checkpoint says about its model, besides the weights."""

_PARTS = (
    ("feature_resuse_mlp.0.", "feature_reuse.norm."),
    ("feature_resuse_mlp.1.", "feature_reuse.mlp."),
    ("relation_reuse_conv.0.", "relation_reuse.conv1."),
    ("relation_reuse_conv.2.", "relation_reuse.conv2."),
    ("tokens_to_token.", "patch_embed."),
)
_USUAL_SIZE = 224
_SHOWN = 400

StateDict = Mapping[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
ShapesOf = Callable[[CascadeConfig], Shapes]


class Recognised(NamedTuple):
    """What a state dict turned out to be."""

    architecture: str | None
    """Its name; None for a cascade of other sizes."""
    config: CascadeConfig
    tensors: dict[str, Tensor]
    """By the names of :class:`~dvt_edge.models.cascade.Cascade`."""


def own_name(name: str) -> str:
    """The name in :class:`Cascade` of a tensor that the release calls ``name``."""
    for index, stage in enumerate(STAGE_NAMES):
        if name.startswith(f"{stage}."):
            name = f"stages.{index}.{name.removeprefix(f'{stage}.')}"
    for theirs, ours in _PARTS:
        name = name.replace(f".{theirs}", f".{ours}")
    return name


def official_name(name: str) -> str:
    """The release's name of a tensor of :class:`Cascade`; the inverse of :func:`own_name`."""
    found = re.match(r"stages\.(\d+)\.", name)
    if found and int(found[1]) < len(STAGE_NAMES):
        name = f"{STAGE_NAMES[int(found[1])]}.{name[found.end() :]}"
    for theirs, ours in _PARTS[:-1]:
        name = name.replace(f".{ours}", f".{theirs}")
    return re.sub(r"\.patch_embed\.(attention|project)", r".tokens_to_token.\1", name)


def is_official(state: StateDict) -> bool:
    """Whether ``state`` (without ``module.`` prefix) has the release's or :class:`Cascade`'s
    names."""
    return any(own_name(name).startswith("stages.") for name in state)


def recognise(state: StateDict, name: str | None, shapes_of: ShapesOf) -> Recognised:
    """What ``state``, a state dict of the release, is: architecture, sizes, tensors by our names.

    With ``name`` the tensors must fit that architecture; the number of classes is always theirs.
    ``shapes_of`` gives the shapes that a configuration's tensors have.

    Raises :class:`~dvt_edge.errors.CheckpointError` with every missing, unexpected or misshapen
    tensor, and :class:`~dvt_edge.errors.ConfigError` for an unknown ``name``.
    """
    state = without_prefix(state)
    if not is_official(state):
        more = f" and {len(state) - 6} more" if len(state) > 6 else ""
        raise CheckpointError(
            f"no cascade: no tensor is called {', '.join(f'{s}.*' for s in STAGE_NAMES)}; found "
            f"{', '.join(list(state)[:6])}{more}. A single backbone starts a new cascade with "
            "'dvt-edge import --stage-from FILE --architecture NAME'"
        )
    tensors = {own_name(key): tensor for key, tensor in state.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if name is not None:
        config = _fitted(architecture(name), shapes)
        _refuse_misfits(shapes, shapes_of(config), name)
        return Recognised(name, config, tensors)
    inferred = _inferred(shapes)
    if inferred is not None and not misfits(shapes, shapes_of(inferred)):
        return Recognised(_registered(inferred), inferred, tensors)
    # Something is wrong with the tensors. Say what, seen from the nearest known architecture.
    near = _nearest(shapes, shapes_of)
    if near is not None:
        _refuse_misfits(shapes, shapes_of(_fitted(ARCHITECTURES[near], shapes)), near)
    elif inferred is not None:
        _refuse_misfits(shapes, shapes_of(inferred), "a cascade of these sizes")
    raise CheckpointError(
        "no architecture can be recognised from the tensors' names and shapes; name one with "
        f"--architecture (known: {', '.join(ARCHITECTURES)})"
    )


def misfits(shapes: Shapes, expected: Shapes) -> list[str]:
    """Every tensor that is missing, unexpected or misshapen, by the release's name and with both
    shapes."""
    lines = [
        f"missing {official_name(key)} {list(shape)}"
        for key, shape in expected.items()
        if key not in shapes
    ]
    for key, shape in shapes.items():
        if key not in expected:
            lines.append(f"unexpected {official_name(key)} {list(shape)}")
        elif shape != expected[key]:
            lines.append(
                f"misshapen {official_name(key)} {list(shape)}, expected {list(expected[key])}"
            )
    return lines


def refuse_integers(weights: StateDict) -> None:
    """Raise :class:`~dvt_edge.errors.CheckpointError` unless all ``weights`` are dense tensors of
    floating-point numbers, each with its values."""
    wrong = [
        f"{official_name(name)} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in weights.items()
        if not tensor.is_floating_point()
        or tensor.layout is not torch.strided
        or tensor.is_meta
        or tensor.nbytes > tensor.untyped_storage().nbytes()  # a few values stand for many
    ]
    if wrong:
        more = f" and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise CheckpointError(
            f"{len(wrong)} tensors are no dense floating-point weights: {', '.join(wrong[:6])}"
            f"{more}; save the weights as float32 or float16, not quantized"
        )


def without_prefix(state: StateDict) -> dict[str, Tensor]:
    """``state`` without the ``module.`` that DataParallel puts before every name."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _refuse_misfits(shapes: Shapes, expected: Shapes, what: str) -> None:
    lines = misfits(shapes, expected)
    if lines:
        rest = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise CheckpointError(
            f"{len(lines)} of {len(shapes)} tensors do not fit {what}: "
            f"{'; '.join(lines[:_SHOWN])}{rest}. Nothing was imported; name another architecture "
            "with --architecture, or save the state dict again"
        )


def _fitted(config: CascadeConfig, shapes: Shapes) -> CascadeConfig:
    """``config`` with the head that most stages of ``shapes`` have."""
    heads = [
        shape[0]
        for key, shape in shapes.items()
        if re.fullmatch(r"stages\.\d+\.head\.(weight|bias)", key) and shape
    ]
    classes = max(set(heads), key=heads.count) if heads else config.classes
    return adapted(config, classes=classes)


def _registered(config: CascadeConfig) -> str | None:
    """The registered architecture of the same sizes, the classes apart."""
    for name, known in ARCHITECTURES.items():
        same = {"classes": config.classes, "class_names": config.class_names}
        if known.model_copy(update=same) == config:
            return name
    return None


def _nearest(shapes: Shapes, shapes_of: ShapesOf) -> str | None:
    """The registered architecture that has most of the tensors in the same shape, at least half."""
    scores = {}
    for name, known in ARCHITECTURES.items():
        expected = shapes_of(_fitted(known, shapes))
        scores[name] = sum(expected.get(key) == shape for key, shape in shapes.items())
    best = max(scores, key=lambda name: scores[name])
    return best if scores[best] >= len(shapes) / 2 else None


def _inferred(shapes: Shapes) -> CascadeConfig | None:
    """The configuration that has these shapes; None if there is none.

    What shapes do not show is the release's choice: heads of width 64 where no relations are
    reused, LayerNorm's epsilon, 3 channels for T2T, and the image size nearest to 224.
    """
    numbers = (re.match(r"stages\.(\d{1,3})\.", key) for key in shapes)
    count = 1 + max((int(found[1]) for found in numbers if found), default=0)
    try:
        t2t = "stages.0.patch_embed.project.weight" in shapes
        relations = f"stages.{count - 1}.relation_reuse.conv2.weight" in shapes
        stages = []
        for i in range(count):
            width, tokens = shapes[f"stages.{i}.cls_token"][2], shapes[f"stages.{i}.pos_embed"][1]
            depth = _depth(shapes, i)
            maps = shapes[f"stages.{max(i, 1)}.relation_reuse.conv2.weight"][0] if relations else 0
            stages.append(
                StageConfig(
                    grid=math.isqrt(tokens - 1),
                    width=width,
                    depth=depth,
                    heads=maps // depth if relations else max(1, width // 64),
                    mlp_ratio=shapes[f"stages.{i}.blocks.0.mlp.fc1.weight"][0] / width,
                )
            )
        reuse = shapes.get(f"stages.{count - 1}.blocks.0.feature_reuse.mlp.fc2.weight")
        values = {
            "channels": 3 if t2t else shapes["stages.0.patch_embed.proj.weight"][1],
            "classes": shapes["stages.0.head.weight"][0],
            "tokenizer": "t2t" if t2t else "patch",
            "qkv_bias": "stages.0.blocks.0.attn.qkv.bias" in shapes,
            "norm_eps": 1e-5 if t2t else 1e-6,
            "relation_reuse": relations or count == 1,
            "feature_reuse": reuse is not None or count == 1,
            "stages": stages,
        }
        if reuse is not None:
            values |= {"reuse_width": reuse[0], "reuse_hidden": reuse[1]}
    except (KeyError, IndexError, ValueError, ZeroDivisionError):  # no shapes of a cascade
        return None
    for size in sorted(range(16, 1025), key=lambda s: abs(s - _USUAL_SIZE)):
        try:
            config = CascadeConfig.model_validate(values | {"image_size": size})
        except ValidationError:
            continue
        if all(_kernel_fits(shapes, config, i) for i in range(count)):
            return config
    return None


def _depth(shapes: Shapes, stage: int) -> int:
    pattern = re.compile(rf"stages\.{stage}\.blocks\.(\d{{1,3}})\.")
    return 1 + max((int(m[1]) for key in shapes if (m := pattern.match(key))), default=-1)


def _kernel_fits(shapes: Shapes, config: CascadeConfig, stage: int) -> bool:
    """Whether the first kernel of a stage has the size that the image size demands."""
    prefix = f"stages.{stage}.patch_embed"
    if config.tokenizer == "t2t":
        inputs = shapes.get(f"{prefix}.attention1.norm1.weight", ())
        kernel = math.isqrt(inputs[0] // config.channels) if inputs else 0
        return kernel == config.unfold_geometry(stage)[0]
    return shapes.get(f"{prefix}.proj.weight", ())[2:3] == config.patch_geometry(stage)[:1]
