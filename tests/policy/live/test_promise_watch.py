"""Broken promises are found soon, kept ones are left alone, and mended ones are told."""

from __future__ import annotations

import controller as simulated
import numpy as np
import pytest

from dvt_edge.policy import solve
from dvt_edge.policy.live.controller import Controller
from dvt_edge.policy.live.promise_watch import (
    ADAPTING_FRAMES,
    MEASURED_FRAMES,
    QUIET_FRAMES,
    BudgetBroken,
    BudgetKept,
    PromiseWatch,
)
from dvt_edge.policy.live.tracking import HALT
from tests.policy.live.made_frames import (
    COSTS,
    MEAN_MS,
    Frames,
    energy,
    frames_until,
    show,
    target,
    watch,
)

USUAL = Frames()
SPIKY = Frames(spikes=0.01)
WANDERING = Frames(alike=0.9)


def _rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _delays(before: Frames, after: Frames, most: int = 20_000, runs: int = 15) -> list[int]:
    """Frames until each of some runs says that the limit is broken, after 2,000 kept ones."""
    found = []
    for seed in range(runs):
        watched, rng = watch(), _rng(seed)
        assert show(watched, before, 2000, rng) == []
        found.append(frames_until(watched, after, most, rng))
    return sorted(found)


# False alarms


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.97, 1.0])
@pytest.mark.parametrize("frames", [USUAL, SPIKY, WANDERING, Frames(jitter=0.3)])
def test_a_million_frames_at_the_limit(frames: Frames, level: float) -> None:
    """At most one false alarm in a million frames, spikes and wandering speeds included."""
    verdicts = show(watch(), frames.but(slower=level), 1_000_000, _rng(1))
    assert sum(isinstance(verdict, BudgetBroken) for verdict in verdicts) <= 1


@pytest.mark.parametrize("frames", [USUAL, SPIKY, WANDERING, Frames(jitter=0.5)])
def test_nothing_is_said_at_the_limit(frames: Frames) -> None:
    for seed in range(3):
        assert show(watch(), frames, 20_000, _rng(seed)) == []


def test_a_scene_that_is_easier_pays_for_slower_frames() -> None:
    """Whatever the exits planned would cost, the mean is within its limit."""
    frames = Frames(harder=0.8, slower=1.15)
    for seed in range(5):
        assert show(watch(), frames, 20_000, _rng(seed)) == []


def test_single_halts_break_nothing() -> None:
    watched, rng = watch(), _rng()
    for _ in range(5):
        assert show(watched, USUAL, 1500, rng) == []
        assert watched.observe(1, 1e9) == []


# Broken


@pytest.mark.parametrize(
    ("after", "median", "last"),
    [
        (USUAL.but(slower=1.1), 300, 700),
        (USUAL.but(slower=1.2), 150, 250),
        (USUAL.but(slower=1.5), 60, 80),
        (WANDERING.but(slower=1.2), 250, 700),
        (USUAL.but(harder=1.3), 500, 1200),
        (USUAL.but(harder=1.6), 130, 300),
        (SPIKY.but(slower=1.3), 300, 2000),
        (USUAL.but(harder=1.15, slower=1.1), 300, 450),
    ],
)
def test_how_soon_it_is_found(after: Frames, median: int, last: int) -> None:
    """Slowness soon; the scene's part has the variance of the exits."""
    found = _delays(after.but(slower=1, harder=1), after)
    assert found[len(found) // 2] <= median
    assert found[-1] <= last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("after", "last"),
    [
        (USUAL.but(slower=1.03), 9000),
        (USUAL.but(harder=1.1), 9000),
        (USUAL.but(harder=1.05), 50_000),
        (SPIKY.but(slower=1.1), 60_000),
    ],
)
def test_what_is_small_is_found_in_the_end(after: Frames, last: int) -> None:
    found = _delays(after.but(slower=1, harder=1), after, last + 1, runs=5)
    assert found[-1] <= last


def test_a_broken_mean_says_what_was_seen() -> None:
    watched, rng = watch(), _rng(3)
    show(watched, USUAL, 3000, rng)
    (verdict,) = show(watched, USUAL.but(slower=1.2), 2000, rng)
    assert isinstance(verdict, BudgetBroken)
    assert verdict.limit == MEAN_MS
    assert verdict.measured == pytest.approx(1.2 * MEAN_MS, rel=0.2)
    assert verdict.reason.startswith("frames take longer than measured: with the exits as planned")
    assert "the mean latency of the last" in verdict.reason
    assert verdict.reason.endswith("over the limit of 1.186 ms")
    ((since, why),) = watched.look().broken
    assert since == pytest.approx(3000, abs=60)
    assert why == verdict.reason


def test_a_broken_mean_by_the_scene() -> None:
    (verdict,) = show(watch(), USUAL.but(harder=1.5), 2000, _rng())
    assert isinstance(verdict, BudgetBroken)
    assert verdict.reason.startswith("the mean latency of the last ")
    assert verdict.measured == pytest.approx(1.5 * MEAN_MS, rel=0.25)


@pytest.mark.parametrize("slow", [Frames(slower=1.1), Frames(slower=3.0), Frames(harder=1.5)])
def test_once_each_way(slow: Frames) -> None:
    """As long as it lasts, however long that is, and when it is over."""
    watched, rng = watch(), _rng(5)
    show(watched, USUAL, 2000, rng)
    for _ in range(2):
        (verdict,) = show(watched, slow, 20_000, rng)
        assert isinstance(verdict, BudgetBroken)
        (verdict,) = show(watched, USUAL.but(slower=0.97), 5000, rng)
        assert isinstance(verdict, BudgetKept)
        assert verdict.measured <= 1.01 * verdict.limit
        assert verdict.reason.endswith("within the limit of 1.186 ms again")
        assert watched.look().broken == ()


def test_what_is_over_is_over() -> None:
    """What the mean of all frames has seen of slowness is not told as news when that has ended."""
    for seed in range(3):
        watched, rng = watch(), _rng(seed)
        assert len(show(watched, USUAL.but(slower=1.1), 20_000, rng)) == 1
        (kept,) = show(watched, USUAL, 8000, rng)
        assert isinstance(kept, BudgetKept)


def test_what_was_short_is_over_soon() -> None:
    watched, rng = watch(), _rng(6)
    frames_until(watched, USUAL.but(slower=1.5), 1000, rng)
    assert frames_until(watched, USUAL.but(slower=0.97), 5000, rng) <= 600


# Other limits


def test_percentiles() -> None:
    """The share of the frames that are late, against the share that may be."""
    late = 1.5 * COSTS[-1]
    usual, slow = [(1, 1.0)] * 19 + [(3, late + 0.1)], [(1, 1.0)] * 9 + [(3, late + 0.1)]
    watched, said = watch(target("p95", late)), []
    for frames in (usual * 200, slow * 300, usual * 500):
        for exit_stage, took in frames:
            said += watched.observe(exit_stage, took)
    broken, kept = said
    assert isinstance(broken, BudgetBroken)
    assert isinstance(kept, BudgetKept)
    assert 4000 < broken.frame < 4800
    assert broken.measured == pytest.approx(late + 0.1)
    assert broken.reason == "10.17% of the last 531 frames took longer than 4.407 ms, 5% may"
    assert kept.reason.endswith("5% may: the p95 latency is kept again")


@pytest.mark.parametrize("statistic", ["p50", "p95", "p99"])
def test_percentiles_at_the_limit(statistic) -> None:
    """Frames that are late as often as they may be, and never by design."""
    share = {"p50": 0.5, "p95": 0.05, "p99": 0.01}[statistic]
    watched = watch(target(statistic, 2.0))
    late = _rng(7).random(100_000) < share
    for is_late in late.tolist():
        assert watched.observe(1, 3.0 if is_late else 1.0) == []


@pytest.mark.parametrize(("statistic", "share"), [("p50", 0.7), ("p95", 0.15), ("p99", 0.05)])
def test_percentiles_are_found(statistic, share: float) -> None:
    watched, late = watch(target(statistic, 2.0)), _rng(8).random(3000) < share
    said = [v for is_late in late.tolist() for v in watched.observe(1, 3.0 if is_late else 1.0)]
    assert said
    assert said[0].frame < 1000


def test_a_maximum() -> None:
    """One frame breaks it; another one prolongs it and is not told."""
    watched, said = watch(target("max", 5.0)), []
    for frame in range(1, 4 * QUIET_FRAMES):
        said += watched.observe(1, 6.0 if frame in (100, 900) else 4.0)
    broken, kept = said
    assert (broken.frame, broken.measured) == (100, 6.0)
    assert broken.reason == "a frame took 6 ms, over the maximum of 5 ms"
    assert kept.frame == 900 + QUIET_FRAMES


def test_energy_goes_by_the_exits() -> None:
    """However long frames take; an answer that was kept is left out."""
    watched, rng = watch(energy(MEAN_MS)), _rng(9)
    assert show(watched, USUAL.but(slower=5.0), 5000, rng) == []
    for _ in range(3000):
        assert watched.observe(3, 0.01, ran=False) == []
    (broken,) = show(watched, USUAL.but(harder=1.6), 3000, rng)
    assert broken.reason.startswith("the mean energy of the last ")
    assert broken.reason.endswith("mJ, over the limit of 1.186 mJ")


def test_answers_that_are_kept_count_as_short_frames() -> None:
    """Of the latency, in which they are no exit of the plan."""
    watched, rng = watch(), _rng(10)
    for exit_stage, took in USUAL.but(slower=1.3).draw(rng, 10_000):
        assert watched.observe(exit_stage, took) == []
        assert watched.observe(exit_stage, 0.02, ran=False) == []


def test_answers_that_are_kept_are_no_exit_of_the_plan() -> None:
    """Nor hide that frames are slow."""
    watched, rng, said = watch(), _rng(11), []
    for exit_stage, took in USUAL.but(slower=1.15).draw(rng, 1000):
        said += watched.observe(exit_stage, took)
        said += watched.observe(exit_stage, 1.15 * MEAN_MS, ran=False)
    assert said[0].reason.startswith("frames take longer than measured")
    assert said[0].frame < 600


def test_the_lowest_of_several_limits_is_watched() -> None:
    watched = watch(target(most=3 * MEAN_MS), target(), target(most=2 * MEAN_MS), energy(5.0))
    (broken,) = show(watched, USUAL.but(slower=4.0), 3000, _rng())
    assert broken.limit == MEAN_MS


# What is no measurement


@pytest.mark.parametrize("odd", [np.nan, np.inf, -1.0, 0.0])
def test_what_is_no_latency_is_ignored(odd: float) -> None:
    watched = watch(target(), target("max", 50.0), energy(2.0))
    for exit_stage, took in USUAL.draw(_rng(), 3000):
        assert watched.observe(exit_stage, took) == []
        assert watched.observe(3, odd) == []
    look = watched.look()
    assert look.frames == 6000
    assert np.mean(look.latencies_ms) == pytest.approx(MEAN_MS, rel=0.1)


def test_an_hour_is_taken_for_a_halt() -> None:
    watched = watch()
    watched.observe(1, 3.6e6)
    assert watched.look().latencies_ms == (HALT * MEAN_MS,)


def test_a_look_does_not_change() -> None:
    watched = watch()
    show(watched, USUAL, 2000, _rng())
    look = watched.look()
    before = (look.frames, look.latencies_ms, look.exits)
    show(watched, USUAL, 100, _rng(1))
    assert (look.frames, look.latencies_ms, look.exits) == before
    assert len(look.latencies_ms) == MEASURED_FRAMES


# With adapting


def _adapted(shown: simulated.Camera) -> tuple[list, Controller]:
    """What a Runtime does with a controller and a watch."""
    records = simulated.images(500, 0.2, 3000)
    costs, most = simulated.costs_of(), simulated.BUDGET_MS
    found = solve(records, costs, most)
    controller = Controller(records, costs, most, found.thresholds)
    watched, verdicts = PromiseWatch([target(most=most)], costs, found.cost, adapting=True), []
    rows = zip(
        shown.records.confidence.tolist(),
        shown.stages_ms.tolist(),
        shown.before_ms.tolist(),
        strict=True,
    )
    for confidence, stages, before in rows:
        limits = controller.thresholds
        ran = next(k for k, (c, t) in enumerate(zip(confidence, limits, strict=True)) if c >= t) + 1
        took = before + sum(stages[:ran])
        controller.observe(ran, stages[:ran], took, confidence[:ran])
        watched.wait(ADAPTING_FRAMES if controller.feasible else 0)
        for verdict in watched.observe(ran, took):
            verdicts.append(verdict)
            if isinstance(verdict, BudgetBroken):
                controller.adapt(verdict.reason)
    return verdicts, controller


@pytest.mark.slow
@pytest.mark.parametrize("name", simulated.SEQUENCES)
def test_adapting_keeps_the_promise(name: str) -> None:
    """What is made up for within a thousand frames is not broken."""
    verdicts, _ = _adapted(simulated.show(simulated.SEQUENCES[name], 1))
    assert verdicts == []


def test_adapting_cannot_keep_everything() -> None:
    """Where even exit 1 is over the budget, nothing is waited for; and it comes back."""
    speed = np.where((np.arange(6000) >= 1000) & (np.arange(6000) < 3000), 4.0, 1.0)
    shown = simulated.camera(simulated.images(90, 0.2, 6000), speed, 0)
    (broken, kept), _ = _adapted(shown)
    assert isinstance(broken, BudgetBroken)
    assert 1000 < broken.frame < 1400
    assert isinstance(kept, BudgetKept)
    assert kept.frame > 3000
