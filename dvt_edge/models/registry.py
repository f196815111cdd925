"""Cascades by name."""

from __future__ import annotations

import difflib

from dvt_edge.errors import ConfigError
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.config import CascadeConfig, StageConfig

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
}
"""Architectures that :func:`create` knows by name."""


def create(name_or_config: str | CascadeConfig) -> Cascade:
    """A cascade with fresh weights, by the name of an architecture or by its configuration.

    Raises :class:`~dvt_edge.errors.ConfigError`, with the nearest name, for an unknown name.
    """
    if isinstance(name_or_config, CascadeConfig):
        return Cascade(name_or_config)
    config = ARCHITECTURES.get(name_or_config)
    if config is None:
        near = difflib.get_close_matches(name_or_config, ARCHITECTURES, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(ARCHITECTURES)}"
        raise ConfigError(f"unknown architecture '{name_or_config}'; {hint}")
    return Cascade(config)
