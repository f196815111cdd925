"""Comparing: everybody gets the same images in turns, and is judged by the first one's labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from dvt_edge.evaluation.compare import (
    BLOCKS,
    Comparison,
    Contender,
    compare,
    ratio_of_means,
)
from dvt_edge.evaluation.plain_classifier import Answer
from dvt_edge.files.datasets import ArrayDataset, Pixels
from dvt_edge.profile import ColorOrder
from tests.conftest import HandClock

NAMES = ("a", "b", "c")


@dataclass
class Fake:
    """Answers image v with class v % 3, wrongly for the first ``wrong`` values."""

    name: str
    ms: float
    clock: HandClock
    log: list[tuple[str, int]]
    wrong: int = 0
    exits: int = 2
    classes: Sequence[str] | int = NAMES
    energy_mj: float | None = None
    engine: str = "fake"
    precision: str = "int8"
    size_bytes: int = 10
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def classify(self, image: Pixels, order: ColorOrder | None) -> Answer:
        value = int(image[0, 0])
        assert order == "rgb"
        self.log.append((self.name, value))
        self.clock.ms += self.ms
        right = value % 3
        class_id = (right + 1) % 3 if value < self.wrong else right
        if not isinstance(self.classes, int):
            class_id = list(self.classes).index(NAMES[class_id])
        return Answer(class_id, self.ms, 1 + value % self.exits, self.energy_mj)


@pytest.fixture
def clock() -> Iterator[HandClock]:
    """Passes when somebody classifies, and only then."""
    made = HandClock()
    yield made
    assert not made.slept_s


def images(count: int = 60, labelled: bool = True) -> ArrayDataset:
    """Image v shows v, and is of class v % 3."""
    pixels = np.zeros((count, 4, 4), np.uint8)
    pixels[:] = np.arange(count)[:, None, None]
    return ArrayDataset(pixels, [v % 3 for v in range(count)] if labelled else None)


def run(contenders: Sequence[Contender], clock: HandClock, **arguments: Any) -> Comparison:
    given: dict[str, Any] = {"images": images(), "seconds": 1.0} | arguments
    return compare(contenders, clock=clock, **given)


def test_in_turns(clock: HandClock) -> None:
    """Everybody sees every image, and the order changes from image to image."""
    log: list[tuple[str, int]] = []
    result = run([Fake("x", 1.0, clock, log), Fake("y", 3.0, clock, log)], clock)
    timed = log[-2 * result.frames :]
    assert [value for _, value in timed] == [v % 60 for v in range(result.frames) for _ in "xy"]
    assert [name for name, _ in timed[:6]] == ["y", "x", "x", "y", "y", "x"]
    assert result.frames == pytest.approx(250, abs=1)  # a second of 1 + 3 ms
    assert (result.images, result.labelled, result.settled) == (60, True, True)


def test_every_image_is_given_however_short_the_time(clock: HandClock) -> None:
    """And never fewer frames than the interval needs."""
    pair = [Fake("x", 1.0, clock, []), Fake("y", 1.0, clock, [])]
    assert run(pair, clock, seconds=1e-9).frames == 60
    assert run(pair, clock, seconds=1e-9, images=images(3)).frames == BLOCKS


def test_figures(clock: HandClock) -> None:
    """Latency, exits, accuracy, energy, and differences to the first."""
    log: list[tuple[str, int]] = []
    first = Fake("x", 2.0, clock, log, wrong=12, energy_mj=5.0)
    second = Fake("y", 3.0, clock, log, exits=3)
    result = run([first, second], clock)
    x, y = result.sides
    assert (x.latency.mean_ms, y.latency.mean_ms) == pytest.approx((2, 3))
    assert x.exit_fraction == pytest.approx((0.5, 0.5), abs=0.01)
    assert len(y.exit_fraction) == 3
    assert (x.accuracy, y.accuracy) == pytest.approx((0.8, 1.0))
    assert (x.energy_mj, y.energy_mj) == (5.0, None)
    [difference] = result.differences
    assert (difference.name, difference.to) == ("y", "x")
    assert difference.latency_ratio.value == pytest.approx(1.5)
    assert difference.accuracy_points is not None
    assert difference.accuracy_points.value == pytest.approx(20)
    assert 5 < difference.accuracy_points.low < 20 < difference.accuracy_points.high < 35


def test_class_names_in_another_order(clock: HandClock) -> None:
    """Answers are compared by name, not by number."""
    pair = [Fake("x", 1, clock, []), Fake("y", 1, clock, [], classes=("c", "a", "b"))]
    assert [side.accuracy for side in run(pair, clock).sides] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"classes": ("a", "b", "c", "d")}, "its classes are others"),
        ({"classes": 5}, "it has 5 classes, the labels have 3"),
    ],
)
def test_other_classes(clock: HandClock, changes: dict[str, Any], reason: str) -> None:
    """No accuracy, and why."""
    pair = [Fake("x", 1, clock, []), Fake("y", 1, clock, [], **changes)]
    result = run(pair, clock)
    assert result.sides[0].accuracy == 1.0
    assert result.sides[1].accuracy is None
    assert reason in str(result.sides[1].accuracy_unavailable)
    assert result.differences[0].accuracy_points is None


def test_unlabelled(clock: HandClock) -> None:
    """Latencies only."""
    pair = [Fake("x", 1, clock, []), Fake("y", 1, clock, [], classes=3)]
    result = run(pair, clock, images=images(60, labelled=False))
    assert not result.labelled
    assert [side.accuracy for side in result.sides] == [None, None]


def test_interval_of_the_ratio() -> None:
    """It holds the truth about 19 times in 20, luck that lasts for many frames included."""
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        luck = np.repeat(rng.normal(1, 0.1, 60), 20)
        b = luck * rng.gamma(4, 0.25, 1200)
        a = 2 * luck * rng.gamma(4, 0.25, 1200)
        found = ratio_of_means(a.tolist(), b.tolist())
        inside += found.low <= 2 <= found.high
    assert 0.9 < inside / 400 < 0.99
