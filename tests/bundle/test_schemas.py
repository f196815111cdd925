"""Bundles that earlier versions wrote: each opens, or is refused with the command that rebuilds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MANIFEST, SCHEMA_VERSION
from dvt_edge.bundle.output import replaced_folder
from dvt_edge.errors import BundleError
from tests.conftest import edit_manifest

SCHEMAS = Path(__file__).parent / "schemas"
OLDER = range(1, SCHEMA_VERSION)


def _written(version: int) -> Path:
    return SCHEMAS / f"schema{version}"


def test_every_schema_is_kept() -> None:
    """Add a folder when the version is raised; see the README beside them."""
    assert {path.name for path in SCHEMAS.iterdir() if path.is_dir()} == {
        f"schema{version}" for version in range(1, SCHEMA_VERSION + 1)
    }
    for version in range(1, SCHEMA_VERSION + 1):
        values = json.loads((_written(version) / MANIFEST).read_text(encoding="utf-8"))
        assert values["schema_version"] == version


@pytest.mark.parametrize("version", OLDER)
def test_older_ones_are_refused_with_the_command(version: int) -> None:
    """By the Runtime as well; not as damaged."""
    for opens in (Bundle, Runtime):
        with pytest.raises(BundleError) as caught:
            opens(_written(version))
        assert str(caught.value) == (
            f"{_written(version)}: a bundle of schema {version}, which an older version of "
            f"dvt-edge wrote; this one reads schema {SCHEMA_VERSION}: rebuild it with "
            "'dvt-edge build --profile FILE'"
        )


def test_later_ones_are_refused(tmp_path: Path) -> None:
    """The bundle may be fine, so updating comes first."""
    folder = tmp_path / "bundle"
    shutil.copytree(_written(SCHEMA_VERSION), folder)
    edit_manifest(folder, lambda m: m.update(schema_version=SCHEMA_VERSION + 1, new_key=1))
    with pytest.raises(BundleError, match=r"a later version .*: update dvt-edge, or rebuild it"):
        Bundle(folder)


def test_the_first_of_this_schema_runs() -> None:
    """Keys that came later have defaults."""
    with Runtime(_written(SCHEMA_VERSION)) as runtime:
        answers = [runtime.classify(np.full((8, 8), value, np.uint8)) for value in (0, 128, 255)]
    assert {answer.label for answer in answers} <= {"ant", "bee", "cat"}


@pytest.mark.parametrize("version", OLDER)
def test_a_build_takes_their_place(tmp_path: Path, version: int) -> None:
    """As the message promises: they are bundles, though not to be opened."""
    folder = tmp_path / "bundle"
    shutil.copytree(_written(version), folder)
    with replaced_folder(folder) as new:
        (new / MANIFEST).write_text("{}", encoding="utf-8")
    assert [path.name for path in folder.iterdir()] == [MANIFEST]
