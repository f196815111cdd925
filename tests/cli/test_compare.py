"""``dvt-edge compare``: side by side on the same images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from dvt_edge.bundle.bundle import Bundle
from tests.cli.conftest import Run, Write
from tests.conftest import write_onnx


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A linear classifier of the demo's images, with random weights."""
    weights = np.random.default_rng(0).normal(size=(48 * 48, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["scores"]),
    ]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 48, 48])
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 10])
    return write_onnx(tmp_path / "plain.onnx", nodes, [image], scores, w=weights)


@pytest.mark.slow
def test_two_bundles_and_a_model(
    dvt_edge: Run, write_profile: Write, own_bundle: Path, images: Path, plain: Path, tmp_path: Path
) -> None:
    """A profile, a folder and a model, on labelled images."""
    other = tmp_path / "other"
    shutil.copytree(own_bundle, other)
    arguments = (write_profile(), other, "--against", plain, "--data", images, "--duration", "0.5")
    result = dvt_edge("compare", *arguments, "--json")
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    assert [side["name"] for side in values["sides"]] == ["profile", "other", "plain.onnx"]
    assert values["data"] == str(images)
    assert (values["images"], values["labelled"]) == (4, True)
    first, second, third = values["sides"]
    assert first["precision"] == "int8 / int8 / int8"
    stages = Bundle(own_bundle).manifest.stages  # without those that stand in for them
    assert first["size_bytes"] == sum((own_bundle / s.file).stat().st_size for s in stages)
    assert first["engine"].startswith("ONNX Runtime")
    assert third["exit_fraction"] == [1.0]
    assert third["size_bytes"] == plain.stat().st_size
    for side in (first, second, third):
        assert 0 <= side["accuracy"] <= 1
        assert 0 < side["latency"]["p50_ms"] <= side["latency"]["p95_ms"]
    assert [d["name"] for d in values["differences"]] == ["other", "plain.onnx"]


def test_text(dvt_edge: Run, write_profile: Write, plain: Path, images: Path) -> None:
    """A table of at most 100 columns and a sentence."""
    arguments = ("--against", plain, "--data", images, "--duration", "0.5")
    result = dvt_edge("compare", write_profile(), *arguments)
    assert (result.code, result.err) == (0, "")
    assert max(len(line) for line in result.out.splitlines()) <= 100
    text = " ".join(result.out.split())
    assert "4 images" in text
    assert "plain.onnx takes " in text
    assert " times as long as profile (95 %: " in text


def test_noise(dvt_edge: Run, own_bundle: Path, plain: Path) -> None:
    """A folder alone knows no images."""
    result = dvt_edge("compare", own_bundle, "--against", plain, "--duration", "0.5")
    assert (result.code, result.err) == (0, "")
    assert "noise: 1 image, " in " ".join(result.out.split())
    assert "give --data FOLDER" in result.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["A"], "give B, or --against model.onnx"),
        (["A", "x.onnx"], "pass it with --against x.onnx"),
        (["x.onnx", "A"], "pass it with --against x.onnx"),
        ([], "Missing argument 'A'"),
    ],
)
def test_wrong_command_lines(dvt_edge: Run, arguments: list[str], words: str) -> None:
    """Usage on standard error."""
    result = dvt_edge("compare", *arguments)
    assert result.code == 2
    assert words in " ".join(result.err.split())


def test_bad_input(dvt_edge: Run, own_bundle: Path, plain: Path, tmp_path: Path) -> None:
    """One line each."""
    for arguments, words in (
        ([tmp_path / "gone.yaml", own_bundle], "gone.yaml: no such file"),
        ([own_bundle, tmp_path], "no bundle here"),
        ([own_bundle, "--against", tmp_path / "gone.onnx"], "gone.onnx: no such file"),
        ([own_bundle, "--against", own_bundle / "stage2.onnx"], "its only input"),
        ([own_bundle, "--against", plain, "--data", tmp_path / "no"], "no: no such folder"),
    ):
        result = dvt_edge("compare", *arguments)
        assert (result.code, result.out) == (1, "")
        assert words in result.err
        assert result.err.count("\n") == 1
