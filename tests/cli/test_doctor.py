"""``dvt-edge doctor``: exit codes, lines for people, JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dvt_edge.cli import doctor
from dvt_edge.doctor import Finding
from dvt_edge.profile import Profile
from tests.cli.conftest import Run

OK = Finding("ONNX Runtime", "ok", "1.20.0, CPUExecutionProvider", required=True)
OPTIONAL = Finding("torch", "missing", "not installed; needed to train", "pip install torch")
BROKEN = Finding(
    "TensorRT",
    "broken",
    "ImportError: " + "libnvinfer.so.10: cannot open shared object file " * 3,
    "sudo apt install " + "python3-libnvinfer " * 8,
    required=True,
)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """The list that the examination will give; tests change it."""
    findings = [OK, OPTIONAL]

    def examine(root: str = "/", profile: Profile | None = None) -> list[Finding]:
        shown = profile.engine.backend if profile else "none"
        return [*findings, Finding("profile", "ok", shown)]

    monkeypatch.setattr(doctor, "examine", examine)
    return findings


@pytest.mark.usefixtures("found")
def test_healthy(dvt_edge: Run) -> None:
    """Optional gaps are shown with their command and do not fail."""
    result = dvt_edge("doctor")
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0] == "ok       ONNX Runtime    1.20.0, CPUExecutionProvider"
    assert lines[1] == "missing  torch           optional: not installed; needed to train"
    assert lines[2].split() == ["->", "pip", "install", "torch"]
    assert lines[-1] == "This machine has everything it needs."


def test_required_gap(dvt_edge: Run, found: list[Finding]) -> None:
    """The exit code is 1, the last line names the gap; text is wrapped, commands are not."""
    found.append(BROKEN)
    result = dvt_edge("doctor")
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert "Missing or not working: TensorRT. " in lines[-1]
    assert "optional" not in next(line for line in lines if "TensorRT" in line)
    commands = [line for line in lines if "->" in line]
    assert commands[-1].strip() == f"-> {BROKEN.remedy}".strip()
    assert all(len(line) <= doctor.WIDTH for line in lines if "->" not in line)


@pytest.mark.parametrize("gap", [False, True])
def test_json(dvt_edge: Run, found: list[Finding], gap: bool) -> None:
    """One object with every finding; the exit code is the same as for people."""
    found += [BROKEN] * gap
    result = dvt_edge("doctor", "--json")
    values = json.loads(result.out)
    assert set(values) == {"findings", "ok"}
    assert values["ok"] is not gap
    assert result.code == int(gap)
    assert values["findings"][1] == {
        "name": "torch",
        "state": "missing",
        "detail": "not installed; needed to train",
        "remedy": "pip install torch",
        "required": False,
    }


@pytest.mark.usefixtures("found")
def test_profile(
    dvt_edge: Run, demo_profile_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """The profile is handed on; it needs no bundle."""
    file = tmp_path / "profile.yaml"
    file.write_text(yaml.safe_dump(demo_profile_values(engine={"backend": "tensorrt"})))
    assert dvt_edge("doctor", "--profile", file).out.count("tensorrt\n") == 1


def test_wrong_profile(dvt_edge: Run, tmp_path: Path) -> None:
    """One line, as for every command."""
    result = dvt_edge("doctor", "--profile", tmp_path / "gone.yaml")
    assert (result.code, result.out) == (1, "")
    assert result.err.startswith("error: ")
    assert "gone.yaml: no such file" in result.err


@pytest.mark.slow
def test_this_machine(dvt_edge: Run) -> None:
    """The real examination ends, whatever is installed here."""
    result = dvt_edge("doctor", "--json")
    values = json.loads(result.out)
    assert result.code == int(not values["ok"])
    assert {"Python", "ONNX Runtime", "board", "cameras"} <= {f["name"] for f in values["findings"]}
