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
from dvt_edge.runtime.events import OtherConditions
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
    return [text for text in found if text is not None]


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
    assert not _said(watch, 10 * CHECK_FRAMES, interval_s, since=100)


def test_pace_that_comes_back(costs: Callable[..., Costs]) -> None:
    """Said again when it is lost again."""
    watch = ConditionsWatch(costs(30.0), "gray")
    now, said = 0.0, []
    for interval_s in (1 / 10, 1 / 30, 1 / 10):
        said.append(len(_said(watch, 4 * CHECK_FRAMES, interval_s, since=now)))
        now += 4 * CHECK_FRAMES * interval_s
    assert said == [1, 0, 1]


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
