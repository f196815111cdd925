"""``dvt-edge build``: both halves, what is printed and what ``--json`` holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.converters import device, selection
from dvt_edge.converters.quantizing import quantize_cascade
from dvt_edge.converters.quantizing.calibration import activation_ranges
from tests.cli.conftest import Run, Write, error_line
from tests.conftest import edit_manifest, write_yaml

ENGINE = {"backend": "tensorrt-rtx", "precision": "int8", "compute_capabilities": [86]}


@pytest.fixture
def write_profile(
    demo_profile_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[..., Path]:
    """A function writing the demo profile for TensorRT-RTX, with few images and an output that is
    not there yet; keywords replace sections."""

    def write(**changes: Any) -> Path:
        values = demo_profile_values(output=str(tmp_path / "out" / "bundle"), engine=ENGINE)
        values["calibration"] |= {"samples": 40, "tolerance_points": 20.0}
        return write_yaml(tmp_path / "profile.yaml", values | changes)

    return write


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "read_driver", lambda: None)
    monkeypatch.setenv("COLUMNS", "200")  # tables are not wrapped


def _text(out: str) -> str:
    """``out`` in one line, whatever the width it was wrapped to."""
    return " ".join(out.split())


@pytest.mark.slow
def test_halves(dvt_edge: Run, write_profile: Write, tmp_path: Path) -> None:
    """Portable on the host, engines on the device; the second time nothing is done."""
    pytest.importorskip("tensorrt_rtx")
    profile, folder = write_profile(), tmp_path / "out" / "bundle"
    host = dvt_edge("build", "--profile", profile, "--phase", "host")
    assert (host.code, host.err) == (0, "")
    lines = host.out.splitlines()
    assert lines[-1] == (
        "Portable. Copy it and the profile to the device and finish it there with 'dvt-edge build "
        f"--phase device --profile {profile}' (not here: only the host phase was asked for)"
    )
    assert "top-1 on the calibration images" in host.out
    assert "stage1.onnx" in host.out
    assert "for compute capability" not in host.out
    assert Bundle(folder).manifest.portable

    device = dvt_edge("build", "--profile", profile, "--phase", "device")
    assert (device.code, device.err) == (0, "")
    text = _text(device.out)
    assert "for compute capability 8.6" in text
    assert "STRONGLY_TYPED; workspace 1024 MiB" in text
    assert "built ahead of time, without a GPU" in text
    assert "int8 gemm" in text
    assert "Portable." not in text

    again = dvt_edge("build", "--profile", profile, "--phase", "device")
    assert "unchanged inputs, nothing rebuilt" in _text(again.out)

    result = dvt_edge("build", "--profile", profile, "--phase", "device", "--force", "--json")
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    assert values["bundle"] == str(folder)
    assert (values["rebuilt"], values["unfinished"]) == (True, None)
    assert values["float_layers"] == [[], [], []]
    assert values["choices"] == []
    assert values["engines"]["platform"]["compute_capabilities"] == ["8.6"]
    assert [plan["cached"] for plan in values["engines"]["plans"]] == [False] * 3
    assert values["precision"] == "int8"
    assert len(values["exits"]) == len(values["fp16_same_class"]) == 3

    measured = {"preprocess": "device", "preprocess_ms": {"host": 2.0, "device": 1.25}}
    edit_manifest(folder, lambda m: m["engines"].update(measured))
    shown = _text(dvt_edge("inspect", folder).out)
    assert (
        "frames become images on the device: to the end of stage 1 2.00 ms on the host, 1.25 ms on"
        in shown
    )

    other = write_profile(engine=ENGINE | {"compute_capabilities": []})
    result = dvt_edge("build", "--profile", other)
    assert result.code == 0
    assert result.out.splitlines()[-1].startswith("Engines of other settings. Copy it")


@pytest.mark.slow
def test_host_phase_as_json(dvt_edge: Run, write_profile: Write) -> None:
    """One JSON document and nothing else."""
    profile = write_profile(engine=ENGINE | {"precision": "fp16"})
    result = dvt_edge("build", "--profile", profile, "--phase", "host", "--json")
    assert (result.code, result.err) == (0, "")
    values = json.loads(result.out)
    assert values["engines"] is None
    assert values["unfinished"] == "only the host phase was asked for"
    assert (values["rebuilt"], values["precision"]) == (True, "fp16")


@pytest.mark.parametrize(
    ("engine", "phase", "message"),
    [
        (ENGINE, "device", "no bundle here"),
        ({"backend": "onnxruntime"}, "device", "onnxruntime has no device phase"),
    ],
)
def test_device_phase_that_cannot_be(
    dvt_edge: Run,
    write_profile: Write,
    engine: dict[str, Any],
    phase: str,
    message: str,
) -> None:
    result = dvt_edge("build", "--profile", write_profile(engine=engine), "--phase", phase)
    assert message in error_line(result)


def test_unknown_phase(dvt_edge: Run, write_profile: Write) -> None:
    result = dvt_edge("build", "--profile", write_profile(), "--phase", "board")
    assert (result.code, result.out) == (2, "")
    assert "'board' is not one of 'auto', 'host', 'device'" in result.err


@pytest.mark.slow
def test_what_stays_in_float_and_what_was_tried(
    dvt_edge: Run, write_profile: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layers by name, and both precisions with their times."""
    original = activation_ranges

    def ranges(model: Any, names: list[str], feeds: Any) -> dict[str, float]:
        found = original(model, names, feeds)
        if model.graph.name != "stage1":
            return found
        nodes = (n for n in model.graph.node if n.name.startswith("blocks.0."))
        return found | {n.input[0]: 1e-3 for n in nodes if n.input[0] in found}

    monkeypatch.setattr(quantize_cascade, "activation_ranges", ranges)
    monkeypatch.setattr(selection, "_median_ms", lambda backends, stage: [1.0, 2.0])
    monkeypatch.setattr(selection, "MOST_CHANGED_DECISIONS", 1.0)  # of forty images
    profile = write_profile(engine={"backend": "onnxruntime", "precision": "auto", "threads": 1})
    values = yaml.safe_load(profile.read_text(encoding="utf-8"))
    values["calibration"]["tolerance_points"] = 5.0
    write_yaml(profile, values)
    result = dvt_edge("build", "--profile", profile)
    assert result.code == 0
    text = _text(result.out)
    assert "Precision per stage, measured here" in text
    assert text.count("kept: faster") == 3
    stages = Bundle(values["output"]).manifest.stages
    layers = stages[0].float_layers
    assert layers
    assert f"Stage 1 keeps its most sensitive layers in float: {', '.join(layers)}" in text
