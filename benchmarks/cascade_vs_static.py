"""The demo cascade against the static ViT of its last stage's size, on all 10,000 test scenes.

    python benchmarks/cascade_vs_static.py [--count 10000] [--out benchmarks/results/NAME]

Every image is classified by the static ViT and by the cascade at each budget in turn, at batch 1 in
one process, so drifts of the machine meet all of them alike. Budgets are spread between the first
and the last exit's measured cost; thresholds are solved on the calibration records, never on test
scenes. Prints a table and the latency ratio at the static ViT's accuracy; writes JSON and a plot.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from dvt_edge import Profile, Runtime
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.converters.build import build
from dvt_edge.machine.board import processor_name
from dvt_edge.profile import BudgetConfig, CameraConfig

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "samples" / "demo"))
from make_scenes import make_test_scenes  # noqa: E402

BUDGETS = 10
MEASURE_S = 5.0


def open_runtime(profile: Profile, model: Path, output: Path) -> Runtime:
    """A Runtime over ``model``, built by the demo profile and measured for some seconds, with
    frames back to back as they come here."""
    budget, camera = BudgetConfig(latency_ms=1e6), CameraConfig(fps=10_000)
    use = {"model": model, "output": output, "budget": budget, "camera": camera}
    changed = profile.model_copy(update=use)
    build(changed)
    with Runtime(changed) as runtime:
        runtime.bundle.store(COSTS, runtime.measure(MEASURE_S))
    return Runtime(changed)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--count", type=int, default=10_000)
    arguments.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/cpu")
    options = arguments.parse_args()
    profile = Profile.from_yaml(ROOT / "samples/profiles/demo-cpu.yaml")
    scenes, labels = make_test_scenes(count=options.count)
    with tempfile.TemporaryDirectory() as folder:
        demo = ROOT / "samples/demo"
        with (
            open_runtime(profile, demo / "model.safetensors", Path(folder, "cascade")) as cascade,
            open_runtime(profile, demo / "static.safetensors", Path(folder, "static")) as static,
        ):
            rows = compare(cascade, static, scenes, np.asarray(labels))
            macs = {
                "cascade": [stage.macs for stage in cascade.bundle.manifest.stages],
                "static": [stage.macs for stage in static.bundle.manifest.stages],
            }
    report(rows, macs, options)


def compare(
    cascade: Runtime, static: Runtime, scenes: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]
) -> list[dict[str, Any]]:
    """One row for the static ViT (first) and one per budget."""
    cost = cascade.costs.mean_ms
    budgets = np.linspace(cost[0] * 1.02, cost[-1] * 0.98, BUDGETS).tolist()
    solutions = [cascade.set_budget(BudgetConfig(latency_ms=budget)) for budget in budgets]
    right = np.zeros((BUDGETS + 1, len(scenes)), bool)
    latency = np.zeros((BUDGETS + 1, len(scenes)))
    exits = np.zeros((BUDGETS + 1, len(scenes)), int)
    for i, scene in enumerate(scenes):
        for k in np.random.default_rng(i).permutation(BUDGETS + 1):
            if k:
                cascade.use(solutions[k - 1])
            answer = (cascade if k else static).classify(scene)
            right[k, i] = answer.class_id == labels[i]
            latency[k, i] = answer.latency_ms
            exits[k, i] = answer.exit_stage
    return [
        {
            "name": f"cascade, {budgets[k - 1]:.3f} ms" if k else "static ViT",
            "budget_ms": budgets[k - 1] if k else None,
            "expected_ms": solutions[k - 1].cost if k else None,
            "accuracy": float(right[k].mean()),
            "mean_ms": float(latency[k].mean()),
            "p50_ms": float(np.median(latency[k])),
            "p99_ms": float(np.percentile(latency[k], 99)),
            "exit_fraction": (np.bincount(exits[k], minlength=4)[1:] / len(scenes)).tolist(),
        }
        for k in range(BUDGETS + 1)
    ]


def report(
    rows: list[dict[str, Any]], macs: dict[str, list[int]], options: argparse.Namespace
) -> None:
    """Print the table, write JSON and the plot."""
    table = Table(caption=processor_name())
    for column in ("", "top-1", "mean ms", "p50", "p99", "exits", "ratio"):
        table.add_column(column, justify="right")
    static = rows[0]
    for row in rows:
        table.add_row(
            row["name"],
            f"{100 * row['accuracy']:.2f} %",
            *(f"{row[key]:.3f}" for key in ("mean_ms", "p50_ms", "p99_ms")),
            " ".join(f"{100 * share:.0f}" for share in row["exit_fraction"]),
            f"{row['mean_ms'] / static['mean_ms']:.2f}",
        )
    console = Console(width=110)
    console.print(table)
    latency, accuracy = (np.array([row[k] for row in rows[1:]]) for k in ("mean_ms", "accuracy"))
    ratio = crossing(latency, accuracy, static["accuracy"])
    if ratio is None:
        console.print("The cascade does not reach the static ViT's accuracy.")
    else:
        ratio /= static["mean_ms"]
        console.print(f"At the static ViT's accuracy: {ratio:.3f} of its mean latency.")
    options.out.mkdir(parents=True, exist_ok=True)
    values = {
        "command": "python benchmarks/cascade_vs_static.py",
        "machine": processor_name(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "count": options.count,
        "macs": macs,
        "latency_ratio_at_static_accuracy": ratio,
        "rows": rows,
    }
    (options.out / "cascade_vs_static.json").write_text(json.dumps(values, indent=2) + "\n")
    plot(rows, options.out / "cascade_vs_static.png")


def crossing(
    latency: np.ndarray[Any, Any], accuracy: np.ndarray[Any, Any], target: float
) -> float | None:
    """Mean latency at which the cascade reaches ``target``, between two budgets by a straight line;
    None where it never does."""
    for i, value in enumerate(accuracy):
        if value >= target:
            if i == 0:
                return float(latency[0])
            share = (target - accuracy[i - 1]) / (value - accuracy[i - 1])
            return float(latency[i - 1] + share * (latency[i] - latency[i - 1]))
    return None


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against mean latency."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(
        [row["mean_ms"] for row in rows[1:]],
        [100 * row["accuracy"] for row in rows[1:]],
        "o-",
        label="cascade, one point per budget",
    )
    axes.plot(rows[0]["mean_ms"], 100 * rows[0]["accuracy"], "s", label="static ViT")
    axes.set(xlabel="mean latency per frame at batch 1, ms", ylabel="top-1 on test scenes, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
