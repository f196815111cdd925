"""Training that starts from a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dvt_edge.errors import CheckpointError, ConfigError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.training import Trainer
from dvt_edge.models.training_config import TrainingConfig

Configs = Callable[..., TrainingConfig]
Cascades = Callable[..., Cascade]
Tiny = Callable[..., CascadeConfig]


def test_weights_are_those_of_the_checkpoint(
    training_config: Configs, random_cascade: Cascades, tiny_config: Tiny, tmp_path: Path
) -> None:
    cascade = random_cascade(tiny_config())
    cascade.save(tmp_path / "start.safetensors")
    config = training_config(start=tmp_path / "start.safetensors")
    trained = Trainer(config).cascade
    assert trained.training
    for key, tensor in trained.state_dict().items():
        assert torch.equal(tensor, cascade.state_dict()[key])


def test_another_model_is_refused(
    training_config: Configs, random_cascade: Cascades, tiny_config: Tiny, tmp_path: Path
) -> None:
    random_cascade(tiny_config(classes=6)).save(tmp_path / "start.safetensors")
    with pytest.raises(ConfigError, match="holds another model than 'model' describes"):
        Trainer(training_config(start=tmp_path / "start.safetensors"))


def test_missing_checkpoint(training_config: Configs, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        Trainer(training_config(start=tmp_path / "none.safetensors"))
