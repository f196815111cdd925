"""The library is there wherever it could be built, and says what is missing where it is not."""

from __future__ import annotations

import importlib.util
import os
import shutil
import struct
import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dvt_edge.runtime.native import library as native

COMPILERS = (os.environ.get("CXX", "c++"), "c++", "g++", "clang++")
NAMES = (b"dvt_preprocess_kernel", b"dvt_gather_kernel", b"dvt_exit_kernel")
ARCHITECTURES = [75, 80, 86, 87, 89, 90, 110, 120]
PTX, MACHINE_CODE = 1, 2


@pytest.fixture
def fresh() -> Any:
    """The module once more, with nothing loaded yet."""
    spec = importlib.util.find_spec(native.__name__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


def test_missing(fresh: Any) -> None:
    """The reason names the remedy."""
    fresh.LIBRARY = fresh.KERNELS = "no such file"
    assert fresh.library() is None
    assert "install a C++ compiler" in fresh.unavailable()
    assert "put nvcc" in fresh.kernels_unavailable()


def test_not_a_library(fresh: Any, tmp_path: Path) -> None:
    """A file of another machine, or a damaged one, is no crash."""
    path = tmp_path / "damaged.so"
    path.write_bytes(b"\x7fELF nothing more")
    fresh.LIBRARY = path.name  # not beside the module, but where an editable install puts it
    fresh.distribution = lambda name: SimpleNamespace(locate_file=lambda file: path)
    assert fresh.library() is None
    assert f"{path} cannot be loaded" in fresh.unavailable()
    assert "install dvt-edge again" in fresh.unavailable()


def test_other_interface(fresh: Any) -> None:
    """A library left over from another version is not called."""
    if native.library() is None:
        pytest.skip(str(native.unavailable()))
    fresh.ABI_VERSION = -1
    assert fresh.library() is None
    assert "this code needs -1; install dvt-edge again" in fresh.unavailable()


def test_not_installed(fresh: Any) -> None:
    """Without the distribution's metadata only the folder itself is searched."""

    def missing(name: str) -> None:
        raise PackageNotFoundError(name)

    fresh.LIBRARY, fresh.distribution = "no such file", missing
    assert fresh.library() is None
    assert "install a C++ compiler" in fresh.unavailable()
