"""Tiny training runs: sixteen-pixel images whose class is where they are bright."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dvt_edge.models import CascadeConfig, StageConfig
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


def _official_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, torch.Tensor]:
    state = {}
    for name, shape in shapes.items():
        generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        values = generator.standard_normal(tuple(shape), dtype=np.float32)
        if len(shape) > 1 and not name.endswith(("cls_token", "pos_embed")):
            root = np.float32(np.sqrt(np.prod(shape[1:])))
            values = values if name.endswith(("attention1.w", "attention2.w")) else values / root
            values = values * np.float32(0.25) if ".kqv." in name else values
        elif name.endswith("weight"):
            values = 1 + np.float32(0.1) * values
        else:
            values = np.float32(0.1 if name.endswith("bias") else 0.2) * values
        state[name] = torch.from_numpy(values)
    return state


@pytest.fixture(scope="session")
def official_state() -> Callable[[Mapping[str, Sequence[int]]], dict[str, torch.Tensor]]:
    """A function from tensor names and shapes to the weights that the golden outputs belong to:
    every tensor is drawn from a generator seeded with the CRC-32 of its name."""
    return _official_state


@pytest.fixture(scope="session")
def tiny_official() -> Callable[..., CascadeConfig]:
    """A function ``(tokenizer)`` giving a cascade as the release would write it, but tiny."""

    def make(tokenizer: str = "patch", **changes: Any) -> CascadeConfig:
        values: dict[str, Any] = {
            "image_size": 32 if tokenizer == "patch" else 64,
            "classes": 7,
            "tokenizer": tokenizer,
            "qkv_bias": tokenizer == "patch",
            "norm_eps": 1e-6 if tokenizer == "patch" else 1e-5,
            "reuse_hidden": 8,
            "reuse_width": 4,
            "stages": tuple(
                StageConfig(grid=grid, width=16, depth=2, heads=2, mlp_ratio=2)
                for grid in (2, 4, 8)
            ),
        }
        return CascadeConfig(**(values | changes))

    return make
