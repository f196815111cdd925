"""Figures of each second."""

from __future__ import annotations

from dvt_edge.serve.seconds import WINDOW_S, Seconds
from tests.conftest import HandClock
from tests.serve.conftest import made_seen


def test_a_second_is_told_once_it_is_over() -> None:
    """Sums, not means, so that seconds can be added up."""
    clock = HandClock(5000)
    seconds = Seconds(3, lambda: 1.5, clock)
    seconds.note(made_seen(1, exit_stage=1, latency_ms=1.0, energy_mj=2.0))
    seconds.note(made_seen(2, exit_stage=3, latency_ms=4.0, dropped_before=3))
    assert seconds.rows(0, 5) == []
    (row,) = seconds.rows(0, 6)
    age_ms = row.pop(4)
    assert age_ms is not None
    assert age_ms > 0
    assert row == [5, 1.5, 5.0, 4.0, 2.0, 1, 3, 1, 0, 1]
    assert seconds.rows(5, 6) == []


def test_only_the_last_minutes_are_kept() -> None:
    clock = HandClock()
    seconds = Seconds(3, lambda: None, clock)
    for _ in range(WINDOW_S + 50):
        clock.ms += 1000
        seconds.note(made_seen())
    clock.ms += 1000
    rows = seconds.rows(0, seconds.now)
    assert len(rows) == WINDOW_S
    assert rows[-1][0] == seconds.now - 1
    assert rows[0][1] is None


def test_a_second_that_ends_while_it_is_read_comes_once() -> None:
    """Whoever asks says which second it is: what was over then, not what is over now."""
    clock = HandClock(5999)
    seconds = Seconds(3, lambda: None, clock)
    seconds.note(made_seen())
    now = seconds.now
    clock.ms = 6000
    assert seconds.rows(0, now) == []
    assert [row[0] for row in seconds.rows(now - 1, seconds.now)] == [5]
