"""Figures of one camera: of the whole run, and of its last minutes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

WINDOW_S = 120.0
"""Rates and percentiles are those of so many seconds."""
KEPT = 1 << 15
"""Answers that percentiles are taken of, at most."""


@dataclass(frozen=True)
class Spread:
    """Median and 99th percentile."""

    p50: float
    p99: float

    def __str__(self) -> str:
        return f"{self.p50:.3g} / {self.p99:.3g}"


@dataclass(frozen=True)
class Lately:
    """The last minutes."""

    fps: float
    latency_ms: Spread
    age_ms: Spread
    """Of frames, when they were answered."""
    exits: tuple[float, ...]
    """Share of each exit."""


class Figures:
    """Counts answers; one thread notes them, any may read."""

    def __init__(self, exits: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.exits = [0] * exits
        """Answers of each exit, of the whole run."""
        self.latency_ms = 0.0
        """Sum over the whole run."""
        self._clock, self._started = clock, clock()
        self._rows = np.zeros((KEPT, 4))
        """When, latency, age, exit; overwritten in turn."""
        self._count = 0

    def note(self, exit_stage: int, latency_ms: float, age_ms: float) -> None:
        """One answer."""
        self._rows[self._count % KEPT] = (self._clock(), latency_ms, age_ms, exit_stage)
        self._count += 1
        self.exits[exit_stage - 1] += 1
        self.latency_ms += latency_ms

    def lately(self) -> Lately | None:
        """None where there was no answer in that time."""
        now, count = self._clock(), self._count
        rows = self._rows[: min(count, KEPT)]
        rows = rows[rows[:, 0] >= now - WINDOW_S]
        if not len(rows):
            return None
        since = max(self._started, now - WINDOW_S)
        if count > KEPT:
            since = max(since, float(rows[:, 0].min()))
        p50, p99 = np.percentile(rows[:, 1:3], (50, 99), axis=0)
        exits = np.bincount(rows[:, 3].astype(int), minlength=len(self.exits) + 1)[1:]
        return Lately(
            len(rows) / max(now - since, 1e-3),
            Spread(float(p50[0]), float(p99[0])),
            Spread(float(p50[1]), float(p99[1])),
            tuple((exits / len(rows)).tolist()),
        )
