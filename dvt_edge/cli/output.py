"""What more than one command prints: JSON, lines, tables."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from dvt_edge.bundle.engine_records import Engines, PrecisionFigures
from dvt_edge.files.datasets import skipped_pictures
from dvt_edge.policy import Certificate, Solution
from dvt_edge.policy.choose import finite_thresholds
from dvt_edge.policy.statistic import TAIL_SHARE
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.events import StandInsRun

if TYPE_CHECKING:
    from dvt_edge.runtime.runtime import Runtime

WIDTH = 100
"""Columns where standard output is not a terminal, which has a width of its own."""


def print_json(values: Any) -> None:
    """One line on standard output."""
    click.echo(json.dumps(values, allow_nan=False))


def show(what: str | Table, *, style: str | None = None, soft_wrap: bool = False) -> None:
    """Print text, whose brackets are no markup, or a table on standard output."""
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(what, style=style, soft_wrap=soft_wrap)


def show_table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    left: Sequence[str] = (),
    caption: str | None = None,
) -> None:
    """Print a table whose columns are aligned right, as figures are, but for those named ``left``.

    A row without cells is a line across the table.
    """
    table = Table(title=title, caption=caption)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right")
    for row in rows:
        if row:
            table.add_row(*row)
        else:
            table.add_section()
    show(table)


class Interrupted(click.ClickException):
    """Ctrl-C, with what to do next."""

    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"interrupted; {self.message}", err=True)


def note(text: str) -> None:
    """Something that a person should know, on standard error."""
    click.echo(f"note: {text}", err=True)


def note_skipped(*places: Path | None) -> None:
    """Note pictures in those of ``places`` that are folders, of endings that are not read."""
    for folder in places:
        if folder is not None and folder.is_dir() and (skipped := skipped_pictures(folder)):
            note(skipped)


def watched(runtime: Runtime) -> Runtime:
    """``runtime``, whose events are noted on standard error from now on, past ones at once."""
    for event in runtime.events:
        if not isinstance(event, StandInsRun):  # which has been logged
            note(event.reason)
    runtime.watch(on_event=lambda event: note(event.reason))
    return runtime


def numbered(what: str, count: int) -> list[str]:
    """``exit 1``, ``exit 2`` ... for the heads of columns."""
    return [f"{what} {k + 1}" for k in range(count)]


def counted(number: int, what: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def percent(*shares: float, digits: int = 1) -> str:
    """``12.3 % / 45.6 %``."""
    return " / ".join(f"{100 * share:.{digits}f} %" for share in shares)


def figure(value: float | None, form: str = ".3f", unit: str = "") -> str:
    """``value`` as ``form`` says, with its unit; a dash where there is none."""
    return "-" if value is None else f"{value:{form}}{unit}"


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


def certificate_line(found: Certificate, budget: BudgetConfig) -> str:
    """What is certified of ``budget``, for people."""
    promise = f"mean at most {found.cost_bound:.3f} ms"
    if budget.latency_ms is not None and budget.statistic != "mean":
        late = TAIL_SHARE[budget.statistic]
        share = f"at most {100 * late:g} % of the frames take" if late else "no frame takes"
        promise = f"{share} longer than {budget.latency_ms:g} ms, {promise}"
    return (
        f"with probability {1 - found.delta:g}, from {found.n} records: {promise}, accuracy at "
        f"most {100 * found.accuracy_gap_bound:.2f} points below the last exit's"
    )


def show_choices(choices: Sequence[PrecisionFigures]) -> None:
    """Every precision that was tried, where some were."""
    if not choices:
        return
    show_table(
        "Precision per stage, measured here",
        ["stage", "precision", "median ms", "same class", "same decision", ""],
        (
            [
                str(row.stage),
                row.precision,
                figure(row.latency_ms),
                figure(row.same_class, ".1%"),
                figure(row.same_exit, ".1%"),
                f"{'kept: ' if row.chosen else ''}{row.remark}",
            ]
            for row in choices
        ),
        left=[""],
    )


def show_engines(engines: Engines) -> None:
    """How the engines were built."""
    platform = engines.platform
    machine = {
        "": platform.device or "built ahead of time, without a GPU",
        "CUDA ": platform.cuda,
        "L4T ": platform.l4t,
        "power mode ": platform.power_mode,
    }
    show_table(
        f"{platform.backend} {platform.version} for compute capability "
        + ", ".join(platform.compute_capabilities),
        ["stage", "precision", "built in", "kernels at batch 1", "warnings"],
        (
            [
                str(k),
                plan.precision,
                f"{plan.seconds:.1f} s{' (cached)' if plan.cached else ''}",
                ", ".join(f"{n} {kind}" for kind, n in (plan.planned or {}).items())
                or "not listed",
                str(len(plan.warnings)),
            ]
            for k, plan in enumerate(engines.plans, start=1)
        ),
        left=["kernels at batch 1"],
        caption=(
            f"{', '.join(engines.flags)}; workspace {engines.workspace_mb} MiB; "
            + ", ".join(f"{name}{value}" for name, value in machine.items() if value)
        ),
    )
    if engines.preprocess_ms:
        times = ", ".join(f"{ms:.2f} ms on the {at}" for at, ms in engines.preprocess_ms.items())
        show(f"frames become images on the {engines.preprocess}: to the end of stage 1 {times}")
