"""Tries every claim about the GPU runtime on this machine, and says which are proven.

    python scripts/gpu_proof.py [--output FOLDER] [--backend NAME] [--model NAME] [--precision NAME]

Backends are tried in order: TensorRT, TensorRT-RTX, the stages run by torch (which proves all but
the engines, on any GPU), ONNX Runtime's CUDA provider. Each cascade on each is a process of its
own, with a time limit. proof.json and proof.md in ``benchmarks/results/<gpu>/`` are written after
each. Without a GPU the same code is rehearsed on the CPU, on two cascades, which proves nothing;
results then go to ``build/gpu-rehearsal/``.

Exit status: 0 every claim is proven, 1 one fails, 2 none fails, but some could not be tried here.

Needs dvt-edge with torch, onnx and onnxruntime; on a GPU also pycuda (from its source archive), and
tensorrt or tensorrt-rtx-cu13 for engines. No network.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import monotonic
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_cascades import BACKENDS, CPU, MODELS, PRECISIONS
from gpu_claims import CLAIMS
from gpu_report import STATUS, markdown, status, title, verdicts

from dvt_edge.files.replacing import write_text

ROOT = Path(__file__).resolve().parents[1]
ROW = Path(__file__).resolve().with_name("gpu_row.py")
LIMIT_S = 600
"""For one row; engines of the larger cascades take minutes to build."""
REHEARSED = (("demo", "fp16"), ("demo", "int8"), ("dvt_deit_small", "fp16"))
"""Enough to run every line, and few enough for minutes on two cores."""

Values = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for proof.json and proof.md")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="only this one")
    parser.add_argument("--model", action="append", choices=MODELS, help="only this one")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this one")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for each row")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        machine = run_row("machine", {}, work, given.limit)
        proof: Values = {
            "machine": machine,
            "command": " ".join(["python", *sys.argv]),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "rows": [],
        }
        output = given.output or _folder(machine.get("gpu"))
        for row in _rows(given, machine.get("gpu"), work):
            proof["rows"].append(row)
            write_text(output / "proof.json", json.dumps(proof, indent=1) + "\n")
            write_text(output / "proof.md", markdown(proof))
            _tell(row)
    print()
    for claim, (verdict, why) in verdicts(proof).items():
        print(f"{claim}: {verdict}: {why}")
    code = status(proof)
    meaning = next(verdict for verdict, number in STATUS.items() if number == code)
    print(f"\nexit status {code} ({meaning}); {output / 'proof.md'}")
    return code


def _folder(gpu: str | None) -> Path:
    if gpu is None:
        return ROOT / "build" / "gpu-rehearsal"
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")
    return ROOT / "benchmarks" / "results" / slug


def _rows(given: argparse.Namespace, gpu: str | None, work: Path) -> Iterator[Values]:
    """One after the other, as they end."""
    models, precisions = given.model or MODELS, given.precision or PRECISIONS
    cascades = [(model, precision) for model in models for precision in precisions]
    prepared = Cascades(work, given.limit)
    if gpu is None:
        for model, precision in cascades:
            if (model, precision) in REHEARSED:
                yield prepared.row(CPU, model, precision) | {"rehearsal": True}
        return
    for kind in ("kernels", "sanitizer"):
        yield run_row(kind, {}, work, given.limit)
    for backend in given.backend or BACKENDS:
        refused = 0
        for model, precision in cascades:
            row = prepared.row(backend, model, precision)
            yield row
            refused += "refused" in row
            if refused == len(precisions):  # in each precision: it does not depend on the model
                break


class Cascades:
    """Rows about cascades, each of which is prepared once for all backends."""

    def __init__(self, work: Path, limit_s: float) -> None:
        self._work, self._limit_s = work, limit_s
        self._prepared: dict[tuple[str, str], Values] = {}

    def row(self, backend: str, model: str, precision: str) -> Values:
        folder = self._work / f"{model}-{precision}"
        what = {"model": model, "precision": precision, "folder": str(folder)}
        if (model, precision) not in self._prepared:
            row = run_row("prepare", what, self._work, self._limit_s)
            self._prepared[model, precision] = row
        row = self._prepared[model, precision]
        if "died" not in row:
            row = run_row("cascade", {"backend": backend, **what}, self._work, self._limit_s)
        return {"backend": backend, **row}


def run_row(kind: str, arguments: Values, work: Path, limit_s: float, script: Path = ROW) -> Values:
    """What ``script`` wrote about one row, also where it crashed or was ended at the limit.

    The claim that it was trying fails then.
    """
    result, words = work / "row.json", work / "row.log"
    result.unlink(missing_ok=True)
    started = monotonic()
    with words.open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, str(script), kind, str(result), json.dumps(arguments)],
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own children, such as builders, end with it
        )
        try:
            code = process.wait(limit_s)
            died = None if code == 0 else _death(code)
        except subprocess.TimeoutExpired:
            died = f"took longer than {limit_s:g} s"
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    row: Values = {"kind": kind} | {k: v for k, v in arguments.items() if k != "folder"}
    if result.exists():
        row |= json.loads(result.read_text(encoding="utf-8"))
    row.setdefault("claims", {})
    running = row.pop("running", None)
    if died:
        tail = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
        row["died"] = ": ".join([died, " | ".join(tail)]) if tail else died
        if running in {claim.name for claim in CLAIMS}:
            row["claims"][running] = {"state": "fails", "detail": row["died"], "values": {}}
    return row | {"seconds": monotonic() - started}


def _death(code: int) -> str:
    return f"crashed ({signal.strsignal(-code)})" if code < 0 else f"ended with exit code {code}"


def _tell(row: Values) -> None:
    """One line for each thing that was found."""
    rehearsal = "REHEARSAL, " if row.get("rehearsal") else ""
    print(f"{rehearsal}{title(row)}: {row['seconds']:.0f} s", flush=True)
    for key in ("refused", "died", "latency_failed"):
        if row.get(key):
            print(f"  {key}: {row[key]}")
    for claim, outcome in row["claims"].items():
        print(f"  {claim}: {outcome['state']}: {outcome['detail']}", flush=True)
    for batch, times in row.get("latency", {}).items():
        whole = times["classify_ms"]
        print(f"  {batch}: {whole['median']:.3f} ms, p95 {whole['p95']:.3f} ms", flush=True)


if __name__ == "__main__":
    sys.exit(main())
