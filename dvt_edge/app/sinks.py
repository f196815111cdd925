"""Where answers and events go, and handing them to several places none of which stops another."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Protocol

from dvt_edge.app.frames import Frame
from dvt_edge.runtime.prediction import Prediction

PATIENCE_S = 0.3
"""How long closing waits for a sink that is still at work, such as one whose reader has stopped."""

MakeNote = Callable[[str, str], None]
"""Called with the kind and the reason of something that happened; never blocks."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A frame and its answer."""

    source: str
    """The camera, its password left out."""
    frame: Frame
    prediction: Prediction
    age_ms: float
    """From the capture of the frame to its answer."""
    time: float
    """When it was captured, in seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Note:
    """Something that happened: to a camera, the Runtime or an output."""

    kind: str
    """Such as ``thresholds_changed``; for programs."""
    reason: str
    """For people."""
    source: str | None = None
    """The camera that it concerns; None where it concerns all."""
    cause: str | None = None
    """Why a camera gives no frames, for programs."""
    time: float = field(default_factory=time.time)
    """Seconds since 1970."""


class Sink(Protocol):
    """Takes answers and events; called by one thread at a time, which waits for it."""

    def take(self, seen: Seen) -> None:
        """The next answer."""

    def event(self, event: Note) -> None:
        """Something happened."""

    def close(self) -> None:
        """Nothing more comes; called once."""


class _Entry:
    def __init__(self, name: str, sink: Sink, source: str | None) -> None:
        self.name, self.sink, self.source = name, sink, source
        self.turn = threading.Lock()
        """Held while one of its methods runs."""


class Sinks:
    """Hands everything to each sink, from any thread.

    What a sink raises is noted once and counted in :attr:`failures`; it stays, and the others do
    not notice. Answers are handed over by the thread that classifies, which waits. Events are
    handed over by a thread of their own, so that :meth:`event` never blocks: cameras call it while
    they hold locks.
    """

    def __init__(self) -> None:
        self._entries: tuple[_Entry, ...] = ()
        self._coming: SimpleQueue[Note | None] = SimpleQueue()
        self._teller = threading.Thread(target=self._tell, name="dvt-edge events", daemon=True)
        self._closed = False
        self.failures: Counter[str] = Counter()
        """By the name of the sink."""
        self.events = 0
        """That were handed over."""
        self._teller.start()

    def add(self, name: str, sink: Sink, source: str | None = None) -> None:
        """``sink`` gets what comes from now on, with a ``source`` the answers of that camera only;
        closing goes from the last to the first."""
        self._entries = (*self._entries, _Entry(name, sink, source))

    def take(self, seen: Seen) -> None:
        """Hand an answer to every sink; nothing happens once closed."""
        if self._closed:
            return
        for entry in self._entries:
            if entry.source in (None, seen.source):
                self._call(entry, lambda sink: sink.take(seen))

    def event(self, event: Note) -> None:
        """Let every sink know soon."""
        self._coming.put(event)

    def note(self, kind: str, reason: str, source: str | None = None) -> None:
        """:meth:`event`, of its parts."""
        self.event(Note(kind, reason, source))

    def close(self) -> None:
        """Close every sink, once it was told what happened; twice does nothing."""
        if self._closed:
            return
        self._closed = True
        self._coming.put(None)
        self._teller.join(PATIENCE_S)
        while self._entries:
            *others, last = self._entries
            self._entries = tuple(others)
            self._call(last, lambda sink: sink.close(), PATIENCE_S)
            self._tell_now()  # what came of it, to those that are still open
        self._coming.put(None)  # the other one was for a thread that was late

    def _tell(self) -> None:
        while (event := self._coming.get()) is not None:
            self._tell_one(event)

    def _tell_now(self) -> None:
        while True:
            try:
                event = self._coming.get_nowait()
            except Empty:
                return
            if event is not None:
                self._tell_one(event, PATIENCE_S)

    def _tell_one(self, event: Note, patience_s: float = -1) -> None:
        self.events += 1
        for entry in self._entries:
            self._call(entry, lambda sink: sink.event(event), patience_s)

    def _call(self, entry: _Entry, what: Callable[[Sink], None], patience_s: float = -1) -> None:
        try:
            if not entry.turn.acquire(timeout=patience_s):
                raise TimeoutError("it does not come to an end")
            try:
                what(entry.sink)
            finally:
                entry.turn.release()
        except Exception as error:  # whatever it is: the camera goes on
            self.failures[entry.name] += 1
            if self.failures[entry.name] == 1:
                reason = str(error) or type(error).__name__
                self.note(
                    "output_failed",
                    f"{entry.name}: {reason}; what else fails there is only counted",
                )
