"""From a file of the authors' layout to its evaluation, on the command line alone."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dvt_edge.models import CascadeConfig
from tests.cli.conftest import Run, Write
from tests.conftest import write_yaml

NAMES = ("ant", "bee", "cat", "dog", "eel")


@pytest.fixture
def imported(
    dvt_edge: Run,
    tiny_architecture: CascadeConfig,
    official: Callable[..., Path],
    tmp_path: Path,
) -> Path:
    """A profile whose model was imported, with its bundle built and twenty labelled images."""
    table = torch.tensor([[torch.inf, 0.5, -torch.inf], [0.2, 0.2, -torch.inf]])
    model = tmp_path / "model.safetensors"
    assert dvt_edge("import", official(dynamic_threshold=table), "-o", model).code == 0
    rng = np.random.default_rng(0)
    for i in range(20):
        path = tmp_path / "images" / NAMES[i % len(NAMES)] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).save(path)
    side = tiny_architecture.image_size
    profile = {
        "device": {"name": "test"},
        "model": str(model),
        "input": {"resize": side, "crop": side, "mean": [0.5] * 3, "std": [0.25] * 3},
        "engine": {"precision": "fp32", "threads": 1, "batch_sizes": [1, 8]},
        "calibration": {"data": str(tmp_path / "images")},
        "budget": {"latency_ms": 1000.0},
        "output": str(tmp_path / "bundle"),
    }
    path = write_yaml(tmp_path / "profile.yaml", profile)
    built = dvt_edge("build", "--profile", path)
    assert built.code == 0, built.err
    return path


@pytest.mark.slow
def test_import_build_eval(dvt_edge: Run, imported: Path, tmp_path: Path) -> None:
    """Every exit and all three rules are in the results; a damaged image is counted."""
    damaged = tmp_path / "images/ant/bad.png"
    damaged.write_bytes(b"no image")
    result = dvt_edge(
        "eval", "--profile", imported, "--data", tmp_path / "images", "-o", tmp_path / "out",
        "--workers", "1", "--json",
    )  # fmt: skip
    assert result.code == 1, result.err
    values = json.loads(result.out)
    assert (values["images"], values["unreadable"]) == (20, [str(damaged)])
    assert len(values["top1"]) == 3
    assert values["top5"] == [1.0] * 3  # of five classes
    with (tmp_path / "out/curve.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["rule"] for row in rows} == {"solver", "authors", "recorded"}
    assert json.loads((tmp_path / "out/evaluation.json").read_text())["top1"] == values["top1"]
    damaged.unlink()
    text = dvt_edge(
        "eval", "--profile", imported, "--data", tmp_path / "images", "-o", tmp_path / "text",
        "--workers", "1",
    )  # fmt: skip
    assert text.code == 0, text.err
    assert "20 images" in text.out
    assert "recorded" in text.out


def test_eval(dvt_edge: Run, write_profile: Write, images: Path, tmp_path: Path) -> None:
    """Four images, of a bundle without recorded thresholds."""
    arguments = ("--data", images, "-o", tmp_path / "out", "--workers", "1", "--json")
    result = dvt_edge("eval", "--profile", write_profile(), *arguments)
    assert result.code == 0, result.err
    values = json.loads(result.out)
    assert (values["images"], values["unreadable"]) == (4, [])
    assert len(values["top1"]) == 3
    with (tmp_path / "out/curve.csv").open(encoding="utf-8") as file:
        assert {row["rule"] for row in csv.DictReader(file)} == {"solver", "authors"}


def test_recorded_thresholds_in_the_budget(dvt_edge: Run, imported: Path, tmp_path: Path) -> None:
    """``thresholds: recorded`` uses a row of the checkpoint as it is; a row too many is refused."""
    profile = yaml.safe_load(imported.read_text(encoding="utf-8"))
    profile["budget"] = {"thresholds": "recorded", "point": 2}
    path = write_yaml(tmp_path / "recorded.yaml", profile)
    result = dvt_edge("budget", "--profile", path)
    assert (result.code, "measure with 'dvt-edge profile" in result.err) == (1, True)
    quick = ("--duration", "0.5", "--pace", "none")
    assert dvt_edge("profile", "--profile", path, *quick).code == 0
    result = dvt_edge("budget", "--profile", path, "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)["solution"]["thresholds"]
    assert found == pytest.approx([0.2, 0.2, 0.0])
    profile["budget"]["point"] = 3
    write_yaml(path, profile)
    result = dvt_edge("classify", "--profile", path, tmp_path / "images")
    assert (result.code, "1..2" in result.err) == (1, True)


def test_recorded_thresholds_need_a_checkpoint_that_has_them(
    dvt_edge: Run, write_profile: Write, tmp_path: Path
) -> None:
    """The error says what to give instead."""
    path = write_profile(budget={"thresholds": "recorded", "point": 1})
    result = dvt_edge("classify", "--profile", path, tmp_path)
    assert result.code == 1
    assert "give a limit" in result.err
