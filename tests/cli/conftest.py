"""Calling the command line in process, and folders of images for it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.cli import run
from dvt_edge.runtime.measuring.costs import Costs, ExitCost, machine_name, save_costs


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


@pytest.fixture(scope="session")
def costed_bundle(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the demo bundle with costs of 1, 2 and 4 ms: nothing has to be measured."""
    folder = tmp_path_factory.mktemp("costed") / "bundle"
    shutil.copytree(demo_bundle, folder)
    bundle = Bundle(folder)
    exits = tuple(
        ExitCost(
            mean_ms=ms,
            p50_ms=ms,
            p95_ms=ms,
            p99_ms=ms,
            max_ms=ms,
            preprocess_ms=0.1,
            stage_ms=(ms / (k + 1),) * (k + 1),
        )
        for k, ms in enumerate((1.0, 2.0, 4.0))
    )
    costs = Costs(
        machine=machine_name(),
        content_hash=bundle.manifest.content_hash,
        measured_at="2025-01-01T00:00:00+00:00",
        runs_per_exit=10,
        frame_shape=bundle.manifest.frame_shape,
        exits=exits,
        stage_p99_ms=(1.0, 1.0, 2.0),
    )
    save_costs(bundle, costs)
    return folder


@pytest.fixture
def own_bundle(costed_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may change."""
    return Path(shutil.copytree(costed_bundle, tmp_path / "bundle"))


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
