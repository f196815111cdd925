"""A sink that takes its time, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from queue import Full, Queue
from typing import Any, Protocol

from dvt_edge.app.sinks import MakeNote, Note, Seen, Sink

DEPTH = 8
"""Frames that wait; they are whole pictures."""


class SlowSink(Sink, Protocol):
    """One that compresses pictures."""

    def summary(self) -> dict[str, Any]:
        """What came of it, once closed."""


class Background:
    """Hands answers to ``sink`` in a thread of its own, so that the camera's loop does not wait.

    Frames that come while :data:`DEPTH` wait are left out and counted, unless ``every_frame``:
    then the loop does wait. What ``sink`` raises is noted once and counted.
    """

    def __init__(self, name: str, sink: SlowSink, note: MakeNote, *, every_frame: bool) -> None:
        self.left_out = 0
        """Frames for which there was no time."""
        self.failures = 0
        self.patience_s = 10.0
        """How long :meth:`close` waits for the frames that are left."""
        self._name, self._sink, self._note, self._every_frame = name, sink, note, every_frame
        self._waiting: Queue[Seen | None] = Queue(DEPTH)
        self._hurry = self._closed = False
        self._thread = threading.Thread(target=self._work, name=f"dvt-edge {name}", daemon=True)
        self._thread.start()

    def take(self, seen: Seen) -> None:
        if self._every_frame:
            self._waiting.put(seen)
            return
        try:
            self._waiting.put_nowait(seen)
        except Full:
            self.left_out += 1

    def event(self, event: Note) -> None:
        """Pictures know no events."""

    def close(self) -> None:
        """Raises :class:`TimeoutError` where the sink does not come to an end."""
        until = time.monotonic() + self.patience_s
        try:
            self._waiting.put(None, timeout=self.patience_s)
        except Full:
            self._hurry = True
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._hurry = True
            self._thread.join(self.patience_s)
        if self._thread.is_alive():
            raise TimeoutError("it does not come to an end")

    def summary(self) -> dict[str, Any]:
        """That of the sink, and what was left out."""
        return self._sink.summary() | {"left_out": self.left_out, "failures": self.failures}

    def _work(self) -> None:
        try:
            while not self._hurry and (seen := self._waiting.get()) is not None:
                self._try(partial(self._sink.take, seen))
            self.left_out += sum(seen is not None for seen in self._rest())
        finally:
            self._try(self._sink.close)

    def _rest(self) -> list[Seen | None]:
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]

    def _try(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # whatever it is: the camera goes on
            self.failures += 1
            if self.failures == 1:
                reason = str(error) or type(error).__name__
                self._note(
                    "output_failed",
                    f"{self._name}: {reason}; what else fails there is only counted",
                )
