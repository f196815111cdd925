"""Meters that read their sensors at both ends of a window and again and again in between."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext

from dvt_edge.energy.meter import Counted, Meter
from dvt_edge.energy.sensor_files import Rail, UnreadableError
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock

SAMPLES_PER_SECOND = 50.0
"""A register takes about 0.55 ms to read: eight of them, four rails, fill a fifth of a period."""


class PolledMeter(Meter):
    """Adds up, rail by rail, what was used between one reading and the next."""

    period_s = 30.0
    """Seconds between readings. An energy counter that starts again from 0 does so at most once in
    the default: the smallest range, 65 kJ, takes 36 minutes at 30 W and one at 1,000 W."""
    min_readings = 0
    """Fewer in a window, and the thread was kept from reading."""
    max_gap_s = math.inf
    """What happened in a longer gap between two readings is anybody's guess."""

    @abstractmethod
    def read(self) -> Mapping[str, float]:
        """Rail -> what its sensor shows now; raises EnergyError."""

    @abstractmethod
    def used_mj(self, rail: str, before: float, after: float, seconds: float) -> float:
        """Energy between two readings of ``rail``, ``seconds`` apart; raises EnergyError."""

    def session(self) -> AbstractContextManager[None]:
        """Surrounds the readings of one window; raises EnergyError."""
        return nullcontext()

    def start(self) -> PolledCount:
        return PolledCount(self)


class PolledCount:
    """One window: the last reading and what was added up."""

    def __init__(self, meter: PolledMeter) -> None:
        self._meter = meter
        self._readings = 1
        self._longest_gap_s = 0.0
        self._problem: EnergyError | None = None
        with ExitStack() as stack:
            stack.enter_context(meter.session())
            self._read_at, self._last = self._read()
            self._started = self._read_at
            self._sums = dict.fromkeys(self._last, 0.0)
            self._cancel = meter.clock.every(meter.period_s, self._add)
            self._session = stack.pop_all()

    def _read(self) -> tuple[float, Mapping[str, float]]:
        """The middle of the time that reading all rails took, and what they show."""
        before = self._meter.clock.now()
        try:
            shown = self._meter.read()
        except UnreadableError as error:
            raise EnergyError(
                f"the sensor vanished while measuring: {error}; measure again, and if it happens "
                "again look for its driver in the kernel's log (sudo dmesg)"
            ) from None
        return (before + self._meter.clock.now()) / 2, shown

    def _add(self) -> bool:
        """Add what was used since the last reading; False when a sensor failed."""
        try:
            now, shown = self._read()
            seconds = now - self._read_at
            for rail, value in shown.items():
                self._sums[rail] += self._meter.used_mj(rail, self._last[rail], value, seconds)
        except EnergyError as problem:
            self._problem = problem
            return False
        self._read_at, self._last = now, shown
        self._readings += 1
        self._longest_gap_s = max(self._longest_gap_s, seconds)
        return True

    def stop(self) -> Counted:
        self._cancel()  # where this raises, a read is under way: its session stays open
        with self._session:
            if not self._problem:
                self._add()
        if self._problem:
            raise self._problem
        meter = self._meter
        seconds = self._read_at - self._started
        lost = self._readings < meter.min_readings or self._longest_gap_s > meter.max_gap_s
        if lost and seconds >= meter.min_seconds:  # shorter windows are refused for being short
            raise EnergyError(
                f"{self._readings} samples in {seconds:.3g} s, up to {self._longest_gap_s:.2g} s "
                "apart: the sampling thread did not get to run; leave it a CPU core "
                "(engine.threads in the profile)"
            )
        return Counted(seconds, self._sums)


class SampledMeter(PolledMeter):
    """Integrates the power of ``rails``, which is taken to be linear between its samples."""

    min_seconds = 0.5  # 25 periods: what the power does within one is then a few percent of it
    refresh_hz = SAMPLES_PER_SECOND
    period_s = 1 / SAMPLES_PER_SECOND
    min_readings = 20
    max_gap_s = 0.5

    def __init__(
        self, source: str, rails: list[Rail], total_rails: tuple[str, ...], clock: Clock | None
    ) -> None:
        super().__init__(source, total_rails, clock)
        self._rails = rails

    def read(self) -> Mapping[str, float]:
        return {rail.name: rail.read_mw() for rail in self._rails}

    def used_mj(self, rail: str, before: float, after: float, seconds: float) -> float:
        return seconds * (before + after) / 2
