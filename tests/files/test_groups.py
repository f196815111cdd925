"""Which images are alike: by their paths, or by what an archive says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dvt_edge.errors import DataError
from dvt_edge.files.datasets import FolderDataset, image_groups, open_npz

ROWS = np.arange(4)
FOLDER = Path("data")


def _folder(*names: str) -> FolderDataset:
    return FolderDataset([FOLDER / name for name in names], None, None)


@pytest.mark.parametrize(
    ("pattern", "names", "expected"),
    [
        (r"(clip\d+)_", ("a/clip1_0.png", "b/clip1_1.png", "clip2_0.png", "clip1_9.png"), "0010"),
        (r"^([^/]+)/", ("cam/1.png", "cam/2.png", "door/1.png", "lane/1.png"), "0012"),
        (r"(\d+)\.png$", ("1.png", "2.png", "3.png", "4.png"), "0123"),  # each alone: no groups
    ],
)
def test_paths(pattern: str, names: tuple[str, ...], expected: str) -> None:
    found = image_groups(_folder(*names), ROWS, FOLDER, pattern)
    assert found is not None
    assert "".join(map(str, found)) == expected
    assert found.dtype == np.int32


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            r"(clip\d+)_",
            r"other\.png: calibration\.groups .* does not match; correct it, or rename",
        ),
        (r"(clip\d+)?.*", "other.png: calibration.groups"),
        (r"(.*)/", "clip1_0.png"),
        (r"()", "all 4 images are of the group ''; one group says nothing"),
    ],
)
def test_paths_that_tell_nothing(pattern: str, message: str) -> None:
    data = _folder("clip1_0.png", "clip1_1.png", "clip2_0.png", "other.png")
    with pytest.raises(DataError, match=re.compile(message)):
        image_groups(data, ROWS, FOLDER, pattern)


def test_no_pattern_no_groups() -> None:
    assert image_groups(_folder("1.png"), ROWS[:1], FOLDER, None) is None


@pytest.mark.parametrize("groups", [np.array([7, 7, 3, 7]), np.array(["b", "b", "a", "b"])])
def test_archives_name_their_own(tmp_path: Path, groups: np.ndarray) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, images=np.zeros((4, 2, 2), np.uint8), groups=groups)
    found = image_groups(open_npz(path), ROWS, path, None)
    assert found is not None
    assert found.tolist() == [1, 1, 0, 1]


@pytest.mark.parametrize("groups", [np.zeros(3, int), np.zeros((4, 1), int), np.zeros(4)])
def test_archives_with_bad_groups(tmp_path: Path, groups: np.ndarray) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, images=np.zeros((4, 2, 2), np.uint8), groups=groups)
    with pytest.raises(DataError, match="'groups' must be integers or text"):
        open_npz(path)


def test_a_pattern_for_an_archive_without_names(tmp_path: Path) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, images=np.zeros((4, 2, 2), np.uint8))
    with pytest.raises(DataError, match="an archive has none; give it an array 'groups'"):
        image_groups(open_npz(path), ROWS, path, r"(clip\d)")
