"""Engines that were built before: found again, or built again where anything is in doubt."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.converters.engines import cache as cache_module
from dvt_edge.converters.engines.cache import EngineCache, engine_key
from dvt_edge.converters.engines.request import Built, Request
from dvt_edge.machine.platform import Platform
from tests.conftest import orin_platform

BUILT = Built(version="10.3.0", seconds=12.5, warnings=("one", "two"), listing="Layers:\n")
REQUEST = Request(
    graph="a/stage1.onnx",
    plan="a/stage1.plan",
    batch_sizes=(1, 4),
    workspace_bytes=1 << 30,
    compute_capabilities=(86,),
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """An engine that was built elsewhere."""
    path = tmp_path / "built.plan"
    path.write_bytes(b"an engine")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineCache:
    """Empty; its folder is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return EngineCache()


def test_stored_engine_is_fetched(cache: EngineCache, plan: Path, tmp_path: Path) -> None:
    target = tmp_path / "fetched.plan"
    assert cache.fetch("key", target) is None
    cache.store("key", plan, BUILT)
    assert cache.fetch("other", target) is None
    assert not target.exists()
    assert cache.fetch("key", target) == BUILT
    assert target.read_bytes() == plan.read_bytes() == b"an engine"
    assert sorted(os.listdir(cache.folder)) == ["key.json", "key.plan"]


def test_storing_again_replaces(cache: EngineCache, plan: Path, tmp_path: Path) -> None:
    cache.store("key", plan, BUILT)
    plan.write_bytes(b"a better engine")
    cache.store("key", plan, BUILT.model_copy(update={"seconds": 1.0}))
    built = cache.fetch("key", tmp_path / "fetched.plan")
    assert built is not None
    assert built.seconds == 1.0
    assert (tmp_path / "fetched.plan").read_bytes() == b"a better engine"


def test_cache_that_does_not_read_still_keeps(
    cache: EngineCache, plan: Path, tmp_path: Path
) -> None:
    """What ``--force`` builds anew is there the next time."""
    forced = EngineCache(reads=False)
    forced.store("key", plan, BUILT)
    assert forced.fetch("key", tmp_path / "fetched.plan") is None
    assert cache.fetch("key", tmp_path / "fetched.plan") == BUILT


def _notes(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "key.json"
        values = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(values | changes), encoding="utf-8")

    return spoil


def _write(name: str, content: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        _write("key.plan", b"an engine."),
        _write("key.plan", b""),
        lambda folder: (folder / "key.plan").unlink(),
        lambda folder: (folder / "key.json").unlink(),
        _write("key.json", b""),
        _write("key.json", b"\xff\xfe"),
        _write("key.json", b"{}"),
        _write("key.json", b"[]"),
        _write("key.json", b"null"),
        _write("key.json", b'"text"'),
        _notes(sha256="0" * 64),
        _notes(flags=None),
        _notes(another="key"),
    ],
)
def test_damaged_engine_is_none(
    cache: EngineCache, plan: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """It is built again, and the new one takes its place."""
    cache.store("key", plan, BUILT)
    spoil(cache.folder)
    assert cache.fetch("key", tmp_path / "fetched.plan") is None
    cache.store("key", plan, BUILT)
    assert cache.fetch("key", tmp_path / "fetched.plan") == BUILT


def test_folder_that_cannot_be_written(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build goes on without a cache. (A file in the way stops the superuser as well.)"""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    cache = EngineCache()
    cache.store("key", plan, BUILT)
    assert cache.fetch("key", tmp_path / "fetched.plan") is None
    assert plan.read_bytes() == b"an engine"


def test_full_disk(
    cache: EngineCache, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        cache.store("key", plan, BUILT)
    assert cache.fetch("key", tmp_path / "fetched.plan") is None
    assert not list(cache.folder.glob("*.json"))


def test_engines_used_longest_ago_go(
    cache: EngineCache, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "KEPT", 2)
    for age, key in ((300, "a"), (200, "b")):
        cache.store(key, plan, BUILT)
        past = (cache.folder / f"{key}.json").stat().st_mtime - age
        os.utime(cache.folder / f"{key}.json", (past, past))
    assert cache.fetch("a", tmp_path / "fetched.plan") is not None  # used just now
    cache.store("c", plan, BUILT)
    assert sorted(os.listdir(cache.folder)) == ["a.json", "a.plan", "c.json", "c.plan"]


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    assert EngineCache().folder == tmp_path / "caches" / "dvt-edge" / "engines"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert EngineCache().folder == tmp_path / ".cache" / "dvt-edge" / "engines"


def test_key_is_of_graph_settings_and_machine() -> None:
    """Whatever decides the engine is in the key; where files lie, and the power mode, are not."""
    key = engine_key("1" * 64, REQUEST, orin_platform())
    assert key == engine_key("1" * 64, REQUEST, orin_platform())
    others = {
        "batch_sizes": (1,),
        "workspace_bytes": 1 << 20,
        "compute_capabilities": (89,),
    }
    assert {"graph", "plan", *others} == set(Request.model_fields)
    machines = {
        "backend": "tensorrt-rtx",
        "version": "10.3.1",
        "compute_capabilities": ("8.9",),
        "device": "Orin Nano",
        "cuda": "12.8",
        "l4t": "36.4.4",
    }
    assert {"power_mode", *machines} == set(Platform.model_fields)
    keys = [key, engine_key("2" * 64, REQUEST, orin_platform())]
    for name, value in others.items():
        keys.append(engine_key("1" * 64, REQUEST.model_copy(update={name: value}), orin_platform()))
    for name, value in machines.items():
        machine = orin_platform().model_copy(update={name: value})
        keys.append(engine_key("1" * 64, REQUEST, machine))
    assert len(set(keys)) == len(keys)
    here = REQUEST.model_copy(update={"compute_capabilities": ()})  # whose GPU is the machine's
    gpus = [
        orin_platform().model_copy(update={"backend": "tensorrt-rtx", "compute_capabilities": (c,)})
        for c in ("8.6", "8.9")
    ]
    assert len({engine_key("1" * 64, here, gpu) for gpu in gpus}) == 2
    moved = REQUEST.model_copy(update={"graph": "b/stage1.onnx", "plan": "b/stage1.plan"})
    warm = orin_platform().model_copy(update={"power_mode": "MAXN"})
    assert engine_key("1" * 64, moved, warm) == key
