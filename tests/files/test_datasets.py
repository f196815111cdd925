"""Datasets: folders, IDX files and npz archives, good and damaged."""

from __future__ import annotations

import gzip
import io
import os
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps

from dvt_edge.errors import DataError
from dvt_edge.files.datasets import (
    ArrayDataset,
    FolderDataset,
    class_numbers,
    find_images,
    load_image,
    open_folder,
    open_idx,
    open_images,
    open_npz,
    read_idx,
    skipped_pictures,
    spread_rows,
)
from tests.conftest import idx_bytes, random_pixels, unknown_dds

Pixels = npt.NDArray[np.uint8]


def _save(path: Path, pixels: Pixels) -> Pixels:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)], ids=["gray", "colour"])
def test_load_image(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """PNG comes back as it was written: gray stays [H, W], colour is RGB."""
    expected = _save(tmp_path / "a.png", random_pixels(*shape))
    found = load_image(tmp_path / "a.png")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "LA", "CMYK"])
def test_load_image_converts_other_modes(tmp_path: Path, mode: str) -> None:
    """Palettes, alpha, bilevel and CMYK become RGB."""
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.fromarray(random_pixels(5, 7, 3)).convert(mode).save(path)
    assert load_image(path).shape == (5, 7, 3)


def _truncated_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_pixels(40, 40, 3)).save(file, "PNG")
    return file.getvalue()[:700]


def _flipped_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(random_pixels(40, 40, 3)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[200] ^= 0xFF
    return bytes(data)


def _sixteen_bit_png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"", b"not an image", _truncated_png(), _flipped_png(), _sixteen_bit_png()],
    ids=["empty", "text", "truncated", "flipped byte", "16 bits"],
)
def test_load_image_refuses(tmp_path: Path, data: bytes) -> None:
    """What cannot be decoded faithfully is refused, naming the file and the remedy."""
    path = tmp_path / "bad.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}: not a readable image .*replace"):
        load_image(path)


def test_load_image_of_another_kind(tmp_path: Path) -> None:
    """The ending decides nothing; what its decoder raises does not get out."""
    (tmp_path / "a.jpg").write_bytes(unknown_dds())
    with pytest.raises(NotImplementedError):
        Image.open(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg: not a readable image \(.*pixel.*\); replace"):
        load_image(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (RuntimeError("Failed\n  to decode"), "Failed to decode"),
        (IndexError("list index"), "list index"),
        (Image.DecompressionBombError("too large"), "too large"),
    ],
)
def test_load_image_whatever_a_decoder_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def load(self: ImageFile.ImageFile) -> None:
        raise error

    _save(tmp_path / "a.png", random_pixels(4, 4))
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError, match=rf"a\.png: not a readable image \({reason}\); replace"):
        load_image(tmp_path / "a.png")


TURNED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: np.rot90,
    7: lambda x: np.swapaxes(np.rot90(x, 2), 0, 1),
    8: lambda x: np.rot90(x, -1),
}
"""EXIF's orientations: what a camera stores of an upright scene."""


@pytest.mark.parametrize("ending", ["png", "tif", "webp", "jpg"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)], ids=["gray", "colour"])
@pytest.mark.parametrize("orientation", TURNED)
def test_load_image_stands_upright(
    tmp_path: Path, orientation: int, shape: tuple[int, ...], ending: str
) -> None:
    """However the phone was held."""
    upright = np.kron(random_pixels(*shape), np.ones((8, 8, 1)[: len(shape)], np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"a.{ending}"
    options: dict[str, dict[str, Any]] = {
        "webp": {"lossless": True},
        "jpg": {"quality": 100, "subsampling": 0},
    }
    Image.fromarray(TURNED[orientation](upright)).save(path, exif=exif, **options.get(ending, {}))
    found = load_image(path)
    expected = upright if found.ndim == upright.ndim else np.stack([upright] * 3, 2)  # WebP
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= (8 if ending == "jpg" else 0)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff"],
)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_load_image_with_damaged_exif(tmp_path: Path, exif: bytes) -> None:
    """The pixels are whole: they are taken as they are stored."""
    file = io.BytesIO()
    Image.fromarray(random_pixels(4, 6)).save(file, "JPEG")
    data = file.getvalue()
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    (tmp_path / "a.jpg").write_bytes(data[:2] + marker + data[2:])
    assert load_image(tmp_path / "a.jpg").shape == (4, 6)


def test_load_image_whatever_exif_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def transpose(image: Image.Image, *, in_place: bool) -> None:
        raise struct.error("unpack requires a buffer")

    expected = _save(tmp_path / "a.png", random_pixels(4, 6))
    monkeypatch.setattr(ImageOps, "exif_transpose", transpose)
    np.testing.assert_array_equal(load_image(tmp_path / "a.png"), expected)


def test_load_image_missing(tmp_path: Path) -> None:
    """A missing file is called missing."""
    with pytest.raises(DataError, match=r"gone\.png: no such file"):
        load_image(tmp_path / "gone.png")


def test_find_images(tmp_path: Path) -> None:
    """Every depth and case, sorted; no other files, no folders called like images."""
    for name in ("b/2.PNG", "b/1.png", "a/deep/3.jpg"):
        _save(tmp_path / name, random_pixels(4, 4))
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a/deep/3.jpg", "b/1.png", "b/2.PNG"]


@pytest.mark.parametrize(
    "name", ["a/._1.png", ".ipynb_checkpoints/1.png", "a/.thumbnails/deep/1.png", ".1.jpg"]
)
def test_hidden_files_are_left_out(tmp_path: Path, name: str) -> None:
    """What macOS, notebooks and file managers leave behind is no image, and no class."""
    _save(tmp_path / ".kept" / "a" / "1.png", random_pixels(4, 4))  # the folder itself may be
    _save(tmp_path / ".kept" / name, random_pixels(4, 4))
    data = open_folder(tmp_path / ".kept")
    assert [path.name for path in data.paths] == ["1.png"]
    assert data.class_names == ["a"]


def test_pictures_that_are_not_read(tmp_path: Path) -> None:
    """Counted by ending, the most frequent first; other files are no pictures."""
    assert skipped_pictures(tmp_path) == ""
    for name in ("1.heic", "a/2.HEIC", "3.gif", "4.png", "notes.txt", "._5.gif", ".x/6.gif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert skipped_pictures(tmp_path) == (
        f"{tmp_path}: pictures of these endings are not read: 2 .heic, 1 .gif; convert them to PNG "
        "or JPEG"
    )


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    """Files are read; what is shown of a class can be written anywhere."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    _save(folder / os.fsdecode(b"\xff.png"), random_pixels(4, 4))
    data = open_folder(tmp_path)
    assert data.class_names == ["caf\\xe9"]
    assert data.image(0).shape == (4, 4)


def test_folder_per_class(tmp_path: Path) -> None:
    """Subfolders are classes in sorted order."""
    images = {
        name: _save(tmp_path / name, random_pixels(4, 4, seed=i))
        for i, name in enumerate(["dog/1.png", "cat/1.png", "cat/2.png"])
    }
    data = open_folder(tmp_path)
    assert data.class_names == ["cat", "dog"]
    assert data.labels == [0, 0, 1]
    assert len(data) == 3
    np.testing.assert_array_equal(data.image(2), images["dog/1.png"])


def test_folder_with_given_classes(tmp_path: Path) -> None:
    """The model's class order decides, also for classes without images."""
    _save(tmp_path / "dog" / "1.png", random_pixels(4, 4))
    _save(tmp_path / "cat" / "1.png", random_pixels(4, 4))
    data = open_folder(tmp_path, ["zebra", "dog", "cat"])
    assert data.class_names == ["zebra", "dog", "cat"]
    assert data.labels == [2, 1]


def test_folder_with_unknown_class(tmp_path: Path) -> None:
    """A subfolder that is no class of the model is refused by name."""
    _save(tmp_path / "dog" / "1.png", random_pixels(4, 4))
    _save(tmp_path / "dgo" / "1.png", random_pixels(4, 4))
    with pytest.raises(DataError, match=r"subfolder 'dgo' is not one of the 2 classes \(cat, dog"):
        open_folder(tmp_path, ["cat", "dog"])


def test_flat_folder(tmp_path: Path) -> None:
    """Images directly in the folder are unlabelled."""
    for i in range(3):
        _save(tmp_path / f"{i}.png", random_pixels(4, 4))
    data = open_folder(tmp_path, ["cat", "dog"])
    assert isinstance(data, FolderDataset)
    assert (len(data), data.labels, data.class_names) == (3, None, None)


@pytest.mark.parametrize("class_names", [None, ["cat", "dog"]])
def test_images_beside_folders(tmp_path: Path, class_names: list[str] | None) -> None:
    """Which of them are meant, nobody can tell; a forgotten one hides all the others otherwise."""
    for name in ("cat/1.png", "dog/1.png", "preview.png"):
        _save(tmp_path / name, random_pixels(4, 4))
    with pytest.raises(
        DataError, match=r"holds images \('preview\.png'\) beside .*\('cat'\); move"
    ):
        open_folder(tmp_path, class_names)
    (tmp_path / "preview.png").unlink()
    assert open_folder(tmp_path, class_names).labels == [0, 1]


@pytest.mark.parametrize(
    ("folders", "classes", "labels"),
    [
        (["1", "10"], class_numbers(11), [1, 10]),  # by number, not in the order of text
        (["0", "2"], ["ant", "bee", "cat"], [0, 2]),
        (["ant", "bee", "cat"], class_numbers(3), [0, 1, 2]),
    ],
)
def test_folders_and_numbers(
    tmp_path: Path, folders: list[str], classes: Sequence[str], labels: list[int]
) -> None:
    """A class's number stands for it, and folders of any name where the model has no names."""
    for name in folders:
        _save(tmp_path / name / "1.png", random_pixels(4, 4))
    assert open_folder(tmp_path, classes).labels == labels


def test_missing_folder_of_a_model_without_names(tmp_path: Path) -> None:
    """All labels after it would be one too low."""
    for name in ("bee", "cat"):
        _save(tmp_path / name / "1.png", random_pixels(4, 4))
    with pytest.raises(
        DataError, match=r"'bee' is not .*; the model has no class names, .*; 2 are"
    ):
        open_folder(tmp_path, class_numbers(3))


def test_folder_without_images(tmp_path: Path) -> None:
    """An empty folder, and one that is none."""
    with pytest.raises(DataError, match="holds no images"):
        open_folder(tmp_path)
    with pytest.raises(DataError, match=r"gone: no such folder"):
        open_folder(tmp_path / "gone")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gz"])
def test_idx(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    """MNIST's format, plain and gzipped, whatever the file is called."""
    images, labels = random_pixels(6, 4, 5), np.array([0, 1, 2, 9, 1, 0], np.uint8)
    (tmp_path / "images").write_bytes(pack(idx_bytes(images)))
    (tmp_path / "labels").write_bytes(pack(idx_bytes(labels)))
    data = open_idx(tmp_path / "images", tmp_path / "labels")
    assert data.labels == [0, 1, 2, 9, 1, 0]
    np.testing.assert_array_equal(data.image(3), images[3])


_IDX = idx_bytes(random_pixels(6, 4, 5))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_IDX[:-1], r"truncated, 119 values where \(6, 4, 5\) are promised"),
        (_IDX + b"\0", "truncated, 121 values"),
        (gzip.compress(_IDX)[:-20], "cannot be read"),
        (b"\x1f\x8b garbage", "cannot be read"),
        (idx_bytes(random_pixels(6, 4, 5), kind=0x0D), "not an IDX file of unsigned bytes"),
        (b"\x89PNG\r\n", "not an IDX file"),
        (b"", "not an IDX file"),
        (_IDX[:9], "not an IDX file"),
    ],
    ids=["short", "long", "gz short", "gz garbage", "floats", "png", "empty", "head only"],
)
def test_idx_refuses(tmp_path: Path, data: bytes, message: str) -> None:
    """Damaged and foreign files are refused, naming the file."""
    path = tmp_path / "images-idx3"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"images-idx3: {message}"):
        read_idx(path)


def test_idx_missing(tmp_path: Path) -> None:
    """A missing file is called missing."""
    with pytest.raises(DataError, match=r"gone: no such file"):
        read_idx(tmp_path / "gone")


def test_idx_pair_must_fit(tmp_path: Path) -> None:
    """Labels of another set, and images given as labels."""
    (tmp_path / "images").write_bytes(_IDX)
    (tmp_path / "labels").write_bytes(idx_bytes(np.zeros(5, np.uint8)))
    with pytest.raises(DataError, match=r"images \(6, 4, 5\) and .*labels \(5,\) do not belong"):
        open_idx(tmp_path / "images", tmp_path / "labels")
    with pytest.raises(DataError, match="do not belong together"):
        open_idx(tmp_path / "images", tmp_path / "images")


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 4, 5, 3)])
@pytest.mark.parametrize("labelled", [True, False])
def test_npz(tmp_path: Path, shape: tuple[int, ...], labelled: bool) -> None:
    """Gray and colour, with and without labels."""
    images = random_pixels(*shape)
    arrays: dict[str, Any] = {"images": images, "labels": np.array([2, 0, 1])}
    np.savez(tmp_path / "a.npz", **(arrays if labelled else {"images": images}))
    data = open_images(tmp_path / "a.npz")
    assert isinstance(data, ArrayDataset)
    assert data.labels == ([2, 0, 1] if labelled else None)
    np.testing.assert_array_equal(data.image(1), images[1])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "needs an array 'images'"),
        ({"pictures": random_pixels(3, 4, 5)}, "needs an array 'images'"),
        ({"images": np.zeros((3, 4, 5), np.float32)}, "needs an array 'images' uint8"),
        ({"images": random_pixels(4, 5)}, "needs an array 'images'"),
        ({"images": random_pixels(3, 4, 5, 4)}, r"or \[N, H, W, 3\]"),
        ({"images": random_pixels(0, 4, 5)}, "needs an array 'images'"),
        ({"images": random_pixels(3, 0, 5)}, "needs an array 'images'"),
        (
            {"images": random_pixels(3, 4, 5), "labels": np.zeros(2, int)},
            r"integers \[3\], found \(2,\)",
        ),
        ({"images": random_pixels(3, 4, 5), "labels": np.zeros(3)}, "'labels' must be integers"),
        ({"images": np.array([{}, {}, {}], object)}, "not a readable npz archive"),
    ],
)
def test_npz_refuses(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    """Other arrays than promised; pickled objects are never loaded."""
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=rf"a\.npz: .*{message}"):
        open_npz(tmp_path / "a.npz")


def _npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, images=random_pixels(30, 8, 8))
    return file.getvalue()


def _npy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, random_pixels(3, 4, 5))
    return file.getvalue()


def _foreign_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("images", b"no array")
    return file.getvalue()


def _damaged_member() -> bytes:
    data = bytearray(_npz_bytes())
    data[len(data) // 2] ^= 0xFF
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [b"", b"garbage", _npz_bytes()[:500], _damaged_member(), _npy_bytes(), _foreign_zip()],
    ids=["empty", "text", "truncated", "flipped byte", "single array", "other zip"],
)
def test_npz_damaged(tmp_path: Path, data: bytes) -> None:
    """Files that are no npz archives, or are no longer."""
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz: "):
        open_npz(tmp_path / "a.npz")


def test_npz_missing(tmp_path: Path) -> None:
    """A missing file is called missing."""
    with pytest.raises(DataError, match=r"gone\.npz: no such file"):
        open_images(tmp_path / "gone.npz")


@pytest.mark.parametrize(
    ("total", "samples", "expected"),
    [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (1, 1, [0]), (10, 1, [0]), (3, 2, [0, 2])],
)
def test_spread_rows(total: int, samples: int, expected: list[int]) -> None:
    """Both ends and what lies evenly between them, each once."""
    assert spread_rows(total, samples).tolist() == expected


@pytest.mark.filterwarnings("ignore")  # Pillow's, of a bomb
def test_billions_of_pixels(tmp_path: Path) -> None:
    """A few kilobytes can promise them; nothing is decoded then."""
    Image.new("1", (10_000, 9_000)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"10000x9000 pixels, the most is 80,000,000; shrink it"):
        load_image(tmp_path / "a.png")
