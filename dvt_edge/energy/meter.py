"""What every meter offers: windows of time with the energy that was used in them.

What cannot be measured has no figure, and a reason instead: energy is never 0 by default.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock, RealClock


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
    unavailable: str | None = "the window is still open; read its figures after the with block"
    """Why there are no figures, and what to do about it; None where there are."""


@dataclass(frozen=True)
class Counted:
    """What a meter counted in one window."""

    seconds: float
    rails_mj: Mapping[str, float]


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
    unavailable: str | None = None
    """Why nothing can be measured, and what to do about it; None where it can."""

    def __init__(
        self, source: str, total_rails: tuple[str, ...] = (), clock: Clock | None = None
    ) -> None:
        self.source = source
        """What is measured, for people."""
        self.total_rails = total_rails
        """Names of the rails that add up to a window's ``energy_mj``."""
        self.clock: Clock = clock or RealClock()

    @abstractmethod
    def start(self) -> Count:
        """Begin to count; raises :class:`~dvt_edge.errors.EnergyError` if that is impossible."""

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Count while the ``with`` block runs.

        Never raises: a window that could not be measured says so in ``unavailable``.
        """
        window, count = Window(self.source), None
        try:
            count = self.start()
        except EnergyError as error:
            window.unavailable = str(error)
        started = self.clock.now()
        try:
            yield window
        finally:
            window.seconds = self.clock.now() - started
            if count is not None:
                try:
                    self._fill(window, count.stop())
                except EnergyError as error:
                    window.unavailable = str(error)

    def _fill(self, window: Window, counted: Counted) -> None:
        """Enter what was counted into ``window``; raises EnergyError where it is worth nothing."""
        window.seconds = counted.seconds
        if counted.seconds < self.min_seconds:
            raise EnergyError(
                f"a window of {counted.seconds:.2g} s is too short for {self.source}: repeat the "
                f"work until it takes at least {self.min_seconds:g} s"
            )
        energy = sum(counted.rails_mj[name] for name in self.total_rails)
        if not 0 < energy < math.inf:
            raise EnergyError(
                f"{self.source} counted no energy: the sensor answers, but measures nothing here"
            )
        window.energy_mj, window.rails_mj = energy, counted.rails_mj
        window.unavailable = None


class UnavailableMeter(Meter):
    """Stands where nothing can be measured; its windows hold the reason."""

    def __init__(self, reason: str, clock: Clock | None = None) -> None:
        super().__init__("unavailable", clock=clock)
        self.unavailable = reason

    def start(self) -> Count:
        raise EnergyError(str(self.unavailable))
