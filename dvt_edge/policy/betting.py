"""Tests and upper confidence bounds of a mean by betting, for values that come singly or in groups.

Whoever stakes ``1 + bet * (m - value)`` on each value in turn multiplies the capital by 1 / delta
at some time with probability delta at most, if the true mean is m or more and every bet depends on
earlier values only (Ville, 1939); means that would make so rich are ruled out (Waudby-Smith and
Ramdas, JRSS B 86, 2024, arXiv 2010.09686). Any bets are valid; good ones rule out more.

Here the number of values is known, and all that counts is to reach the goal by then. If sums were
normal, the capital to have at any time would be the probability that the final sum is large enough,
divided by delta, and the bet that keeps it so would be that probability's relative slope (Browne,
*Reaching goals by a deadline*, Advances in Applied Probability 31, 1999). It is computed from the
capital that is there and the values that are left, so that errors correct themselves, as do the
bets of Voracek and Orabona (2025, arXiv 2505.22422). The bound then comes near that of the normal
distribution: from 1,000 values at 0.025 it is 2.1 standard errors above their mean, where bets for
the fastest growth end at 2.5. Variance and skewness are those of earlier values; the first bets
have them from other values of the same kind.

Values of one clip or one camera are alike. What is drawn independently are then the groups, and the
mean promised is that over values. So a group of n values with mean v stakes on n (m - v), in units
of the largest group: its expectation is zero where the mean over values is m. That the field has no
larger groups is assumed.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.records import Floats

MOST_STAKED = 0.95
"""Of what the worst value could take."""
REVISIONS = 16
"""Bets are computed anew after this part of the values that are left."""
GUESSED = 30
"""Values that the guess of the variance counts as, at most."""
UNSEEN = 0.25
"""Distance from the mean, at least, of the one value that the guess has besides those alike: where
all are equal, the next need not be."""
STEPS = 20
"""Means that are tested within a standard error."""
_SLACK = np.log(1.05)  # aimed above the goal, so that rounding does not end just below it
_SKEW_RANGE = (0.2, 1.5)  # of the correction, which is one for many values
_EDGE = 1e-4
_NORMAL = NormalDist()
_AT = np.linspace(-8.0, 5.0, 521)
_LOG_CHANCE = np.log([_NORMAL.cdf(at) for at in _AT])
_SLOPE = np.array([_NORMAL.pdf(at) for at in _AT]) / np.exp(_LOG_CHANCE)


class Sample(NamedTuple):
    """Values drawn independently: of groups, or single ones."""

    values: npt.NDArray[np.float64]
    """[n], 0..1: mean of each group."""
    weight: npt.NDArray[np.float64]
    """[n], above 0, at most 1: size of each group, in units of the largest there is."""


def ruled_out(
    sample: Sample, means: npt.ArrayLike, delta: float, alike: Sample
) -> npt.NDArray[np.bool_]:
    """[M]: whether a true mean of as much as each of ``means`` [M], 0..1, or more, is.

    Each of them is ruled out wrongly with probability ``delta`` at most. ``alike``, drawn
    independently of ``sample``, is what the first bets are guessed from; it decides how much is
    ruled out, not how surely.
    """
    wanted = np.asarray(means, float)
    values, weight = sample
    goal = np.log(1 / delta)
    known = min(GUESSED, len(alike.values))
    _, square, cube = (known * moment for moment in _moments(alike))
    squares, cubes = np.full(wanted.shape, square), np.full(wanted.shape, cube)
    capital = np.zeros(wanted.shape)  # its logarithm
    rich = np.zeros(wanted.shape, bool)
    largest = MOST_STAKED / np.maximum(1 - wanted, _EDGE)
    start = 0
    while start < len(values) and not rich.all():
        left = len(values) - start
        end = start + max(1, left // REVISIONS)
        missing = capital - goal - _SLACK
        spread = np.sqrt(squares / (known + start))
        skew = cubes / (known + start) / spread**3
        bet = np.interp(missing, _LOG_CHANCE, _SLOPE) / (spread * np.sqrt(left))
        bet *= np.clip(
            1 - np.interp(missing, _LOG_CHANCE, _AT) * skew / (2 * np.sqrt(left)), *_SKEW_RANGE
        )
        bet = np.where(rich, 0.0, np.minimum(bet, largest))
        stake = weight[start:end] * (wanted[:, None] - values[start:end])  # [M, end - start]
        grown = capital[:, None] + np.cumsum(np.log1p(bet[:, None] * stake), axis=1)
        rich |= grown.max(axis=1) >= goal
        capital = grown[:, -1]
        squares += (stake**2).sum(axis=1)
        cubes += (stake**3).sum(axis=1)
        start = end
    return rich


def upper_bound(sample: Sample, delta: float, alike: Sample) -> float:
    """Upper confidence bound, 0..1, of the mean of ``sample``, each value as often as it weighs.

    It is too low with probability ``delta`` at most. Means are tested from 1 downwards, as far as
    they are ruled out one after the other: "the mean is as much or more" is true from the true mean
    on, and only the first true one need be kept. ``alike`` as in :func:`ruled_out`.
    """
    means = _means(len(sample.values), alike)
    out = ruled_out(sample, means, delta, alike)
    kept = len(means) if out.all() else int(np.argmin(out))
    return float(means[kept - 1]) if kept else 1.0


def _moments(alike: Sample) -> tuple[float, float, float]:
    """Weighted mean of the values, and mean square and cube of what they stake against it."""
    values, weight = alike
    mean = float(np.average(values, weights=weight))
    stakes = weight * (mean - values)
    stakes = np.append(stakes, -max(UNSEEN, float(np.abs(stakes).max())))
    return mean, float((stakes**2).sum() / len(values)), float((stakes**3).sum() / len(values))


def _means(count: int, alike: Sample) -> Floats:
    """[M], falling from 1: where a bound from ``count`` values may be, closely spaced there."""
    mean, square, _ = _moments(alike)
    error = np.sqrt(square / count) / alike.weight.mean()
    near = mean + error * np.arange(-4 * STEPS, 8 * STEPS) / STEPS
    above = np.geomspace(min(max(near[-1], _EDGE), 1.0), 1.0, 30)
    below = np.linspace(0.0, max(near[0], 0.0), 20)
    means = np.unique(np.concatenate([below, near, above]))
    return np.asarray(means[(means > 0) & (means <= 1)][::-1])
