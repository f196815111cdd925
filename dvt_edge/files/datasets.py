"""Labelled images from folders, IDX files and npz archives. NumPy and Pillow only.

An image is uint8, RGB ``[H, W, 3]`` or gray ``[H, W]``. A *dataset* is anything with
:class:`ImageDataset`'s four members.
"""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from dvt_edge.errors import DataError
from dvt_edge.files import imagenet
from dvt_edge.requirements import LIBRARIES

Pixels = npt.NDArray[np.uint8]

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
)

OTHER_PICTURES = frozenset(
    {".arw", ".avif", ".cr2", ".cr3", ".dds", ".dng", ".gif", ".heic", ".heif", ".ico", ".jfif"}
    | {".jp2", ".jpe", ".jxl", ".nef", ".pbm", ".pnm", ".raw", ".svg", ".tga"}
)
"""Endings of pictures that are not read."""

MOST_PIXELS = 80_000_000
"""Of one image. While it is decoded a pixel takes up to eleven bytes, and a file of a few kilobytes
can promise a billion of them."""

_SYNSET = re.compile(r"n\d{8}")


class ImageDataset(Protocol):
    """Random access to images and their classes."""

    @property
    def labels(self) -> Sequence[int] | None:
        """Class of every image, or None where the images are unlabelled."""

    @property
    def class_names(self) -> Sequence[str] | None:
        """Names of the classes in class order, or None where only numbers are known."""

    def __len__(self) -> int: ...

    def image(self, index: int) -> Pixels:
        """Image ``index`` as uint8 [H, W, 3] RGB or [H, W] gray."""


@dataclass(frozen=True)
class FolderDataset:
    """Image files in one folder per class (ImageNet layout), or unlabelled in a flat folder."""

    paths: Sequence[Path]
    labels: Sequence[int] | None
    class_names: Sequence[str] | None

    def __len__(self) -> int:
        return len(self.paths)

    def image(self, index: int) -> Pixels:
        return load_image(self.paths[index])


@dataclass(frozen=True)
class ArrayDataset:
    """Images in memory: uint8 [N, H, W] or [N, H, W, 3]."""

    images: Pixels = field(repr=False)
    labels: Sequence[int] | None = field(repr=False)
    class_names: Sequence[str] | None = None
    groups: Sequence[str] | None = field(default=None, repr=False)
    """Name of the group that each image is of, where the archive tells."""

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Pixels:
        image: Pixels = self.images[index]
        return image


def load_image(path: Path) -> Pixels:
    """Decode one file to uint8: RGB [H, W, 3], or [H, W] if the file is gray.

    A photograph is turned as its EXIF orientation says, so that it stands upright. Raises
    :class:`~dvt_edge.errors.DataError` naming the file.
    """
    try:
        # Given a path, Pillow 13 maps turned TIFFs into memory with the wrong width.
        with path.open("rb") as file, Image.open(file) as image:
            if image.mode.startswith(("I", "F")):  # conversion would saturate
                raise ValueError("more than 8 bits per channel; convert it to 8 bits")
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width}x{image.height} pixels, the most is {MOST_PIXELS:,}; shrink it"
                )
            _turn_upright(image)
            return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Exception as error:  # decoders raise whatever they like, MemoryError too
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a readable image ({reason}); replace or remove it") from None


def _turn_upright(image: Image.Image) -> None:
    """Turn ``image`` as its camera was held; it stays as stored where EXIF does not say, or is
    damaged."""
    image.load()
    with contextlib.suppress(Exception):  # of the EXIF data, which say nothing of the pixels
        ImageOps.exif_transpose(image, in_place=True)


def find_images(folder: Path) -> list[Path]:
    """All image files below ``folder``, sorted; hidden files and folders are left out."""
    return _find(folder, IMAGE_SUFFIXES)


def skipped_pictures(folder: Path) -> str:
    """What :func:`find_images` leaves out of ``folder``, though it is a picture by its ending.

    Empty where there is nothing.
    """
    endings = Counter(path.suffix.lower() for path in _find(folder, OTHER_PICTURES))
    if not endings:
        return ""
    shown = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    return f"{folder}: pictures of these endings are not read: {shown}; convert them to PNG or JPEG"


def printable(name: str | Path) -> str:
    """``name`` as text that can be written anywhere: bytes that are not UTF-8 are escaped."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _find(folder: Path, endings: frozenset[str]) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in endings)
    return sorted(path for path in found if not _is_hidden(path, folder) and path.is_file())


def _is_hidden(path: Path, folder: Path) -> bool:
    """Whether it is, or is in, what programs keep for themselves: ``._1.png`` of macOS,
    ``.ipynb_checkpoints``, thumbnails."""
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def open_folder(folder: Path, class_names: Sequence[str] | None = None) -> FolderDataset:
    """A folder with one subfolder per class, or a flat folder of unlabelled images.

    Classes are the sorted subfolder names, unless ``class_names`` gives their order. Then the
    subfolders are called like the classes, by their numbers, or by ImageNet's synsets where there
    are 1,000 classes; not all need be there. Where the names are mere numbers
    (:func:`class_numbers`), folders of any other names stand for the classes in sorted order, if
    there are as many. Anything else, and images beside subfolders, raises
    :class:`~dvt_edge.errors.DataError`.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give a folder with one subfolder per class")
    paths = find_images(folder)
    if not paths:
        raise DataError(f"{folder}: holds no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    found = sorted({path.relative_to(folder).parts[0] for path in paths if path.parent != folder})
    flat = [path for path in paths if path.parent == folder]
    if flat and found:
        raise DataError(
            f"{folder}: holds images ('{flat[0].name}') beside folders of images ('{found[0]}'); "
            "move them into the folder of their class, or away"
        )
    if flat:
        return FolderDataset(flat, None, None)
    names = found if class_names is None else _class_order(folder, found, class_names)
    number = {name: i for i, name in enumerate(names)}
    labels = [number[path.relative_to(folder).parts[0]] for path in paths]
    return FolderDataset(paths, labels, [printable(name) for name in names])


def class_numbers(classes: int) -> tuple[str, ...]:
    """What the classes of a model without names are called."""
    return tuple(str(number) for number in range(classes))


def _class_order(folder: Path, found: Sequence[str], class_names: Sequence[str]) -> Sequence[str]:
    """Subfolder names in the order of the classes ``class_names``."""
    unknown = sorted(set(found) - set(class_names))
    if not unknown:
        return class_names
    synsets = imagenet.synsets() if len(class_names) == imagenet.CLASSES else None
    if synsets and set(found) <= set(synsets):
        return synsets
    numbers = class_numbers(len(class_names))
    if set(found) <= set(numbers):
        return numbers
    # Names of their own can only be told apart by their order, and only if none is missing.
    if tuple(class_names) == numbers and len(unknown) == len(found) == len(class_names):
        return found
    shown = ", ".join(class_names[:10]) + (", ..." if len(class_names) > 10 else "")
    hint = "rename or remove it"
    if tuple(class_names) == numbers:
        hint = f"the model has no class names, so give all of its classes; {len(found)} are there"
    if all(_SYNSET.fullmatch(name) for name in found) and synsets is None:
        hint = f"for ImageNet's synsets run {LIBRARIES['timm'].install}: timm ships their order"
    raise DataError(
        f"{folder}: subfolder '{unknown[0]}' is not one of the {len(class_names)} classes "
        f"({shown}); {hint}"
    )


def read_idx(path: Path) -> Pixels:
    """An IDX file of unsigned bytes (MNIST's format), gzipped or not, as an array."""
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path}: not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if body.size != int(np.prod(shape)):
        raise DataError(f"{path}: truncated, {body.size} values where {shape} are promised")
    return body.reshape(shape)


def open_idx(images: Path, labels: Path) -> ArrayDataset:
    """A pair of IDX files: images [N, H, W] and labels [N]."""
    pixels, classes = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or classes.ndim != 1 or len(pixels) != len(classes):
        raise DataError(
            f"{images} {pixels.shape} and {labels} {classes.shape} do not belong together; "
            "expected [N, H, W] and [N]"
        )
    return ArrayDataset(pixels, classes.astype(np.int64).tolist())


def open_npz(path: Path) -> ArrayDataset:
    """An npz archive with ``images`` uint8 [N, H, W(, 3)] and, if labelled, ``labels`` [N]."""
    try:
        with path.open("rb") as file:  # np.load itself leaves a damaged archive open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it holds a single array; write it with np.savez")
            arrays = {name: np.asarray(archive[name]) for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable npz archive ({error})") from None
    images, labels, groups = (arrays.get(key) for key in ("images", "labels", "groups"))
    if (
        images is None
        or images.dtype != np.uint8
        or not images.size
        or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3))
    ):
        raise DataError(f"{path}: needs an array 'images' uint8 [N, H, W] or [N, H, W, 3]")
    if labels is not None and (labels.shape != (len(images),) or labels.dtype.kind not in "iu"):
        raise DataError(f"{path}: 'labels' must be integers [{len(images)}], found {labels.shape}")
    if groups is not None and (groups.shape != (len(images),) or groups.dtype.kind not in "iuU"):
        raise DataError(
            f"{path}: 'groups' must be integers or text [{len(images)}], found {groups.dtype} "
            f"{groups.shape}"
        )
    return ArrayDataset(
        images,
        None if labels is None else labels.astype(np.int64).tolist(),
        groups=None if groups is None else groups.astype(str).tolist(),
    )


def open_images(path: Path, class_names: Sequence[str] | None = None) -> ImageDataset:
    """A folder of images or an npz archive, by what ``path`` is."""
    return open_npz(path) if path.suffix == ".npz" else open_folder(path, class_names)


def image_groups(
    data: ImageDataset, rows: npt.NDArray[np.int64], path: Path, pattern: str | None
) -> npt.NDArray[np.int32] | None:
    """[n]: number of the group that each of ``rows`` [n] of ``data`` is of, from 0.

    ``pattern`` has one group, searched in the images' paths below ``path``; an archive has its own
    names. None where nothing tells them. Raises :class:`~dvt_edge.errors.DataError` for a path that
    does not match, for a pattern where there are no paths, and where all are of one group.
    """
    if isinstance(data, ArrayDataset) and data.groups is not None:
        names = [data.groups[row] for row in rows]
    elif pattern is None:
        return None
    elif isinstance(data, FolderDataset):
        names = [_group_name(data.paths[row].relative_to(path), pattern) for row in rows]
    else:
        raise DataError(
            f"{path}: calibration.groups is searched in paths, and an archive has none; give it an "
            "array 'groups' with a name or number for each image"
        )
    found, number = np.unique(names, return_inverse=True)
    if len(found) == 1:
        raise DataError(
            f"{path}: all {len(names)} images are of the group '{found[0]}'; one group says "
            "nothing of others, so record more, or correct calibration.groups"
        )
    return number.reshape(-1).astype(np.int32)


def _group_name(path: Path, pattern: str) -> str:
    match = re.search(pattern, path.as_posix())
    if match is None or match[1] is None:
        raise DataError(
            f"{path}: calibration.groups {pattern!r} does not match; correct it, or rename the file"
        )
    return match[1]


def spread_rows(total: int, samples: int) -> npt.NDArray[np.int64]:
    """Indices of at most ``samples`` of ``total`` images, evenly spread: those that records are of.

    Ascending, without repetitions.
    """
    count = min(total, samples)
    return np.asarray(np.unique(np.linspace(0, total - 1, count).round().astype(np.int64)))
