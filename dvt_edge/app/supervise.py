"""Watching over camera loops from the main thread: signals, time, systemd."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType

from rich.console import Console
from typing_extensions import Self

from dvt_edge.app.live import Display
from dvt_edge.app.loop import CameraLoop
from dvt_edge.app.outputs import Outputs
from dvt_edge.runtime.runtime import Runtime

TICK_S = 0.1
"""Between two looks at signals and time."""
WATCHDOG_S = 1.0
"""Between two signs of life for systemd."""
PATIENCE_S = 0.5
"""How long the loops may take to end after they were told to."""
HANGS_S = 30.0
"""A frame that is at work for so long hangs; systemd's watchdog is not told otherwise."""


class Signals:
    """Notes SIGINT and SIGTERM instead of dying of them; the second one acts as ever.

    A context manager. Off the main thread, where signals cannot be had, it does nothing.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        """``SIGINT`` or ``SIGTERM``."""
        self._before: dict[int, object] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Only this: a lock that is taken here may be held by the code that was interrupted.
        self.received = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)  # type: ignore[arg-type]  # what it was before

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()


def notify_systemd(state: str) -> None:
    """Send ``state`` to systemd, where it asked for that; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), address)
        except OSError:
            return  # systemd restarts what it does not hear of; no more can be done


def watch_over(
    loops: Sequence[CameraLoop],
    signals: Signals,
    *,
    duration_s: float | None = None,
    gone: Callable[[], bool] = lambda: False,
    failed: Callable[[CameraLoop], None] = lambda loop: None,
) -> str:
    """Wait until all ``loops`` have ended, or the Runtime failed, or it is time to stop them.

    ``gone`` says whether nobody reads any more, which stops them, too. ``failed`` is called with a
    camera that failed while others go on. Returns what ended it: ``source``, ``frames``, ``error``
    (one of them failed), ``duration``, ``reader``, ``SIGINT`` or ``SIGTERM``.
    """
    started = time.monotonic()
    alive_at = 0.0
    told: set[CameraLoop] = set()
    notify_systemd("READY=1")
    while True:
        now = time.monotonic()
        if any(loop.broken for loop in loops):
            return "error"
        if all(loop.ended.is_set() for loop in loops):
            if any(loop.error for loop in loops):
                return "error"
            return "frames" if any(loop.enough for loop in loops) else "source"
        for loop in loops:
            if loop.error is not None and loop not in told:
                told.add(loop)
                failed(loop)
        if signals.received:
            return signals.received
        if duration_s is not None and now - started >= duration_s:
            return "duration"
        if gone():
            return "reader"
        if now - alive_at >= WATCHDOG_S and all(loop.working_s < HANGS_S for loop in loops):
            alive_at = now
            notify_systemd("WATCHDOG=1")
        left = TICK_S if duration_s is None else min(TICK_S, started + duration_s - now)
        waiting = next((loop for loop in loops if not loop.ended.is_set()), None)
        if waiting is not None:
            waiting.ended.wait(max(0.0, left))


@dataclass(frozen=True)
class Ended:
    """How a run came to its end."""

    by: str
    """What :func:`watch_over` says."""
    seconds: float
    stuck: bool
    """A frame does not end: the Runtime, which waits for it, cannot be closed."""
    promise: dict[str, str] | None
    """``state`` and ``sentence`` at the end; None where it is stuck."""


def run_to_the_end(
    loops: Sequence[CameraLoop],
    outputs: Outputs,
    runtime: Runtime,
    console: Console,
    *,
    duration_s: float | None = None,
) -> Ended:
    """Start ``loops``, show them on ``console``, stop them when it is time, close ``outputs``."""
    with Signals() as signals:
        with Display(loops, lambda: runtime.promise.sentence, console) as display:
            started = time.monotonic()
            for loop in loops:
                loop.start()
            by = watch_over(
                loops,
                signals,
                duration_s=duration_s,
                gone=lambda: outputs.reader_gone or display.reader_gone,
                failed=lambda loop: outputs.sinks.note("camera_failed", str(loop.error), loop.name),
            )
            stuck = not stop_all(loops) and any(loop.working_s for loop in loops)
            seconds = time.monotonic() - started
        promise = None
        if not stuck:
            now = runtime.promise
            promise = {"state": now.state, "sentence": now.sentence}
        if signals.received:
            outputs.hurry()
        outputs.close()
    return Ended(by, seconds, stuck, promise)


def stop_all(loops: Sequence[CameraLoop]) -> bool:
    """Stop them; returns whether all have ended, within :data:`PATIENCE_S`."""
    for loop in loops:
        loop.stop()
    until = time.monotonic() + PATIENCE_S
    ended = [loop.join(until - time.monotonic()) for loop in loops]
    return all(ended)
