"""Engines that were built here, and all others."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dvt_edge.bundle import signing
from dvt_edge.bundle.bundle import Bundle, open_source
from dvt_edge.bundle.engine_records import Engines
from dvt_edge.bundle.manifest import Manifest
from dvt_edge.bundle.signing import KEY_BYTES, built_here, check_built_here, make_key, signed
from dvt_edge.errors import BuildError, BundleError
from dvt_edge.profile import BudgetConfig, CameraConfig
from tests.bundle.conftest import GRAPH
from tests.conftest import edit_manifest, orin_platform, write_yaml

PLAN = {"precision": "int8", "graph": "stage1.onnx", "seconds": 1, "cached": False}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the key will lie; nothing is there yet."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "dvt-edge" / "engines.key"


@pytest.fixture
def foreign(folder: Path, home: Path) -> Path:
    """A bundle with engines that nobody signed."""
    (folder / "stage1.plan").write_bytes(GRAPH)

    def change(manifest: dict[str, Any]) -> None:
        manifest["engine"]["backend"] = "tensorrt"
        manifest["stand_ins"] = manifest["stages"]
        manifest["stages"] = [stage | {"file": "stage1.plan"} for stage in manifest["stages"]]
        manifest["files"]["stage1.plan"] = manifest["files"]["stage1.onnx"]
        manifest["engines"] = {
            "platform": orin_platform().model_dump(),
            "workspace_mb": 64,
            "plans": [PLAN],
            "built_at": "2025-01-01T00:00:00+00:00",
            "preprocess_ms": {"host": 0.1 + 0.2, "device": 1e-3},
        }

    edit_manifest(folder, change)
    return folder


@pytest.fixture
def ours(foreign: Path) -> Bundle:
    """The same, signed by this machine's key, as it comes back from the disk."""
    bundle = Bundle(foreign)
    bundle.store("manifest.json", signed(bundle.manifest))
    return Bundle(foreign)


def test_the_key_is_this_users_alone(home: Path) -> None:
    key = make_key()
    assert len(key) == KEY_BYTES
    assert make_key() == key == home.read_bytes()
    assert stat.S_IMODE(home.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o700
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_another_build_made_the_key_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one counts; no litter."""
    other = make_key()
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != home and exists(path))
    assert make_key() == other
    assert [path.name for path in home.parent.iterdir()] == [home.name]


def test_built_here(ours: Bundle) -> None:
    """Another budget and camera change nothing of it."""
    assert built_here(ours.manifest)
    check_built_here(ours)
    ours.set_use(BudgetConfig(latency_ms=9), CameraConfig(fps=5))
    assert built_here(Bundle(ours.folder).manifest)


def _without_signature(manifest: Manifest) -> dict[str, Any]:
    return {"engines": _engines(manifest, signature=None)}


def _another_signature(manifest: Manifest) -> dict[str, Any]:
    return {"engines": _engines(manifest, signature="\u00e9" * 64)}


def _another_plan(manifest: Manifest) -> dict[str, Any]:
    return {"files": manifest.files | {"stage1.plan": "0" * 64}}


def _another_platform(manifest: Manifest) -> dict[str, Any]:
    return {"engines": _engines(manifest, platform=orin_platform(version="10.4.0"))}


def _another_shape(manifest: Manifest) -> dict[str, Any]:
    """Memory is laid out by it."""
    return {"stages": (manifest.stages[0].model_copy(update={"outputs": ()}),)}


def _no_engines(manifest: Manifest) -> dict[str, Any]:
    return {"engines": None}


def _engines(manifest: Manifest, **changes: Any) -> Engines:
    assert manifest.engines is not None
    return manifest.engines.model_copy(update=changes)


@pytest.mark.parametrize(
    "change",
    [
        *(_without_signature, _another_signature, _another_plan, _another_platform),
        *(_another_shape, _no_engines),
    ],
)
def test_altered(ours: Bundle, change: Callable[[Manifest], dict[str, Any]]) -> None:
    ours.manifest = ours.manifest.model_copy(update=change(ours.manifest))
    assert not built_here(ours.manifest)
    with pytest.raises(BundleError, match="not built by this user on this machine"):
        check_built_here(ours)


def _removed(key: Path) -> None:
    key.unlink()


def _emptied(key: Path) -> None:
    key.write_bytes(b"")


def _replaced(key: Path) -> None:
    key.unlink()
    make_key()


def _unreadable(key: Path) -> None:
    key.unlink()
    key.mkdir()


@pytest.mark.parametrize("spoil", [_removed, _emptied, _replaced, _unreadable])
def test_another_key(ours: Bundle, home: Path, spoil: Callable[[Path], None]) -> None:
    """Looking makes no key."""
    spoil(home)
    before = home.exists()
    assert not built_here(ours.manifest)
    assert home.exists() == before


def test_signed_with_an_empty_key(ours: Bundle, home: Path) -> None:
    """Which a stranger could guess: a full disk may leave one."""
    home.write_bytes(b"")
    assert ours.manifest.engines is not None
    forged = {"signature": signing._signature(ours.manifest, b"")}
    engines = ours.manifest.engines.model_copy(update=forged)
    assert not built_here(ours.manifest.model_copy(update={"engines": engines}))
    with pytest.raises(BuildError, match=r"engines\.key: the key .* is damaged; remove it"):
        make_key()


def test_a_home_that_cannot_be_written(home: Path) -> None:
    home.parent.parent.write_text("a file")
    with pytest.raises(BuildError, match=r"engines\.key: .* cannot be kept .*; set XDG_DATA_HOME"):
        make_key()


@pytest.mark.parametrize("trust", [None, "foreign-engines"])
def test_the_profile_trusts(foreign: Path, tmp_path: Path, trust: str | None) -> None:
    """It alone: a folder opened without a profile never does."""
    manifest = Bundle(foreign).manifest.model_dump(mode="json")
    values = {key: manifest[key] for key in ("engine", "input", "exits", "budget")}
    values |= {"device": {"name": "a board"}, "model": "x", "calibration": {"data": "x"}}
    values |= {"output": str(foreign)} | ({"trust": trust} if trust else {})
    bundle, _ = open_source(write_yaml(tmp_path / "board.yaml", yaml.safe_load(yaml.dump(values))))
    assert bundle.trusts_foreign_engines == (trust is not None)
    if trust:
        check_built_here(bundle)
        return
    for source in (bundle, open_source(foreign)[0]):
        with pytest.raises(BundleError, match="put 'trust: foreign-engines' into the profile"):
            check_built_here(source)


def test_a_manifest_that_trusts_itself(foreign: Path) -> None:
    edit_manifest(foreign, lambda m: m.update(trust="foreign-engines"))
    with pytest.raises(BundleError, match="not a manifest of schema"):
        Bundle(foreign)
