"""How far measured latencies may be from the truth: upper confidence bounds of a run in order.

Runs that follow each other are alike: a slow second touches many of them. So the standard error of
the mean comes from the means of ten consecutive batches (Schmeiser, 1982), with Student's t for
their number, and a term for what skews latencies, the few that take several times as long (Johnson,
1978). Percentiles count as those of as many independent runs as would scatter as much, be it the
latencies or the share of them beyond p95 or p99, whose bursts are others. Within that they ask for
no distribution: the r-th of n sorted runs is below the true p-quantile with the probability of r or
more successes among n (binomial).

Assumed is that batches are long against what lasts, and that whatever matters has shown itself: a
neighbour who stays for half of the measurement is part of the figures, one who comes later is not.
That is for what sessions differ by, see :class:`~dvt_edge.bundle.costs.Costs`.
"""

from __future__ import annotations

from math import ceil, exp, floor, lgamma, log, sqrt

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.measurement import Bounds
from dvt_edge.policy.records import Floats
from dvt_edge.policy.statistic import BOUND_ERROR, MIN_RUNS, PERCENTILES

BATCHES = 10
STUDENT_T = 4.297
"""One-sided quantile at :data:`BOUND_ERROR` for so many batches."""
MOST_BATCHES, LEAST_IN_BATCH = 20, 10
"""For the number of independent runs, which scatters less with more batches, where runs are many
enough for these to be long."""
NORMAL = 3.090
"""The normal distribution's quantile at :data:`BOUND_ERROR`."""
_EXACT = 5000  # runs up to which the binomial is summed
MOST_ALIKE = 0.95
"""Largest autocorrelation of neighbours that is made up for."""
TAILS = ("p95", "p99")


def upper_bounds(samples_ms: npt.ArrayLike) -> Bounds | None:
    """Bounds from ``samples_ms`` [R], in the order measured; None for fewer than 30 runs.

    Each is wrong with probability :data:`BOUND_ERROR`; a percentile that so few runs cannot bound
    is None.
    """
    samples = np.asarray(samples_ms, float)
    count = len(samples)
    if count < MIN_RUNS:
        return None
    ordered = np.sort(samples)
    tails = [samples > ordered[ceil(count * PERCENTILES[name] / 100) - 1] for name in TAILS]
    whole = independent_runs(samples)
    independent = min(whole, *map(independent_runs, tails))
    found: dict[str, float | None] = {}
    for name, percent in PERCENTILES.items():
        rank = bounding_rank(independent, percent / 100)
        at = None if rank is None else -(-rank * count // independent)  # rounded up
        found[f"{name}_ms"] = None if at is None else float(ordered[at - 1])
    mean = float(samples.mean()) + STUDENT_T * _mean_error(samples, BATCHES)
    mean += _for_skewness(samples, whole)
    return Bounds(mean_ms=mean, independent_runs=independent, **found)


def independent_runs(series: npt.ArrayLike) -> int:
    """How many independent values would give a mean as certain as that of ``series`` [R], values in
    the order measured: 1..R."""
    values = np.asarray(series, float)
    count = len(values)
    batches = min(MOST_BATCHES, max(BATCHES, count // LEAST_IN_BATCH))
    error = _mean_error(values, batches)
    if error == 0:
        return count
    return max(1, min(count, floor(float(values.var(ddof=1)) / error**2)))


def _mean_error(values: Floats, batches: int) -> float:
    """Standard error of the mean of ``values`` [R], from means of batches in a row.

    Short batches are alike themselves and scatter less than the mean's error would have it. How
    much less is known of runs of which a share ``alike`` is left in the next (a first-order
    autoregression), and made up for.
    """
    means = [part.mean() for part in np.array_split(values, batches)]
    off = values - values.mean()
    squares = float((off**2).sum())
    if squares == 0:
        return 0.0
    alike = float((off[1:] * off[:-1]).sum()) / squares
    alike = min(max(alike, 0.0), MOST_ALIKE)
    length = len(values) / batches
    seen = 1 - 2 * alike * (1 - alike**length) / (length * (1 - alike**2))
    return float(np.std(means, ddof=1)) / sqrt(batches * seen)


def _for_skewness(values: Floats, independent: int) -> float:
    """What the mean of ``values`` [R] may be above Student's bound, as a long tail moves the mean
    and its error together; they count as so many ``independent`` ones."""
    off = values - values.mean()
    squares = float((off**2).mean())
    if squares == 0:
        return 0.0
    skewed = max(0.0, float((off**3).mean()) / squares)
    return (1 + 2 * NORMAL**2) / 6 * skewed / independent


def bounding_rank(count: int, quantile: float) -> int | None:
    """The lowest rank, from 1, whose value among ``count`` independent ones is at least the
    ``quantile``, 0..1, of their distribution, but for a probability of :data:`BOUND_ERROR`."""
    if count * log(quantile) > log(BOUND_ERROR):
        return None  # even the largest is too often below it
    if count > _EXACT:
        spread = sqrt(count * quantile * (1 - quantile))
        return min(count, ceil(count * quantile + NORMAL * spread + 1))
    tail = 0.0
    # The r-th is below where r or more values are: summed from the top.
    for rank in range(count, 0, -1):
        tail += exp(
            lgamma(count + 1)
            - lgamma(rank + 1)
            - lgamma(count - rank + 1)
            + rank * log(quantile)
            + (count - rank) * log(1 - quantile)
        )
        if tail > BOUND_ERROR:
            return rank + 1
    return 1
