"""Warm-up, back to back, a camera's pace: on a clock that takes no time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from dvt_edge.runtime.measuring.timing import (
    MIN_PACED_ROUNDS,
    MIN_ROUNDS,
    distribution,
    time_back_to_back,
    time_paced,
    warm_up,
)
from tests.runtime.conftest import Timed

ROUND_MS = 1 + 2 + 4
"""All exits in turn: stages of 1, 1 and 2 ms."""


def test_warm_up_ends_when_nothing_changes(timed: Timed) -> None:
    """Two windows of 0.2 s that agree: no more is run than needed."""
    rounds, settled = warm_up(timed.exits.round_ms, timed.clock)
    assert settled
    assert rounds == 2 * 29  # 29 rounds of 7 ms are the first that take 0.2 s
    assert timed.clock.now() == pytest.approx(2 * 29 * ROUND_MS / 1e3)


@pytest.mark.parametrize("slow_stages", [20, 60, 100])
def test_warm_up_waits_for_slow_starts(timed: Timed, slow_stages: int) -> None:
    """A window that is still slow, or half slow, is not the last one."""
    timed.slow_at_first(slow_stages)
    assert warm_up(timed.exits.round_ms, timed.clock)[1]
    timing = time_back_to_back(timed.exits, timed.clock, 0.1)
    assert timing.exits[2].latency.max_ms == pytest.approx(4)


def test_warm_up_has_a_limit(timed: Timed) -> None:
    """A latency that only grows never settles; that is said."""
    timed.backend.drift = 1.002
    _, settled = warm_up(timed.exits.round_ms, timed.clock, 2.0)
    assert not settled
    assert 2.0 <= timed.clock.now() < 3.0


def test_warm_up_on_a_clock_that_stands_still(timed: Timed) -> None:
    """Windows are bounded by rounds, too."""
    timed.backend.takes_ms = np.zeros(3)
    assert warm_up(timed.exits.round_ms, timed.clock)[1]


def test_what_a_runtime_does_beside_counts(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching the promise is part of what a frame costs."""

    def observe(*_: object) -> None:
        timed.clock.ms += 0.5

    monkeypatch.setattr("dvt_edge.policy.live.promise_watch.PromiseWatch.observe", observe)
    timing = time_back_to_back(timed.exits, timed.clock, 1.4)
    assert [exit_.latency.mean_ms for exit_ in timing.exits] == pytest.approx([1.5, 2.5, 4.5])
    assert [exit_.decision.mean_ms for exit_ in timing.exits] == pytest.approx([0.5] * 3)


def test_back_to_back(timed: Timed) -> None:
    """Exits take turns; parts add up to the whole; it takes what it was given."""
    timing = time_back_to_back(timed.exits, timed.clock, 1.4)
    assert timing.fps is None
    assert [exit_.latency.runs for exit_ in timing.exits] == [200, 200, 200]
    assert [exit_.latency.mean_ms for exit_ in timing.exits] == pytest.approx([1, 2, 4])
    assert [stage.mean_ms for stage in timing.exits[2].stages] == pytest.approx([1, 1, 2])
    assert [len(exit_.stages) for exit_ in timing.exits] == [1, 2, 3]
    assert timing.exits[0].transfer is None
    assert timed.clock.slept_s == []


def test_transfers_are_what_the_device_did_not_do(timed: Timed) -> None:
    """A backend on a device tells how long each stage kept it busy; nothing is left in place."""

    class OnDevice:
        gpu = "a GPU"
        stage_ms: float | None = None
        time_stages = False

        def __getattr__(self, name: str) -> Any:
            return getattr(timed.backend, name)

        def run_stage(self, stage: int, count: int, slot: int = 0) -> Any:
            asked.append(self.time_stages)
            self.stage_ms = (0.75, 0.5, 1.5)[stage] if self.time_stages else None
            return timed.backend.run_stage(stage, count, slot)

    asked: list[bool] = []
    backend = timed.loop.backend = OnDevice()
    timing = time_back_to_back(timed.exits, timed.clock, 0.1)
    assert 0 < sum(asked) < len(asked) / 4  # events take time: most runs go without
    assert timing.exits[0].transfer is not None
    assert timing.exits[0].latency.runs > 3 * timing.exits[0].transfer.runs
    transfers = [exit_.transfer.mean_ms for exit_ in timing.exits if exit_.transfer]
    assert transfers == pytest.approx([0.25, 0.75, 1.25])
    assert timed.loop.backend is backend


def test_back_to_back_runs_a_few_rounds_at_least(timed: Timed) -> None:
    """However short the time."""
    timing = time_back_to_back(timed.exits, timed.clock, 1e-9)
    assert timing.exits[0].latency.runs == MIN_ROUNDS


def test_paced_keeps_an_absolute_schedule(timed: Timed) -> None:
    """Frame n starts at n / fps: what a frame takes does not move the next one."""
    starts: list[float] = []
    exits = timed.exits
    run = exits.run

    def noted(exit_at: int) -> Any:
        starts.append(timed.clock.now())
        return run(exit_at)

    exits.run = noted  # type: ignore[method-assign]
    timing = time_paced(exits, timed.clock, 1.0, 30.0)
    np.testing.assert_allclose(starts, np.arange(30) / 30, atol=1e-9)
    assert timing.fps == 30
    assert timing.missed == 0
    assert [exit_.latency.runs for exit_ in timing.exits] == [10, 10, 10]


@pytest.mark.parametrize(
    ("fps", "missed"),
    [
        (200.0, 0),  # 5 ms
        (300.0, 1 / 3),  # 3.3 ms: exit 3 takes 4
        (700.0, 2 / 3),  # 1.4 ms
        (2000.0, 1.0),
    ],
)
def test_frames_that_are_not_finished_in_time(timed: Timed, fps: float, missed: float) -> None:
    """They are counted, the frames that came meanwhile are skipped, and the time is kept."""
    timing = time_paced(timed.exits, timed.clock, 3.0, fps)
    frames = sum(exit_.latency.runs for exit_ in timing.exits)
    assert timing.missed == pytest.approx(missed * frames, abs=1)
    assert timed.clock.now() == pytest.approx(3.0, abs=0.01)


def test_every_exit_is_seen_at_a_slow_pace(timed: Timed) -> None:
    """Even where the time is over after one frame."""
    timing = time_paced(timed.exits, timed.clock, 0.5, 1.0)
    assert [exit_.latency.runs for exit_ in timing.exits] == [MIN_PACED_ROUNDS] * 3


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000])
def test_percentiles_are_order_statistics(count: int) -> None:
    """As deadlines need them: rounded up, the longest of fewer than 100."""
    samples = np.random.default_rng(count).random(count)
    found = distribution(samples)
    assert found.p99_ms == np.sort(samples)[-(-99 * count // 100) - 1]
    assert found.p50_ms <= found.p95_ms <= found.p99_ms <= found.max_ms == samples.max()
    assert (samples <= found.p95_ms).mean() >= 0.95
    assert found.runs == count
    assert found.edges_ms == found.counts == ()


@pytest.mark.parametrize(
    "samples", [[1.0], [1.0] * 50, [0.0] * 5, [1.0, 2.0], [*np.linspace(1, 2, 500), 90.0]]
)
def test_histogram_holds_every_sample(samples: list[float]) -> None:
    """Also the outlier, without making the other bins wide; and samples that are all alike."""
    found = distribution(samples, bins=40)
    assert sum(found.counts) == len(samples)
    assert len(found.edges_ms) == len(found.counts) + 1
    assert (np.diff(found.edges_ms) > 0).all()
    assert found.edges_ms[0] <= min(samples)
    assert found.edges_ms[-1] >= max(samples)
    if len(samples) > 100:
        assert found.edges_ms[1] - found.edges_ms[0] < 0.05
        assert found.counts[-1] < 10
