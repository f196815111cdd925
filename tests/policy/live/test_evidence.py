"""Bets against a mean of at most 1."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy.live.evidence import (
    CLEARING_FRAMES,
    CLEARING_MOST,
    OVER,
    SLACK,
    WINDOWS,
    Evidence,
)


def _until(evidence: Evidence, values: np.ndarray) -> int | None:
    """Values up to enough evidence."""
    for n, value in enumerate(values.tolist(), 1):
        if evidence.add(value):
            return n
    return None


def _made(shape: str, mean: float, count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if shape == "rare":
        return np.where(rng.random(count) < 0.01 * mean, 100.0, 0.0)
    if shape == "heavy":
        return mean * rng.pareto(2.5, count) * 1.5
    if shape == "constant":
        return np.full(count, mean)
    return mean * rng.exponential(1.0, count)


@pytest.mark.parametrize("shape", ["rare", "heavy", "exponential", "constant"])
def test_no_distribution_at_the_limit_is_enough(shape: str) -> None:
    for seed in range(3):
        evidence = Evidence((0.03, 0.1, 0.3, 1.0))
        assert _until(evidence, _made(shape, 1.0, 50_000, seed)) is None


@pytest.mark.parametrize(
    ("shape", "mean", "most"),
    [("heavy", 1.6, 2000), ("exponential", 1.5, 400), ("constant", 1.1, 350), ("rare", 4.0, 4000)],
)
def test_an_excess_is_found(shape: str, mean: float, most: int) -> None:
    for seed in range(5):
        evidence = Evidence((0.01, 0.03, 0.1, 0.3, 1.0))
        found = _until(evidence, _made(shape, mean, most, seed))
        assert found is not None


def test_the_slack_is_not_an_excess() -> None:
    assert _until(Evidence((0.1, 1.0)), np.full(100_000, 1 + SLACK)) is None


def test_it_tells_since_when() -> None:
    """From the moment on that the bet was begun; what came before does not blur its mean."""
    evidence = Evidence((0.3, 1.0))
    assert _until(evidence, np.full(3000, 0.8)) is None
    found = _until(evidence, np.full(3000, 1.5))
    assert found is not None
    stretch = evidence.accept()
    assert stretch.frames == found
    assert stretch.mean == pytest.approx(1.5)
    assert evidence.broken


def test_patience() -> None:
    """What is over before is not enough, what lasts is."""
    evidence = Evidence((0.3, 1.0))
    evidence.patience = patience = 2 * WINDOWS[-1]
    assert _until(evidence, np.full(patience - 100, 2.0)) is None
    assert _until(evidence, np.full(5 * patience, 0.9)) is None
    assert _until(evidence, np.full(2 * patience, 2.0)) == patience
    assert evidence.since.frames == patience


def test_patience_is_for_the_excess_that_lasted() -> None:
    """A short one on top of it, which convinces a larger bet alone, is not what is accepted."""
    evidence = Evidence((0.1, 1.0))
    evidence.patience = patience = 2 * WINDOWS[-1]
    assert _until(evidence, np.tile([0.2, 2.0], patience // 2 - 5)) is None
    found = _until(evidence, np.full(20, 3.0))
    assert found is not None
    assert evidence.accept().frames >= patience


def _until_cleared(evidence: Evidence, value: float, most: int = 100_000) -> int | None:
    for n in range(1, most + 1):
        evidence.add(value)
        if not evidence.broken:
            return n
    return None


def test_it_is_over_after_as_long() -> None:
    evidence = Evidence((0.3, 1.0))
    assert _until(evidence, np.full(1000, 1.5)) is not None
    evidence.accept()
    assert _until_cleared(evidence, 1.2, 50_000) is None
    cleared = _until_cleared(evidence, 1.0)
    assert cleared is not None
    assert CLEARING_MOST <= cleared <= 2 * CLEARING_MOST
    assert evidence.cleared.frames == CLEARING_MOST
    assert evidence.cleared.mean == pytest.approx(1.0)
    # What lasted a short time is over in a short time.
    assert _until(evidence, np.full(1000, 2.0)) is not None
    evidence.accept()
    assert _until_cleared(evidence, 1.0) == CLEARING_FRAMES
    assert _until(evidence, np.full(10_000, 1.0)) is None


def test_what_took_long_to_find_takes_long_to_be_over() -> None:
    evidence = Evidence((0.1, 0.3))
    found = _until(evidence, np.full(20_000, 1.03))
    assert found is not None
    assert found > 1.5 * CLEARING_MOST
    evidence.accept()
    assert _until_cleared(evidence, 1.0) == found


def test_a_weak_excess_is_not_over_by_chance() -> None:
    """Exponential values with a mean of 1.1 need thousands of frames to be told from 1."""
    evidence, rng = Evidence((0.03, 0.1, 0.3)), np.random.default_rng(2)
    found = _until(evidence, 1.1 * rng.exponential(1.0, 50_000))
    assert found is not None
    evidence.accept()
    for value in (1.1 * rng.exponential(1.0, 50_000)).tolist():
        evidence.add(value)
        assert evidence.broken


def _wandering(seed: int, count: int) -> np.ndarray:
    """Values that are alike for about 20 frames."""
    rng, level, values = np.random.default_rng(seed), 0.0, []
    for step in rng.standard_normal(count).tolist():
        level = 0.95 * level + 0.31 * step
        values.append(level)
    return np.exp(0.2 * np.array(values) - 0.02)


def test_values_that_wander(monkeypatch: pytest.MonkeyPatch) -> None:
    """They pass for an excess, unless bets pay for the wandering that was seen."""
    values = _wandering(1, 100_000)
    assert _until(Evidence((0.1, 0.3, 1.0), 3.0), values) is None
    monkeypatch.setattr(Evidence, "_pay", lambda self, wander: setattr(self, "_price", [0.0] * 3))
    assert _until(Evidence((0.1, 0.3, 1.0), 3.0), values) is not None


def test_spikes_are_not_wandering() -> None:
    """They would make all bets dear, and an excess take longer to find."""
    delays = []
    for highest in (3.0, np.inf):
        found = []
        for seed in range(9):
            rng = np.random.default_rng(seed)
            spiky = np.where(rng.random(30_000) < 0.01, 20.0, 1.0) / 1.19
            evidence = Evidence((0.1, 0.3, 1.0), highest)
            assert _until(evidence, spiky[:20_000]) is None
            found.append(_until(evidence, 1.25 * spiky[20_000:]) or 10_000)
        delays.append(np.median(found))
    assert delays[0] < 400 < delays[1]


def test_steps_are_not_wandering() -> None:
    """An excess is no reason to doubt the next one."""
    evidence = Evidence((0.1, 0.3, 1.0))
    rng = np.random.default_rng(1)
    noise = np.exp(0.1 * rng.standard_normal(40_000) - 0.005)
    assert _until(evidence, 0.9 * noise[:20_000]) is None
    found = _until(evidence, 1.05 * noise[20_000:])
    assert found is not None
    assert found < 2000
    evidence = Evidence((0.3, 1.0))
    for _ in range(3):
        found = _until(evidence, np.full(1000, 3.0))
        assert found is not None
        assert found < 100
        evidence.accept()
        assert _until_cleared(evidence, 0.9) is not None


def _alternating(mean: float, count: int) -> np.ndarray:
    """Two scenes in turn, 500 frames each, one three times as expensive as the other."""
    hard = np.arange(count) // 500 % 2 == 1
    noise = np.random.default_rng(1).exponential(1.0, count)
    return mean * np.where(hard, 1.5, 0.5) * noise


def test_scenes_in_turn_are_not_wandering() -> None:
    """The mean of a window is over the limit, whatever comes next; bets alone never find that."""
    machine = Evidence((0.1,))
    for value in np.full(4000, 1.0).tolist():
        machine.add(value)
    found = {}
    for name, other in (("alone", None), ("machine", machine)):
        evidence = Evidence((0.03, 0.1, 0.3), 3.0, machine=other)
        assert _until(evidence, _alternating(0.6, 20_000)) is None
        found[name] = _until(evidence, _alternating(1.2, 10_000))
    assert found["alone"] is None
    assert found["machine"] is not None
    assert found["machine"] <= 2 * WINDOWS[-1]


@pytest.mark.parametrize(("mean", "frames"), [(1.15, 1024), (1.08, 4096)])
def test_what_is_small_but_lasts_is_found_by_looking_back(mean: float, frames: int) -> None:
    rng = np.random.default_rng(3)
    evidence = Evidence((1e-6,))  # a bet too small to win
    assert _until(evidence, rng.exponential(0.9, 50_000)) is None
    assert _until(evidence, rng.exponential(mean, 20_000)) is not None
    stretch = evidence.accept()
    assert stretch.frames <= frames
    assert stretch.mean > OVER
    # What it was found in does not count again.
    while evidence.broken:
        evidence.add(float(rng.exponential(0.9)))
    assert _until(evidence, rng.exponential(0.95, 20_000)) is None


def test_little_over_the_limit_is_never_told() -> None:
    """However sure it is: machines are not measured that well."""
    evidence = Evidence((1e-6,))
    assert _until(evidence, np.full(50_000, OVER - 1e-3)) is None
