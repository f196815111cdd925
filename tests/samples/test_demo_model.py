"""The shipped demo: checkpoint, scenes, and answers as the cascade's idea promises."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from dvt_edge.files.datasets import FolderDataset, open_folder
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.checkpoint import read_config
from dvt_edge.models.training_config import TrainingConfig

CLASSES = 10
SCENES = 2000


@pytest.fixture(scope="module")
def config(samples: Path) -> CascadeConfig:
    """What the shipped checkpoint says it is."""
    return read_config(samples / "demo" / "model.safetensors")


@pytest.fixture(scope="module", params=["calibration", "test"])
def scenes(request: pytest.FixtureRequest, samples: Path, config: CascadeConfig) -> FolderDataset:
    """One of the two shipped sets, classes in the model's order."""
    return open_folder(samples / "demo" / "scenes" / request.param, config.class_names)


def test_checkpoint_is_small(samples: Path) -> None:
    assert (samples / "demo" / "model.safetensors").stat().st_size < 8e6


def test_model_is_what_the_demo_has_to_show(config: CascadeConfig) -> None:
    """Three stages with more and more tokens, both kinds of reuse, one gray 48x48 scene."""
    assert len(config.stages) == 3
    assert config.feature_reuse
    assert config.relation_reuse
    assert (config.image_size, config.channels, config.classes) == (48, 1, CLASSES)


def test_checkpoint_is_of_the_shipped_training_configuration(
    samples: Path, config: CascadeConfig
) -> None:
    training = TrainingConfig.from_yaml(samples / "demo" / "train.yaml")
    assert training.model == config


def test_scenes_are_two_thousand_in_ten_classes(
    scenes: FolderDataset, config: CascadeConfig
) -> None:
    assert len(scenes) == SCENES
    assert scenes.labels is not None
    assert config.class_names is not None
    assert {path.parent.name for path in scenes.paths} == set(config.class_names)
    assert np.bincount(scenes.labels).min() > SCENES / CLASSES / 2
    assert {path.suffix for path in scenes.paths} == {".png"}
    assert len({path.name for path in scenes.paths}) == SCENES


def _arrays(scenes: FolderDataset) -> Iterator[npt.NDArray[np.uint8]]:
    for path in scenes.paths:
        with Image.open(path) as image:
            assert (image.mode, image.size) == ("L", (48, 48)), path
            yield np.asarray(image)


def test_scenes_are_gray_48_by_48_and_all_different(scenes: FolderDataset) -> None:
    assert len({image.tobytes() for image in _arrays(scenes)}) == SCENES


@pytest.mark.slow
def test_later_exits_are_better(samples: Path, config: CascadeConfig) -> None:
    """On the first 300 test scenes; the model card has the figures for all 10,000."""
    training = TrainingConfig.from_yaml(samples / "demo" / "train.yaml")
    data = open_folder(samples / "demo" / "scenes" / "test", config.class_names)
    assert data.labels is not None
    first = sorted(range(len(data)), key=lambda i: data.paths[i].name)[:300]
    pixels = torch.from_numpy(np.stack([data.image(i) for i in first]))[:, None].float()
    images = (pixels / 255 - training.input.mean[0]) / training.input.std[0]
    labels = torch.tensor([data.labels[i] for i in first])
    cascade = Cascade.load(samples / "demo" / "model.safetensors")
    with torch.no_grad():
        answers = [output.logits.argmax(-1) for output in cascade(images)]
    accuracy = [float((answer == labels).float().mean()) for answer in answers]
    assert accuracy[-1] >= 0.70
    assert accuracy[-1] >= accuracy[0] + 0.03
