"""Bundles from strangers: no name, link, device or size gets anything but a message."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dvt_edge.bundle import members
from dvt_edge.bundle.bundle import Bundle, file_sha256
from dvt_edge.bundle.costs import load_costs
from dvt_edge.bundle.manifest import COSTS, MANIFEST, RECORDS
from dvt_edge.bundle.members import MOST_FILE_BYTES, MOST_TEXT_BYTES, open_member, read_arrays
from dvt_edge.errors import BundleError, DataError
from tests.bundle.conftest import GRAPH
from tests.conftest import edit_manifest


def _refused(folder: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(folder)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "name",
    [
        *("../outside.onnx", "{outside}", "sub/inside.onnx", "./stage2.onnx", "stage2.onnx/"),
        *("", ".", "..", ".hidden.onnx", "~.onnx", "a b.onnx", "a\\b.onnx", "C:x.onnx"),
        *("a\0b.onnx", "a\nb.onnx", "a\x1b[31m.onnx", "\u202eb.onnx", "x" * 101),
    ],
)
def test_names_that_are_not_plain(folder: Path, tmp_path: Path, name: str) -> None:
    """The file is there, and has the hash that the manifest says."""
    outside = tmp_path / "outside.onnx"
    (folder / "sub").mkdir()
    for path in (outside, folder / "sub" / "inside.onnx", folder / "stage2.onnx"):
        path.write_bytes(GRAPH)
    digest = file_sha256(outside)
    named = name.format(outside=outside)

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][named] = digest
        manifest["stages"][0]["file"] = named

    edit_manifest(folder, change)
    _refused(folder, r"not a manifest of schema 3 \(files.*named by letters, digits")


def test_more_files_than_any_bundle_has(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["files"].update({f"f{i}": "0" for i in range(64)}))
    _refused(folder, "not a manifest of schema 3")


def _link(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to("../elsewhere")


def _link_within(path: Path) -> None:
    path.rename(path.parent / "other")
    path.symlink_to("other")


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.unlink()
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    except OSError:
        pytest.skip("only root makes devices")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["stage1.onnx", RECORDS, MANIFEST, COSTS])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_link, "is a link, and a bundle's files lie in its own folder"),
        (_link_within, "is a link"),
        (_dangling, "is a link"),
        (_fifo, "is not a regular file"),
        (_device, "is not a regular file"),
        (_folder, "is not a regular file"),
    ],
)
def test_what_is_no_file(
    folder: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    """Found out without opening it, so nothing hangs. Costs are not used then."""
    (folder / COSTS).write_text("{}")
    make(folder / name)
    if name != COSTS:
        _refused(folder, rf"{name}: {message}")
        return
    told: list[str] = []
    assert load_costs(Bundle(folder), None, told.append) is None
    assert len(told) == 1
    assert "cannot be read" in told[0]


@pytest.mark.parametrize("make", [_link, _fifo])
def test_replaced_between_looking_and_opening(
    folder: Path, make: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is opened is looked at again, and links are not followed in the first place."""
    before = os.lstat(folder / "stage1.onnx")
    make(folder / "stage1.onnx")
    monkeypatch.setattr(os, "lstat", lambda path: before)
    with pytest.raises((BundleError, OSError)):
        open_member(folder, "stage1.onnx")


@pytest.mark.parametrize(
    ("name", "most"), [("stage1.onnx", MOST_FILE_BYTES), (MANIFEST, MOST_TEXT_BYTES)]
)
def test_sizes(folder: Path, name: str, most: int) -> None:
    """A file of holes costs its sender nothing; it is not read."""
    os.truncate(folder / name, most + 1)
    _refused(folder, rf"{name}: has {most >> 20} MiB, more than the {most >> 20} MiB")


def test_size_of_all_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = sum((folder / name).stat().st_size for name in ("stage1.onnx", RECORDS))
    monkeypatch.setattr(members, "MOST_BYTES", sizes)
    Bundle(folder)
    monkeypatch.setattr(members, "MOST_BYTES", sizes - 1)
    _refused(folder, "its files have 0 MiB, more than")


def test_manifest_of_brackets(folder: Path) -> None:
    """Deeper than any reader follows."""
    (folder / MANIFEST).write_text("[" * 1_000_000)
    _refused(folder, "not a manifest of schema 3")


def test_manifest_that_writes_to_the_terminal(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update({"\x1b]0;title\x07\n": 1}))
    _refused(folder, r"not a manifest of schema 3 \(\\x1b\]0;title\\x07\\n: Extra")


def _npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def _zip(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, data)
    return file.getvalue()


def _promises_too_much() -> bytes:
    """An array of 2 EB, of which nothing comes."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (500000000000000000,), }"
    header += b" " * (117 - len(header)) + b"\n"
    return _zip("confidence.npy", b"\x93NUMPY\x01\x00" + bytes([118, 0]) + header)


def _encrypted() -> bytes:
    data = bytearray(_zip("confidence.npy", _npy()))
    data[6] |= 1  # flags of the entry, and below of the directory
    data[data.index(b"PK\x01\x02") + 8] |= 1
    return bytes(data)


def _unknown_compression() -> bytes:
    data = bytearray(_zip("confidence.npy", _npy()))
    data[8] = data[data.index(b"PK\x01\x02") + 10] = 99
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"garbage", _npy(), _npy()[:70], _npz(a=np.zeros(9))[:-9]),
        *(_zip("notes.txt", b"no array"), _zip("a.npy", b"no array"), _promises_too_much()),
        *(_encrypted(), _unknown_compression(), _npz(a=np.array([{}], object))),
    ],
    ids=[
        *("empty", "text", "single", "cut single", "truncated", "text inside", "garbage inside"),
        *("promises", "encrypted", "unknown compression", "objects"),
    ],
)
def test_damaged_archives(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(BundleError, match=r"a\.npz: unusable \(.*\); rebuild") as caught:
        read_arrays(tmp_path, "a.npz")
    assert "\n" not in str(caught.value)


def test_archive_that_unpacks_to_more(tmp_path: Path) -> None:
    """A megabyte of zeros takes a kilobyte; the directory says so before anything is unpacked."""
    (tmp_path / "a.npz").write_bytes(_npz(a=np.zeros(1 << 17)))
    assert (tmp_path / "a.npz").stat().st_size < 5000
    assert len(read_arrays(tmp_path, "a.npz", (1 << 20) + 1000)["a"]) == 1 << 17
    with pytest.raises(BundleError, match="1 MiB unpacked, 0 MiB are allowed"):
        read_arrays(tmp_path, "a.npz", 1 << 19)


RIGHT = {
    "confidence": np.zeros((4, 1), np.float32),
    "prediction": np.zeros((4, 1), np.int32),
    "label": np.zeros(4, np.int32),
}


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"confidence": None}, "confidence"),
        ({"prediction": None}, "prediction"),
        ({"confidence": np.zeros((4, 2), np.float32)}, "confidence"),  # exits of another model
        ({"confidence": np.zeros(4, np.float32)}, "confidence"),
        ({"confidence": np.full((4, 1), "x")}, "confidence"),
        ({"prediction": np.zeros((4, 1), np.float32)}, "prediction"),
        ({"label": np.full(4, "cat")}, "label"),
        ({"label": np.zeros((4, 1), np.int32)}, "label"),
        ({"group": np.zeros(4)}, "group"),
    ],
)
def test_records_of_another_kind(folder: Path, change: dict[str, Any], key: str) -> None:
    arrays = {name: array for name, array in (RIGHT | change).items() if array is not None}
    np.savez(folder / RECORDS, **arrays)
    edit_manifest(folder, lambda m: m["files"].update({RECORDS: file_sha256(folder / RECORDS)}))
    with pytest.raises(BundleError, match=rf"records\.npz: unusable \(no '{key}' as 1 stages have"):
        Bundle(folder).records()


def _spoilt(data: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
    """``data`` with bytes removed and added, each at a share of its length."""
    spoilt = bytearray(data)
    for share, removed, added in changes:
        at = round(share * len(spoilt))
        spoilt[at : at + removed] = added
    return bytes(spoilt)


CHANGES = st.lists(
    st.tuples(st.floats(0, 1), st.integers(0, 40), st.binary(max_size=8)), min_size=1, max_size=4
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_spoilt_records(folder: Path, changes: list[tuple[float, int, bytes]]) -> None:
    """Whatever is left of them: arrays as the stages have them, or one of our errors."""
    whole = (folder / RECORDS).read_bytes()
    try:
        (folder / "spoilt.npz").write_bytes(_spoilt(whole, changes))
        with contextlib.suppress(BundleError, DataError):
            assert Bundle(folder)._read_records("spoilt.npz").confidence.shape[1:] == (1,)
    finally:
        (folder / "spoilt.npz").unlink()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES)
def test_spoilt_manifest(folder: Path, changes: list[tuple[float, int, bytes]]) -> None:
    whole = (folder / MANIFEST).read_bytes()
    try:
        (folder / MANIFEST).write_bytes(_spoilt(whole, changes))
        with contextlib.suppress(BundleError):
            Bundle(folder)
    finally:
        (folder / MANIFEST).write_bytes(whole)
