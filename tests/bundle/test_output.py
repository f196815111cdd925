"""What a build may replace, and that it says so before it works."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dvt_edge.bundle.manifest import COSTS, MANIFEST, MEASUREMENT
from dvt_edge.bundle.output import check_output, replaced_folder
from dvt_edge.errors import BundleError
from tests.conftest import edit_manifest


def _tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def _refused(folder: Path, message: str) -> None:
    """Both say it in one line, and nothing changes."""
    before = _tree(folder.parent)
    for check in (check_output, lambda path: replaced_folder(path).__enter__()):
        with pytest.raises(BundleError, match=message) as caught:
            check(folder)
        assert "\n" not in str(caught.value)
    assert _tree(folder.parent) == before


def test_a_web_app(tmp_path: Path) -> None:
    """Browsers' manifests have the same name; what lies beside them is somebody's work."""
    app = tmp_path / "webapp"
    (app / "src").mkdir(parents=True)
    (app / "src" / "index.js").write_text("years of work")
    (app / MANIFEST).write_text('{"name": "app", "icons": []}')
    _refused(app, r"webapp: holds something else than a bundle \('manifest\.json'\); choose ano")


WEB = {"schema_version": 3, "build_key": "key", "files": {"src": "1"}}


@pytest.mark.parametrize(
    "manifest",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        json.dumps(WEB | {"build_key": 1}).encode(),
        json.dumps(WEB | {"schema_version": "3"}).encode(),
        json.dumps({k: v for k, v in WEB.items() if k != "files"}).encode(),
        json.dumps({k: v for k, v in WEB.items() if k != "build_key"}).encode(),
        json.dumps(WEB | {"files": [{}]}).encode(),
        json.dumps(WEB | {"files": None}).encode(),
    ],
)
def test_manifests_that_are_not_ours(tmp_path: Path, manifest: bytes) -> None:
    target = tmp_path / "app"
    target.mkdir()
    (target / MANIFEST).write_bytes(manifest)
    _refused(target, r"holds something else than a bundle \('manifest\.json'\)")


def test_a_folder_that_the_manifest_names(tmp_path: Path) -> None:
    """Builds write files only."""
    (tmp_path / "app" / "src").mkdir(parents=True)
    (tmp_path / "app" / MANIFEST).write_text(json.dumps(WEB))
    _refused(tmp_path / "app", r"\('src'\)")


@pytest.mark.parametrize("name", ["notes.txt", ".git", "stage2.onnx", ".costs.json.swp"])
def test_one_file_beside_the_bundle(folder: Path, name: str) -> None:
    (folder / name).write_text("mine")
    _refused(folder, rf"holds something else than a bundle \('{name}'\); .* or empty the folder")


@pytest.mark.parametrize("schema", [1, 2, 3, 99])
def test_ours_of_any_schema(folder: Path, schema: int) -> None:
    """With what was measured, what is missing, and what a kill left behind."""
    edit_manifest(folder, lambda m: m.update(schema_version=schema, unknown=1))
    for name in (COSTS, MEASUREMENT, ".costs.json.ab12_xyz", ".manifest.json.abcdefgh"):
        (folder / name).write_text("{}")
    (folder / "stage1.onnx").unlink()
    check_output(folder)
    with replaced_folder(folder) as new:
        (new / MANIFEST).write_text("new")
    assert _tree(folder.parent) == ["bundle", f"bundle/{MANIFEST}"]


def test_a_file_that_comes_meanwhile(folder: Path) -> None:
    """A build takes minutes; what is put into the folder then is not deleted either."""
    with pytest.raises(BundleError, match=r"\('notes\.txt'\)"), replaced_folder(folder) as new:  # noqa: PT012
        (new / MANIFEST).write_text("new")
        (folder / "notes.txt").write_text("mine")
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == ["bundle"]


def test_a_link_to_a_bundle_stays_one(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(folder)
    check_output(link)
    with replaced_folder(link) as new:
        (new / MANIFEST).write_text("new")
    assert link.is_symlink()
    assert (folder / MANIFEST).read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "current"]


def _is_a_file(place: Path) -> Path:
    (place / "thesis.tex").write_text("text")
    return place / "thesis.tex"


def _below_a_file(place: Path) -> Path:
    return _is_a_file(place) / "deep" / "bundle"


def _name_without_room(place: Path) -> Path:
    return place / ("x" * 250)  # alone it would fit


def _with_nul(place: Path) -> Path:
    return place / "a\0b"


def _link_to_itself(place: Path) -> Path:
    (place / "loop").symlink_to("loop")
    return place / "loop"


def _not_writable(place: Path) -> Path:
    return Path("/proc/bundle")  # not even by root


@pytest.mark.parametrize(
    "make",
    [
        _is_a_file,
        _below_a_file,
        _name_without_room,
        _with_nul,
        _link_to_itself,
        _not_writable,
    ],
)
def test_places_that_cannot_be_written(make: Callable[[Path], Path], tmp_path: Path) -> None:
    target = make(tmp_path)
    before = _tree(tmp_path)
    with pytest.raises(BundleError, match=r": cannot be written \(.*\); choose another output"):
        check_output(target)
    assert _tree(tmp_path) == before


def test_the_whole_system() -> None:
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        check_output(Path("/"))


def test_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, but it cannot be renamed."""
    monkeypatch.setattr(os.path, "ismount", lambda path: path == tmp_path)
    with pytest.raises(BundleError, match=r"is a mount point, .*; choose a folder in it"):
        check_output(tmp_path)


@pytest.mark.parametrize("name", ["bundle", "a/b/bundle"])
def test_places_that_can(tmp_path: Path, name: str) -> None:
    """Nothing is left there, not even the folders above."""
    check_output(tmp_path / name)
    assert os.listdir(tmp_path) == []
