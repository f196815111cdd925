"""Time, as measurements and meters see it: one protocol, so that a test can play it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Protocol

from dvt_edge.errors import EnergyError

JOIN_SECONDS = 5.0
"""How long a sensor may take to answer; the kernel gives up an I2C transfer after about 1 s."""


class Clock(Protocol):
    """Seconds that only increase, pauses and ticks; tests bring one that takes no time."""

    def now(self) -> float:
        """Seconds from any start."""

    def sleep(self, seconds: float) -> None:
        """Let ``seconds`` pass without work: the processor may lower its clocks meanwhile."""

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        """Call ``tick``, which reads a sensor, every ``seconds`` until it returns False.

        The result ends that; after it has returned, ``tick`` neither runs nor is called again.
        """


class RealClock:
    """The clock of the machine: ticks come from one thread per :meth:`every`."""

    def now(self) -> float:
        return time.perf_counter()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        stop = threading.Event()

        def run() -> None:
            due = self.now()
            while True:
                # A late tick is not made up for: the next one comes a period after it.
                due = max(due + seconds, self.now())
                if stop.wait(max(0.0, due - self.now())) or not tick():
                    return

        thread = threading.Thread(target=run, name="dvt-edge-energy", daemon=True)
        thread.start()

        def cancel() -> None:
            """Raises EnergyError when a sensor does not answer for :data:`JOIN_SECONDS`."""
            stop.set()
            thread.join(JOIN_SECONDS)
            if thread.is_alive():
                raise EnergyError(
                    f"the sensor has not answered for {JOIN_SECONDS:g} s; look for I2C errors in "
                    "the kernel's log (sudo dmesg) and restart the board"
                )

        return cancel


def now_utc() -> str:
    """The time, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
