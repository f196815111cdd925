"""``dvt-edge budget``: what a budget gives, from the stored records, without running anything."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from dvt_edge.errors import ConfigError
from dvt_edge.policy import Solution
from dvt_edge.policy.solver import frontier

if TYPE_CHECKING:
    from dvt_edge.runtime.runtime import Runtime

FRONTIER_LINES = 12


def show_budget(runtime: Runtime, *, as_json: bool, plot: Path | None) -> None:
    """Print the thresholds of ``runtime``'s budget, what they give, certificate and frontier."""
    curve = frontier(runtime.records, runtime.costs.mean_ms)
    if plot is not None:
        _plot(runtime, curve, plot)
    if as_json:
        certificate = runtime.certificate
        values = {
            "budget": runtime.budget.model_dump(mode="json"),
            "solution": solution_values(runtime.solution),
            "certificate": asdict(certificate) if certificate else None,
            "frontier": [solution_values(point) for point in curve],
        }
        click.echo(json.dumps(values, allow_nan=False))
        return
    console = Console(markup=False)
    solution, certificate = runtime.solution, runtime.certificate
    console.print(
        f"Thresholds {_thresholds(solution)}: mean {solution.cost:.3f} ms, accuracy "
        f"{100 * solution.accuracy:.2f} % on {len(runtime.records)} records, exits "
        f"{_shares(solution)}"
    )
    if certificate:
        console.print(
            f"With probability {1 - certificate.delta:g}, from {certificate.n} records: mean at "
            f"most {certificate.cost_bound:.3f} ms, accuracy at most "
            f"{100 * certificate.accuracy_gap_bound:.2f} points below the last exit's"
        )
    table = Table(title="Frontier: the highest accuracy for each mean latency")
    for column in ("mean ms", "accuracy", "exits"):
        table.add_column(column, justify="right")
    lines = np.unique(np.linspace(0, len(curve) - 1, FRONTIER_LINES).round().astype(int))
    for point in (curve[i] for i in lines):
        table.add_row(f"{point.cost:.3f}", f"{100 * point.accuracy:.2f} %", _shares(point))
    console.print(table)


def solution_values(solution: Solution) -> dict[str, Any]:
    """A solution for JSON, which has no infinity: null where nobody leaves, 0 where all do."""
    return {
        "thresholds": [None if t == np.inf else max(float(t), 0.0) for t in solution.thresholds],
        "mean_ms": solution.cost,
        "accuracy": solution.accuracy,
        "exit_fraction": solution.exit_fraction.tolist(),
    }


def _thresholds(solution: Solution) -> str:
    return ", ".join(f"{t:.4f}" for t in solution.thresholds[:-1]) or "none"


def _shares(solution: Solution) -> str:
    return " / ".join(f"{100 * share:.1f} %" for share in solution.exit_fraction)


def _plot(runtime: Runtime, curve: tuple[Solution, ...], path: Path) -> None:
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError(
            "--plot needs matplotlib; install it with pip install 'dvt-edge[plot]'"
        ) from None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(
        [point.cost for point in curve],
        [100 * point.accuracy for point in curve],
        label="best thresholds for each mean latency",
    )
    for k, (cost, accuracy) in enumerate(
        zip(runtime.costs.mean_ms, runtime.records.accuracy, strict=True)
    ):
        axes.plot(cost, 100 * accuracy, "s", color="0.4")
        axes.annotate(
            f"all at exit {k + 1}", (cost, 100 * accuracy), (6, -12), textcoords="offset points"
        )
    solution = runtime.solution
    axes.plot(solution.cost, 100 * solution.accuracy, "o", ms=9, label="this budget")
    axes.set(
        xlabel="mean latency per frame, ms",
        ylabel=f"accuracy on {len(runtime.records)} calibration records, %",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the picture cannot be written ({error})") from None
    finally:
        plt.close(figure)
