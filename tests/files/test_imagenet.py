"""ImageNet's labels, from an installed timm or a stand-in for it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dvt_edge.errors import DataError
from dvt_edge.files import imagenet
from dvt_edge.files.datasets import class_numbers, open_folder

SYNSETS = [f"n{10_000_000 + 7 * i}" for i in range(1000)]
CLASSES = [f"class {i}" for i in range(1000)]


@pytest.fixture(autouse=True)
def _fresh_cache() -> Iterator[None]:
    """What one test finds does not stay for the next."""
    for function in (imagenet.synsets, imagenet.labels):
        function.cache_clear()
    yield
    for function in (imagenet.synsets, imagenet.labels):
        function.cache_clear()


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of that name with the two files, which cannot be imported."""
    info = tmp_path / "packages/timm/data/_info"
    info.mkdir(parents=True)
    (tmp_path / "packages/timm/__init__.py").write_text("raise RuntimeError('imported')")
    (info / "imagenet_synsets.txt").write_text("\n".join(SYNSETS))
    lemmas = [f"{synset}\tthing {i}, name" for i, synset in enumerate(SYNSETS)]
    (info / "imagenet_synset_to_lemma.txt").write_text("\n".join(lemmas))
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))


@pytest.fixture
def no_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where timm is not installed."""
    monkeypatch.setitem(sys.modules, "timm", None)


def make_folder(folder: Path, names: list[str]) -> Path:
    """One small image per class folder."""
    for name in names:
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / name / "image.png")
    return folder


@pytest.mark.usefixtures("timm")
def test_labels_in_class_order() -> None:
    """Synsets and names line up; timm itself is not imported."""
    assert imagenet.synsets() == tuple(SYNSETS)
    labels = imagenet.labels()
    assert labels is not None
    assert labels[999] == "thing 999, name"


@pytest.mark.usefixtures("no_timm")
def test_without_timm() -> None:
    """Nothing is known then."""
    assert imagenet.synsets() is None
    assert imagenet.labels() is None


@pytest.mark.usefixtures("timm")
def test_some_synset_folders_of_a_thousand(tmp_path: Path) -> None:
    """A subset of ImageNet keeps ImageNet's class numbers."""
    data = open_folder(make_folder(tmp_path / "data", [SYNSETS[3], SYNSETS[998]]), CLASSES)
    assert data.labels == [3, 998]


@pytest.mark.usefixtures("no_timm")
def test_synset_folders_without_timm(tmp_path: Path) -> None:
    """The error says what to install."""
    with pytest.raises(DataError, match=r"pip install 'dvt-edge\[imagenet\]'"):
        open_folder(make_folder(tmp_path / "data", SYNSETS[:2]), CLASSES)


def test_as_many_folders_under_other_names(tmp_path: Path) -> None:
    """They are the classes in sorted order where those are mere numbers, and only then."""
    found = open_folder(make_folder(tmp_path / "data", ["b", "a"]), class_numbers(2))
    assert (found.labels, found.class_names) == ([0, 1], ["a", "b"])
    for number, (names, classes) in enumerate(
        [(["a", "b"], ("x", "y")), (["x", "a"], ("x", "y")), (["0", "a"], class_numbers(2))]
    ):
        with pytest.raises(DataError, match="'a' is not one of the 2 classes"):
            open_folder(make_folder(tmp_path / f"other{number}", names), classes)
