"""Meters that read a power again and again and integrate it over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dvt_edge.energy.meter import Counted, Meter
from dvt_edge.energy.sensor_files import open_file, read_file
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock

SAMPLES_PER_SECOND = 50.0
"""A register takes about 0.55 ms to read: eight of them, four rails, fill a fifth of a period."""
MIN_SECONDS = 0.5
"""25 periods: what the power does within one of them is then a few percent of the window."""
MIN_SAMPLES = 20
"""Fewer in a window of :data:`MIN_SECONDS` or more, and the thread was kept from sampling."""
MAX_GAP_SECONDS = 0.5
"""What happened in a longer gap between two samples is anybody's guess."""


@dataclass(frozen=True)
class Rail:
    """A supply whose power is the product of what its files hold."""

    name: str
    files: tuple[Path, ...]
    """Voltage and current, or the power alone."""
    mw_per_unit: float
    """Milliwatts per unit of the product: 1e-3 for mV and mA, and for a power in uW."""


class Trapezoid:
    """Integral of a power over time, the power being linear between its samples."""

    def __init__(self) -> None:
        self.samples = 0
        self.longest_gap = 0.0
        """Seconds between the two neighbouring samples that are farthest apart."""
        self._inside_mj = 0.0
        self._first = self._last = (0.0, 0.0)  # s, mW

    def add(self, now: float, power_mw: float) -> None:
        """The power at ``now``, which is no earlier than the last sample's."""
        if self.samples:
            seconds = now - self._last[0]
            self._inside_mj += seconds * (power_mw + self._last[1]) / 2
            self.longest_gap = max(self.longest_gap, seconds)
        else:
            self._first = now, power_mw
        self._last = now, power_mw
        self.samples += 1

    def energy_mj(self, start: float, end: float) -> float:
        """The integral from ``start`` to ``end``, which enclose the samples: before the first and
        after the last one the power is taken to be theirs."""
        before = (self._first[0] - start) * self._first[1]
        after = (end - self._last[0]) * self._last[1]
        return before + self._inside_mj + after


class SampledMeter(Meter):
    """Integrates the power of ``rails``, read :data:`SAMPLES_PER_SECOND` times a second."""

    min_seconds = MIN_SECONDS
    refresh_hz = SAMPLES_PER_SECOND

    def __init__(
        self,
        source: str,
        rails: Sequence[Rail],
        total_rails: tuple[str, ...],
        skipped: tuple[str, ...] = (),
        clock: Clock | None = None,
    ) -> None:
        super().__init__(source, total_rails, clock=clock)
        self.rails = tuple(rails)
        self.skipped = skipped
        """Channels that the board has but that are not read, each with the reason."""

    def start(self) -> SampledCount:
        return SampledCount(self)


class SampledCount:
    """One window: open files, the integrals, and the ticks that sample."""

    def __init__(self, meter: SampledMeter) -> None:
        self._clock = meter.clock
        self._integrals = {rail.name: Trapezoid() for rail in meter.rails}
        self._problem: EnergyError | None = None
        with ExitStack() as opened:
            self._rails = [
                (rail, [open_file(path, opened) for path in rail.files]) for rail in meter.rails
            ]
            self._started = self._clock.now()
            self._sample()
            if self._problem:
                raise self._problem
            self._cancel = self._clock.every(1 / SAMPLES_PER_SECOND, self._sample)
            self._files = opened.pop_all()

    def _sample(self) -> bool:
        """Read all rails once; False when one of them failed, which ends the sampling."""
        try:
            for rail, files in self._rails:
                before = self._clock.now()
                power_mw = rail.mw_per_unit * math.prod(map(read_file, files))
                # Voltage and current are a register read apart: their product is of the middle.
                middle = (before + self._clock.now()) / 2
                self._integrals[rail.name].add(middle, power_mw)
        except EnergyError as problem:
            self._problem = problem
        return self._problem is None

    def stop(self) -> Counted:
        self._cancel()  # where this raises, a read is under way: its descriptors stay open
        with self._files:
            if not self._problem:
                self._sample()
        if self._problem:
            raise self._problem
        ended = self._clock.now()
        seconds = ended - self._started
        integrals = self._integrals.values()
        samples = min(integral.samples for integral in integrals)
        gap = max(integral.longest_gap for integral in integrals)
        # Shorter windows are refused for being short.
        if seconds >= MIN_SECONDS and (samples < MIN_SAMPLES or gap > MAX_GAP_SECONDS):
            raise EnergyError(
                f"{samples} samples in {seconds:.3g} s, up to {gap:.2g} s apart: the sampling "
                "thread did not get to run; leave it a CPU core (engine.threads in the profile)"
            )
        rails_mj = {
            name: integral.energy_mj(self._started, ended)
            for name, integral in self._integrals.items()
        }
        return Counted(seconds, rails_mj, samples)
