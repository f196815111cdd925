"""Configurations of cascades: what is refused, and the geometry that follows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from dvt_edge.models import CascadeConfig, StageConfig

STAGE = {"grid": 2, "width": 8, "depth": 1, "heads": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 9}, "width 9 is not a multiple of heads 2"),
        ({"grid": 0}, "greater than or equal to 1"),
        ({"depth": 0}, "greater than or equal to 1"),
        ({"heads": 0}, "greater than or equal to 1"),
        ({"mlp_ratio": 0}, "greater than 0"),
        ({"hidden": 3}, "Extra inputs"),
    ],
)
def test_impossible_stage_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        StageConfig(**(STAGE | change))


def _stages(*grids: int) -> tuple[StageConfig, ...]:
    return tuple(StageConfig(**(STAGE | {"grid": grid})) for grid in grids)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stages": ()}, "at least 1 item"),
        ({"stages": _stages(*range(1, 10))}, "at most 8 items"),
        ({"stages": _stages(4, 2)}, r"must increase from stage to stage, found \[4, 2\]"),
        ({"stages": _stages(2, 2)}, r"must increase from stage to stage, found \[2, 2\]"),
        ({"stages": _stages(17)}, r"grid 17 is finer than what the patch convolution sees \(16"),
        ({"stages": _stages(9), "tokenizer": "conv"}, r"grid 9 is finer .* \(8 px\)"),
        ({"class_names": ("a", "b")}, "2 class_names for 5 classes"),
        ({"classes": 1}, "greater than or equal to 2"),
        ({"channels": 0}, "greater than or equal to 1"),
        ({"tokenizer": "cnn"}, "'patch', 'conv' or 't2t'"),
        ({"feature_reus": True}, "Extra inputs"),
    ],
)
def test_impossible_cascade_is_refused(
    tiny_config: Callable[..., CascadeConfig], change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny_config(**change)


def test_derived_sizes() -> None:
    stage = StageConfig(grid=7, width=24, depth=5, heads=3, mlp_ratio=2.5)
    assert (stage.tokens, stage.mlp_width, stage.relation_channels) == (50, 60, 15)


@pytest.mark.parametrize(
    ("size", "grid", "expected"),
    [
        (224, 7, (32, 0)),
        (224, 10, (23, 3)),  # as in the paper's release
        (224, 14, (16, 0)),
        (16, 5, (4, 2)),
        (17, 4, (5, 2)),
        (16, 16, (1, 0)),
    ],
)
def test_patch_geometry(
    tiny_config: Callable[..., CascadeConfig], size: int, grid: int, expected: tuple[int, int]
) -> None:
    config = tiny_config(image_size=size, stages=_stages(grid))
    kernel, padding = config.patch_geometry(0)
    assert (kernel, padding) == expected
    assert (size + 2 * padding - kernel) // kernel + 1 == grid


@pytest.mark.parametrize("tokenizer", ["patch", "conv"])
def test_every_grid_comes_out_of_its_patch_convolution(
    tiny_config: Callable[..., CascadeConfig], tokenizer: str
) -> None:
    """The formula of a convolution's output size, over all sizes up to 64 pixels."""
    for size in range(8, 65):
        finest = -(-size // 2) if tokenizer == "conv" else size
        for grid in range(1, finest + 1):
            config = tiny_config(image_size=size, stages=_stages(grid), tokenizer=tokenizer)
            kernel, padding = config.patch_geometry(0)
            assert (finest + 2 * padding - kernel) // kernel + 1 == grid, (size, grid)


def test_configuration_needs_no_torch() -> None:
    code = (
        "import sys, dvt_edge.models, dvt_edge.models.config, dvt_edge.models.training_config;"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_attribute_of_the_package() -> None:
    import dvt_edge.models

    with pytest.raises(AttributeError, match="no attribute 'Cascades'"):
        _ = dvt_edge.models.Cascades
