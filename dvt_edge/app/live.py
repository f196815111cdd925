"""How the cameras do, for people: a table that moves on a terminal, elsewhere a line at times."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from typing_extensions import Self

from dvt_edge.app.loop import CameraLoop

REFRESH_S = 0.5
"""Between two states of the table: drawing it takes some milliseconds from the stages."""
LINE_S = 10.0
"""Between two lines where there is no terminal."""
PATIENCE_S = 0.3
"""How long the end waits for a display that is at work."""


class Display:
    """Shows ``loops`` on ``console`` until the block ends, from a thread of its own.

    ``promise`` gives the state of the budget as a sentence; it may have to wait for a frame.
    """

    def __init__(
        self, loops: Sequence[CameraLoop], promise: Callable[[], str], console: Console
    ) -> None:
        self._loops, self._promise, self._console = loops, promise, console
        self.reader_gone = False
        """The other end of the pipe that the lines go to is closed."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._show, name="dvt-edge display", daemon=True)

    def _show(self) -> None:
        try:
            if self._console.is_terminal:
                self._show_table()
            else:
                self._show_lines()
        except (OSError, SystemExit):  # rich makes the latter of a broken pipe
            self.reader_gone = True

    def _show_lines(self) -> None:
        while not self._ending.wait(LINE_S):
            promise = self._promise()
            for loop in self._loops:
                self._console.print(status_line(loop, promise), soft_wrap=True)

    def _show_table(self) -> None:
        with ExitStack() as shown:
            live = shown.enter_context(
                Live(
                    console=self._console,
                    auto_refresh=False,
                    transient=True,
                    redirect_stdout=False,
                    # Notes appear above the table, unless standard error goes elsewhere.
                    redirect_stderr=Console(stderr=True).is_terminal,
                )
            )
            while not self._ending.wait(REFRESH_S):
                live.update(status_table(self._loops, self._promise()), refresh=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join(PATIENCE_S)


def status_values(loop: CameraLoop) -> dict[str, str]:
    """What is shown of one camera; p50 / p99, shares and rate are those of the last minutes."""
    counts, lately = loop.counts, loop.figures.lately()
    return {
        "camera": loop.state,
        "frames": f"{counts.answered} answered, {counts.dropped} dropped, {counts.failed} failed",
        "fps": f"{lately.fps:.1f}" if lately else "-",
        "latency": f"{lately.latency_ms} ms" if lately else "-",
        "age": f"{lately.age_ms} ms" if lately else "-",
        "exits": " / ".join(f"{100 * s:.1f}" for s in lately.exits) + " %" if lately else "-",
    }


def status_line(loop: CameraLoop, promise: str) -> str:
    """One camera in one line."""
    values = status_values(loop)
    return (
        f"{loop.name}: {values['camera']}; {values['frames']}; {values['fps']} fps; latency "
        f"{values['latency']}, age {values['age']} (p50 / p99); exits {values['exits']}; {promise}"
    )


def status_table(loops: Sequence[CameraLoop], promise: str) -> Group:
    """All cameras, one column each, and the budget."""
    table = Table()
    heads = {
        "camera": "camera",
        "frames": "frames",
        "fps": "frames per second",
        "latency": "latency, p50 / p99",
        "age": "age at the answer, p50 / p99",
        "exits": "exits",
    }
    table.add_column("the last 2 minutes")
    for loop in loops:
        table.add_column(loop.name, overflow="fold")
    columns = [status_values(loop) for loop in loops]
    for key, head in heads.items():
        table.add_row(head, *(values[key] for values in columns))
    return Group(table, promise)
