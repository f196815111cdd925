"""Images for training: drawn, augmented and batched so that every sample depends on
(seed, epoch, index) alone. A resumed run therefore sees what an uninterrupted one sees."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from dvt_edge.errors import DataError
from dvt_edge.files.datasets import (
    ArrayDataset,
    FolderDataset,
    ImageDataset,
    Pixels,
    open_folder,
    open_idx,
    open_npz,
)
from dvt_edge.models.training_config import AugmentConfig, SourceConfig, TrainingConfig
from dvt_edge.runtime.preprocess import check_frame, resize_and_crop, to_channels


def open_source(source: SourceConfig, class_names: Sequence[str]) -> ImageDataset:
    """The labelled images of one source, of classes called ``class_names``.

    Raises :class:`~dvt_edge.errors.DataError` for files that are missing, damaged or unlabelled.
    """
    data: FolderDataset | ArrayDataset
    if source.format == "folder":
        data = open_folder(source.path, class_names)
    elif source.format == "npz":
        data = open_npz(source.path)
    else:
        assert source.labels is not None  # validated in SourceConfig
        data = open_idx(source.path, source.labels)
    if data.labels is None:
        raise DataError(f"{source.path}: has no labels; training needs them")
    last = len(data) if source.count is None else source.first + source.count
    if source.first >= len(data) or last > len(data):
        raise DataError(
            f"{source.path}: holds {len(data)} images, asked for {source.first} to {last - 1}"
        )
    part, labels = slice(source.first, last), data.labels[source.first : last]
    if isinstance(data, FolderDataset):
        return FolderDataset(data.paths[part], labels, data.class_names)
    return ArrayDataset(data.images[part], labels)


def with_class_names(config: TrainingConfig) -> TrainingConfig:
    """``config`` with the names of the training folders as the model's class names, where it is
    trained on folders and names none.

    Raises :class:`~dvt_edge.errors.DataError` where there are not as many folders as classes: which
    of them is missing nobody could say later.
    """
    model, source = config.model, config.data.train
    if model.class_names is not None or source.format != "folder":
        return config
    names = open_folder(source.path).class_names
    if names is None:
        return config  # no folders, which open_source says
    if len(names) != model.classes:
        raise DataError(
            f"{source.path}: holds {len(names)} class folders ('{names[0]}' to '{names[-1]}'), the "
            f"model has {model.classes} classes; set model.classes, or name them all in "
            "model.class_names"
        )
    named = model.model_copy(update={"class_names": tuple(names)})
    return config.model_copy(update={"model": named})


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """Images as uint8 tensors [C, crop, crop], augmented or (``epoch`` None) as in deployment."""

    def __init__(
        self, config: TrainingConfig, source: SourceConfig, seed: int, epoch: int | None
    ) -> None:
        self.data = open_source(source, config.model.names)
        self.config, self.seed, self.epoch = config, seed, epoch
        labels = self.data.labels or ()
        if min(labels) < 0 or max(labels) >= config.model.classes:
            raise DataError(
                f"{source.path}: labels run from {min(labels)} to {max(labels)}, the model has "
                f"{config.model.classes} classes"
            )
        self.labels = labels
        if config.data.draw is not None:
            self._drawn(config.data.draw, 0, np.random.default_rng(0))  # says now what is wrong

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        key = (self.seed, index) if self.epoch is None else (self.seed, 1 + self.epoch, index)
        rng = np.random.default_rng(key)
        draw = self.config.data.draw
        image = self.data.image(index) if draw is None else self._drawn(draw, index, rng)
        image = to_channels(image, self.config.model.channels, "rgb")
        if self.epoch is not None:
            image = augment(image, self.config.augment, rng)
        image = resize_and_crop(image, self.config.input)
        planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return torch.from_numpy(planes.copy()), self.labels[index]

    def _drawn(self, draw: Path, index: int, rng: np.random.Generator) -> Pixels:
        if not isinstance(self.data, ArrayDataset):
            raise DataError(f"data.draw {draw}: draws from idx or npz data, found image files")
        function = _drawing_function(draw)
        try:
            image: Pixels = function(self.data.images, index, rng)
            return check_frame(image, "rgb")
        except Exception as error:  # the function is the user's
            raise DataError(f"data.draw {draw}: cannot draw image {index} ({error})") from error


@cache
def _drawing_function(draw: Path) -> Callable[..., Any]:
    """The function that ``FILE.py:FUNCTION`` names; raises DataError."""
    file, _, name = str(draw).rpartition(":")
    try:
        return cast(Callable[..., Any], runpy.run_path(file)[name])
    except Exception as error:  # whatever the file does when it is run
        raise DataError(
            f"data.draw {draw}: cannot be loaded ({type(error).__name__}: {error}); give "
            "FILE.py:FUNCTION"
        ) from error


def augment(image: Pixels, config: AugmentConfig, rng: np.random.Generator) -> Pixels:
    """Random crop, flip, brightness and erasing of a uint8 image [H, W(, 3)]."""
    if config.crop_scale[0] < 1:
        height, width = image.shape[:2]
        side = np.sqrt(rng.uniform(*config.crop_scale))
        h, w = max(1, round(height * side)), max(1, round(width * side))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        box = (left, top, left + w, top + h)
        image = np.asarray(
            Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box)
        )
    if config.flip and rng.random() < config.flip:
        image = image[:, ::-1]
    if config.brightness:
        factor = rng.uniform(1 - config.brightness, 1 + config.brightness)
        image = np.clip(image * factor, 0, 255).astype(np.uint8)
    if config.erase and rng.random() < config.erase:
        image = image.copy()
        height, width = image.shape[:2]
        side = np.sqrt(rng.uniform(0.02, 0.2))
        h, w = max(1, round(height * side)), max(1, round(width * side))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        hole = image[top : top + h, left : left + w]
        hole[...] = rng.integers(0, 256, hole.shape, np.uint8)
    return np.ascontiguousarray(image)


def epoch_batches(
    count: int, batch: int, seed: int, epoch: int, rank: int, world: int
) -> list[npt.NDArray[np.int64]]:
    """This process's index batches of one epoch; the last incomplete step is left out."""
    order = np.random.default_rng((seed, epoch)).permutation(count)
    steps = count // batch
    share = batch // world
    return [
        order[step * batch + rank * share : step * batch + (rank + 1) * share]
        for step in range(steps)
    ]


def loader(
    images: TrainingImages, batches: Sequence[npt.NDArray[np.int64]], workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images uint8 [B, C, crop, crop] and labels [B] of fixed ``batches`` of indices.

    Raises :class:`~dvt_edge.errors.DataError` for an image that cannot be read.
    """
    loaded: DataLoader[Any] = DataLoader(
        _Caught(images),
        batch_sampler=[batch.tolist() for batch in batches],
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_collate,
    )
    for batch in loaded:
        if isinstance(batch, DataError):
            raise batch
        yield batch


class _Caught(Dataset[tuple[Tensor, int] | DataError]):
    """``images``, with the error in place of one that cannot be read: of one that a worker raises,
    the loader would put the whole traceback into the message."""

    def __init__(self, images: TrainingImages) -> None:
        self._images = images

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        try:
            return self._images[index]
        except DataError as error:
            return error


def _collate(samples: list[tuple[Tensor, int] | DataError]) -> Any:
    """A batch, or the first error in it."""
    return next((s for s in samples if isinstance(s, DataError)), None) or default_collate(samples)
