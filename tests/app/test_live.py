"""What people see while it runs."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from dvt_edge.app import live
from dvt_edge.app.figures import KEPT, WINDOW_S, Figures, Lately, Spread
from dvt_edge.app.live import Display, status_line, status_table
from dvt_edge.app.loop import CameraLoop, Sinks
from tests.app.conftest import PlayedCamera, PlayedFrame, PlayedRuntime, wait_until
from tests.conftest import HandClock


def _figures() -> tuple[Figures, HandClock]:
    clock = HandClock()
    return Figures(3, clock), clock


def test_figures_of_the_last_minutes() -> None:
    figures, clock = _figures()
    assert figures.lately() is None
    for k in range(200):
        clock.sleep(0.1)
        figures.note(1 + (k % 4 == 0), 1.0 + k % 100 / 100, 10.0)
    lately = figures.lately()
    assert lately is not None
    assert lately.fps == pytest.approx(10)
    assert lately.latency_ms.p50 == pytest.approx(1.495)
    assert lately.latency_ms.p99 == pytest.approx(1.98, abs=0.011)
    assert lately.age_ms == Spread(10.0, 10.0)
    assert lately.exits == (0.75, 0.25, 0.0)
    assert figures.exits == [150, 50, 0]
    assert figures.latency_ms == pytest.approx(200 * 1.495)


def test_what_is_old_no_longer_counts() -> None:
    """In figures of the last minutes; those of the whole run keep it."""
    figures, clock = _figures()
    figures.note(1, 100.0, 100.0)
    clock.sleep(WINDOW_S + 1)
    assert figures.lately() is None
    figures.note(3, 1.0, 1.0)
    clock.sleep(1)
    lately = figures.lately()
    assert lately == Lately(1 / WINDOW_S, Spread(1, 1), Spread(1, 1), (0.0, 0.0, 1.0))
    assert figures.exits == [1, 0, 1]


def test_more_answers_than_are_kept() -> None:
    """The rate is still right."""
    figures, clock = _figures()
    for _ in range(KEPT + 1000):
        clock.sleep(1e-3)
        figures.note(2, 1.0, 1.0)
    lately = figures.lately()
    assert lately is not None
    assert lately.fps == pytest.approx(1000, rel=1e-3)


def _loop(name: str = "played") -> CameraLoop:
    camera = PlayedCamera([PlayedFrame(dropped_before=1)] * 4)
    loop = CameraLoop(name, camera.open, PlayedRuntime(), Sinks(), exits=3)
    loop.run()
    return loop


def test_one_line_per_camera() -> None:
    line = status_line(_loop(), "HOLDS.")
    assert line.startswith("played: ended; 4 answered, 4 dropped, 0 failed; ")
    assert "; latency 2 / 2 ms, age 5 / 5 ms (p50 / p99); " in line
    assert line.endswith("exits 0.0 / 100.0 / 0.0 %; HOLDS.")


def test_before_the_first_frame() -> None:
    loop = CameraLoop("played", PlayedCamera([]).open, PlayedRuntime(), Sinks(), exits=3)
    assert status_line(loop, "UNKNOWN.").startswith("played: opening; 0 answered, ")
    assert "latency -, age - (p50 / p99); exits -; UNKNOWN." in status_line(loop, "UNKNOWN.")


def test_one_column_per_camera() -> None:
    """Names are shown as they are, brackets and all."""
    console = Console(file=io.StringIO(), width=120, markup=False, highlight=False)
    console.print(status_table([_loop("rtsp://[::1]/a"), _loop("[b]right[/b]")], "BROKEN [x]."))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    for part in ("rtsp://[::1]/a", "[b]right[/b]", "BROKEN [x].", "4 answered", "2 / 2 ms"):
        assert part in text


@pytest.mark.parametrize("terminal", [True, False])
def test_display(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that moves, or a line at times."""
    monkeypatch.setattr(live, "REFRESH_S", 0.01)
    monkeypatch.setattr(live, "LINE_S", 0.01)
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, markup=False, highlight=False)
    with Display([_loop()], lambda: "HOLDS.", console):
        wait_until(lambda: out.getvalue().count("HOLDS.") > 3)
    text = out.getvalue()
    assert ("\x1b[" in text) == terminal
    assert terminal or all(line.startswith("played: ended") for line in text.splitlines())
    time.sleep(0.03)
    assert out.getvalue() == text


class _Closed(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "LINE_S", 0.01)
    with Display([_loop()], lambda: "HOLDS.", Console(file=_Closed(), width=120)) as display:
        wait_until(lambda: display.reader_gone)


def test_a_promise_that_hangs_does_not_keep_the_end_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for the frame at work, which may hang."""
    monkeypatch.setattr(live, "LINE_S", 0.01)
    monkeypatch.setattr(live, "PATIENCE_S", 0.05)
    started = time.monotonic()

    def promise() -> str:
        time.sleep(3)
        return ""

    with Display([_loop()], promise, Console(file=io.StringIO())):
        time.sleep(0.05)
    assert time.monotonic() - started < 2
