"""Boards from recorded trees, and files that tell nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dvt_edge.errors import BackendError
from dvt_edge.machine.board import Board, check_jetpack, read_board

Root = Callable[..., Path]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "orin-nano",
            Board(
                name="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit",
                module="Jetson Orin Nano",
                compute_capability="8.7",
                l4t="36.4.3",
                jetpack="6.2",
                cuda="12.6.68",
                power_mode="MAXN_SUPER",
                memory_bytes=7802272 * 1024,
                memory_available_bytes=5000000 * 1024,
            ),
        ),
        (
            "agx-orin",  # nothing was chosen yet: the default mode
            Board(
                "NVIDIA Jetson AGX Orin Developer Kit",
                "Jetson AGX Orin",
                "8.7",
                "36.4.0",
                "6.1",
                None,
                "30W",
                None,
                None,
            ),
        ),
        (
            "thor",
            Board(
                "NVIDIA Jetson AGX Thor Developer Kit",
                "Jetson AGX Thor",
                "11.0",
                "38.2.0",
                "7.0",
                "13.0.0",
                "120W",
                None,
                None,
            ),
        ),
        (
            "pc",
            Board(
                "AMD Ryzen 7 5800X",
                *(None,) * 6,
                memory_bytes=32768000 * 1024,
                memory_available_bytes=20000000 * 1024,
            ),
        ),
        ("empty", Board("unknown machine", *(None,) * 8)),
    ],
)
def test_boards(board_root: Root, kind: str, expected: Board) -> None:
    """Every field, from the files alone."""
    board = read_board(board_root(kind))
    assert board == expected
    assert board.is_jetson == (kind not in ("pc", "empty"))
    check_jetpack(board)


@pytest.mark.parametrize(
    ("compatible", "module"),
    [
        ("nvidia,p3768-0000+p3767-0000-super\0nvidia,tegra234", "Jetson Orin NX"),
        ("nvidia,p3509-0000+p3767-0001\0nvidia,tegra234", "Jetson Orin NX"),
        ("nvidia,p3768-0000+p3767-0004\0nvidia,tegra234", "Jetson Orin Nano"),
        ("nvidia,p3737-0000+p3701-0004\0nvidia,tegra234", "Jetson AGX Orin"),
        ("vendor,carrier\0nvidia,tegra234", "Jetson Orin"),
        ("vendor,carrier\0nvidia,tegra264", "Jetson AGX Thor"),
        ("raspberrypi,4-model-b\0brcm,bcm2711", None),
        ("", None),
    ],
)
def test_modules(board_root: Root, compatible: str, module: str | None) -> None:
    """By the module's p-number; the carrier board's is not taken for it."""
    root = board_root("empty", {"proc/device-tree/compatible": f"{compatible}\0"})
    assert read_board(root).module == module


@pytest.mark.parametrize(
    ("major", "revision", "jetpack"),
    [
        (35, "1.0", "5.0"),
        (35, "4.1", "5.1"),
        (36, "2.0", "6.0"),
        (36, "4.0", "6.1"),
        (36, "4.4", "6.2"),
        (36, "9.0", "6"),
        (38, "4.0", "7.1"),
        (39, "2.0", "7.2"),
        (99, "1.0", None),
    ],
)
def test_jetpack_of_l4t(board_root: Root, major: int, revision: str, jetpack: str | None) -> None:
    """The table, and the family where a release is newer than it."""
    text = f"# R{major} (release), REVISION: {revision}, GCID: 1, BOARD: generic\n"
    board = read_board(board_root("empty", {"etc/nv_tegra_release": text}))
    assert (board.l4t, board.jetpack) == (f"{major}.{revision}", jetpack)
    assert board.is_jetson  # as in a container that hides the device tree


@pytest.mark.parametrize(
    ("path", "text", "field"),
    [
        ("usr/local/cuda/version.json", "{", "cuda"),
        ("usr/local/cuda/version.json", "[]", "cuda"),
        ("usr/local/cuda/version.json", '{"cuda": "12.6"}', "cuda"),
        ("usr/local/cuda/version.json", '{"cuda": {"version": 12.6}}', "cuda"),
        ("etc/nv_tegra_release", "R36", "l4t"),
        ("proc/meminfo", "MemTotal: lots kB\n", "memory_bytes"),
        ("etc/nvpmodel.conf", "< POWER_MODEL ID=9 NAME=OTHER >\n", "power_mode"),
        ("etc/nvpmodel.conf", "# < POWER_MODEL ID=2 NAME=COMMENT >\n", "power_mode"),
        ("var/lib/nvpmodel/status", "fmode:quiet\n", "power_mode"),
        ("var/lib/nvpmodel/status", "", "power_mode"),
        ("proc/device-tree/compatible", "", "module"),
    ],
)
def test_malformed_file(board_root: Root, path: str, text: str, field: str) -> None:
    """The field is None, the others are untouched, nothing is raised."""
    good = read_board(board_root("orin-nano"))
    bad = read_board(board_root("orin-nano", {path: text}))
    assert getattr(good, field) is not None
    assert getattr(bad, field) is None
    assert bad.name == good.name


def test_unreadable_files(board_root: Root) -> None:
    """Folders in place of files, and bytes that are no text."""
    root = board_root("orin-nano")
    for name in ("etc/nv_tegra_release", "var/lib/nvpmodel/status", "proc/meminfo"):
        (root / name).unlink()
        (root / name).mkdir()
    (root / "usr/local/cuda/version.json").write_bytes(b"\xff\xfe")
    board = read_board(root)
    assert board.module == "Jetson Orin Nano"
    assert (board.l4t, board.power_mode, board.memory_bytes, board.cuda) == (None,) * 4


def test_root_may_be_a_string_or_missing(tmp_path: Path) -> None:
    """A root that is not there is an unknown machine."""
    assert read_board(str(tmp_path / "gone")).name == "unknown machine"


def test_this_machine() -> None:
    """The real root does not raise."""
    assert read_board().name


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("xavier", r"Xavier NX.*compute capability 7\.2.*Orin with JetPack 6\.1 or later"),
        ("orin-jetpack-5", r"JetPack 5\.1 \(L4T 35\.3\.1\).*needs JetPack 6\.1.*https://"),
    ],
)
def test_too_old(board_root: Root, kind: str, message: str) -> None:
    """What is there, what is needed, where to get it."""
    with pytest.raises(BackendError, match=message):
        check_jetpack(read_board(board_root(kind)))


def test_jetson_nano_without_a_release(board_root: Root) -> None:
    """The chip alone rules it out."""
    root = board_root("empty", {"proc/device-tree/compatible": "nvidia,p3450\0nvidia,tegra210\0"})
    with pytest.raises(BackendError, match=r"Jetson Nano.*5\.3"):
        check_jetpack(read_board(root))


@pytest.mark.parametrize(("revision", "old"), [("3.0", True), ("4.0", False), ("10.0", False)])
def test_oldest_jetpack(board_root: Root, revision: str, old: bool) -> None:
    """JetPack 6.0 brings TensorRT 8.6, 6.1 brings 10.3; versions compare as numbers."""
    text = f"# R36 (release), REVISION: {revision}, GCID: 1, BOARD: generic\n"
    board = read_board(board_root("agx-orin", {"etc/nv_tegra_release": text}))
    if not old:
        check_jetpack(board)
        return
    with pytest.raises(BackendError, match=r"JetPack 6\.0 .*older than 10;.*JetPack 6\.1 or later"):
        check_jetpack(board)
