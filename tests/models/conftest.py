"""Tiny training runs: sixteen-pixel images whose class is where they are bright."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.models import CascadeConfig
from dvt_edge.models.training_config import TrainingConfig

Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def _bright_bands(count: int, seed: int) -> Labelled:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 5
    images = rng.integers(0, 100, (count, 16, 16), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[3 * label : 3 * label + 3] += 120
    return images, labels


@pytest.fixture(scope="session")
def bright_bands() -> Callable[[int, int], Labelled]:
    """A function ``(count, seed)`` giving images [N, 16, 16] of five classes, easy to learn."""
    return _bright_bands


@pytest.fixture
def training_values(
    tmp_path: Path, tiny_config: Callable[..., CascadeConfig]
) -> Callable[..., dict[str, Any]]:
    """A function giving the values of a configuration that trains in a second; keywords replace
    top-level keys."""
    for name, count in (("train", 40), ("validation", 20)):
        images, labels = _bright_bands(count, seed=count)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)

    def values(**changes: Any) -> dict[str, Any]:
        return {
            "model": tiny_config().model_dump(),
            "input": {
                "resize": 16,
                "crop": 16,
                "mean": (0.4,),
                "std": (0.25,),
                "color_order": "gray",
            },
            "data": {
                "train": {"format": "npz", "path": tmp_path / "train.npz"},
                "validation": {"format": "npz", "path": tmp_path / "validation.npz"},
                "workers": 0,
            },
            "output": tmp_path / "run",
            "epochs": 2,
            "batch_size": 8,
            "learning_rate": 0.004,
            "precision": "fp32",
        } | changes

    return values


@pytest.fixture
def training_config(
    training_values: Callable[..., dict[str, Any]],
) -> Callable[..., TrainingConfig]:
    """:func:`training_values`, validated."""
    return lambda **changes: TrainingConfig.model_validate(training_values(**changes))
