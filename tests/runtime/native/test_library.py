"""The library is there wherever it could be built, and says what is missing where it is not."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dvt_edge.runtime.native import library as native

COMPILERS = (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")
NAMES = (b"dvt_preprocess_kernel", b"dvt_decide_kernel", b"dvt_gather_kernel")
ARCHITECTURES = [75, 80, 86, 87, 89, 90, 110, 120]
PTX, MACHINE_CODE = 1, 2


@pytest.fixture
def fresh() -> Iterator[None]:
    """What was loaded is forgotten before and after."""
    native._load.cache_clear()
    yield
    native._load.cache_clear()


def test_is_there() -> None:
    """With a C++ compiler the installation builds it; nothing is left out in silence."""
    if not any(shutil.which(name) for name in COMPILERS):
        pytest.skip(str(native.unavailable()))
    assert native.unavailable() is None
    assert native.library() is not None


def test_kernels_are_there() -> None:
    """With nvcc too, there is a fat binary; each architecture has all kernels."""
    if not shutil.which("nvcc") or native.library() is None:
        pytest.skip(str(native.kernels_unavailable() or native.unavailable()))
    assert native.kernels_unavailable() is None
    binary = native.kernels()
    assert binary is not None
    assert binary[:4] == bytes.fromhex("50ed55ba")  # a fat binary's first bytes
    known = subprocess.run(
        ["nvcc", "--list-gpu-arch"], capture_output=True, text=True, check=True
    ).stdout.split()
    expected = [a for a in ARCHITECTURES if f"compute_{a}" in known]
    found = _entries(binary)
    assert sorted(a for kind, a in found if kind == MACHINE_CODE) == expected
    assert [a for kind, a in found if kind == PTX] == expected[:1]
    for name in NAMES:
        assert binary.count(name) >= len(expected), name


def _entries(binary: bytes) -> list[tuple[int, int]]:
    """Kind and architecture of what a fat binary holds: a header of 16 bytes, then entries, each
    with a header of its own that says how long both are."""
    at, entries = 16, []
    while at < len(binary):
        kind, _, header, size = struct.unpack_from("<HHIQ", binary, at)
        entries.append((kind, *struct.unpack_from("<I", binary, at + 28)))
        at += header + size
    return entries


@pytest.mark.usefixtures("fresh")
def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason names the remedy."""
    monkeypatch.setattr(native, "_find", lambda name: None)
    assert native.library() is None
    assert "install a C++ compiler" in str(native.unavailable())
    assert "put nvcc" in str(native.kernels_unavailable())


@pytest.mark.usefixtures("fresh")
def test_not_a_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file of another machine, or a damaged one, is no crash."""
    path = tmp_path / native.LIBRARY
    path.write_bytes(b"\x7fELF nothing more")
    monkeypatch.setattr(native, "_find", lambda name: path)
    assert native.library() is None
    assert "cannot be loaded" in str(native.unavailable())
    assert "install dvt-edge again" in str(native.unavailable())


@pytest.mark.usefixtures("fresh")
def test_other_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library left over from another version is not called."""
    if native.library() is None:
        pytest.skip(str(native.unavailable()))
    native._load.cache_clear()
    monkeypatch.setattr(native, "ABI_VERSION", -1)
    assert native.library() is None
    assert "this code needs -1; install dvt-edge again" in str(native.unavailable())


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the distribution's metadata only the folder itself is searched."""

    def missing(name: str) -> None:
        raise native.PackageNotFoundError(name)

    monkeypatch.setattr(native, "distribution", missing)
    assert native._find("no such file") is None
