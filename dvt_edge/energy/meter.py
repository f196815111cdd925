"""What every meter offers: windows of time with the energy that was used in them.

What cannot be measured has no figure, and a reason instead: energy is never 0 by default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock, RealClock

STILL_OPEN = "the window is still open; read its figures after the with block"


@dataclass
class Window:
    """What was used inside a ``with meter.window()`` block; the figures come when it ends."""

    source: str
    """What was measured, for people: ``INA3221 VDD_IN (module total)``."""
    seconds: float = 0.0
    """Length of the window."""
    energy_mj: float | None = None
    """Gross energy in millijoules, idle power included; None where ``unavailable`` says why."""
    rails_mj: Mapping[str, float] | None = None
    """The same by rail. A rail may contain others, so these do not add up to ``energy_mj``."""
    samples: int | None = None
    """Readings of the power in the window; None for meters that do not sample."""
    unavailable: str | None = STILL_OPEN
    """Why there are no figures, and what to do about it; None where there are."""

    @property
    def mean_mw(self) -> float | None:
        """Mean power in milliwatts."""
        return None if self.energy_mj is None else self.energy_mj / self.seconds


@dataclass(frozen=True)
class Counted:
    """What a meter counted in one window."""

    seconds: float
    rails_mj: Mapping[str, float]
    samples: int | None = None


class Count(Protocol):
    """A window in progress."""

    def stop(self) -> Counted:
        """End it and free what it holds, also where it raises EnergyError."""


class Meter(ABC):
    """Measures energy between two moments. ``open_meter`` finds the one of a machine."""

    min_seconds = 0.0
    """Shorter windows have no figures: the meter cannot resolve them."""
    refresh_hz: float | None = None
    """How often the power is sampled, or the counter moves; None where that has no meaning."""

    def __init__(
        self,
        source: str,
        total_rails: tuple[str, ...] = (),
        unavailable: str | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.source = source
        """What is measured, for people."""
        self.total_rails = total_rails
        """Names of the rails that add up to a window's ``energy_mj``."""
        self.unavailable = unavailable
        """Why nothing can be measured, and what to do about it; None where it can."""
        self.clock: Clock = clock or RealClock()

    @abstractmethod
    def start(self) -> Count:
        """Begin to count; raises :class:`~dvt_edge.errors.EnergyError` if that is impossible."""

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Count while the ``with`` block runs.

        Never raises: a window that could not be measured says so in ``unavailable``.
        """
        window = Window(self.source)
        count, problem = None, self.unavailable
        if problem is None:
            try:
                count = self.start()
            except EnergyError as error:
                problem = str(error)
        started = self.clock.now()
        try:
            yield window
        finally:
            window.seconds = self.clock.now() - started
            if count is not None:
                try:
                    problem = self._fill(window, count.stop())
                except EnergyError as error:
                    problem = str(error)
            window.unavailable = problem

    def _fill(self, window: Window, counted: Counted) -> str | None:
        """Enter what was counted into ``window``, or say why it is worth nothing."""
        window.seconds, window.samples = counted.seconds, counted.samples
        if counted.seconds < self.min_seconds:
            return (
                f"a window of {counted.seconds:.2g} s is too short for {self.source}: repeat the "
                f"work until it takes at least {self.min_seconds:g} s"
            )
        energy = sum(counted.rails_mj[name] for name in self.total_rails)
        if energy <= 0:
            return f"{self.source} counted no energy: the sensor answers, but measures nothing here"
        window.energy_mj, window.rails_mj = energy, dict(counted.rails_mj)
        return None


class UnavailableMeter(Meter):
    """Stands where nothing can be measured; its windows hold the reason."""

    def __init__(self, reason: str, clock: Clock | None = None) -> None:
        super().__init__("unavailable", unavailable=reason, clock=clock)

    def start(self) -> Count:
        raise EnergyError(str(self.unavailable))
