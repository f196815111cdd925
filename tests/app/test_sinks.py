"""One sink does not stop another, nor the camera."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import replace

from dvt_edge.app.loop import Note, Seen, Sinks
from tests.app.conftest import Kept, seen, wait_until


class _Broken(Kept):
    def take(self, seen: Seen) -> None:
        raise ValueError("out of paper")

    def event(self, event: Note) -> None:
        raise ValueError("out of paper")


class _Stuck(Kept):
    """Hangs with the first answer."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go_on = threading.Event(), threading.Event()

    def take(self, seen: Seen) -> None:
        self.entered.set()
        self.go_on.wait(30)


def test_a_sink_that_fails_is_noted_once_and_counted() -> None:
    """The others get everything, also that it failed."""
    sinks, broken, kept = Sinks(), _Broken(), Kept()
    sinks.add("printer", broken)
    sinks.add("kept", kept)
    for k in range(5):
        sinks.take(seen(k))
    sinks.note("news", "something", "camera")
    sinks.close()
    assert [item.frame.seq for item in kept.seen] == list(range(5))
    assert kept.kinds == ["output_failed", "news"]
    assert kept.events[0].reason.startswith("printer: out of paper")
    assert sinks.failures["printer"] >= 6
    assert (broken.closed, kept.closed) == (1, 1)
    assert sinks.events == 2


def test_what_closing_brings_up_is_told_to_those_before() -> None:
    """The last one is closed first."""
    sinks, kept, last = Sinks(), Kept(), Kept()
    sinks.add("kept", kept)
    sinks.add("last", last)
    last.close = lambda: sinks.note("lost", "a frame")  # type: ignore[method-assign]
    sinks.close()
    sinks.close()
    assert (kept.kinds, kept.closed) == (["lost"], 1)
    sinks.take(seen())
    assert kept.seen == []


def test_a_sink_that_hangs_stops_neither_events_nor_the_end() -> None:
    """Cameras report events while they hold locks, and a person waits for the end."""
    sinks, kept, stuck = Sinks(), Kept(), _Stuck()
    sinks.add("kept", kept)
    sinks.add("stuck", stuck)
    threading.Thread(target=sinks.take, args=[seen()], daemon=True).start()
    assert stuck.entered.wait(10)
    for _ in range(100):
        sinks.note("news", "something")
    started = time.monotonic()
    sinks.close()
    assert time.monotonic() - started < 5
    assert kept.closed == 1
    assert sinks.failures["stuck"] >= 1
    stuck.go_on.set()


def test_events_of_many_threads_all_arrive() -> None:
    sinks, kept = Sinks(), Kept()
    sinks.add("kept", kept)
    threads = [
        threading.Thread(target=lambda: deque(map(sinks.note, ["news"] * 200, "x" * 200), 0))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(kept.events) == 800)
    sinks.close()


def test_a_sink_of_one_camera() -> None:
    """It gets that camera's answers, and all events."""
    sinks, one, both = Sinks(), Kept(), Kept()
    sinks.add("one", one, "left")
    sinks.add("both", both)
    for source in ("left", "right", "left"):
        sinks.take(replace(seen(), source=source))
    sinks.note("news", "something", "right")
    sinks.close()
    assert [item.source for item in one.seen] == ["left", "left"]
    assert [item.source for item in both.seen] == ["left", "right", "left"]
    assert one.kinds == both.kinds == ["news"]
