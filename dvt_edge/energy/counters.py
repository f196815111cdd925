"""Meters that read an energy counter at both ends of a window."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack

from dvt_edge.energy.meter import Counted, Meter
from dvt_edge.errors import EnergyError

POLL_SECONDS = 30.0
"""Read in between as well, so that a counter that starts again from 0 does so at most once between
two readings: the smallest range, 65 kJ, takes 36 minutes at 30 W and one at 1,000 W."""


Reader = Callable[[], Mapping[str, float]]
"""Reads all counters now: rail -> millijoules since some start; raises EnergyError."""


class CounterMeter(Meter):
    """A meter of energy counters, one per rail."""

    ranges_mj: Mapping[str, float]
    """What each rail's counter holds before it starts again from 0; a rail that is not in it never
    does while its driver is loaded."""

    @abstractmethod
    def opened(self) -> AbstractContextManager[Reader]:
        """Something that reads the counters quickly, while it is open; raises EnergyError."""

    def start(self) -> CounterCount:
        return CounterCount(self)


class CounterCount:
    """One window: the last reading of each counter and what was added up."""

    def __init__(self, meter: CounterMeter) -> None:
        self._clock = meter.clock
        self._ranges_mj = meter.ranges_mj
        self._problem: EnergyError | None = None
        with ExitStack() as stack:
            self._read = stack.enter_context(meter.opened())
            self._last = self._read()
            self._started = self._clock.now()
            self._sums = dict.fromkeys(self._last, 0.0)
            self._cancel = self._clock.every(POLL_SECONDS, self._add)
            self._opened = stack.pop_all()

    def _add(self) -> bool:
        """Add what was counted since the last reading; False when the counter failed."""
        try:
            now = self._read()
        except EnergyError as problem:
            self._problem = problem
            return False
        for name, value in now.items():
            difference = value - self._last[name]
            if difference < 0 and name not in self._ranges_mj:
                self._problem = EnergyError(
                    f"the counter of {name} went back: its driver was loaded anew; measure again"
                )
                return False
            if difference < 0:
                difference += self._ranges_mj[name]
            self._sums[name] += difference
        self._last = now
        return True

    def stop(self) -> Counted:
        self._cancel()  # where this raises, a read is under way: its descriptors stay open
        with self._opened:
            if not self._problem:
                self._add()
            ended = self._clock.now()
        if self._problem:
            raise self._problem
        return Counted(ended - self._started, self._sums)
