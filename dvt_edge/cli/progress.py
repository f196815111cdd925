"""Progress on standard error: bars on a terminal, elsewhere a line every ten seconds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from time import monotonic

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from dvt_edge.progress import Progress

LINE_SECONDS = 10.0
"""Between two lines where there is no terminal; what takes less time prints none."""


@contextlib.contextmanager
def shown_progress() -> Iterator[Progress]:
    """Yield what shows progress until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Bars(*columns, console=console) as bars:
        tasks = {}

        def update(what: str, done: float, total: float, remark: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, remark=remark)
            bars.update(tasks[what], completed=done, remark=remark)

        yield update


def _lines() -> Progress:
    last = monotonic()

    def update(what: str, done: float, total: float, remark: str = "") -> None:
        nonlocal last
        now = monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            click.echo(f"{what}: {done:.4g} of {total:.4g}{remark and f', {remark}'}", err=True)

    return update
