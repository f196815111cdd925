"""The cascades that are known by name: plain data, no torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Literal

from pydantic import ValidationError

from dvt_edge.errors import ConfigError
from dvt_edge.models.config import CascadeConfig, StageConfig


def _released(
    tokenizer: Literal["patch", "t2t"], width: int, depth: int, heads: int, mlp_ratio: float
) -> CascadeConfig:
    """A cascade of the authors' release: 224x224, ImageNet, grids 7, 10 and 14."""
    return CascadeConfig(
        image_size=224,
        classes=1000,
        tokenizer=tokenizer,
        qkv_bias=tokenizer == "patch",
        norm_eps=1e-6 if tokenizer == "patch" else 1e-5,
        stages=tuple(
            StageConfig(grid=grid, width=width, depth=depth, heads=heads, mlp_ratio=mlp_ratio)
            for grid in (7, 10, 14)
        ),
    )


ARCHITECTURES: dict[str, CascadeConfig] = {
    "dvt_fashion_scenes": CascadeConfig(
        image_size=48,
        channels=1,
        classes=10,
        tokenizer="conv",
        stages=(
            StageConfig(grid=3, width=128, depth=3, heads=2, mlp_ratio=2),
            StageConfig(grid=6, width=128, depth=3, heads=2, mlp_ratio=2),
            StageConfig(grid=12, width=128, depth=5, heads=2, mlp_ratio=2),
        ),
    ),
    "dvt_deit_small": _released("patch", width=384, depth=12, heads=6, mlp_ratio=4),
    "dvt_t2t_vit_12": _released("t2t", width=256, depth=12, heads=4, mlp_ratio=2),
    "dvt_t2t_vit_14": _released("t2t", width=384, depth=14, heads=6, mlp_ratio=3),
}
"""Architectures that :func:`~dvt_edge.models.cascade.create` knows by name."""


def architecture(name: str) -> CascadeConfig:
    """The configuration of an architecture by its name.

    Raises :class:`~dvt_edge.errors.ConfigError`, with the nearest one, for an unknown name.
    """
    config = ARCHITECTURES.get(name)
    if config is None:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(ARCHITECTURES)}"
        raise ConfigError(f"unknown architecture '{name}'; {hint}")
    return config


def adapted(
    config: CascadeConfig,
    classes: int | None = None,
    image_size: int | None = None,
    grids: Sequence[int] | None = None,
) -> CascadeConfig:
    """``config`` with other classes, image size or grids.

    Raises :class:`~dvt_edge.errors.ConfigError` for sizes that do not go together.
    """
    if classes is None and image_size is None and grids is None:
        return config
    values = config.model_dump()
    if classes is not None and classes != config.classes:
        values |= {"classes": classes, "class_names": None}
    if image_size is not None:
        values["image_size"] = image_size
    if grids is not None:
        if len(grids) != len(config.stages):
            raise ConfigError(f"{len(grids)} grids for {len(config.stages)} stages; give one each")
        values["stages"] = [
            stage | {"grid": grid} for stage, grid in zip(values["stages"], grids, strict=True)
        ]
    try:
        return CascadeConfig.model_validate(values)
    except ValidationError as error:
        reasons = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}".removeprefix(": ") for e in error.errors()
        )
        raise ConfigError(f"no such cascade: {reasons}") from None
