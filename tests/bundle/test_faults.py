"""Writing a bundle while calls fail and processes are killed: the old or the new one is there."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.bundle import output as output_module
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MANIFEST
from dvt_edge.bundle.output import replaced_folder
from dvt_edge.errors import BundleError
from dvt_edge.files import replacing
from dvt_edge.files.replacing import write_text

CALLS = ("fsync", "rename", "replace", "chmod", "mkdir", "open")
"""Of ``os``; ``pathlib`` and ``tempfile`` end there, too."""


class Faults:
    """Lets the n-th of some calls fail, counted over all of them."""

    def __init__(self, patch: pytest.MonkeyPatch, nth: int) -> None:
        self.left = nth
        for name in CALLS:
            patch.setattr(os, name, self._failing(getattr(os, name)))
        patch.setattr(output_module, "exchange", self._failing(replacing.exchange))

    def _failing(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*arguments, **options)

        return counted


def _rewrite(folder: Path, device: str) -> None:
    """What a build does with its output: the same bundle, for another device."""
    with replaced_folder(folder) as new:
        for name in ("stage1.onnx", "records.npz"):
            shutil.copyfile(folder / name, new / name)
        text = (folder / MANIFEST).read_text(encoding="utf-8")
        changed = re.sub(r'"device": "[^"]*"', f'"device": "{device}"', text)
        (new / MANIFEST).write_text(changed, encoding="utf-8")


def test_every_call_fails_once(folder: Path) -> None:
    """A BundleError, the old bundle or the new one, and the next time it works."""
    for nth in range(1, 1000):
        before = Bundle(folder).manifest.device
        wanted = f"board {nth}"
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, nth)
            with contextlib.suppress(BundleError):
                _rewrite(folder, wanted)
        assert Bundle(folder).manifest.device in (before, wanted), nth
        _rewrite(folder, "afterwards")
        assert Bundle(folder).manifest.device == "afterwards"
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], nth
        if faults.left > 0:
            break
    assert 8 < nth < 100


def test_every_call_of_a_file_fails_once(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    write_text(path, "old")
    for nth in range(1, 1000):
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, nth)
            with contextlib.suppress(OSError):
                write_text(path, "new")
        assert path.read_text(encoding="utf-8") in ("old", "new")
        write_text(path, "old")
        assert [path.name for path in tmp_path.iterdir()] == ["costs.json"], nth
        if faults.left > 0:
            break
    assert 4 < nth < 100


def test_on_the_disk_before_the_rename(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file and the folder itself, then the names are swapped, then the folder of both."""
    events: list[str] = []
    fsync, exchange = os.fsync, replacing.exchange

    def noted(descriptor: int) -> None:
        events.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def swapped(first: Path, second: Path) -> None:
        events.append("swap")
        exchange(first, second)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(output_module, "exchange", swapped)
    _rewrite(folder, "another")
    assert sorted(events[:3]) == ["manifest.json", "records.npz", "stage1.onnx"]
    assert events[3].startswith(f".{folder.name}.new-")
    assert events[4:] == ["swap", folder.parent.name]


def test_where_names_cannot_be_exchanged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(first: Path, second: Path) -> None:
        raise OSError(errno.EINVAL, "no")

    monkeypatch.setattr(output_module, "exchange", cannot)
    _rewrite(folder, "another")
    assert Bundle(folder).manifest.device == "another"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_what_was_left_between_two_renames(folder: Path) -> None:
    """The next build puts the old bundle back before it starts, and removes the unfinished one."""
    folder.rename(folder.with_name(f".{folder.name}.old-abcdefgh"))
    folder.with_name(f".{folder.name}.new-abcdefgh").mkdir()
    kept = folder.with_name(f".{folder.name}.new-mine")
    kept.mkdir()
    with pytest.raises(KeyError), replaced_folder(folder):
        raise KeyError
    assert Bundle(folder).manifest.device == "a board"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, kept.name}


def test_another_build_at_work_is_left_alone(folder: Path) -> None:
    with replaced_folder(folder) as first:
        (first / "x").touch()
        with pytest.raises(KeyError), replaced_folder(folder):
            raise KeyError
        assert (first / "x").exists()
        for path in folder.iterdir():
            shutil.copyfile(path, first / path.name)
        (first / "x").unlink()
    assert Bundle(folder)


_ENDLESS = """
import pathlib, sys
sys.path.insert(0, sys.argv[2])
from tests.bundle.test_faults import _rewrite
folder = pathlib.Path(sys.argv[1])
_rewrite(folder, "first")
print("ready", flush=True)
n = 0
while True:
    n += 1
    _rewrite(folder, f"board {n}")
"""


@pytest.mark.slow
def test_killed_while_replacing(folder: Path) -> None:
    """``kill -9`` at random moments of a process that does nothing but replace the bundle."""
    moments = random.Random(16)
    root = str(Path(__file__).resolve().parents[2])
    for _ in range(20):
        process = subprocess.Popen(
            [sys.executable, "-c", _ENDLESS, str(folder), root], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert Bundle(folder).manifest.device
    _rewrite(folder, "afterwards")
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
