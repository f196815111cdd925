"""Upper confidence bounds: they cover as often as stated, and shrink."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.policy.statistic import BOUND_ERROR, MIN_RUNS, Statistic, runs_needed
from dvt_edge.runtime.measuring.bounds import (
    BATCHES,
    NORMAL,
    STUDENT_T,
    bounding_rank,
    independent_runs,
    upper_bounds,
)
from tests.student import beyond_t

Floats = npt.NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Floats]
"""Latencies of so many runs in a row."""
DRAWS = 2000


def _independent(rng: np.random.Generator, count: int) -> Floats:
    return np.exp(0.1 * rng.standard_normal(count))


def _bursts(rng: np.random.Generator, count: int) -> Floats:
    """Ten runs in a row are alike."""
    return np.exp(0.1 * rng.standard_normal(count // 10 + 2)).repeat(10)[_offset(rng, count)]


def _echoes(rng: np.random.Generator, count: int) -> Floats:
    """What is left of one run in the next is 0.8: a first-order autoregression."""
    kicks = 0.6 * rng.standard_normal(count + 50)
    last, found = 0.0, []
    for kick in kicks:
        last = 0.8 * last + kick
        found.append(last)
    return np.exp(0.1 * np.array(found[50:]))


def _spikes(rng: np.random.Generator, count: int) -> Floats:
    """One run of a hundred takes twelve times as long."""
    return _independent(rng, count) * np.where(rng.random(count) < 0.01, 12.0, 1.0)


def _slow_moments(rng: np.random.Generator, count: int) -> Floats:
    """Three of a hundred are slow, ten in a row: the mean hardly shows that they come together."""
    slow = (rng.random(count // 10 + 2) < 0.03).repeat(10)[_offset(rng, count)]
    return _independent(rng, count) * np.where(slow, 1.6, 1.0)


def _offset(rng: np.random.Generator, count: int) -> slice:
    """Batches do not begin where tens do."""
    start = int(rng.integers(10))
    return slice(start, start + count)


@pytest.mark.parametrize(
    ("draw", "count", "allowed"),
    [
        (_independent, MIN_RUNS, 2),
        (_independent, 50, 1),
        (_independent, 1000, 1),
        (_bursts, 50, 8),
        (_bursts, 200, 2),
        (_bursts, 1000, 2),
        (_echoes, 200, 2),
        (_echoes, 1000, 2),
        (_spikes, 1000, 1),
        (_slow_moments, 10_000, 2),
    ],
)
def test_bounds_cover(draw: Draw, count: int, allowed: float) -> None:
    """As often as stated, with room for chance; runs that are alike cost a little of it."""
    rng = np.random.default_rng(0)
    many = np.concatenate([draw(rng, 10_000) for _ in range(100)])
    percentiles = np.percentile(many, [50, 95, 99])
    truth = dict(zip(("p50_ms", "p95_ms", "p99_ms"), percentiles, strict=True))
    truth["mean_ms"] = many.mean()
    wrong = dict.fromkeys(truth, 0)
    for _ in range(DRAWS):
        found = upper_bounds(draw(rng, count))
        assert found is not None
        for name, value in truth.items():
            bound = getattr(found, name)
            wrong[name] += bound is not None and bound < value
    expected = allowed * BOUND_ERROR * DRAWS
    assert max(wrong.values()) <= expected + 3 * expected**0.5, wrong


def test_what_no_run_showed_is_not_bounded() -> None:
    """As the module says: where 50 runs show no spike, nothing knows of one."""
    rng = np.random.default_rng(0)
    missed = 0
    for _ in range(200):
        found = upper_bounds(_spikes(rng, 50))
        assert found is not None
        missed += found.mean_ms < 1.11
    assert 80 < missed < 160


@pytest.mark.parametrize("draw", [_bursts, _echoes])
def test_runs_that_resemble_each_other_count_for_fewer(draw: Draw) -> None:
    rng = np.random.default_rng(1)
    independent, alike = upper_bounds(_independent(rng, 2000)), upper_bounds(draw(rng, 2000))
    assert independent is not None
    assert alike is not None
    assert alike.independent_runs < 500 < independent.independent_runs
    assert alike.mean_ms > independent.mean_ms
    assert alike.p99_ms is None


def test_bounds_increase_and_are_above_what_was_measured() -> None:
    rng = np.random.default_rng(2)
    for draw in (_independent, _bursts, _echoes, _spikes, _slow_moments):
        for count in (30, 99, 100, 700, 6000):
            samples = draw(rng, count)
            found = upper_bounds(samples)
            assert found is not None
            assert 1 <= found.independent_runs <= count
            assert found.mean_ms > samples.mean()
            bounds = [b for b in (found.p50_ms, found.p95_ms, found.p99_ms) if b is not None]
            assert bounds == sorted(bounds)
            for bound, percent in zip(bounds, (50, 95, 99), strict=False):
                assert samples.max() >= bound >= np.percentile(samples, percent)


@pytest.mark.parametrize(
    ("series", "expected"),
    [
        (np.ones(100), 100),
        (np.arange(100) % 2, 100),  # batches scatter less than chance would have it
        (np.repeat([0.0, 1.0], 500), 12),  # about as few as 20 batches can tell
        (np.arange(1000.0), 12),
    ],
    ids=["constant", "alternating", "a step", "a trend"],
)
def test_independent_runs(series: Floats, expected: int) -> None:
    assert independent_runs(series) == pytest.approx(expected, abs=1 + expected // 10)


@pytest.mark.parametrize("count", [0, 1, MIN_RUNS - 1])
def test_few_runs_have_no_bounds(count: int) -> None:
    assert upper_bounds(np.ones(count)) is None


@pytest.mark.parametrize(
    ("statistic", "needed"), [("mean", 30), ("p50", 30), ("p95", 135), ("p99", 688), ("max", None)]
)
def test_runs_that_a_bound_needs(statistic: Statistic, needed: int | None) -> None:
    assert runs_needed(statistic) == needed
    if needed is not None and statistic != "mean":
        same = upper_bounds(np.ones(needed))
        assert same is not None
        assert getattr(same, f"{statistic}_ms") == 1.0
    if needed is not None and needed > MIN_RUNS:
        fewer = upper_bounds(np.ones(needed - 1))
        assert fewer is not None
        assert getattr(fewer, f"{statistic}_ms") is None


@pytest.mark.parametrize("count", [10, 100, 700, 4999])
@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_the_rank_is_the_lowest_that_covers(count: int, quantile: float) -> None:
    def missed(rank: int) -> float:
        """Probability of ``rank`` or more values below the quantile."""
        below = [
            comb(count, k) * quantile**k * (1 - quantile) ** (count - k)
            if count <= 700
            else np.exp(np.log(float(comb(count, k))) if comb(count, k) < 1e300 else -np.inf)
            for k in range(rank, count + 1)
        ]
        return float(sum(below))

    rank = bounding_rank(count, quantile)
    if quantile**count > BOUND_ERROR:
        assert rank is None
        return
    assert rank is not None
    assert count * quantile < rank <= count
    if count <= 700:
        assert missed(rank) <= BOUND_ERROR * 1.0001 < missed(rank - 1)


def test_both_ways_to_the_rank_agree() -> None:
    """The sum below 5,000 runs, the normal distribution above."""
    for quantile in (0.5, 0.95, 0.99):
        exact, normal = bounding_rank(5000, quantile), bounding_rank(5001, quantile)
        assert exact is not None
        assert normal is not None
        assert exact - 1 <= normal <= exact + 6


def test_quantiles() -> None:
    assert beyond_t(STUDENT_T, BATCHES - 1) == pytest.approx(BOUND_ERROR, rel=2e-3)
    assert pytest.approx(NormalDist().inv_cdf(1 - BOUND_ERROR), abs=1e-3) == NORMAL
