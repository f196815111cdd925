"""Millijoules per exit from windows over varied mixes of exits.

One frame is shorter than a sample of the power, so no single frame is measured. Several windows
are, each over many frames whose exits are counted, with other shares of the exits in each; least
squares then tells the exits apart.

Gross energy is all that was used while a frame was worked on. Net energy is what it took beyond
the same time at idle, which is measured first, in the same power mode and with the model loaded.

    idle = [window_of(nothing), window_of(nothing), window_of(nothing)]
    windows = [window_of(frames) for frames in mixes]  # 10 s and more each
    energy = energy_per_exit(counts, windows, idle)
    energy.net_mj, energy.net_error_mj
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.energy.meter import Window

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class ExitEnergy:
    """What a frame that leaves at each exit takes, in millijoules."""

    idle_mw: float
    """Mean power without work."""
    gross_mj: tuple[float, ...]
    """[K]: idle power included."""
    net_mj: tuple[float, ...]
    """[K]: beyond idle power over the same time."""
    gross_error_mj: tuple[float, ...]
    """[K]: standard error of ``gross_mj``."""
    net_error_mj: tuple[float, ...]
    """[K]: standard error of ``net_mj``, the idle power's included."""


def energy_per_exit(
    counts: Sequence[Sequence[int]], windows: Sequence[Window], idle: Sequence[Window]
) -> ExitEnergy:
    """Tell the exits apart.

    ``counts`` [windows, K] are the frames that left at each exit. Among ``windows`` is one for each
    exit alone, and one more, which the standard errors need. In ``idle``, two windows or more,
    nothing was run. All have figures and about the same length, and frames came back to back.
    """
    frames = np.array(counts, float)
    energy, seconds = _figures(windows)
    idle_energy, idle_seconds = _figures(idle)
    power = idle_energy / idle_seconds
    idle_mw, idle_error_mw = power.mean(), power.std(ddof=1) / np.sqrt(len(power))
    solve = np.linalg.pinv(frames)  # (K, windows)
    spread = np.linalg.norm(solve, axis=1)  # of an exit, per unit of a window's noise
    freedom = len(frames) - frames.shape[1]

    def fit(target: Floats) -> tuple[Floats, Floats]:
        """[K]: millijoules of each exit, and their standard errors."""
        fitted = solve @ target
        noise = np.sqrt(((target - frames @ fitted) ** 2).sum() / freedom)
        return fitted, noise * spread

    gross, gross_error = fit(energy)
    net, net_error = fit(energy - idle_mw * seconds)
    # The idle power is one figure for all windows: its error moves every exit by its own time.
    net_error = np.hypot(net_error, idle_error_mw * (solve @ seconds))
    by_exit = (tuple(found.tolist()) for found in (gross, net, gross_error, net_error))
    return ExitEnergy(float(idle_mw), *by_exit)


def _figures(windows: Sequence[Window]) -> tuple[Floats, Floats]:
    """Millijoules and seconds [windows]."""
    energy = np.array([window.energy_mj for window in windows], float)
    return energy, np.array([window.seconds for window in windows])
