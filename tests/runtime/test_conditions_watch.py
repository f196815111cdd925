"""Frames that come otherwise than those that costs were measured with are reported, once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.runtime.conditions_watch import CHECK_FRAMES, ConditionsWatch
from dvt_edge.runtime.events import Event, FramesStopped, OtherConditions, SameConditions
from tests.runtime.conftest import FakeBackend


@pytest.fixture
def costs(costed_bundle: Path, known_costs: Callable[..., Costs]) -> Callable[..., Costs]:
    """A function giving costs of 48x48 frames, at a pace or back to back."""

    def make(fps: float | None, shape: tuple[int, int] = (48, 48)) -> Costs:
        changes = {"paced_fps": fps, "frame_shape": shape}
        return known_costs(Bundle(costed_bundle)).model_copy(update=changes)

    return make


def _said(
    watch: ConditionsWatch, frames: int, interval_s: float, shape: Any = (48, 48), since: float = 0
) -> list[str]:
    found = [watch.note(shape, since + n * interval_s, 2.0) for n in range(frames)]
    return [event.reason for events in found for event in events]


@pytest.mark.parametrize(
    ("measured", "interval_s", "words"),
    [
        (30.0, 1 / 30, None),
        (30.0, 1 / 1000, None),  # faster costs less
        (30.0, 1 / 25, None),
        (30.0, 1 / 15, "frames come at 15 fps, costs were measured at 30 fps"),
        (5.0, 1 / 5, None),
        (None, 2.1e-3, None),
        (None, 6.5e-3, None),  # frames take 2 ms
        (None, 1 / 30, "frames come at 30 fps, costs were measured back to back"),
    ],
)
def test_pace(
    costs: Callable[..., Costs], measured: float | None, interval_s: float, words: str | None
) -> None:
    """Once, however long it lasts, and by frame 33."""
    watch = ConditionsWatch(costs(measured), "gray")
    said = _said(watch, CHECK_FRAMES + 1, interval_s)
    assert len(said) == (words is not None)
    if words is not None:
        assert words in said[0]
        assert "dvt-edge profile" in said[0]
    # A camera that stops and goes on is no slower one.
    (stopped,) = _said(watch, 10 * CHECK_FRAMES, interval_s, since=100)
    assert stopped.startswith("no frame came for ")


def test_pace_that_comes_back(costs: Callable[..., Costs]) -> None:
    """Said once each way, and again when it is lost again."""
    watch = ConditionsWatch(costs(30.0), "gray")
    now, events, problems = 0.0, list[Event](), []
    for interval_s in (1 / 10, 1 / 30, 1 / 10):
        for n in range(4 * CHECK_FRAMES):
            events += watch.note((48, 48), now + n * interval_s, 2.0)
        now += 4 * CHECK_FRAMES * interval_s
        problems.append(watch.problems)
    assert [type(event) for event in events] == [OtherConditions, SameConditions, OtherConditions]
    assert events[1].reason == "frames come at 30 fps again, as costs were measured"
    slow = ("frames come at 10 fps, costs were measured at 30 fps",)
    assert problems == [slow, (), slow]


@pytest.mark.parametrize(("fps", "edge_s"), [(30.0, 1.5 / 30), (None, 7e-3)])
def test_pace_at_the_edge(costs: Callable[..., Costs], fps: float | None, edge_s: float) -> None:
    """Said once, not over and over."""
    watch, now, said = ConditionsWatch(costs(fps), "gray"), 0.0, 0
    for n in range(60 * CHECK_FRAMES):
        now += edge_s * (1.1 if n // CHECK_FRAMES % 2 else 0.92)
        said += len(watch.note((48, 48), now, 2.0))
    assert said == 1


def test_a_camera_that_stops(costs: Callable[..., Costs]) -> None:
    """The frame after the pause reports it; the pause is no pace."""
    watch = ConditionsWatch(costs(30.0), "gray")
    assert watch.silent_s(1e9) is None  # nothing has come yet
    _said(watch, 100, 1 / 30)
    last = 99 / 30
    assert watch.silent_s(last + 1.9) is None
    assert watch.silent_s(last + 12.3) == pytest.approx(12.3)
    (event,) = watch.note((48, 48), last + 12.3, 2.0)
    assert isinstance(event, FramesStopped)
    assert event.seconds == pytest.approx(12.3, abs=0.01)
    assert event.reason.startswith("no frame came for 12.3 s")
    assert not _said(watch, 5, 1 / 30, since=last + 12.3)
    # One more pause, a short one: with the long one among them, that would be a pace.
    assert not _said(watch, 200, 1 / 30, since=last + 14.1)
    assert watch.problems == ()
    # Other threads may be asked for their frames: 30 intervals of a slow camera are no stop.
    slow = ConditionsWatch(costs(2.0), "gray")
    _said(slow, 3, 0.5)
    assert slow.silent_s(1.0 + 14.9) is None
    assert slow.silent_s(1.0 + 15.1) is not None


def test_a_camera_that_takes_its_time(costs: Callable[..., Costs]) -> None:
    """A frame every 10 s, of which the costs know nothing: a pace, and no stop after each."""
    watch = ConditionsWatch(costs(None), "gray")
    said = _said(watch, 10 * CHECK_FRAMES, 10.0)
    assert len(said) == 2
    assert said[0].startswith("no frame came for 10 s")
    assert said[1].startswith("frames come at 0.1 fps, costs were measured back to back")
    assert watch.silent_s(3190.0 + 250) is None


def test_a_frame_that_took_long_is_no_stop(costs: Callable[..., Costs]) -> None:
    """The frame came at once, its answer did not."""
    watch = ConditionsWatch(costs(30.0), "gray")
    _said(watch, 10, 1 / 30)
    assert not watch.note((48, 48), 9 / 30 + 5.0, 4900.0)


@pytest.mark.parametrize("fps", [30.0, None])
@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, -3600.0, 0.0, 3600.0])
def test_clocks_that_jump(costs: Callable[..., Costs], fps: float | None, odd: float) -> None:
    """Nothing but a stop is believed of an odd time, and nothing lasts."""
    watch = ConditionsWatch(costs(fps), "gray")
    now, events = 0.0, list[Event]()
    for n in range(40 * CHECK_FRAMES):
        now += 1 / 30 if fps else 2.1e-3
        latency_ms = 1e3 * odd if n % 50 == 0 else 2.0
        answered = now + odd if n in (500, 700) else now
        events += watch.note((48, 48), answered, latency_ms)
    assert all(isinstance(event, FramesStopped) for event in events)
    assert len(events) == (2 if odd == -3600.0 else 0)  # from there, it looks like one
    assert watch.problems == ()


@pytest.mark.parametrize(
    ("order", "shape", "words"),
    [
        ("bgr", (48, 48, 3), None),
        ("gray", (48, 50), None),
        ("bgr", (1080, 1920, 3), "a frame is 1920x1080, costs were measured with 48x48"),
        ("bgr", (24, 24, 3), "a frame is 24x24"),
        ("nv12", (72, 48), None),
        ("yuyv", (48, 48, 2), None),
    ],
)
def test_size(costs: Callable[..., Costs], order: Any, shape: Any, words: str | None) -> None:
    """A size that lasts; a picture between others is none."""
    watch = ConditionsWatch(costs(30.0), order)
    usual = (72, 48) if order == "nv12" else (48, 48)
    for _ in range(2 * CHECK_FRAMES):
        assert not _said(watch, 1, 0.01, shape)
        assert not _said(watch, 1, 0.01, usual)
    said = _said(watch, 5 * CHECK_FRAMES, 0.01, shape)
    assert len(said) == (words is not None)
    if words is not None:
        assert words in said[0]


def test_a_runtime_reports_it(
    own_bundle: Path, costs: Callable[..., Costs], fake_backend: type[FakeBackend]
) -> None:
    """And goes on."""
    backend = fake_backend(np.full((1, 3), 0.9), shape=(1, 48, 48))
    Bundle(own_bundle).store(COSTS, costs(30.0))
    with Runtime(own_bundle, backend=backend) as runtime:
        for _ in range(CHECK_FRAMES):
            runtime.classify(np.zeros((96, 96), np.uint8))
        (event,) = runtime.events
        assert isinstance(event, OtherConditions)
        assert event.reason.startswith("a frame is 96x96, costs were measured with 48x48")


def test_a_size_that_comes_back(costs: Callable[..., Costs]) -> None:
    """Each size is said, and that it is over; names are of the picture, not of the array."""
    watch = ConditionsWatch(costs(30.0), "nv12")
    events = list[Event]()
    for side in (96, 192, 48):
        for _ in range(3 * CHECK_FRAMES):
            events += watch.note((side * 3 // 2, side), 0.0, 2.0)
        assert len(watch.problems) == (side != 48)
    assert [type(event) for event in events] == [OtherConditions, OtherConditions, SameConditions]
    assert events[0].reason.startswith("a frame is 96x96, costs were measured with 48x48; set")
    assert len(_said(watch, CHECK_FRAMES, 0.01, (144, 96))) == 1
    watch.note((72, 48), 1.0, 2.0)  # a single one does not end it, nor begin it again
    assert not _said(watch, CHECK_FRAMES, 0.01, (144, 96))
    assert events[2].reason == "frames are of about 48x48 again, as costs were measured with"
