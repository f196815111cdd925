"""Cascades by name or configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dvt_edge.errors import ConfigError
from dvt_edge.models import CascadeConfig, create
from dvt_edge.models.registry import ARCHITECTURES
from dvt_edge.models.training_config import TrainingConfig


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_name_gives_a_cascade(name: str) -> None:
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
