"""Between the thread that reads a source and the one that hands pictures on, in the decoder's
process: one place for the newest picture, or a short queue where none may be left out."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dvt_edge.camera.causes import ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.slots import TALLY, Counters

Loss = Literal["superseded", "late", "held", "damaged"]
QUEUE = 3
"""Pictures decoded ahead where none may be left out."""
FRESH_S = 0.2
"""A camera's picture that nobody asked for in this time is old; a newer one is waited for."""


class DamagedError(Exception):
    """A picture cannot be decoded; the message says what is wrong."""


@dataclass(frozen=True)
class Picture:
    """One that waits to be asked for."""

    seq: int
    captured_at: float
    put_at: float
    render: Callable[[], Pixels]
    """Gives the pixels, BGR or gray, in memory that the next call may reuse; or raises
    :class:`DamagedError`."""


class Mailbox:
    """Every picture that is received is put or lost, and so counted once."""

    def __init__(self, tally: Counters, base: int, *, keep_all: bool, camera: bool) -> None:
        self._tally, self._base = tally, base
        self._keep_all, self._camera = keep_all, camera
        self._waiting: deque[Picture] = deque()
        self._change = threading.Condition()
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Readable when something has changed."""
        self.failure: ReadingError | None = None
        """Set by the reading thread as its last act."""
        self.heard_at = time.monotonic()
        """When anything came from the source."""
        self.opened = False
        """Whether a whole picture has come."""
        self.bad_since: float | None = None
        """Since when pictures come and none is whole."""
        self.pausing = False
        """Whether the reading thread waits on purpose."""
        self.damage = ""
        """What was wrong with the last picture that was not whole."""

    def put(self, render: Callable[[], Pixels], captured_at: float, *, tried: bool = True) -> None:
        """A picture that may be given; waits for its place where none may be left out.

        ``tried``: it is known to be whole. Else that shows when it is rendered; only the first
        whole one must be tried before.
        """
        with self._change:
            self._count("received")
            now = self.heard_at = time.monotonic()
            if tried:
                self.opened, self.bad_since = True, None
            if self._keep_all:
                self.pausing = True
                self._change.wait_for(lambda: len(self._waiting) < QUEUE)
                self.heard_at = time.monotonic()
                self.pausing = False
            elif self._waiting:
                self._waiting.clear()
                self._count("superseded")
            seq = self._base + int(self._tally[0]) - 1
            self._waiting.append(Picture(seq, captured_at, now, render))
        self._notify()

    def lose(self, why: Loss, damage: str = "") -> None:
        """A picture that was received and cannot be given."""
        with self._change:
            self._count("received")
            self._count(why)
            self.heard_at = time.monotonic()
            if why != "late":
                self._bad(damage)
        if damage:
            self._notify()

    def pause_until(self, when: float) -> None:
        """Let the reading thread sleep; that is no stall."""
        self.pausing = True
        time.sleep(max(0.0, when - time.monotonic()))
        self.heard_at = time.monotonic()
        self.pausing = False

    def end(self, failure: ReadingError) -> None:
        """Nothing more comes."""
        self.failure = failure
        self._notify()

    def take(self) -> tuple[Picture, Pixels] | None:
        """The newest picture, or the next in turn, with its pixels; None where none is there.

        Those too old are lost, as are those that prove damaged.
        """
        while True:
            with self._change:
                if not self._waiting:
                    return None
                picture = self._waiting.popleft()
                self._change.notify()
                if self._camera and time.monotonic() - picture.put_at > FRESH_S:
                    self._count("late")
                    continue
            try:
                pixels = picture.render()
            except DamagedError as error:
                with self._change:
                    self._count("damaged")
                    self._bad(str(error))
                continue
            with self._change:
                self._count("given")
                self.bad_since = None
            return picture, pixels

    @property
    def is_empty(self) -> bool:
        return not self._waiting

    def drain_wake(self) -> None:
        """Before looking for changes."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.wake)

    def _bad(self, damage: str) -> None:
        self.bad_since = self.bad_since or time.monotonic()
        self.damage = damage or self.damage

    def _count(self, what: str) -> None:
        self._tally[TALLY.index(what)] += 1

    def _notify(self) -> None:
        os.eventfd_write(self.wake, 1)
