"""Tables that more than one command prints."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dvt_edge.bundle.engine_records import Engines, PrecisionFigures

WIDTH = 100
"""Columns where the output is no terminal that tells its own."""


def wide_console() -> Console:
    """For tables on standard output."""
    console = Console(markup=False, highlight=False)
    return console if console.is_terminal else Console(markup=False, highlight=False, width=WIDTH)


def choice_table(choices: tuple[PrecisionFigures, ...]) -> Table:
    """Every precision that was tried."""
    table = Table(title="Precision per stage, measured here")
    for column in ("stage", "precision", "median ms", "same class", "same decision", ""):
        table.add_column(column, justify="right" if column else "left")
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
    table = Table(
        title=f"{platform.backend} {platform.version} for compute capability {targets}",
        caption=f"{', '.join(engines.flags)}; workspace {engines.workspace_mb} MiB; "
        f"{platform.device or 'built ahead of time, without a GPU'}",
    )
    for column in ("stage", "precision", "built in", "kernels at batch 1", "warnings"):
        table.add_column(column, justify="left" if column.startswith("kernels") else "right")
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
