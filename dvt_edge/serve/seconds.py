"""What the answers of each second of the last minutes came to."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dvt_edge.app.sinks import Seen

WINDOW_S = 300
"""How many seconds are kept."""


@dataclass
class Second:
    """The answers of one second."""

    at: int
    """Its number."""
    limit_ms: float | None
    """The budget's ``latency_ms`` at its first answer."""
    exits: list[int]
    """[K]: answers of each exit."""
    latency_ms: float = 0.0
    """Sum."""
    slowest_ms: float = 0.0
    age_ms: float = 0.0
    """Sum over the frames, when they were answered."""
    energy_mj: float = 0.0
    """Sum over those that have one."""
    with_energy: int = 0
    dropped: int = 0
    """Frames that were never classified."""

    @property
    def row(self) -> list[float | None]:
        """For the page: number, limit, latency, slowest, age, energy, answers with an energy,
        dropped, answers of each exit."""
        return [
            self.at,
            self.limit_ms,
            round(self.latency_ms, 4),
            round(self.slowest_ms, 4),
            round(self.age_ms, 2),
            round(self.energy_mj, 4),
            self.with_energy,
            self.dropped,
            *self.exits,
        ]


class Seconds:
    """Notes answers in one thread, for others to read.

    ``limit_ms`` gives the budget's ``latency_ms`` when asked.
    """

    def __init__(
        self,
        exits: int,
        limit_ms: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._exits, self._limit_ms, self._clock = exits, limit_ms, clock
        self._lock = threading.Lock()
        self._kept: deque[Second] = deque(maxlen=WINDOW_S)

    @property
    def now(self) -> int:
        """Number of this second."""
        return int(self._clock())

    def note(self, seen: Seen) -> None:
        """One answer."""
        answer = seen.prediction
        with self._lock:
            now = self.now  # under the lock: a second that was read as over takes no more answers
            if not self._kept or self._kept[-1].at != now:
                self._kept.append(Second(now, self._limit_ms(), [0] * self._exits))
            second = self._kept[-1]
            second.exits[answer.exit_stage - 1] += 1
            second.latency_ms += answer.latency_ms
            second.slowest_ms = max(second.slowest_ms, answer.latency_ms)
            second.age_ms += seen.frame.age_ms
            second.dropped += seen.frame.dropped_before
            if answer.energy_mj is not None:
                second.energy_mj += answer.energy_mj
                second.with_energy += 1

    def rows(self, after: int, now: int) -> list[list[float | None]]:
        """The seconds later than ``after`` that were over in second ``now``."""
        with self._lock:
            return [second.row for second in self._kept if after < second.at < now]
