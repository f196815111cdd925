"""The images that a build looks at: those that calibrate, and those from the field."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from dvt_edge.bundle.bundle import file_sha256
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.quantizing.quantize_cascade import Labels
from dvt_edge.errors import DataError
from dvt_edge.files.datasets import (
    FolderDataset,
    ImageDataset,
    image_groups,
    open_images,
    spread_rows,
)
from dvt_edge.models.config import CascadeConfig
from dvt_edge.policy import Records
from dvt_edge.profile import Profile
from dvt_edge.progress import Progress
from dvt_edge.runtime.preprocess import Preprocessor

FIELD_BATCH = 256
"""Unlabelled images in memory at a time."""
PARITY_IMAGES = 200
"""Calibration images that precisions are compared on, and that travel with a portable bundle."""


@dataclass(frozen=True)
class Calibration:
    """Calibration images, ready for the stages."""

    images: npt.NDArray[np.float32]
    label: Labels
    group: npt.NDArray[np.int32] | None
    frame_shape: tuple[int, int]
    digest: str
    parity_rows: npt.NDArray[np.intp]
    parity_pixels: npt.NDArray[np.uint8]
    """[n, crop, crop] or [n, crop, crop, 3]: those rows before normalisation."""


def read_calibration(profile: Profile, config: CascadeConfig, progress: Progress) -> Calibration:
    data = open_images(profile.calibration.data, config.names)
    chosen = spread_rows(len(data), profile.calibration.samples)
    label = _labels(data, chosen, config, profile.calibration.data)
    group = image_groups(data, chosen, profile.calibration.data, profile.calibration.groups)
    preprocess = Preprocessor(profile.input)
    images = np.empty((len(chosen), *preprocess.shape), np.float32)
    parity_rows = spread_rows(len(chosen), PARITY_IMAGES)
    parity = set(parity_rows.tolist())
    kept, sizes = [], []
    digest = hashlib.sha256()
    for row, index in enumerate(chosen):
        image = data.image(int(index))
        pixels = preprocess.crop(image, "rgb")
        preprocess.normalise(pixels, images[row])
        if row in parity:
            kept.append(pixels)
        sizes.append(image.shape[:2])
        digest.update(image.tobytes())
        progress("calibration images", row + 1, len(chosen))
    for what, known in ((b"", label), (b"groups", group)):
        if known is not None:
            digest.update(what + known.tobytes())
    height, width = np.median(sizes, axis=0).astype(int)
    shape = (int(height), int(width))
    return Calibration(images, label, group, shape, digest.hexdigest(), parity_rows, np.stack(kept))


@dataclass(frozen=True)
class Field:
    """Images without classes, still to be read."""

    data: ImageDataset
    group: npt.NDArray[np.int32] | None


def open_field(profile: Profile, *, grouped: bool) -> Field | None:
    path, pattern = profile.calibration.unlabelled, profile.calibration.groups
    if path is None:
        return None
    data = open_images(path)
    if isinstance(data, FolderDataset) and data.labels is not None:
        data = replace(data, labels=None, class_names=None)  # in folders of whatever kind
    group = image_groups(data, np.arange(len(data)), path, pattern)
    if grouped and group is None:
        raise DataError(
            f"{path}: calibration.data says which images are alike, and nothing says it of these; "
            "give calibration.groups for a folder, an array 'groups' for an archive"
        )
    return Field(data, group)


def field_records(
    profile: Profile, field: Field, stages: list[onnx.ModelProto], progress: Progress
) -> Records:
    """What ``stages`` answer to the field's images, some of which are in memory at a time."""
    chain, preprocess = Chain(stages), Preprocessor(profile.input)
    parts = []
    for start in range(0, len(field.data), FIELD_BATCH):
        rows = range(start, min(start + FIELD_BATCH, len(field.data)))
        images = np.empty((len(rows), *preprocess.shape), np.float32)
        for image, row in zip(images, rows, strict=True):
            preprocess(field.data.image(row), image, "rgb")
        parts.append(chain.records(images, None))
        progress("unlabelled images", rows.stop, len(field.data))
    return Records(
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.prediction for part in parts]),
        group=field.group,
    )


def _labels(
    data: ImageDataset, chosen: npt.NDArray[np.int64], config: CascadeConfig, path: Path
) -> npt.NDArray[np.int32] | None:
    if data.labels is None:
        return None
    label = np.asarray(data.labels, np.int32)[chosen]
    if label.min() < 0 or label.max() >= config.classes:
        raise DataError(
            f"{path}: classes run from {label.min()} to {label.max()}, the model has "
            f"{config.classes}; give calibration data of the model's own classes"
        )
    if len(np.unique(label)) == 1:
        raise DataError(
            f"{path}: all {len(label)} images are of class {label[0]}; thresholds chosen on one "
            "class say nothing about the others, so give images of several"
        )
    return label


def field_digest(field: Field) -> str:
    """Of the images' bytes and groups; files are not decoded for it."""
    digest = hashlib.sha256()
    for row in range(len(field.data)):
        if isinstance(field.data, FolderDataset):
            digest.update(file_sha256(field.data.paths[row]).encode())
        else:
            digest.update(field.data.image(row).tobytes())
    if field.group is not None:
        digest.update(field.group.tobytes())
    return digest.hexdigest()
