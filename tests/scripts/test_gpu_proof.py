"""Rows of the GPU proof run in processes that may die, and what they say together."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gpu_claims
import gpu_proof
import gpu_row
import pytest
from gpu_cascades import BACKENDS, CPU, MODELS, PRECISIONS, Prepared
from gpu_claims import CLAIMS
from gpu_report import claims_table, markdown, status, verdicts
from gpu_row import Result

from dvt_edge.runtime.backends import cuda_device
from tests.conftest import REPOSITORY
from tests.runtime.backends.conftest import HostDevice

GPU = {"gpu": "NVIDIA H100", "compute_capability": "9.0", "driver_cuda": "13.0", "versions": {}}


def _claims(state: str = "holds", **changes: str) -> dict[str, Any]:
    states = {claim.name: state for claim in CLAIMS} | changes
    return {name: {"state": s, "detail": "why", "values": {}} for name, s in states.items()}


def _proof(*rows: dict[str, Any], machine: dict[str, Any] = GPU) -> dict[str, Any]:
    whole = [{"kind": "cascade", "seconds": 1.0, **row} for row in rows]
    return {"machine": machine, "rows": whole, "command": "python", "date": "today"}


@pytest.mark.parametrize(
    ("rows", "code"),
    [
        pytest.param([{"claims": _claims()}], 0, id="all hold"),
        pytest.param([{"claims": _claims(reads="fails")}], 1, id="one fails"),
        pytest.param([{"claims": _claims(reads="not tried")}], 2, id="one is not tried"),
        pytest.param(
            [{"claims": _claims(reads="not tried")}, {"claims": _claims()}], 0, id="elsewhere tried"
        ),
        pytest.param(
            [{"claims": _claims()}, {"claims": _claims(reads="fails")}], 1, id="elsewhere fails"
        ),
        pytest.param([{"claims": _claims()}, {"claims": {}, "died": "crashed"}], 1, id="one died"),
        pytest.param([{"claims": _claims()}, {"claims": {}, "refused": "no"}], 0, id="one refused"),
        pytest.param([{"claims": _claims(), "rehearsal": True}], 2, id="rehearsed"),
        pytest.param(
            [{"claims": _claims(reads="fails"), "rehearsal": True}], 1, id="rehearsal fails"
        ),
        pytest.param([], 2, id="nothing"),
    ],
)
def test_exit_status(rows: list[dict[str, Any]], code: int) -> None:
    assert status(_proof(*rows)) == code
    assert markdown(_proof(*rows))


def test_without_a_gpu_every_claim_says_so() -> None:
    rehearsal = {"claims": _claims(), "rehearsal": True}
    proof = _proof(rehearsal, machine={"gpu": None})
    for verdict, why in verdicts(proof).values():
        assert verdict == "not proven"
        assert why.startswith("no NVIDIA GPU answers here")
    assert "Rehearsal on the CPU: nothing here is proven" in markdown(proof)


def test_a_row(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very function that a process runs, on the CPU."""
    for name in ("OPENINGS", "WARMING_UP"):
        monkeypatch.setattr(gpu_claims, name, 1)
    path = tmp_path / "row.json"
    gpu_row.cascade(Result(path), CPU, "demo", "fp16", str(prepared.folder))
    row = json.loads(path.read_text())
    assert row["running"] is None
    states = {name: outcome["state"] for name, outcome in row["claims"].items()}
    assert {name for name, state in states.items() if state == "holds"} == {
        "agreement",
        "reads",
        "survivors",
        "threads",
        "openings",
    }
    assert set(states.values()) == {"holds", "not tried"}
    assert set(row["latency"]) == {"batch 1", "batch 8"}
    proof = _proof({**row, "rehearsal": True}, machine={"gpu": None})
    assert status(proof) == 2
    assert "proves nothing" in markdown(proof)


def test_a_refusal_is_a_row_with_its_reason(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    gpu_row.cascade(
        Result(tmp_path / "row.json"), "torch stages", "demo", "fp16", str(prepared.folder)
    )
    row = json.loads((tmp_path / "row.json").read_text())
    assert "needs pycuda" in row["refused"]
    assert not row["claims"]


def test_an_error_fails_its_claim_and_no_other(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(case: Any) -> Any:
        raise RuntimeError("out of luck")

    tried = [claim for claim in CLAIMS if claim.name in ("agreement", "survivors")]
    monkeypatch.setattr(gpu_claims, "CLAIMS", tried)
    monkeypatch.setattr(gpu_claims, "change", broken)
    gpu_row.cascade(Result(tmp_path / "row.json"), CPU, "demo", "fp16", str(prepared.folder))
    claims = json.loads((tmp_path / "row.json").read_text())["claims"]
    assert claims["agreement"]["state"] == "fails"
    assert claims["survivors"]["state"] == "holds"


DYING = """
import json, os, signal, sys, time
claims = {"agreement": {"state": "holds", "detail": "", "values": {}}}
open(sys.argv[2], "w").write(json.dumps({"claims": claims, "running": "reads"}))
print("CUDA error: an illegal memory access", flush=True)
"""


@pytest.mark.parametrize(
    ("ending", "limit_s", "reason"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", 60.0, "crashed (Segmentation fault)"),
        ("sys.exit(3)", 60.0, "ended with exit code 3"),
        ("time.sleep(60)", 1.5, "took longer than 1.5 s"),
    ],
)
def test_a_row_that_dies(tmp_path: Path, ending: str, limit_s: float, reason: str) -> None:
    """What it found stays, and the claim that it was at fails."""
    script = tmp_path / "row.py"
    script.write_text(DYING + ending)
    row = gpu_proof.run_row("cascade", {"model": "demo"}, tmp_path, limit_s, script)
    assert row["claims"]["agreement"]["state"] == "holds"
    assert row["claims"]["reads"]["state"] == "fails"
    assert row["died"] == f"{reason}: CUDA error: an illegal memory access"
    assert status(_proof(row)) == 1


def _fake_rows(monkeypatch: pytest.MonkeyPatch, machine: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows are answered at once; what was asked for is noted. TensorRT refuses."""
    asked = []

    def run(kind: str, arguments: dict[str, Any], work: Path, limit_s: float) -> dict[str, Any]:
        row: dict[str, Any] = {"kind": kind, **arguments, "seconds": 0.0, "claims": {}}
        asked.append(row)
        if kind == "machine":
            return row | machine
        if arguments.get("backend") == "tensorrt":
            return row | {"refused": "not installed"}
        return row if kind == "prepare" else row | {"claims": _claims()}

    monkeypatch.setattr(gpu_proof, "run_row", run)
    return asked


def test_rows_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cascade is prepared once, and a backend that refuses the demo is left."""
    asked = _fake_rows(monkeypatch, GPU)
    assert gpu_proof.main(["--output", str(tmp_path)]) == 0
    cascades = [(r["backend"], r["model"], r["precision"]) for r in asked if "backend" in r]
    assert cascades == [
        *(("tensorrt", "demo", precision) for precision in PRECISIONS),
        *((b, m, p) for b in BACKENDS[1:] for m in MODELS for p in PRECISIONS),
    ]
    prepared = [(r["model"], r["precision"]) for r in asked if r["kind"] == "prepare"]
    assert len(prepared) == len(set(prepared)) == len(MODELS) * len(PRECISIONS)
    written = json.loads((tmp_path / "proof.json").read_text())
    assert [row["kind"] for row in written["rows"][:2]] == ["kernels", "sanitizer"]
    assert "refused: not installed" in (tmp_path / "proof.md").read_text()


def test_rows_without_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = _fake_rows(monkeypatch, {"gpu": None})
    assert gpu_proof.main(["--output", str(tmp_path)]) == 2
    assert {row["backend"] for row in asked if "backend" in row} == {CPU}
    said = capsys.readouterr().out
    assert said.count("not proven: no NVIDIA GPU answers here") == len(CLAIMS)
    assert "REHEARSAL" in said


def test_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorRT-RTX names what it builds for; TensorRT has no such enumeration."""
    rtx, classic = ModuleType("tensorrt_rtx"), ModuleType("tensorrt")
    vars(rtx)["ComputeCapability"] = enum.Enum("ComputeCapability", ["NONE", "CURRENT", "SM86"])
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", rtx)
    monkeypatch.setitem(sys.modules, "tensorrt", classic)
    assert gpu_row.capabilities("tensorrt_rtx") == ["SM86"]
    assert gpu_row.capabilities("tensorrt") == []
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert gpu_row.capabilities("tensorrt") == []


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({"preprocess": [{"equal": True}], "gather": {"equal": True}}, "holds"),
        ({"preprocess": [{"equal": True}, {"equal": False}]}, "fails"),
        ({"failed": "nvcc was not found"}, "not tried"),
        ({}, "not tried"),
    ],
)
def test_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any], state: str
) -> None:
    kernels = ModuleType("gpu_kernels")
    vars(kernels)["prove_kernels"] = lambda: found
    monkeypatch.setitem(sys.modules, "gpu_kernels", kernels)
    monkeypatch.setattr(cuda_device, "CudaDevice", HostDevice)
    gpu_row.kernels(Result(tmp_path / "row.json"))
    row = json.loads((tmp_path / "row.json").read_text())
    assert row["claims"]["kernels"]["state"] == state


def test_kernels_without_pycuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycuda", None)
    gpu_row.kernels(Result(tmp_path / "row.json"))
    claim = json.loads((tmp_path / "row.json").read_text())["claims"]["kernels"]
    assert claim["state"] == "not tried"
    assert "needs pycuda" in claim["detail"]


def test_the_page_lists_the_claims() -> None:
    """``docs/gpu.md`` has the script's claims and thresholds, whatever it says of their proof."""
    lines = claims_table().splitlines()
    page = (REPOSITORY / "docs" / "gpu.md").read_text(encoding="utf-8")
    section = page.partition("## Claims")[2].partition("\n## ")[0]
    found = [line for line in section.splitlines() if line.startswith("|")]
    assert [row.rsplit("|", 2)[0] for row in found] == [row.rsplit("|", 2)[0] for row in lines]
