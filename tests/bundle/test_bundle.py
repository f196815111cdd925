"""The bundle on disk: what is checked, and that old ones survive failures."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle import output as output_module
from dvt_edge.bundle.bundle import Bundle, file_sha256, write_records
from dvt_edge.bundle.manifest import COSTS, MANIFEST, RECORDS, UNLABELLED
from dvt_edge.bundle.output import replaced_folder
from dvt_edge.errors import BundleError
from dvt_edge.policy import Records
from dvt_edge.profile import BudgetConfig, CameraConfig
from tests.bundle.conftest import GRAPH
from tests.conftest import edit_manifest


def _files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_opens(folder: Path) -> None:
    """A whole bundle opens; its records come back as they were written."""
    bundle = Bundle(str(folder))
    records = bundle.records()
    assert bundle.stage_path(0) == folder / "stage1.onnx"
    assert records.confidence.dtype == np.float32
    np.testing.assert_array_equal(records.correct, [[True], [False]])


def test_unlabelled_records(tmp_path: Path, folder: Path) -> None:
    """Records without labels come back without labels."""
    write_records(folder / RECORDS, Records(np.ones((2, 1), np.float32), np.ones((2, 1), np.int32)))
    edit_manifest(folder, lambda m: m["files"].update({RECORDS: file_sha256(folder / RECORDS)}))
    assert Bundle(folder).records().label is None


def _write(folder: Path, name: str, records: Records) -> None:
    write_records(folder / name, records)
    edit_manifest(folder, lambda m: m["files"].update({name: file_sha256(folder / name)}))


def test_groups(folder: Path) -> None:
    """They come back; files from before there were any have none."""
    assert Bundle(folder).records().group is None
    group = np.array([7, 3], np.int32)
    _write(folder, RECORDS, dataclasses.replace(Bundle(folder).records(), group=group))
    found = Bundle(folder).records()
    assert found.label is not None
    assert found.group is not None
    assert found.group.dtype == np.int32
    assert found.group.tolist() == [7, 3]


def test_records_of_the_field(folder: Path) -> None:
    """A file of their own, checked as all others are; bundles without it have none."""
    assert Bundle(folder).unlabelled_records() is None
    records = Records(np.full((5, 1), 0.5, np.float32), np.zeros((5, 1), np.int32))
    _write(folder, UNLABELLED, records)
    found = Bundle(folder).unlabelled_records()
    assert found is not None
    assert len(found) == 5
    assert found.label is found.group is None
    (folder / UNLABELLED).unlink()
    with pytest.raises(BundleError, match=r"unlabelled\.npz: cannot be read"):
        Bundle(folder)


@pytest.mark.parametrize("name", ["stage1.onnx", RECORDS])
def test_changed_file(folder: Path, name: str) -> None:
    """One flipped bit is found; the message names file and remedy."""
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    expected = rf"{re.escape(str(folder / name))}: changed since the build \(SHA-256 .*; rebuild"
    with pytest.raises(BundleError, match=expected):
        Bundle(folder)


@pytest.mark.parametrize("name", ["stage1.onnx", RECORDS])
def test_missing_file(folder: Path, name: str) -> None:
    """A file that is gone is named."""
    (folder / name).unlink()
    with pytest.raises(BundleError, match=rf"{re.escape(name)}: cannot be read .*; rebuild"):
        Bundle(folder)


@pytest.mark.parametrize("name", ["nothing", "."])
def test_no_bundle(tmp_path: Path, name: str) -> None:
    """A folder that is missing or empty: the message says how to get a bundle."""
    with pytest.raises(BundleError, match=r"no bundle here .*'dvt-edge build --profile FILE'"):
        Bundle(tmp_path / name)


def test_file_instead_of_folder(folder: Path) -> None:
    """The path of the manifest is not the path of the bundle."""
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle(folder / MANIFEST)


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"[]", b"\xff\xfe\x00", b'{"schema_version": 3}', b'{"schema'],
)  # fmt: skip
def test_garbage_manifest(folder: Path, data: bytes) -> None:
    """Whatever the manifest holds, the answer is one line with the remedy."""
    (folder / MANIFEST).write_bytes(data)
    with pytest.raises(
        BundleError, match=r"manifest\.json: not a manifest of schema 3 .*re"
    ) as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("schema_version") and m.update(schema_version="1"),
        lambda m: m.update(new_key=1),
        lambda m: m.update(stages=[]),
        lambda m: m["budget"].update(latency_ms=None),
        lambda m: m["files"].pop("stage1.onnx"),
        lambda m: m["files"].pop(RECORDS),
    ],
    ids=["text", "unknown key", "no stages", "no budget", "stage hash", "records hash"],
)
def test_other_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Another schema, or a manifest that was edited, is refused."""
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=r"not a manifest of schema 3 .*rebuild") as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)


def test_costs_are_no_part_of_the_build(folder: Path) -> None:
    """Measured costs come and go without a changed bundle."""
    (folder / COSTS).write_text("{}", encoding="utf-8")
    assert COSTS not in Bundle(folder).manifest.files


def test_content_hash_follows_the_stages(folder: Path) -> None:
    """Other stages, other hash; another budget, the same."""
    bundle = Bundle(folder)
    before = bundle.manifest.content_hash
    bundle.set_use(BudgetConfig(latency_ms=9), CameraConfig(fps=5))
    assert bundle.manifest.content_hash == before
    (folder / "stage1.onnx").write_bytes(GRAPH + GRAPH)
    edit_manifest(
        folder, lambda m: m["files"].update({"stage1.onnx": file_sha256(folder / "stage1.onnx")})
    )
    assert Bundle(folder).manifest.content_hash != before


def test_set_use(folder: Path) -> None:
    """Budget and camera are stored and nothing else changes."""
    before = Bundle(folder).manifest
    assert before.measured_shape == before.frame_shape
    Bundle(folder).set_use(BudgetConfig(latency_ms=7.5), CameraConfig(fps=25, frame=(640, 480)))
    after = Bundle(folder).manifest
    assert after.budget.latency_ms == 7.5
    assert (after.camera.fps, after.measured_shape) == (25, (480, 640))
    changes = {"budget": before.budget, "camera": before.camera}
    assert after.model_copy(update=changes) == before


def test_replaced_folder_is_new(tmp_path: Path) -> None:
    """Where nothing was, the new folder appears, with its parents."""
    target = tmp_path / "a" / "b" / "bundle"
    with replaced_folder(target) as new:
        (new / MANIFEST).write_text("new", encoding="utf-8")
        assert not target.exists()
    assert _files(target) == {MANIFEST: b"new"}
    assert [p.name for p in target.parent.iterdir()] == ["bundle"]
    assert target.stat().st_mode & 0o777 == 0o755


def test_replaced_folder_replaces_all(folder: Path) -> None:
    """Nothing of the old bundle is left."""
    with replaced_folder(folder) as new:
        (new / MANIFEST).write_text("new", encoding="utf-8")
        Bundle(folder)  # the old one serves until the end
    assert _files(folder) == {MANIFEST: b"new"}
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("exists", [True, False])
def test_replaced_folder_after_failure(
    folder: Path, error: type[BaseException], exists: bool
) -> None:
    """A failed or interrupted build leaves what was there, and no litter."""
    if not exists:
        shutil.rmtree(folder)
    before = _files(folder) if exists else {}
    with pytest.raises(error), replaced_folder(folder) as new:  # noqa: PT012
        (new / "stage1.onnx").write_bytes(b"half a gra")
        raise error
    assert folder.exists() == exists
    assert (_files(folder) if exists else {}) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"] * exists


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_replaced_folder_interrupted_between_renames(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """The old bundle comes back if the new one cannot take its place."""
    before = _files(folder)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise error
        return rename(self, target)

    def cannot(first: Path, second: Path) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(output_module, "exchange", cannot)
    monkeypatch.setattr(Path, "rename", failing)
    expected = BundleError if error is OSError else error
    with pytest.raises(expected), replaced_folder(folder) as new:
        (new / MANIFEST).write_text("new", encoding="utf-8")
    assert _files(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == ["bundle"]


def test_replaced_folder_refuses_other_folders(tmp_path: Path) -> None:
    """A folder of photographs is not replaced by a bundle; an empty folder is."""
    target = tmp_path / "photographs"
    target.mkdir()
    (target / "child.jpg").write_bytes(b"dear")
    with (
        pytest.raises(BundleError, match=r"photographs: holds something else .*another output"),
        replaced_folder(target),
    ):
        pytest.fail("the block must not run")
    assert _files(target) == {"child.jpg": b"dear"}
    (target / "child.jpg").unlink()
    with replaced_folder(target) as new:
        (new / MANIFEST).write_text("new", encoding="utf-8")
    assert _files(target) == {MANIFEST: b"new"}


def test_replaced_folder_refuses_files(tmp_path: Path) -> None:
    """An output that is a file, or below one, is refused and stays."""
    target = tmp_path / "thesis.tex"
    target.write_text("text", encoding="utf-8")
    for path in (target, target / "bundle"):
        with pytest.raises(BundleError, match="choose another output"), replaced_folder(path):
            pytest.fail("the block must not run")
    assert target.read_text(encoding="utf-8") == "text"


@pytest.mark.parametrize(
    "change",
    [
        lambda stage: stage.update(outputs=[{"name": "logits", "shape": [], "dtype": "float32"}]),
        lambda stage: stage.update(inputs=[]),
        lambda stage: stage["inputs"][0].update(shape=["N", 0]),
        lambda stage: stage.update({"a\nkey": 1}),
    ],
)
def test_odd_stages(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Refused in one line, where they broke the reader."""
    edit_manifest(folder, lambda manifest: change(manifest["stages"][0]))
    with pytest.raises(BundleError, match="not a manifest of schema") as error:
        Bundle(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("confidence", 1.1), ("confidence", -1e30), ("prediction", 2), ("label", 1 << 20)],
)
def test_records_out_of_range(folder: Path, key: str, value: float) -> None:
    """They would be taken for probabilities, and for numbers of classes."""
    bundle = Bundle(folder)
    arrays = dict(np.load(folder / RECORDS))
    arrays[key].flat[0] = value
    np.savez(folder / RECORDS, **arrays)
    with pytest.raises(BundleError, match=f"a '{key}' is out of its range"):
        bundle.records()
