"""What ``classify`` costs beyond preprocessing and the stages' own time.

    python benchmarks/overhead.py [--runs 3000]

For frames forced out at each exit in turn: the call's wall time, less the preprocessing and stage
times that the prediction reports. Prints a table with the machine.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import numpy as np
from rich.console import Console
from rich.table import Table

from dvt_edge import Profile, Runtime
from dvt_edge.converters.build import build
from dvt_edge.machine.board import processor_name
from dvt_edge.policy import Solution

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=3000)
    runs = arguments.parse_args().runs
    profile = Profile.from_yaml(ROOT / "samples/profiles/demo-cpu.yaml")
    build(profile)
    table = Table(
        title=f"classify beyond preprocessing and stages, us, {runs} runs per exit",
        caption=processor_name(),
    )
    for column in ("exit", "mean", "median", "p99", "share of the call"):
        table.add_column(column, justify="right")
    frame = np.random.default_rng(0).integers(0, 256, (48, 48), np.uint8)
    with Runtime(profile) as runtime:
        exits = len(runtime.costs.exits)
        forced = [
            Solution(np.array([np.inf] * k + [-np.inf] * (exits - k)), 0.0, 0.0, np.zeros(exits))
            for k in range(exits)
        ]
        beyond, share = np.zeros((exits, runs)), np.zeros((exits, runs))
        for run in range(-50, runs):  # the first fifty warm up
            for k, solution in enumerate(forced):
                runtime.use(solution)
                started = perf_counter()
                answer = runtime.classify(frame)
                wall_ms = 1e3 * (perf_counter() - started)
                work_ms = answer.preprocess_ms + sum(answer.stage_latency_ms)
                if run >= 0:
                    beyond[k, run] = 1e3 * (wall_ms - work_ms)
                    share[k, run] = 1 - work_ms / wall_ms
    for k in range(exits):
        table.add_row(
            str(k + 1),
            f"{beyond[k].mean():.1f}",
            f"{np.median(beyond[k]):.1f}",
            f"{np.percentile(beyond[k], 99):.1f}",
            f"{100 * np.median(share[k]):.2f} %",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
