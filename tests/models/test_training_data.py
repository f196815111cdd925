"""Training images: sources, augmentation, batches, and draws that any process can repeat."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fashion_scenes import draw_scene
from PIL import Image

from dvt_edge.errors import DataError
from dvt_edge.models.checkpoint import read_config
from dvt_edge.models.training import Trainer
from dvt_edge.models.training_config import AugmentConfig, SourceConfig, TrainingConfig
from dvt_edge.models.training_data import (
    TrainingImages,
    augment,
    epoch_batches,
    loader,
    open_source,
)
from tests.conftest import idx_bytes

DRAW = Path(__file__).resolve().parents[2] / "samples/demo/fashion_scenes.py:draw_scene"

Values = Callable[..., dict[str, Any]]
Labelled = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]
Bands = Callable[[int, int], Labelled]
NAMES = ("a", "b", "c", "d", "e")


def _write_idx(path: Path, array: npt.NDArray[Any]) -> None:
    data = idx_bytes(array.astype(np.uint8))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def _write(kind: str, folder: Path, data: Labelled) -> dict[str, Any]:
    """Images and labels on disk, as a source's values."""
    images, labels = data
    if kind == "npz":
        np.savez(folder / "data.npz", images=images, labels=labels)
        return {"format": "npz", "path": folder / "data.npz"}
    if kind == "folder":
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "images" / NAMES[label] / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
        return {"format": "folder", "path": folder / "images"}
    suffix = ".gz" if kind == "idx.gz" else ""
    _write_idx(folder / f"images{suffix}", images)
    _write_idx(folder / f"labels{suffix}", labels)
    return {
        "format": "idx",
        "path": folder / f"images{suffix}",
        "labels": folder / f"labels{suffix}",
    }


@pytest.mark.parametrize("kind", ["npz", "idx", "idx.gz", "folder"])
def test_every_format_trains(
    kind: str, bright_bands: Bands, training_values: Values, tmp_path: Path
) -> None:
    values = training_values(epochs=1)
    values["model"] = values["model"] | {"class_names": NAMES}
    train = _write(kind, tmp_path, bright_bands(20, 0))
    values["data"] = values["data"] | {"train": train}
    results = Trainer(TrainingConfig.model_validate(values)).run()
    assert np.isfinite(results[0].loss)


def _folders(place: Path, data: Labelled, without: str = "") -> dict[str, Any]:
    """A source of class folders named by :data:`NAMES`, but for one of them."""
    images, labels = data
    kept = [NAMES[label] != without for label in labels]
    place.mkdir()
    return _write("folder", place, (images[kept], labels[kept]))


def test_checkpoint_keeps_the_folders_names(
    bright_bands: Bands, training_values: Values, tmp_path: Path
) -> None:
    """Where none are given; a class without validation images shifts none of the others."""
    values = training_values(epochs=1)
    values["data"] |= {
        "train": _folders(tmp_path / "train", bright_bands(20, 0)),
        "validation": _folders(tmp_path / "validation", bright_bands(10, 1), without="a"),
    }
    trainer = Trainer(TrainingConfig.model_validate(values))
    assert trainer.validation.labels == [1, 1, 2, 2, 3, 3, 4, 4]
    trainer.run()
    assert read_config(tmp_path / "run" / "model.safetensors").class_names == NAMES


def test_given_names_stay(bright_bands: Bands, training_values: Values, tmp_path: Path) -> None:
    """In their own order, and folders may be missing."""
    values = training_values(epochs=1)
    values["model"] |= {"class_names": NAMES[::-1]}
    values["data"] |= {"train": _folders(tmp_path / "train", bright_bands(20, 0), without="e")}
    trainer = Trainer(TrainingConfig.model_validate(values))
    assert trainer.config.model.class_names == NAMES[::-1]
    labels = TrainingImages(trainer.config, trainer.config.data.train, 0, 0).labels
    assert sorted(set(labels)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("source", "without", "message"),
    [
        (
            "train",
            "c",
            r"holds 4 class folders \('a' to 'e'\), the model has 5 classes; set model\.",
        ),
        ("validation", "c", r"subfolder 'a' is not one of the 5 classes \(0, 1, .*; 4 are there"),
    ],
)
def test_missing_folders_without_names(
    bright_bands: Bands,
    training_values: Values,
    tmp_path: Path,
    source: str,
    without: str,
    message: str,
) -> None:
    """The other source is an archive, whose classes have no names."""
    values = training_values(epochs=1)
    values["data"] |= {source: _folders(tmp_path / source, bright_bands(20, 0), without=without)}
    with pytest.raises(DataError, match=message):
        Trainer(TrainingConfig.model_validate(values))


def test_folders_that_disagree(
    bright_bands: Bands, training_values: Values, tmp_path: Path
) -> None:
    values = training_values(epochs=1)
    values["data"] |= {
        "train": _folders(tmp_path / "train", bright_bands(20, 0)),
        "validation": _folders(tmp_path / "validation", bright_bands(20, 0)),
    }
    (tmp_path / "validation/images/a").rename(tmp_path / "validation/images/x")
    with pytest.raises(
        DataError, match=r"'x' is not one of the 5 classes \(a, b, c, d, e\); rename"
    ):
        Trainer(TrainingConfig.model_validate(values))


@pytest.mark.parametrize("kind", ["npz", "idx", "idx.gz", "folder"])
def test_part_of_a_source(kind: str, bright_bands: Bands, tmp_path: Path) -> None:
    images, labels = bright_bands(20, 0)
    order = np.argsort(labels, kind="stable") if kind == "folder" else np.arange(20)
    values = _write(kind, tmp_path, (images, labels))
    part = open_source(SourceConfig(**values, first=7, count=4), NAMES)
    assert len(part) == 4
    assert part.labels == labels[order][7:11].tolist()
    for i in range(4):
        np.testing.assert_array_equal(part.image(i), images[order][7 + i])
    assert len(open_source(SourceConfig(**values, first=7), NAMES)) == 13


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"first": 20}, "holds 20 images, asked for 20 to"),
        ({"first": 15, "count": 6}, "holds 20 images, asked for 15 to 20"),
        ({"count": 21}, "holds 20 images, asked for 0 to 20"),
    ],
)
def test_more_images_than_there_are(
    part: dict[str, int], message: str, bright_bands: Bands, tmp_path: Path
) -> None:
    values = _write("npz", tmp_path, bright_bands(20, 0))
    with pytest.raises(DataError, match=message):
        open_source(SourceConfig(**values, **part), NAMES)


def test_unlabelled_source_is_refused(bright_bands: Bands, tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=bright_bands(4, 0)[0])
    source = SourceConfig(format="npz", path=tmp_path / "data.npz")
    with pytest.raises(DataError, match=r"data\.npz: has no labels"):
        open_source(source, NAMES)


@pytest.mark.parametrize("values", [{"format": "idx"}, {"format": "npz", "labels": "labels"}])
def test_labels_belong_to_idx(values: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="'labels' belongs to format idx"):
        SourceConfig(path="data", **values)


@pytest.fixture
def config(training_values: Values) -> TrainingConfig:
    """With every augmentation on."""
    every = {"flip": 0.5, "crop_scale": (0.4, 1.0), "brightness": 0.3, "erase": 0.5}
    return TrainingConfig.model_validate(training_values(augment=every))


def test_sample_depends_on_seed_epoch_and_index_alone(config: TrainingConfig) -> None:
    def sample(seed: int, epoch: int, index: int, others: tuple[int, ...] = ()) -> torch.Tensor:
        images = TrainingImages(config, config.data.train, seed, epoch)
        for other in others:
            images[other]
        return images[index][0]

    first = sample(1, 2, 3)
    assert first.dtype == torch.uint8
    assert first.shape == (1, 16, 16)
    assert torch.equal(sample(1, 2, 3, others=(9, 3, 0)), first)
    assert not torch.equal(sample(1, 3, 3), first)
    assert not torch.equal(sample(2, 2, 3), first)


def test_first_epoch_is_not_drawn_like_the_validation_images(
    config: TrainingConfig,
) -> None:
    """Epoch 0 of training and no epoch of validation must not share a key."""
    photographs = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    scenes = _scene_config(config, photographs)
    train = TrainingImages(scenes, scenes.data.train, 1, 0)
    validation = TrainingImages(scenes, scenes.data.train, 1, None)
    assert not any(torch.equal(train[i][0], validation[i][0]) for i in range(6))


def test_validation_images_are_never_augmented(config: TrainingConfig, tmp_path: Path) -> None:
    images = TrainingImages(config, config.data.validation, 1, None)
    with np.load(tmp_path / "validation.npz") as archive:
        for i in range(len(images)):
            np.testing.assert_array_equal(images[i][0][0].numpy(), archive["images"][i])
            assert images[i][1] == archive["labels"][i]


def test_images_of_another_size_and_colour_fit_the_model(
    training_values: Values, tmp_path: Path
) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 20, 30, 3), np.uint8)
    np.savez(tmp_path / "colour.npz", images=colour, labels=np.zeros(6, int))
    values = training_values()
    source = SourceConfig(format="npz", path=tmp_path / "colour.npz")
    images = TrainingImages(TrainingConfig.model_validate(values), source, 0, None)
    assert images[0][0].shape == (1, 16, 16)
    values["model"] = values["model"] | {"channels": 3}
    values["input"] = {"resize": 16, "crop": 16, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    images = TrainingImages(TrainingConfig.model_validate(values), source, 0, 0)
    assert images[0][0].shape == (3, 16, 16)


def test_colours_stay_in_rgb_order(training_values: Values, tmp_path: Path) -> None:
    """Files are RGB whatever order the deployed frames will have."""
    red = np.zeros((5, 16, 16, 3), np.uint8)
    red[..., 0] = 200
    np.savez(tmp_path / "red.npz", images=red, labels=np.zeros(5, int))
    values = training_values()
    values["model"] = values["model"] | {"channels": 3}
    values["input"] = {
        "resize": 16,
        "crop": 16,
        "mean": (0.5,) * 3,
        "std": (0.5,) * 3,
        "color_order": "bgr",
    }
    source = SourceConfig(format="npz", path=tmp_path / "red.npz")
    pixels, _ = TrainingImages(TrainingConfig.model_validate(values), source, 0, None)[0]
    assert [int(plane.float().mean()) for plane in pixels] == [200, 0, 0]


def _scene_config(config: TrainingConfig, photographs: npt.NDArray[np.uint8]) -> TrainingConfig:
    """``config`` with scenes on, reading ``photographs`` as both sources."""
    path = config.data.train.path.with_name("photographs.npz")
    np.savez(path, images=photographs, labels=np.arange(len(photographs)) % 5)
    source = {"format": "npz", "path": path}
    values = config.model_dump()
    values["model"]["image_size"] = 48
    values["input"] |= {"resize": 48, "crop": 48}
    values["augment"] = {}
    values["data"] |= {"draw": DRAW, "train": source, "validation": source}
    return TrainingConfig.model_validate(values)


def test_scenes_are_new_every_epoch_and_fixed_for_validation(config: TrainingConfig) -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    scenes = _scene_config(config, photographs)
    epochs = [TrainingImages(scenes, scenes.data.train, 0, epoch)[2][0] for epoch in (0, 1, 2)]
    assert epochs[0].shape == (1, 48, 48)
    assert not torch.equal(epochs[0], epochs[1])
    assert not torch.equal(epochs[1], epochs[2])
    pixels, label = TrainingImages(scenes, scenes.data.validation, 9, None)[2]
    assert label == 2
    expected = draw_scene(photographs, 2, np.random.default_rng((9, 2)))
    np.testing.assert_array_equal(pixels[0].numpy(), expected)


def test_scenes_need_photographs_of_28_pixels(config: TrainingConfig) -> None:
    small = np.zeros((5, 16, 16), np.uint8)
    with pytest.raises(DataError, match="scenes are drawn from gray 28x28 photographs"):
        TrainingImages(_scene_config(config, small), config.data.train, 0, 0)


@pytest.mark.parametrize(
    ("draw", "words"),
    [
        ("nowhere.py:draw", "nowhere.py:draw: cannot be loaded .*FileNotFoundError"),
        ("own.py:other", "own.py:other: cannot be loaded .*KeyError.*give FILE.py:FUNCTION"),
        ("broken.py:draw", "broken.py:draw: cannot be loaded .*SyntaxError"),
        ("own.py:draw", "own.py:draw: cannot draw image 0 .*uint8"),
    ],
)
def test_what_cannot_draw_is_named(
    config: TrainingConfig, tmp_path: Path, draw: str, words: str
) -> None:
    (tmp_path / "own.py").write_text("def draw(images, index, rng):\n    return images[0] / 2\n")
    (tmp_path / "broken.py").write_text("def draw(:\n")
    data = config.data.model_copy(update={"draw": tmp_path / draw})
    with pytest.raises(DataError, match=words):
        TrainingImages(config.model_copy(update={"data": data}), data.train, 0, 0)


def test_folders_are_not_drawn_from(config: TrainingConfig, tmp_path: Path) -> None:
    images = np.zeros((5, 28, 28), np.uint8)
    source = SourceConfig.model_validate(_write("folder", tmp_path, (images, np.arange(5))))
    data = config.data.model_copy(update={"draw": DRAW})
    with pytest.raises(DataError, match="draws from idx or npz data"):
        TrainingImages(config.model_copy(update={"data": data}), source, 0, 0)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_batches_of_all_processes_cover_an_epoch_once(world: int) -> None:
    parts = [epoch_batches(43, 8, seed=3, epoch=1, rank=r, world=world) for r in range(world)]
    whole = epoch_batches(43, 8, seed=3, epoch=1, rank=0, world=1)
    assert [len(part) for part in parts] == [5] * world  # the last three images are left out
    for step in range(5):
        together = np.concatenate([part[step] for part in parts])
        np.testing.assert_array_equal(together, whole[step])
    used = np.concatenate(whole)
    assert len(set(used.tolist())) == 40
    assert used.max() < 43


def test_order_changes_with_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = epoch_batches(64, 8, seed, epoch, rank=0, world=1)
        return [int(index) for batch in batches for index in batch]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_loader_keeps_the_batches(config: TrainingConfig) -> None:
    images = TrainingImages(config, config.data.train, 0, 0)
    batches = [np.array([3, 1]), np.array([7, 7, 0])]
    loaded = list(loader(images, batches, workers=0))
    for (pixels, labels), batch in zip(loaded, batches, strict=True):
        assert pixels.shape == (len(batch), 1, 16, 16)
        assert labels.tolist() == [images.labels[i] for i in batch]
        assert all(torch.equal(p, images[int(i)][0]) for p, i in zip(pixels, batch, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_image_is_told_in_one_line(
    training_values: Callable[..., dict[str, Any]], tmp_path: Path, workers: int
) -> None:
    """Not with the traceback of the worker that found it."""
    for name in "abcde":
        (tmp_path / "folder" / name).mkdir(parents=True)
        path = tmp_path / "folder" / name / "1.png"
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:40])
    source = {"format": "folder", "path": tmp_path / "folder"}
    data = {"train": source, "validation": source, "workers": workers}
    config = TrainingConfig.model_validate(training_values(data=data))
    images = TrainingImages(config, config.data.train, 0, None)
    loaded = loader(images, [np.array([0, 1]), np.array([2, 4, 3])], workers)
    assert next(loaded)[1].tolist() == [0, 1]
    with pytest.raises(DataError, match=r"^[^\n]*1\.png: not a readable image [^\n]*$"):
        next(loaded)


def _gradient() -> npt.NDArray[np.uint8]:
    """Every column another level, 40 to 163."""
    return np.tile(np.arange(40, 164, 4, dtype=np.uint8), (24, 1))


def _augmented(count: int = 200, **values: Any) -> list[npt.NDArray[np.uint8]]:
    config, rng = AugmentConfig(**values), np.random.default_rng(0)
    return [augment(_gradient(), config, rng) for _ in range(count)]


def test_nothing_asked_nothing_changed() -> None:
    np.testing.assert_array_equal(_augmented(1)[0], _gradient())


@pytest.mark.parametrize(("probability", "least", "most"), [(1, 200, 200), (0.5, 70, 130)])
def test_flip_is_horizontal_and_as_often_as_asked(
    probability: float, least: int, most: int
) -> None:
    flipped = 0
    for image in _augmented(flip=probability):
        flipped += np.array_equal(image, _gradient()[:, ::-1])
        assert np.array_equal(image, _gradient()) or np.array_equal(image, _gradient()[:, ::-1])
    assert least <= flipped <= most


def test_crop_keeps_the_share_asked_for() -> None:
    """The columns' levels tell how much of the width is left."""
    span = float(_gradient().max() - _gradient().min())
    kept = []
    for image in _augmented(crop_scale=(0.25, 0.81)):
        assert image.shape == _gradient().shape
        kept.append((int(image.max()) - int(image.min())) / span)
    assert 0.4 < min(kept) < 0.6  # sides are the roots of areas: 0.5 to 0.9
    assert 0.8 < max(kept) < 0.95


def test_brightness_stays_in_its_range_and_saturates() -> None:
    factors = [image[0, 0] / 40 for image in _augmented(brightness=0.5)]
    assert 0.47 <= min(factors) < 0.6
    assert 1.4 < max(factors) <= 1.5
    bright = np.full((4, 4), 250, np.uint8)
    rng = np.random.default_rng(0)
    levels = [augment(bright, AugmentConfig(brightness=0.5), rng).max() for _ in range(50)]
    assert max(levels) == 255


def test_erasing_fills_one_rectangle() -> None:
    for image in _augmented(erase=1.0):
        rows, columns = np.nonzero(image != _gradient())
        area = (np.ptp(rows) + 1) * (np.ptp(columns) + 1) / image.size
        assert 0.005 < area < 0.25


def test_augmentation_leaves_its_input_alone() -> None:
    image = _gradient()
    augment(image, AugmentConfig(erase=1.0, flip=1.0, brightness=0.5), np.random.default_rng(0))
    np.testing.assert_array_equal(image, _gradient())


@pytest.mark.parametrize("shape", [(20, 30, 3), (1, 1), (1, 40), (5, 2, 3)])
def test_augmentation_keeps_shape_and_type(shape: tuple[int, ...]) -> None:
    config = AugmentConfig(flip=0.5, crop_scale=(0.1, 1.0), brightness=0.5, erase=1.0)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, shape, np.uint8)
    for _ in range(20):
        changed = augment(image, config, rng)
        assert changed.shape == shape
        assert changed.dtype == np.uint8
        assert changed.flags.c_contiguous
