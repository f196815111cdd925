"""Cascades by name or configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dvt_edge.errors import ConfigError
from dvt_edge.models import CascadeConfig, create
from dvt_edge.models.architectures import ARCHITECTURES
from dvt_edge.models.training_config import TrainingConfig


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_gives_a_cascade(name: str) -> None:
    with torch.device("meta"):  # shapes only
        assert create(name).config == ARCHITECTURES[name]


def test_configuration_gives_a_cascade(tiny_config: Callable[..., CascadeConfig]) -> None:
    config = tiny_config()
    assert create(config).config is config


def test_near_miss_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'dvt_fashion_scenes'"):
        create("dvt_fashion_scene")


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ConfigError, match="known: dvt_fashion_scenes"):
        create("resnet50")


def test_demo_training_builds_the_named_architecture(samples: Path) -> None:
    """``train.yaml`` and the registry describe one model; only the class names are its own."""
    model = TrainingConfig.from_yaml(samples / "demo" / "train.yaml").model
    named = ARCHITECTURES["dvt_fashion_scenes"]
    assert model.model_copy(update={"class_names": None}) == named


@pytest.mark.parametrize("name", ["dvt_deit_small", "dvt_t2t_vit_12", "dvt_t2t_vit_14"])
def test_other_classes_and_sizes(name: str) -> None:
    with torch.device("meta"):
        config = create(name, classes=10, image_size=448).config
    assert (config.classes, config.image_size) == (10, 448)
    assert [stage.grid for stage in config.stages] == [7, 10, 14]


def test_other_grids() -> None:
    with torch.device("meta"):
        cascade = create("dvt_deit_small", grids=(4, 7, 14))
    assert [stage.state_dict()["pos_embed"].shape[1] for stage in cascade.stages] == [17, 50, 197]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": (7, 10)}, "2 grids for 3 stages"),
        ({"grids": (7, 7, 10)}, "must increase"),
        ({"classes": 1}, "classes: .*greater than or equal to 2"),
        ({"grids": (7, 10, 300)}, "grid"),
    ],
)
def test_impossible_sizes(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create("dvt_deit_small", **change)


def test_released_patches() -> None:
    """Kernel and padding of the release's convolutions and first unfolds."""
    deit, t2t = ARCHITECTURES["dvt_deit_small"], ARCHITECTURES["dvt_t2t_vit_12"]
    assert [deit.patch_geometry(i) for i in range(3)] == [(32, 0), (23, 3), (16, 0)]
    assert [t2t.unfold_geometry(i) for i in range(3)] == [(14, 8, 3), (11, 6, 5), (7, 4, 2)]
    assert [t2t.unfold_grids(i) for i in range(3)] == [(28, 14, 7), (38, 19, 10), (56, 28, 14)]
