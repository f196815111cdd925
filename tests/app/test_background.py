"""Slow sinks keep up or leave frames out; the camera does not wait, unless it must."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import pytest

from dvt_edge.app.background import DEPTH, Background
from dvt_edge.app.loop import Seen
from dvt_edge.app.outputs import Outputs
from tests.app.conftest import Kept, seen, wait_until

Notes = list[tuple[str, str]]


class _Slow(Kept):
    """Waits before every answer until it may go on; refuses those with odd numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Semaphore(0)

    def take(self, seen: Seen) -> None:
        assert self.go_on.acquire(timeout=30)
        if seen.frame.seq % 2:
            raise OSError("odd")
        super().take(seen)

    def summary(self) -> dict[str, Any]:
        return {"frames": len(self.seen)}


def test_what_there_is_no_time_for_is_left_out_and_counted(notes: Notes) -> None:
    slow = _Slow()
    sink = Background("slow", slow, lambda *note: notes.append(note), every_frame=False)
    started = time.monotonic()
    for k in range(0, 80, 2):
        sink.take(seen(k))
    assert time.monotonic() - started < 5
    assert 40 - DEPTH - 1 <= sink.left_out <= 40 - DEPTH
    for _ in range(40):
        slow.go_on.release()
    sink.close()
    assert sink.summary() == {
        "frames": 40 - sink.left_out,
        "left_out": sink.left_out,
        "failures": 0,
    }
    assert (slow.closed, notes) == (1, [])


def test_every_frame_waits(notes: Notes) -> None:
    slow = _Slow()
    sink = Background("slow", slow, lambda *note: notes.append(note), every_frame=True)
    giver = threading.Thread(target=lambda: deque(map(sink.take, map(seen, range(0, 60, 2))), 0))
    giver.start()
    for _ in range(30):
        slow.go_on.release()
    giver.join()
    sink.close()
    assert [item.frame.seq for item in slow.seen] == list(range(0, 60, 2))
    assert sink.left_out == 0


def test_failures_are_noted_once_and_counted(notes: Notes) -> None:
    slow = _Slow()
    sink = Background("slow", slow, lambda *note: notes.append(note), every_frame=True)
    for k in range(6):
        slow.go_on.release()
        sink.take(seen(k))
    sink.close()
    assert [item.frame.seq for item in slow.seen] == [0, 2, 4]
    assert sink.failures == 3
    assert notes == [("output_failed", "slow: odd; what else fails there is only counted")]


def test_a_person_does_not_wait_for_what_is_slow(notes: Notes) -> None:
    """What is left counts as left out once the frame at work is done."""
    slow = _Slow()
    sink = Background("slow", slow, lambda *note: notes.append(note), every_frame=False)
    for k in range(0, 40, 2):
        sink.take(seen(k))
    sink.patience_s = 0.05
    with pytest.raises(TimeoutError):
        sink.close()
    slow.go_on.release()
    wait_until(lambda: slow.closed == 1)
    assert len(slow.seen) == 1
    assert sink.left_out == 19


def test_outputs_say_whether_anything_is_missing() -> None:
    """Whatever is left out on purpose is no failure."""
    for odd, complete in ((0, True), (1, False)):
        slow = _Slow()
        with Outputs(every_frame=True) as outputs:
            outputs.add_slow("slow", slow)
            slow.go_on.release()
            outputs.sinks.take(seen(odd))
        assert outputs.complete == complete
        assert outputs.summary()["slow"]["failures"] == odd
