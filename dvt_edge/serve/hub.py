"""What the loop hands over and viewers fetch."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

from dvt_edge.app.sinks import Note, Seen
from dvt_edge.serve.seconds import Seconds

EVENTS_KEPT = 50


@dataclass(frozen=True)
class State:
    """What changes now and then."""

    values: dict[str, Any] | None = None
    """Budget, what the records say of it, promise; None before anyone looked."""
    steps: dict[str, Any] | None = None
    """Of the slider; None until they are solved for."""


class Newest(NamedTuple):
    """A frame with its answer. Whoever has used it keeps the number, never the frame: its memory
    may be one of few places that the camera writes to."""

    number: int
    """From 1, of all that were taken."""
    seen: Seen


class Hub:
    """The newest frame of each camera, events, and the state; one per page.

    The loop's thread calls :meth:`take`, any one thread at a time :meth:`event`; everything else
    belongs to the server's event loop. Viewers look for themselves: waking them would cost the
    loop's thread a system call, and often its turn at Python.
    """

    def __init__(self, seconds: Seconds) -> None:
        self.seconds = seconds
        self.frames = 0
        self.last_frame_at: float | None = None
        """``time.monotonic`` of the last answer."""
        self.events: tuple[tuple[int, Note], ...] = ()
        """The last ones, numbered from 1; replaced as a whole, so that any thread may read."""
        self.state = State()
        self.viewers = 0
        self.ended = asyncio.Event()
        """The run is over; viewers are to leave."""
        self._newest: dict[str, Newest] = {}

    def take(self, seen: Seen) -> None:
        """The newest frame."""
        self.frames += 1
        self._newest[seen.source] = Newest(self.frames, seen)
        self.last_frame_at = time.monotonic()
        self.seconds.note(seen)

    def event(self, note: Note) -> None:
        number = self.events[-1][0] + 1 if self.events else 1
        self.events = (*self.events, (number, note))[-EVENTS_KEPT:]

    @property
    def sources(self) -> list[str]:
        """Names of the cameras that gave a frame."""
        return list(self._newest)

    def newest(self, source: str | None) -> Newest | None:
        """The newest frame of ``source``, or of the first camera where that gave none."""
        if source in self._newest:
            return self._newest[source]
        return next(iter(self._newest.values()), None)

    @property
    def quiet_s(self) -> float | None:
        """Seconds since the last answer; None before the first."""
        last = self.last_frame_at
        return None if last is None else time.monotonic() - last
