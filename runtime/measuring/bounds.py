"""How far measured latencies may be from the truth: upper confidence bounds of a run in order.

Runs that follow each other are alike: a neighbour's burst or a slow second touches many of them. So
the standard error of the mean comes from the means of consecutive batches (Schmeiser, 1982), with
Student's t for their number, and percentiles are bounded as those of as many independent runs as
would give that error. Within that the percentiles' bounds ask for no distribution: the r-th of n
sorted runs is below the true p-quantile with the probability of r or more successes among n
(binomial). Assumed is that batches are long against what lasts: a neighbour that stays for half of
the measurement is part of the figures, one that comes later is not. What differs between sessions
is for :class:`~dvt_edge.bundle.costs.Costs`.
"""

from __future__ import annotations

from math import ceil, exp, floor, lgamma, log, sqrt

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.measurement import Bounds
from dvt_edge.policy.statistic import BOUND_ERROR, MIN_RUNS, PERCENTILES

BATCHES = {30: 10, 100: 20}
"""Runs from which on there are so many batches."""
STUDENT_T = {10: 4.297, 20: 3.579}
"""One-sided quantile at :data:`BOUND_ERROR` for so many batches."""
NORMAL = 3.090
_EXACT = 5000  # runs up to which the binomial is summed


def upper_bounds(samples_ms: npt.ArrayLike) -> Bounds | None:
    """Bounds from ``samples_ms`` [R], in the order measured; None for fewer than 30 runs.

    Each is wrong with probability :data:`BOUND_ERROR` at most; a percentile that so few runs cannot
    bound is None.
    """
    samples = np.asarray(samples_ms, float)
    count = len(samples)
    if count < MIN_RUNS:
        return None
    batches = max(n for least, n in BATCHES.items() if count >= least)
    means = [part.mean() for part in np.array_split(samples, batches)]
    error = float(np.std(means, ddof=1)) / sqrt(batches)
    variance = float(samples.var(ddof=1))
    independent = count
    if error > 0:
        independent = max(1, min(count, floor(variance / error**2)))
    ordered = np.sort(samples)
    found: dict[str, float | None] = {}
    for name, percent in PERCENTILES.items():
        rank = bounding_rank(independent, percent / 100)
        at = None if rank is None else ceil(rank / independent * count)
        found[f"{name}_ms"] = None if at is None else float(ordered[at - 1])
    return Bounds(
        mean_ms=float(samples.mean()) + STUDENT_T[batches] * error,
        independent_runs=independent,
        **found,
    )


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
