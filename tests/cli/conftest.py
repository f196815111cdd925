"""Calling the command line in process, what it reads, and what it says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from dvt_edge.cli import run
from dvt_edge.models import Cascade, CascadeConfig, architectures
from dvt_edge.models.official import official_name


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


Run = Callable[..., Result]
"""What :func:`dvt_edge` is."""
Write = Callable[..., Path]
"""What ``write_profile`` is."""


def error_line(result: Result, code: int = 1) -> str:
    """The one line of an error; nothing else was printed."""
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("error: ")
    assert result.err.count("\n") == 1
    return result.err


@pytest.fixture
def dvt_edge(capsys: pytest.CaptureFixture[str]) -> Run:
    """A function that runs ``dvt-edge`` with its arguments, without a new process."""

    def call(*arguments: object) -> Result:
        code = run([str(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return call


@pytest.fixture
def tiny_architecture(
    tiny_config: Callable[..., CascadeConfig], monkeypatch: pytest.MonkeyPatch
) -> CascadeConfig:
    """In colour; the registry knows it as ``tiny``."""
    config = tiny_config(channels=3)
    monkeypatch.setitem(architectures.ARCHITECTURES, "tiny", config)
    return config


@pytest.fixture
def official(
    tiny_architecture: CascadeConfig, random_cascade: Callable[..., Cascade], tmp_path: Path
) -> Callable[..., Path]:
    """A function that writes a cascade of :func:`tiny_architecture` as the authors lay their files
    out; keywords are what else is in it."""

    def write(**more: Any) -> Path:
        state = random_cascade(tiny_architecture).state_dict()
        named = {official_name(k): v for k, v in state.items()}
        path = tmp_path / "official.pth.tar"
        torch.save({"model_state_dict": named} | more, path)
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
