"""Fuzz all targets, or those that are named, one after the other: ``make fuzz``.

Exits with 1 where anything was found. New inputs and what was found lie in ``build/fuzz``; what was
done is written to ``benchmarks/results/fuzz.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fuzz.targets import ROOT, TARGETS

WORK = ROOT / "build" / "fuzz"
RESULT = ROOT / "benchmarks" / "results" / "fuzz.json"
_STARTS = 5
"""Of one target at most: each hang ends a process."""


def main() -> int:
    """Exit status."""
    names = [target.name for target in TARGETS]
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"one of {', '.join(names)}; all if left out")
    parser.add_argument("--seconds", type=float, default=600, help="of processor time for each")
    arguments = parser.parse_args()
    if unknown := set(arguments.target) - set(names):
        parser.error(f"no target {', '.join(sorted(unknown))}; known: {', '.join(names)}")
    rows = []
    for name in arguments.target or names:
        print(f"{name}: {arguments.seconds:g} s of processor time ...", flush=True)
        rows.append(_fuzzed(name, arguments.seconds))
        _write(rows)
        for finding in rows[-1]["findings"]:
            print(f"  found: {finding}", flush=True)
    print(f"\n{'target':<12} {'executions':>12} {'processor s':>12} {'findings':>9}")
    for row in rows:
        count = len(row["findings"])
        print(f"{row['target']:<12} {row['executions']:>12,} {row['cpu_s']:>12.0f} {count:>9}")
    found = sum(len(row["findings"]) for row in rows)
    if found:
        print(f"\n{found} findings; inputs and tracebacks are in {WORK}/TARGET/found")
    return 1 if found else 0


def _fuzzed(name: str, seconds: float) -> dict[str, Any]:
    """What happened to one target."""
    folder = WORK / name
    shutil.rmtree(folder / "found", ignore_errors=True)
    executions, spent, findings = 0, 0.0, set[str]()
    for _ in range(_STARTS):
        (folder / "figures.json").unlink(missing_ok=True)
        with (_made(folder) / "log.txt").open("w", encoding="utf-8") as log:
            command = [sys.executable, "-m", "fuzz.one", name, str(seconds - spent), str(folder)]
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, check=False)
        figures = _figures(folder)
        executions += figures["executions"]
        spent += figures["cpu_s"]
        findings |= set(figures["kinds"])
        if done.returncode == 0:
            break
        left = sorted(path.name for path in (folder / "found").glob("*-*") if "." not in path.name)
        ended = [path for path in left if path.startswith(("timeout", "oom", "crash", "leak"))]
        findings.update(ended or [f"ended with {done.returncode}, see {folder / 'log.txt'}"])
        if spent >= seconds or not figures["executions"]:
            break
    for scratch in folder.glob("dvt-edge-fuzz-*"):
        shutil.rmtree(scratch, ignore_errors=True)
    row = {"target": name, "executions": executions, "cpu_s": round(spent, 1)}
    return row | {"findings": sorted(findings)}


def _figures(folder: Path) -> dict[str, Any]:
    try:
        read: dict[str, Any] = json.loads((folder / "figures.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # it ended before it had begun
        return {"executions": 0, "cpu_s": 0.0, "kinds": []}
    return read


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _write(rows: list[dict[str, Any]]) -> None:
    """Put ``rows`` into the results; targets that were not run keep theirs."""
    kept = {}
    if RESULT.exists():
        kept = {row["target"]: row for row in json.loads(RESULT.read_text())["targets"]}
    kept |= {row["target"]: row for row in rows}
    order = [target.name for target in TARGETS]
    values = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "fuzzer": f"atheris {version('atheris')}",
        "targets": [kept[name] for name in order if name in kept],
    }
    RESULT.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
