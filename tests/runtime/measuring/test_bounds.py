"""Upper confidence bounds: they cover as often as stated, and shrink."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest

from dvt_edge.policy.statistic import BOUND_ERROR, MIN_RUNS, Statistic, runs_needed
from dvt_edge.runtime.measuring.bounds import bounding_rank, upper_bounds

DRAWS = 4000


def _independent(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.exp(0.1 * rng.standard_normal(count))


def _bursts(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ten runs in a row are alike."""
    return np.exp(0.1 * rng.standard_normal(count // 10 + 1)).repeat(10)[:count]


TRUTH = {
    "mean_ms": np.exp(0.005),
    "p50_ms": 1.0,
    "p95_ms": np.exp(0.1 * 1.6449),
    "p99_ms": np.exp(0.1 * 2.3263),
}


@pytest.mark.parametrize(
    ("draw", "count", "allowed"),
    [
        (_independent, 50, 1),
        (_independent, 1000, 1),
        (_bursts, 1000, 3),
    ],
)
def test_bounds_cover(draw, count: int, allowed: float) -> None:
    """At 0.1 %, with room for chance; bursts of half a batch cost a little of it."""
    rng = np.random.default_rng(0)
    wrong = dict.fromkeys(TRUTH, 0)
    for _ in range(DRAWS):
        found = upper_bounds(draw(rng, count))
        assert found is not None
        for name, truth in TRUTH.items():
            bound = getattr(found, name)
            wrong[name] += bound is not None and bound < truth
    expected = allowed * BOUND_ERROR * DRAWS
    assert max(wrong.values()) <= expected + 4 * expected**0.5


def test_runs_that_resemble_each_other_count_for_fewer() -> None:
    rng = np.random.default_rng(1)
    independent, alike = upper_bounds(_independent(rng, 2000)), upper_bounds(_bursts(rng, 2000))
    assert independent is not None
    assert alike is not None
    assert alike.independent_runs < 500 < independent.independent_runs
    assert alike.mean_ms > independent.mean_ms
    assert alike.p99_ms is None


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
