"""Millijoules per exit: idle first, then windows over varied mixes of exits, then least squares."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import cycle

from dvt_edge.bundle.measurement import EnergyFigures, PacedTiming
from dvt_edge.energy import (
    IdlePower,
    Meter,
    Mix,
    Window,
    declared_exit_mj,
    energy_per_exit,
)
from dvt_edge.energy.opening import OR_DECLARE
from dvt_edge.errors import EnergyError
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
        self.window_s = duration_s / WINDOWS_PER_DURATION
        self.figures = EnergyFigures(source=meter.source)
        needed_s = meter.min_seconds * MARGIN
        if meter.unavailable is not None:
            self._fail(meter.unavailable)
        elif self.window_s < needed_s:
            self._fail(
                f"{meter.source} needs windows of {needed_s:.2g} s, and the duration leaves "
                f"{self.window_s:.2g} s; give --duration "
                f"{math.ceil(needed_s * WINDOWS_PER_DURATION)} or more"
            )
        self._idle: IdlePower | None = None
        self._seconds = 0.0

    @property
    def available(self) -> bool:
        """Whether nothing has kept it from having figures so far."""
        return self.figures.unavailable is None

    def idle(self, clock: Clock, progress: Progress = silent) -> None:
        """Let the machine rest, with the model loaded."""
        windows: list[Window] = []
        for done in range(IDLE_WINDOWS if self.available else 0):
            progress("energy, idle", done, IDLE_WINDOWS)
            with self._meter.window() as window:
                clock.sleep(self.window_s)
            windows.append(window)
            self._seconds += window.seconds
            if not self._has_figures(window):
                return
        if windows:
            self._idle = IdlePower.of(windows)
            progress("energy, idle", IDLE_WINDOWS, IDLE_WINDOWS)

    def work(self, exits: ForcedExits, clock: Clock, progress: Progress = silent) -> None:
        """Run the mixes, one window each, and fit."""
        if self._idle is None or not self.available:
            return
        mixes: list[Mix] = []
        patterns = mix_patterns(exits.count)
        for done, pattern in enumerate(patterns):
            progress("energy, exits", done, len(patterns))
            counts = [0] * exits.count
            with self._meter.window() as window:
                until = clock.now() + self.window_s
                for exit_at in cycle(pattern):
                    exits.run(exit_at)
                    counts[exit_at] += 1
                    if clock.now() >= until:
                        break
            self._seconds += window.seconds
            if not self._has_figures(window):
                return
            mixes.append(Mix.of(counts, window))
        progress("energy, exits", len(patterns), len(patterns))
        self._fit(mixes, self._idle)

    def _fit(self, mixes: Sequence[Mix], idle: IdlePower) -> None:
        try:
            found = energy_per_exit(mixes, idle)
        except EnergyError as error:
            self._fail(str(error))
            return
        if found.gross_mj.min() <= 0:
            self._fail(
                "noise hides the energy of single exits; give a longer --duration and end other "
                "programs"
            )
            return
        self.figures = EnergyFigures(
            source=self._meter.source,
            idle_mw=idle.mean_mw,
            gross_mj=tuple(found.gross_mj.tolist()),
            net_mj=tuple(found.net_mj.tolist()),
            gross_error_mj=tuple(found.gross_error_mj.tolist()),
            net_error_mj=tuple(found.net_error_mj.tolist()),
            seconds=self._seconds,
        )

    def _has_figures(self, window: Window) -> bool:
        if window.unavailable is not None:
            self._fail(window.unavailable)
        return window.unavailable is None

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


def declared_figures(watts: Sequence[float], timing: PacedTiming, instead_of: str) -> EnergyFigures:
    """Declared power times the time of the last exit's stages; ``watts`` [K], one per stage.

    ``instead_of`` says why nothing was measured. Raises :class:`~dvt_edge.errors.EnergyError` for
    figures that do not fit the stages.
    """
    longest = timing.exits[-1]
    energy = declared_exit_mj(
        watts, [stage.mean_ms for stage in longest.stages], longest.preprocess.mean_ms
    )
    reason = instead_of.removesuffix(OR_DECLARE)
    shown = " / ".join(f"{value:g}" for value in dict.fromkeys(watts))
    return EnergyFigures(
        source=f"declared: energy.watts {shown} W times measured time, because {reason}",
        declared=True,
        gross_mj=tuple(energy.tolist()),
    )
