"""The clock of the meters, and what calls them again and again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from dvt_edge.errors import EnergyError

JOIN_SECONDS = 5.0
"""How long a sensor may take to answer; the kernel gives up an I2C transfer after about 1 s."""


class Timer(Protocol):
    """Time, and ticks; tests bring one that takes no time."""

    def now_ns(self) -> int:
        """Nanoseconds that only increase, from any start."""

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        """Call ``tick`` every ``seconds`` until it returns False.

        The result ends that; after it has returned, ``tick`` neither runs nor is called again.
        """


class ThreadTimer:
    """The real timer: ticks come from one thread per :meth:`every`."""

    def now_ns(self) -> int:
        return time.monotonic_ns()

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        stop = threading.Event()

        def run() -> None:
            due = time.monotonic()
            while True:
                # A late tick is not made up for: the next one comes a period after it.
                due = max(due + seconds, time.monotonic())
                if stop.wait(max(0.0, due - time.monotonic())) or not tick():
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
