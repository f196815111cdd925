"""Throughput of batches through the cascade, against that of its stages alone.

    python benchmarks/batches.py [--batch 64] [--batches 4] [--rounds 7] [--out FILE.json]

The demo on ONNX Runtime's CPU provider, for three budgets between the first and the last exit's
cost. After each batch each of its stages runs alone, on as many frames as it just had, a few times
over: the first time after another stage, whose data then fill the caches, then after itself. Their
times together are the ideal of a loop that costs nothing and moves no survivor: `warm`, the later
runs, is what a stage alone can do; `cold`, from the first, is what it can do within any cascade.
`of warm` and `of cold` are ideal over actual, from the first stage's start to the last answer.
Medians over batches and rounds of each pair: what slows the machine for a while slows both.
Prints a table with the machine; writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from rich.console import Console
from rich.table import Table

from dvt_edge import Profile, Runtime
from dvt_edge.converters.build import build
from dvt_edge.machine.board import processor_name
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend

ROOT = Path(__file__).resolve().parents[1]
SHARES = (0.25, 0.5, 0.75)
"""Budgets, on the way from the first exit's cost to the last one's."""
ALONE = 4
"""Runs of each stage alone, after each batch."""

Frames = list[npt.NDArray[np.uint8]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu/batches.json")
    arguments = parser.parse_args()
    profile = Profile.from_yaml(ROOT / "samples/profiles/demo-cpu.yaml")
    bundle = build(profile).bundle
    stages = bundle.manifest.stages
    paths = [bundle.stage_path(i) for i in range(len(stages))]
    backend = OnnxRuntimeBackend(paths, stages, arguments.batch, profile.engine.threads)
    batches = _batches(arguments.batch)[: arguments.batches]
    with Runtime(bundle.folder, backend=backend) as runtime:
        first, last = runtime.costs.mean_ms[0], runtime.costs.mean_ms[-1]
        results = []
        for share in SHARES:
            runtime.set_budget(latency_ms=float(first + share * (last - first)))
            results.append(_measure(runtime, backend, batches, arguments.rounds))
    machine = f"{processor_name()}, threads {profile.engine.threads}"
    _print(results, machine, arguments.batch, len(batches), arguments.rounds)
    document = {
        "command": " ".join(["python benchmarks/batches.py", *sys.argv[1:]]),
        "machine": machine,
        "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "batch": arguments.batch,
        "batches": len(batches),
        "rounds": arguments.rounds,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _batches(size: int) -> list[Frames]:
    """The demo's test scenes, mixed, in whole batches."""
    files = sorted((ROOT / "samples/demo/scenes/test").glob("*/*.png"))
    order = np.random.default_rng(0).permutation(len(files))
    frames = [np.asarray(Image.open(files[i])) for i in order]
    return [frames[at : at + size] for at in range(0, len(frames) - size + 1, size)]


def _measure(
    runtime: Runtime, backend: OnnxRuntimeBackend, batches: Sequence[Frames], rounds: int
) -> dict[str, Any]:
    size, exits = len(batches[0]), len(runtime.costs.exits)
    wall, ready, cold, warm = np.zeros((4, rounds, len(batches)))
    survivors = np.zeros((len(batches), exits), int)
    for at in range(-1, rounds):  # the first round binds and warms up
        for number, frames in enumerate(batches):
            started = perf_counter()
            answers = runtime.classify_batch(frames)
            wall_ms = 1e3 * (perf_counter() - started)
            counts = [sum(a.exit_stage > k for a in answers) for k in range(exits)]
            alone = np.array([_alone_ms(backend, k, n) for k, n in enumerate(counts)])
            survivors[number] = counts
            if at >= 0:
                wall[at, number], ready[at, number] = wall_ms, answers[0].preprocess_ms
                cold[at, number], warm[at, number] = alone.sum(axis=0)
    stages_ms = wall - ready
    return {
        "budget_ms": round(float(runtime.budget.latency_ms or 0), 3),
        "reach": [round(float(n) / size, 3) for n in survivors.mean(axis=0)],
        "frames_per_s": round(1e3 * size / float(np.median(wall)), 1),
        "stages_ms": round(float(np.median(stages_ms)), 3),
        "cold_ms": round(float(np.median(cold)), 3),
        "warm_ms": round(float(np.median(warm)), 3),
        "preprocess_ms": round(float(np.median(ready)), 3),
        "of_cold": round(float(np.median(cold / stages_ms)), 3),
        "of_warm": round(float(np.median(warm / stages_ms)), 3),
    }


def _alone_ms(backend: OnnxRuntimeBackend, stage: int, count: int) -> tuple[float, float]:
    """One stage on ``count`` frames, cold and warm; 0 where none reaches it."""
    if not count:
        return 0.0, 0.0
    times = []
    for _ in range(ALONE):
        started = perf_counter()
        backend.run_stage(stage, count)
        times.append(1e3 * (perf_counter() - started))
    return times[0], float(np.median(times[1:]))


def _print(
    results: Sequence[dict[str, Any]], machine: str, size: int, batches: int, rounds: int
) -> None:
    table = Table(
        title=f"{batches} batches of {size}, {rounds} rounds, stages alone after each batch",
        caption=machine,
    )
    for column in (
        "budget ms",
        "reach each stage",
        "frames/s",
        "stages ms",
        "cold ms",
        "warm ms",
        "of cold",
        "of warm",
        "preprocessing ms",
    ):
        table.add_column(column, justify="right")
    for r in results:
        table.add_row(
            f"{r['budget_ms']:.2f}",
            ", ".join(f"{share:.2f}" for share in r["reach"]),
            f"{r['frames_per_s']:.0f}",
            f"{r['stages_ms']:.2f}",
            f"{r['cold_ms']:.2f}",
            f"{r['warm_ms']:.2f}",
            f"{r['of_cold']:.3f}",
            f"{r['of_warm']:.3f}",
            f"{r['preprocess_ms']:.2f}",
        )
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
