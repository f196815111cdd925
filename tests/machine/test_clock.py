"""The real clock; nothing here asserts how long anything takes."""

from __future__ import annotations

import threading

import pytest

from dvt_edge.errors import EnergyError
from dvt_edge.machine import clock as clock_module
from dvt_edge.machine.clock import RealClock

PATIENCE = 60.0
"""Seconds until a test that waits for a thread gives up."""


def _threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "dvt-edge-energy"]


def test_time_increases():
    clock = RealClock()
    before = clock.now()
    clock.sleep(0.001)
    assert before < clock.now()


def test_ticks_come_until_cancelled():
    ticked = threading.Semaphore(0)

    def tick() -> bool:
        ticked.release()
        return True

    cancel = RealClock().every(0.001, tick)
    for _ in range(3):
        assert ticked.acquire(timeout=PATIENCE)
    cancel()
    assert not _threads()
    cancel()  # twice does no harm


def test_false_ends_the_ticks():
    ticks = []

    def tick() -> bool:
        ticks.append(1)
        return False

    cancel = RealClock().every(0.001, tick)
    for thread in _threads():
        thread.join(PATIENCE)
    assert not _threads()
    cancel()
    assert ticks == [1]


def test_cancelling_does_not_wait_for_the_next_tick():
    cancel = RealClock().every(1e6, lambda: True)
    cancel()
    assert not _threads()


def test_a_sensor_that_hangs(monkeypatch):
    """It is reported instead of waited for."""
    monkeypatch.setattr(clock_module, "JOIN_SECONDS", 0.01)
    entered, leave = threading.Event(), threading.Event()

    def tick() -> bool:
        entered.set()
        return not leave.wait(PATIENCE)

    cancel = RealClock().every(0.001, tick)
    assert entered.wait(PATIENCE)
    with pytest.raises(EnergyError, match="has not answered"):
        cancel()
    leave.set()
    for thread in _threads():
        thread.join(PATIENCE)
