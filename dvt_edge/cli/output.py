"""What more than one command prints: JSON, lines, tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from dvt_edge.bundle.engine_records import Engines, PrecisionFigures
from dvt_edge.policy import Certificate, Solution
from dvt_edge.policy.choose import finite_thresholds

if TYPE_CHECKING:
    from dvt_edge.runtime.runtime import Runtime

WIDTH = 100
"""Columns where the output is no terminal that tells its own."""


def print_json(values: Any) -> None:
    """One line on standard output."""
    click.echo(json.dumps(values, allow_nan=False))


def open_console() -> Console:
    """For tables and lines on standard output."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=WIDTH)


def watched(runtime: Runtime) -> Runtime:
    """``runtime``, whose events are noted on standard error from now on, past ones at once."""
    for event in runtime.events:
        note(event.reason)
    runtime.watch(on_event=lambda event: note(event.reason))
    return runtime


def note(text: str) -> None:
    """Something that a person should know, on standard error."""
    click.echo(f"note: {text}", err=True)


def new_table(title: str, *columns: str, left: Sequence[str] = ()) -> Table:
    """A table whose columns are aligned right, as figures are, but for those named ``left``."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    return table


def percent(shares: Iterable[float], digits: int = 1) -> str:
    """``12.3 % / 45.6 %``."""
    return " / ".join(f"{100 * share:.{digits}f} %" for share in shares)


def solution_values(solution: Solution) -> dict[str, Any]:
    """A solution for JSON."""
    return {
        "thresholds": finite_thresholds(solution.thresholds),
        "mean_ms": solution.cost,
        "accuracy": solution.accuracy,
        "exit_fraction": solution.exit_fraction.tolist(),
    }


def threshold_list(solution: Solution) -> str:
    """All but the last, for people."""
    return ", ".join(f"{t:.4f}" for t in solution.thresholds[:-1]) or "none"


def certificate_line(found: Certificate) -> str:
    """What is certified, for people."""
    return (
        f"with probability {1 - found.delta:g}, from {found.n} records: mean at most "
        f"{found.cost_bound:.3f} ms, accuracy at most {100 * found.accuracy_gap_bound:.2f} points "
        "below the last exit's"
    )


def choice_table(choices: tuple[PrecisionFigures, ...]) -> Table:
    """Every precision that was tried."""
    table = new_table(
        "Precision per stage, measured here",
        *("stage", "precision", "median ms", "same class", "same decision", ""),
        left=[""],
    )
    for row in choices:
        table.add_row(
            str(row.stage),
            row.precision,
            *(
                "-" if value is None else text.format(value)
                for value, text in (
                    (row.latency_ms, "{:.3f}"),
                    (row.same_class, "{:.1%}"),
                    (row.same_exit, "{:.1%}"),
                )
            ),
            f"{'kept: ' if row.chosen else ''}{row.remark}",
        )
    return table


def engine_table(engines: Engines) -> Table:
    """How the engines were built."""
    platform = engines.platform
    targets = ", ".join(platform.compute_capabilities)
    table = new_table(
        f"{platform.backend} {platform.version} for compute capability {targets}",
        *("stage", "precision", "built in", "kernels at batch 1", "warnings"),
        left=["kernels at batch 1"],
    )
    table.caption = (
        f"{', '.join(engines.flags)}; workspace {engines.workspace_mb} MiB; "
        f"{platform.device or 'built ahead of time, without a GPU'}"
    )
    for k, plan in enumerate(engines.plans):
        kernels = ", ".join(f"{n} {kind}" for kind, n in (plan.planned or {}).items())
        table.add_row(
            str(k + 1),
            plan.precision,
            f"{plan.seconds:.1f} s{' (cached)' if plan.cached else ''}",
            kernels or "not listed",
            str(len(plan.warnings)),
        )
    return table
