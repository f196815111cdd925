"""Millijoules per exit: idle first, then windows over varied mixes of exits, then least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import cycle

import numpy as np

from dvt_edge.bundle.measurement import EnergyFigures, PacedTiming
from dvt_edge.energy import Meter, Window, energy_per_exit
from dvt_edge.energy.opening import OR_DECLARE
from dvt_edge.machine.clock import Clock
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.measuring.timing import ForcedExits

IDLE_WINDOWS = 3
WINDOWS_PER_DURATION = 4
"""A window takes this part of the duration that was asked for."""
MARGIN = 1.1
"""Windows are longer than what the meter resolves by this factor."""


class EnergyRun:
    """The energy part of one measurement: :meth:`idle`, :meth:`work`, then :attr:`figures`.

    Never raises for what a sensor does: the figures hold the reason instead.
    """

    def __init__(self, meter: Meter, duration_s: float) -> None:
        self._meter = meter
        self._window_s = duration_s / WINDOWS_PER_DURATION
        self._idle: list[Window] = []
        self.figures = EnergyFigures(source=meter.source, unavailable=meter.unavailable)
        needed_s = meter.min_seconds * MARGIN
        if meter.unavailable is None and self._window_s < needed_s:
            self._fail(
                f"{meter.source} needs windows of {needed_s:.2g} s, and the duration leaves "
                f"{self._window_s:.2g} s; give --duration "
                f"{math.ceil(needed_s * WINDOWS_PER_DURATION)} or more"
            )

    def idle(self, clock: Clock, progress: Progress = silent) -> None:
        """Let the machine rest, with the model loaded."""
        rests = [partial(clock.sleep, self._window_s)] * IDLE_WINDOWS
        self._idle = self._measure("energy, idle", rests, progress)

    def work(self, exits: ForcedExits, clock: Clock, progress: Progress = silent) -> None:
        """Run the mixes, one window each, and fit."""
        counts: list[list[int]] = []

        def run(pattern: Sequence[int]) -> None:
            counts.append([0] * exits.count)
            until = clock.now() + self._window_s
            for exit_at in cycle(pattern):
                exits.run(exit_at)
                counts[-1][exit_at] += 1
                if clock.now() >= until:
                    break

        mixes = [partial(run, pattern) for pattern in mix_patterns(exits.count)]
        windows = self._measure("energy, exits", mixes, progress)
        if self.figures.unavailable is not None:
            return
        found = energy_per_exit(counts, windows, self._idle)
        if min(found.gross_mj) <= 0:
            self._fail(
                "noise hides the energy of single exits; give a longer --duration and end other "
                "programs"
            )
            return
        seconds = sum(window.seconds for window in (*self._idle, *windows))
        self.figures = EnergyFigures(source=self._meter.source, seconds=seconds, **vars(found))

    def _measure(
        self, what: str, runs: Sequence[Callable[[], None]], progress: Progress
    ) -> list[Window]:
        """A window for each of ``runs``, until one has no figures."""
        windows: list[Window] = []
        for run in runs:
            if self.figures.unavailable is not None:
                break
            progress(what, len(windows), len(runs))
            with self._meter.window() as window:
                run()
            windows.append(window)
            if window.unavailable is not None:
                self._fail(window.unavailable)
        if self.figures.unavailable is None:
            progress(what, len(runs), len(runs))
        return windows

    def _fail(self, reason: str) -> None:
        self.figures = EnergyFigures(source=self._meter.source, unavailable=reason)


def mix_patterns(exits: int) -> list[list[int]]:
    """Orders of exits (from 0) to run again and again, one per window.

    Each exit alone, which tells them apart best, and mixes of all of them, with the early and the
    late ones more often: three windows more than exits, for the standard errors.
    """
    alone = [[k] for k in range(exits)]
    even = list(range(exits))
    late = [k for k in even for _ in range(k + 1)]
    early = [k for k in even for _ in range(exits - k)]
    return [even, *alone, late, early]


def declared_figures(
    watts: Sequence[float],
    timing: PacedTiming,
    instead_of: str,
    idle_watts: float | None = None,
) -> EnergyFigures:
    """Declared power times the time of the last exit's stages; ``watts`` [K], one per stage.

    It is as good as the declared figures, and says nothing about what the software does but how
    long it takes. Preprocessing draws what the first stage does. ``instead_of`` says why nothing
    was measured. With ``idle_watts``, the power at rest, the energy above it is known as well.
    """
    longest = timing.exits[-1]
    stage_ms = [stage.mean_ms for stage in longest.stages]
    stage_ms[0] += longest.preprocess.mean_ms
    energy = np.cumsum(np.multiply(watts, stage_ms))  # W * ms = mJ
    reason = instead_of.removesuffix(OR_DECLARE)
    shown = " / ".join(f"{value:g}" for value in dict.fromkeys(watts))
    return EnergyFigures(
        source=f"declared: energy.watts {shown} W times measured time, because {reason}",
        declared=True,
        gross_mj=tuple(energy.tolist()),
        idle_mw=None if idle_watts is None else 1e3 * idle_watts,
        net_mj=(
            None
            if idle_watts is None
            else tuple((energy - idle_watts * np.cumsum(stage_ms)).tolist())
        ),
    )
