"""``dvt-edge import`` and ``inspect`` of what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dvt_edge.models import Cascade, CascadeConfig
from tests.cli.conftest import Run

Official = Callable[..., Path]


@pytest.mark.parametrize("named", [True, False])
def test_import_and_inspect(dvt_edge: Run, official: Official, tmp_path: Path, named: bool) -> None:
    output = tmp_path / "out" / "model.safetensors"
    options = ["--architecture", "tiny"] if named else []
    result = dvt_edge("import", official(flops=[1.0, 2.0, 3.0], epoch=7), *options, "-o", output)
    assert result.code == 0, result.err
    assert "kept as metadata: flops\nnot used: epoch\nwrote " in result.out
    shown = dvt_edge("inspect", output)
    assert shown.code == 0, shown.err
    assert "metadata: source, sha256, flops, architecture" in shown.out
    values = json.loads(dvt_edge("inspect", "--json", output).out)
    assert values["metadata"]["flops"] == [1.0, 2.0, 3.0]
    assert [stage["handed_on_bytes"] for stage in values["stages"]] == [
        4 * (5 * 8 + 4 * 5 * 5),
        4 * (17 * 8 + 4 * 17 * 17),
        0,
    ]
    cascade = Cascade.load(output)
    for spec, stage in zip(values["stages"], cascade.stages, strict=True):
        assert spec["parameters"] == sum(p.numel() for p in stage.parameters())
        assert spec["macs"] > 0


def test_json(dvt_edge: Run, official: Official, tmp_path: Path) -> None:
    path, output = official(flops=[1.0]), tmp_path / "m.safetensors"
    result = dvt_edge("import", "--json", path, "--architecture", "tiny", "-o", output)
    values = json.loads(result.out)
    assert (values["architecture"], values["metadata"]) == ("tiny", ["flops"])


def test_wrong_file(dvt_edge: Run, official: Official, tmp_path: Path) -> None:
    output, path = tmp_path / "m.safetensors", official()
    content = torch.load(path, weights_only=True)
    del content["model_state_dict"]["normal_token.norm.weight"]
    torch.save(content, path)
    result = dvt_edge("import", path, "--architecture", "tiny", "-o", output)
    assert result.code == 1
    assert "1 of 1" in result.err
    assert "missing normal_token.norm.weight [8]" in result.err
    assert not output.exists()


def test_stage_from(
    dvt_edge: Run,
    tiny_architecture: CascadeConfig,
    random_cascade: Callable[..., Cascade],
    tmp_path: Path,
) -> None:
    config = tiny_architecture
    one = random_cascade(config.model_copy(update={"stages": config.stages[:1]}))
    state = {k.removeprefix("stages.0."): v for k, v in one.state_dict().items()}
    torch.save({"model": state}, tmp_path / "vit.pth")
    output = tmp_path / "m.safetensors"
    options = ["--architecture", "tiny", "--classes", "3", "--image-size", "20", "-o", output]
    result = dvt_edge("import", "--stage-from", tmp_path / "vit.pth", *options)
    assert result.code == 0, result.err
    cascade = Cascade.load(output)
    assert (cascade.config.classes, cascade.config.image_size) == (3, 20)
    key = "blocks.1.attn.proj.weight"
    assert all(torch.equal(s.state_dict()[key], state[key]) for s in cascade.stages)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.safetensors"], "give either FILE or --stage-from"),
        (["a", "--stage-from", "b", "-o", "a.safetensors"], "give either FILE or --stage-from"),
        (["--stage-from", "b", "-o", "a.safetensors"], "needs --architecture"),
        (["a", "--classes", "3", "-o", "a.safetensors"], "belong to --stage-from"),
        (["a", "-o", "a.pth"], r"the output is a .safetensors file"),
    ],
)
def test_wrong_command_lines(dvt_edge: Run, arguments: list[str], message: str) -> None:
    result = dvt_edge("import", *arguments)
    assert result.code == 2
    assert message in result.err


def test_unknown_architecture(dvt_edge: Run, official: Official, tmp_path: Path) -> None:
    output = tmp_path / "m.safetensors"
    result = dvt_edge("import", official(), "--architecture", "tini", "-o", output)
    assert result.code == 1
    assert "did you mean 'tiny'?" in result.err
