"""Millijoules per exit from windows over varied mixes of exits.

One frame is shorter than a sample of the power, so no single frame is measured. Several windows
are, each over many frames whose exits are counted, with other shares of the exits in each; least
squares then tells the exits apart.

Gross energy is all that was used while a frame was worked on. Net energy is what it took beyond
the same time at idle, which is measured first, in the same power mode and with the model loaded.

    idle = IdlePower.of([window_of(nothing), window_of(nothing), window_of(nothing)])
    mixes = [Mix.of(counts, window_of(frames)) for counts, frames in ...]  # 10 s and more each
    energy = energy_per_exit(mixes, idle)
    energy.net_mj, energy.net_error_mj
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.energy.meter import Window
from dvt_edge.errors import EnergyError

Floats = npt.NDArray[np.float64]
RANK_TOLERANCE = 1e-6
"""Smallest singular value, as a share of the largest, of counts scaled to equal columns."""


@dataclass(frozen=True)
class Mix:
    """One window: how many frames left at each exit, and what that took."""

    counts: tuple[int, ...]
    """[K]: frames that left at each exit."""
    energy_mj: float
    """Gross."""
    seconds: float

    @classmethod
    def of(cls, counts: Sequence[int], window: Window) -> Mix:
        """A measured window; raises EnergyError, with the window's reason, if it has no figures."""
        return cls(tuple(int(n) for n in counts), _measured(window), window.seconds)


@dataclass(frozen=True)
class IdlePower:
    """What is used without work."""

    mean_mw: float
    error_mw: float = 0.0
    """Standard error of ``mean_mw``; 0 where a single window tells nothing about it."""

    @classmethod
    def of(cls, windows: Sequence[Window]) -> IdlePower:
        """Of one or more windows of the same length; raises EnergyError as :meth:`Mix.of` does."""
        if not windows:
            raise EnergyError("idle power needs at least one window in which nothing was run")
        power = [_measured(window) / window.seconds for window in windows]
        error = np.std(power, ddof=1) / np.sqrt(len(power)) if len(power) > 1 else 0.0
        return cls(float(np.mean(power)), float(error))


def _measured(window: Window) -> float:
    """The window's millijoules."""
    if window.energy_mj is None:
        raise EnergyError(f"energy is unavailable: {window.unavailable}")
    return window.energy_mj


@dataclass(frozen=True)
class ExitEnergy:
    """What a frame that leaves at each exit takes, in millijoules."""

    gross_mj: Floats
    """[K]: idle power included."""
    net_mj: Floats
    """[K]: beyond idle power over the same time."""
    gross_error_mj: Floats
    """[K]: standard error of ``gross_mj``."""
    net_error_mj: Floats
    """[K]: standard error of ``net_mj``, the idle power's included."""


def energy_per_exit(mixes: Sequence[Mix], idle: IdlePower) -> ExitEnergy:
    """Tell the exits of ``mixes`` apart; windows of about the same length, frames back to back.

    Raises :class:`~dvt_edge.errors.EnergyError` for fewer windows than exits and one more, which
    the standard error needs, and for mixes that leave the exits' energies undetermined.
    """
    counts, energy, seconds = _checked(mixes, idle)
    net_energy = energy - idle.mean_mw * seconds
    inverse = np.linalg.inv(counts.T @ counts)  # (K, K)
    solve = inverse @ counts.T  # (K, windows)
    gross, net = solve @ energy, solve @ net_energy
    freedom = len(counts) - counts.shape[1]
    spread = np.sqrt(np.diag(inverse))  # of an exit, per unit of a window's noise

    def noise(fitted: Floats, target: Floats) -> float:
        return float(np.sqrt(((target - counts @ fitted) ** 2).sum() / freedom))

    # The idle power is one figure for all windows: its error moves every exit by its own time.
    from_idle = idle.error_mw * (solve @ seconds)
    net_error = np.hypot(noise(net, net_energy) * spread, from_idle)
    return ExitEnergy(gross, net, noise(gross, energy) * spread, net_error)


def _checked(mixes: Sequence[Mix], idle: IdlePower) -> tuple[Floats, Floats, Floats]:
    """Counts [windows, K], energy and seconds [windows]; raises EnergyError."""
    exits = len(mixes[0].counts) if mixes else 0
    if not exits or any(len(mix.counts) != exits for mix in mixes):
        raise EnergyError("every window needs the count of frames at each exit, of the same exits")
    if len(mixes) < exits + 1:
        raise EnergyError(
            f"{exits} exits need at least {exits + 1} windows with different mixes of them, "
            f"found {len(mixes)}"
        )
    counts = np.array([mix.counts for mix in mixes], float)
    energy = np.array([mix.energy_mj for mix in mixes])
    seconds = np.array([mix.seconds for mix in mixes])
    figures = (counts, energy, seconds, np.array([idle.mean_mw, idle.error_mw]))
    if not all(np.isfinite(f).all() for f in figures) or any((f < 0).any() for f in figures):
        raise EnergyError("counts, energies, seconds and idle power are finite and not negative")
    never = np.flatnonzero(counts.sum(axis=0) == 0) + 1
    if len(never):
        raise EnergyError(
            f"no frame left at {_named(never)} in any window; measure one with thresholds that "
            "let frames leave there"
        )
    _, values, vectors = np.linalg.svd(counts / np.linalg.norm(counts, axis=0))
    if values[-1] < RANK_TOLERANCE * values[0]:
        mixed = np.flatnonzero(np.abs(vectors[-1]) > 0.1) + 1
        raise EnergyError(
            f"the windows do not tell {_named(mixed)} apart: their counts change in step; measure "
            "windows with other shares of them, such as one for each exit alone"
        )
    return counts, energy, seconds


def _named(exits: npt.NDArray[np.intp]) -> str:
    """``exit 2``, ``exits 1 and 3``."""
    names = [str(number) for number in exits]
    last = f" and {names[-1]}" if len(names) > 1 else names[-1]
    return f"exit{'s' if len(names) > 1 else ''} {', '.join(names[:-1])}{last}"
