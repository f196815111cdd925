"""The loop over a camera's frames: what is counted, what ends it, what it hands on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from dvt_edge.app.loop import CameraLoop, Counts, Sinks
from dvt_edge.errors import BackendError, DataError
from tests.app.conftest import Kept, PlayedCamera, PlayedFrame, PlayedRuntime, wait_until
from tests.conftest import random_pixels

Make = Callable[..., tuple[CameraLoop, Kept, PlayedCamera]]


@pytest.fixture
def make() -> Make:
    """A function giving a loop over frames, what it hands on, and its camera."""

    def make(
        frames: Sequence[PlayedFrame | Exception],
        runtime: PlayedRuntime | None = None,
        *,
        ends: bool = True,
        **settings: Any,
    ) -> tuple[CameraLoop, Kept, PlayedCamera]:
        sinks, kept, camera = Sinks(), Kept(), PlayedCamera(frames, ends=ends)
        sinks.add("kept", kept)
        runtime = runtime or PlayedRuntime()
        loop = CameraLoop("played", camera.open, runtime, sinks, exits=3, **settings)
        return loop, kept, camera

    return make


def test_every_frame_is_answered_dropped_or_failed(make: Make) -> None:
    """Frames that the camera passed over and frames that the Runtime refuses are counted; both
    leave the loop running."""
    frames = [
        PlayedFrame(seq=0),
        PlayedFrame(seq=4, dropped_before=3),
        PlayedFrame(random_pixels(4, 4, 4), "rgb", seq=5),
        PlayedFrame(random_pixels(4, 4, 4), "rgb", seq=7, dropped_before=1),
        PlayedFrame(seq=8),
    ]
    loop, kept, _ = make(frames)
    loop.run()
    assert loop.counts == Counts(captured=9, answered=3, dropped=4, failed=2)
    assert [seen.frame.seq for seen in kept.seen] == [0, 4, 8]
    assert (loop.error, loop.state) == (None, "ended")
    wait_until(lambda: kept.kinds == ["frame_failed"])  # the same reason twice is said once
    assert kept.events[0].source == "played"
    assert "3 dimensions" in kept.events[0].reason


def test_what_a_sink_sees(make: Make) -> None:
    """The frame itself, the answer, its age at the answer, and when it was captured."""
    frame = PlayedFrame(age_ms=1500.0)
    loop, kept, _ = make([frame])
    loop.run()
    (seen,) = kept.seen
    assert seen.frame is frame
    assert (seen.source, seen.prediction.label, seen.age_ms) == ("played", "bag", 1500.0)
    assert loop.figures.exits == [0, 1, 0]


def test_max_frames_counts_what_was_taken(make: Make) -> None:
    """Refused frames, too: otherwise a camera of the wrong layout would go on for ever."""
    bad = PlayedFrame(random_pixels(4, 4, 4), "rgb")
    loop, _, _ = make([PlayedFrame(), bad, *[PlayedFrame()] * 9], max_frames=3)
    loop.run()
    assert loop.enough
    assert loop.counts == Counts(captured=3, answered=2, failed=1)


def test_a_part_of_the_picture(make: Make) -> None:
    """Every frame's, as it is given; else the whole."""
    runtime = PlayedRuntime()
    for box in ((1, 2, 3, 4), None):
        loop, _, _ = make([PlayedFrame()] * 2, runtime, box=box)
        loop.run()
    assert runtime.boxes == [(1, 2, 3, 4)] * 2 + [None] * 2


@pytest.mark.parametrize("error", [DataError("gone"), OSError("gone")])
def test_a_camera_that_fails_ends_the_loop(make: Make, error: Exception) -> None:
    loop, _, _ = make([PlayedFrame(), error, PlayedFrame()])
    loop.run()
    assert loop.error is error
    assert not loop.broken  # the Runtime is not to blame
    assert loop.counts == Counts(captured=1, answered=1)
    assert loop.state == "failed"


def test_a_camera_that_does_not_open() -> None:
    def refuse(_: object) -> PlayedCamera:
        raise DataError("no such camera")

    loop = CameraLoop("played", refuse, PlayedRuntime(), Sinks(), exits=3)
    loop.run()
    assert str(loop.error) == "no such camera"


def test_a_runtime_that_breaks_down_ends_the_loop(make: Make) -> None:
    """The frame counts as failed."""
    error = BackendError("the GPU has fallen off the bus")
    loop, _, _ = make([PlayedFrame()] * 3, PlayedRuntime(error))
    loop.run()
    assert loop.error is error
    assert loop.broken
    assert loop.counts == Counts(captured=1, failed=1)


def test_stop_ends_a_camera_that_is_waited_for(make: Make) -> None:
    loop, _, camera = make([PlayedFrame()], ends=False)
    loop.start()
    assert camera.waited_for.wait(10)
    loop.stop()
    assert loop.join(10)
    assert loop.error is None
    assert loop.counts == Counts(captured=1, answered=1)


def test_a_frame_that_hangs_is_given_up(make: Make) -> None:
    """It counts as failed, the sum stays exact, and an answer that comes too late goes nowhere."""
    runtime = PlayedRuntime()
    runtime.go_on.clear()
    loop, kept, _ = make([PlayedFrame(dropped_before=2)] * 2, runtime)
    loop.start()
    assert runtime.working.wait(10)
    assert loop.counts == Counts(captured=3, dropped=2)
    wait_until(lambda: loop.working_s > 0)
    loop.stop()
    assert not loop.join(0.05)
    assert loop.counts == Counts(captured=3, dropped=2, failed=1)
    runtime.go_on.set()
    assert loop.ended.wait(10)
    assert loop.counts == Counts(captured=3, dropped=2, failed=1)
    assert kept.seen == []


def test_what_a_camera_reports(make: Make) -> None:
    """It goes on as an event, and is the state until the next frame."""
    loop, kept, camera = make([PlayedFrame()], ends=False)
    assert loop.state == "opening"
    loop.start()
    assert camera.waited_for.wait(10)
    wait_until(lambda: loop.counts.answered == 1)
    assert loop.state == "running"
    camera.report(SimpleNamespace(kind="disconnected", cause="stalled", reason="no frame for 5 s"))
    assert loop.state == "no frame for 0 s: no frame for 5 s"
    wait_until(lambda: kept.kinds == ["disconnected"])
    assert (kept.events[0].source, kept.events[0].cause) == ("played", "stalled")
    loop.stop()
    assert loop.join(10)


def test_two_cameras_share_outputs() -> None:
    """Each has its counts; the sinks see both."""
    sinks, kept = Sinks(), Kept()
    sinks.add("kept", kept)
    loops = [
        CameraLoop(name, PlayedCamera([PlayedFrame()] * 200).open, PlayedRuntime(), sinks, exits=3)
        for name in ("left", "right")
    ]
    for loop in loops:
        loop.start()
    for loop in loops:
        assert loop.ended.wait(10)
    assert [loop.counts.answered for loop in loops] == [200, 200]
    assert sorted(seen.source for seen in kept.seen) == ["left"] * 200 + ["right"] * 200
