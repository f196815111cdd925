"""Calling the command line in process, and folders of images for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dvt_edge.cli import run


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def dvt_edge(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """A function that runs ``dvt-edge`` with its arguments, without a new process."""

    def call(*arguments: object) -> Result:
        code = run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def write_profile(demo_profile: Path, own_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function writing the demo profile for :func:`own_bundle`; keywords replace sections."""

    def write(**changes: Any) -> Path:
        values = yaml.safe_load(demo_profile.read_text(encoding="utf-8"))
        values |= {"output": str(own_bundle), "budget": {"latency_ms": 2.0}} | changes
        path = tmp_path / "profile.yaml"
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def images(samples: Path, tmp_path: Path) -> Path:
    """A folder with two test scenes of each of two classes."""
    folder = tmp_path / "images"
    for name in ("sandal", "trouser"):
        (folder / name).mkdir(parents=True)
        for path in sorted((samples / "demo" / "scenes" / "test" / name).iterdir())[:2]:
            shutil.copy(path, folder / name)
    return folder
