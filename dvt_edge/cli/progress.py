"""Progress bars on standard error; silent where it is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Update(Protocol):
    """Moves one bar."""

    def __call__(self, what: str, done: int, total: int, remark: str = "") -> None: ...


@contextlib.contextmanager
def step_progress(*, quiet: bool) -> Iterator[Update]:
    """Yield a function to call with what is being done, steps done, steps in all, and a remark."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bars:
        tasks = {}

        def update(what: str, done: int, total: int, remark: str = "") -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, remark=remark)
            bars.update(tasks[what], completed=done, remark=remark)

        yield update


@contextlib.contextmanager
def rate_progress(*, quiet: bool) -> Iterator[Callable[[int, int, float], None]]:
    """Yield a function to call with images done, images in all and images per second."""
    with step_progress(quiet=quiet) as update:
        yield lambda done, total, rate: update("images", done, total, f"{rate:.1f}/s")
