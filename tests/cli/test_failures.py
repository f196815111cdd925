"""What stops a command from outside: one line, with the remedy, and no traceback."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.cli.failures import failure
from dvt_edge.models import CascadeConfig
from dvt_edge.runtime.native import operator_library
from dvt_edge.runtime.runtime import Runtime
from tests.cli.conftest import Run, Write, error_line
from tests.conftest import largest_file, random_pixels, write_yaml

DVT_EDGE = (sys.executable, "-c", "from dvt_edge.cli import main; main()")


def _spawn(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """``dvt-edge`` in a process of its own."""
    command = [*DVT_EDGE, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


@pytest.fixture
def training_file(tmp_path: Path, tiny_config: Callable[..., CascadeConfig]) -> Path:
    """Of a run of one epoch that takes a moment, in a folder of its own."""
    folder = tmp_path / "training"
    folder.mkdir()
    images, labels = random_pixels(20, 16, 16), np.arange(20) % 5
    np.savez(folder / "images.npz", images=images, labels=labels)
    source = {"format": "npz", "path": "images.npz"}
    values = {
        "model": tiny_config().model_dump(mode="json"),
        "input": {"resize": 16, "crop": 16, "mean": [0.4], "std": [0.2], "color_order": "gray"},
        "data": {"train": source, "validation": source, "workers": 0},
        "output": "run",
        "epochs": 1,
        "batch_size": 10,
        "learning_rate": 0.001,
    }
    return write_yaml(folder / "train.yaml", values)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/x"), "out/x: No space .*; free so"),
        (OSError(errno.ENOSPC, "No space left on device"), "^standard output or a file: No space"),
        (OSError(errno.EACCES, "Permission denied", b"x"), "^x: Permission denied; change its per"),
        (
            OSError(errno.EROFS, "Read-only file system", 3),
            "^3: Read-only .*; choose another place",
        ),
        (OSError(errno.EMFILE, "Too many open files"), "allow more open files with ulimit -n"),
        (OSError("odd"), "^standard output or a file: odd; look at the place"),
        (MemoryError(), "^out of memory; end other programs"),
        (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "no"), r"not UTF-8 \('a\\udcff'\); rename"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "not UTF-8 .*; rename"),
    ],
)
def test_every_kind_has_a_remedy(error: Any, message: str) -> None:
    """In one line."""
    found = failure(error)
    assert "\n" not in found
    assert re.search(message, found), found


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_full_disk_in_build(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, precision: str
) -> None:
    """The old bundle stays, and nothing is left beside it; in INT8 stages are first tried where
    temporary files are."""
    engine = {"backend": "onnxruntime", "precision": precision, "threads": 1}
    profile = write_profile(engine=engine)
    before = sorted(own_bundle.parent.iterdir())
    with largest_file(1000):
        result = dvt_edge("build", "--force", "--profile", profile)
    message = error_line(result)
    assert ": cannot be written (File too large); free some space" in message
    assert (str(own_bundle) in message) == (
        precision == "fp32" or operator_library.unavailable() is not None
    )
    assert sorted(own_bundle.parent.iterdir()) == before
    Runtime(own_bundle).close()


def test_full_disk_in_eval(
    dvt_edge: Run, write_profile: Write, images: Path, tmp_path: Path
) -> None:
    """The file is named."""
    arguments = ("--data", images, "-o", tmp_path / "out", "--workers", "1")
    profile = write_profile()
    with largest_file(100):
        result = dvt_edge("eval", "--profile", profile, *arguments)
    message = error_line(result)
    assert "evaluation.npz: File too large; free some space" in message
    assert list((tmp_path / "out").iterdir()) == []


def test_eval_below_a_file(
    dvt_edge: Run, write_profile: Write, images: Path, tmp_path: Path
) -> None:
    """Known before any image is read."""
    (tmp_path / "file").touch()
    arguments = ("--data", images, "-o", tmp_path / "file" / "out")
    message = error_line(dvt_edge("eval", "--profile", write_profile(), *arguments))
    assert "cannot be written (Not a directory); choose another file or make its folder" in message


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["inspect"], ["inspect", "--json"]])
def test_standard_output_is_full(own_bundle: Path, arguments: list[str], unbuffered: str) -> None:
    """One line, none more as Python exits."""
    if arguments[0] == "inspect":
        arguments = [*arguments, str(own_bundle)]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        process = _spawn(*arguments, stdout=full, env=environment)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err == (
        "error: standard output or a file: No space left on device; free some space, or choose "
        "another place\n"
    )


def test_reader_that_went_away(own_bundle: Path) -> None:
    """``| head`` is no error that needs words."""
    ours, theirs = os.pipe()
    os.close(ours)
    with os.fdopen(theirs, "w") as gone:
        process = _spawn("inspect", "--json", own_bundle, stdout=gone)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, "")


@pytest.mark.parametrize("as_json", [True, False])
def test_names_that_are_not_utf8(
    dvt_edge: Run,
    write_profile: Write,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    """In folders and from standard input; printed escaped."""
    bad = images / "sandal" / os.fsdecode(b"\xff.png")
    shutil.copy(next(images.rglob("*.png")), bad)
    lines = io.TextIOWrapper(io.BytesIO(os.fsencode(bad) + b"\n"), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", lines)
    options = ["--json"] if as_json else []
    result = dvt_edge("classify", *options, "--profile", write_profile(), images, "-")
    assert (result.code, result.err) == (0, "")
    if as_json:
        shown = [json.loads(line)["path"] for line in result.out.splitlines()]
        assert shown.count(str(bad)) == 2
    else:
        assert result.out.count("sandal/\\udcff.png  ") == 2


def test_evaluation_of_names_that_are_not_utf8(
    dvt_edge: Run, write_profile: Write, images: Path, tmp_path: Path
) -> None:
    """Figures are written as ever; the folder is shown escaped."""
    data = images.rename(tmp_path / os.fsdecode(b"im\xff"))
    shutil.copy(next(data.rglob("*.png")), data / "sandal" / os.fsdecode(b"\xfe.png"))
    profile = write_profile()
    out = ("-o", tmp_path / os.fsdecode(b"out\xff"), "--workers", "1")
    result = dvt_edge("eval", "--profile", profile, "--data", data, *out)
    assert (result.code, result.err) == (0, "")
    measured = tmp_path / "measured.json"
    quick = ("--duration", "0.5", "--pace", "none", "--json", measured)
    result = dvt_edge("profile", "--profile", profile, "--data", data, *quick)
    assert result.code == 0, result.err
    values = json.loads(measured.read_text(encoding="utf-8"))
    assert values["measurement"]["data"]["folder"] == f"{tmp_path}/im\\xff"


def test_bundle_whose_path_is_not_utf8(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, tmp_path: Path
) -> None:
    """ONNX Runtime takes text."""
    folder = own_bundle.rename(tmp_path / os.fsdecode(b"b\xff"))
    message = error_line(dvt_edge("inspect", folder))
    assert "b\\xff: the path is not text in UTF-8; choose another folder" in message


def test_home_folder_behind_an_equals_sign(
    dvt_edge: Run,
    write_profile: Write,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where shells leave ``~`` as it is."""
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    monkeypatch.chdir(tmp_path)
    arguments = ("--data", images, "--output=~/out", "--workers", "1")
    assert dvt_edge("eval", "--profile", write_profile(), *arguments).code == 0
    assert (tmp_path / "me" / "out" / "evaluation.json").exists()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["classify", "--profile", "p.yaml", ""],
        ["classify", "--profile", "", "a.png"],
        ["inspect", ""],
        ["eval", "--profile", "p.yaml", "--data", ""],
        ["compare", "a", ""],
        ["run", "--profile", "p.yaml", "--record", ""],
    ],
)
def test_empty_paths(dvt_edge: Run, arguments: list[str]) -> None:
    """They would be the current folder."""
    result = dvt_edge(*arguments)
    assert (result.code, result.out) == (2, "")
    assert result.err.endswith(": the path is empty\n")


def test_nothing_on_standard_input(
    dvt_edge: Run, write_profile: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exit code alone says nothing."""
    monkeypatch.setattr("sys.stdin", io.StringIO("\n  \n"))
    message = error_line(dvt_edge("classify", "--profile", write_profile(), "-"))
    assert message == "error: standard input: names no images; give a path a line\n"


def test_pictures_that_are_not_read(dvt_edge: Run, write_profile: Write, images: Path) -> None:
    """They are told; the others are classified."""
    (images / "sandal" / "photo.HEIC").touch()
    result = dvt_edge("classify", "--profile", write_profile(), images)
    assert result.code == 0
    assert result.err.startswith(f"note: {images}: pictures of these endings are not read: 1 .heic")
    assert "4 images; " in result.out


@pytest.mark.slow
def test_interrupted_eval(write_profile: Write, images: Path, samples: Path) -> None:
    """Ctrl-C reaches all processes of a terminal; one of them answers it, in one line."""
    data = samples / "demo" / "scenes" / "test"
    process = _spawn(
        *("eval", "--profile", write_profile(), "--data", data, "-o", images / "out"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    until = time.monotonic() + 60
    while len(children.read_text().split()) < 3 and time.monotonic() < until:  # and the tracker
        time.sleep(0.01)
    time.sleep(0.5)  # earlier, Python would not have its own answer to the signal yet
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.lstrip() == "interrupted; what was there before is unchanged\n"


def test_interrupted_training(
    dvt_edge: Run, training_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How to go on."""

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dvt_edge.models.training.Trainer.run", interrupt)
    result = dvt_edge("train", "--config", training_file)
    assert result.code == 130
    assert result.err == (
        f"interrupted; continue with 'dvt-edge train --config {training_file} --resume'\n"
    )


def test_training_in_a_folder_that_is_not_utf8(dvt_edge: Run, training_file: Path) -> None:
    """Its paths are part of what a resumed run must have in common."""
    folder = training_file.parent.rename(training_file.parent.with_name(os.fsdecode(b"t\xff")))
    result = dvt_edge("train", "--config", folder / training_file.name)
    assert (result.code, result.err) == (0, "")
    assert (folder / "run" / "model.safetensors").exists()
