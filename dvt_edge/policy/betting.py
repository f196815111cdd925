"""Upper confidence bounds of a mean by betting, for values that come singly or in groups.

Whoever stakes ``1 + bet * (m - value)`` on each value in turn multiplies the capital by 1 / delta
at some time with probability delta at most, if the true mean is m or more (Ville, 1939); means that
would make so rich are ruled out (Waudby-Smith and Ramdas, JRSS B 86, 2024, arXiv 2010.09686). Half
of the capital follows a bet tuned to the variance seen so far; the rest is spread over constant
bets, from cautious to all that cannot lose everything, which pay where the tuned one is late. A
mixture of martingales is one.

Values of one clip or one camera are alike. What is drawn independently are then the groups, and the
mean promised is that over values. So a group of n values with mean v stakes on n (m - v), in units
of the largest group: its expectation is zero where the mean over values is m.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.records import Floats

SHARES = (0.02, 0.1, 0.3, 0.6, 0.95)
"""Constant bets, of the largest that cannot lose everything."""
TUNED = 0.9
"""Most of that bet which the tuned one stakes."""
_MOST = 1e4  # times a value, where the mean in question is next to 1
_BISECTIONS = 24  # to 6e-8 of the range, rounded up


def upper_bound(
    values: npt.NDArray[np.float64], delta: float, weights: npt.NDArray[np.float64] | None = None
) -> Floats:
    """Upper confidence bound of the mean of ``values`` [..., n] in 0..1, drawn independently.

    It is too low with probability ``delta`` at most. With ``weights`` [n] values are means of
    groups, which count for so much (their sizes); the bound is that of the weighted mean. Returns
    [...].
    """
    low, high = np.zeros(values.shape[:-1]), np.ones(values.shape[:-1])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        out = ruled_out(values, middle, delta, weights)
        low, high = np.where(out, low, middle), np.where(out, middle, high)
    return np.asarray(high)


def ruled_out(
    values: npt.NDArray[np.float64],
    mean: npt.ArrayLike,
    delta: float,
    weights: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.bool_]:
    """Whether a true mean of ``mean`` [...] or more is, as in :func:`upper_bound`."""
    means = np.asarray(mean, float)
    share = np.ones(values.shape[-1]) if weights is None else weights / weights.max()
    stake = share * (means[..., None] - values)
    largest = np.minimum(_MOST, 1 / np.maximum(1 - means, 1 / _MOST))
    capital = np.log(0.5) + _log_capital(stake, _tuned(values, share, delta), TUNED * largest)
    for part in SHARES:  # one at a time: all at once would take their memory
        bet = np.broadcast_to(part * largest[..., None], stake.shape)
        grown = _log_capital(stake, bet, largest)
        capital = np.logaddexp(capital, grown + np.log(0.5 / len(SHARES)))
    return np.asarray(capital.max(axis=-1) >= np.log(1 / delta))


def _log_capital(stake: Floats, bets: Floats, largest: Floats) -> Floats:
    """[..., n]: logarithm of the capital after each value; no bet is above ``largest`` [...]."""
    bets = np.minimum(bets, largest[..., None])
    return np.asarray(np.cumsum(np.log1p(bets * stake), axis=-1))


def _tuned(values: npt.NDArray[np.float64], share: Floats, delta: float) -> Floats:
    """[..., n]: bets that depend on earlier values only."""
    count = values.shape[-1]
    seen = np.arange(1, count + 1)
    mean = (0.5 + np.cumsum(values, axis=-1)) / (seen + 1)
    squares = (share * (values - mean)) ** 2
    variance = (0.25 + np.cumsum(squares, axis=-1)) / (seen + 1)
    before = np.concatenate([np.full((*values.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
    return np.asarray(np.sqrt(2 * np.log(1 / delta) / count / before))
