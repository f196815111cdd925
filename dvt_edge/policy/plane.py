"""Two thresholds at a time, exactly, in O(n log n): the solver's inner machinery.

Take the samples in descending order of the first exit's confidence: a first threshold lets the
first i of them leave. In descending order of the second exit's confidence, a second threshold lets
those of the first j leave that are still there. Value and cost of (i, j) are a term of i plus a
running sum to j over the samples that remain, so the best j of every i is a maximum over running
sums from which samples vanish one by one.

That is a segment tree over the second order (sum and largest running sum per node), of which all
versions are wanted. A node over s samples changes only when one of its own samples vanishes, so it
has s + 1 versions and a whole level has about n: every level is built from the one below, and all n
first thresholds go down the tree together, in a few NumPy operations per level. Values and prices
are integers (:data:`SCALE` units for the dearest exit), so sums are exact in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Small = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

SCALE = 2**40
"""Units that the dearest exit costs; 2^22 samples fit into 64 bits."""
NONE = -(2**60)  # "no such running sum"; far below any sum of gains


@dataclass(frozen=True)
class Options:
    """What n samples can do: leave at the first exit, at the second, or go on to the rest."""

    value: Ints
    """[3, n]: what the answers of the three options are worth, 0 .. 2^32."""
    price: Ints
    """[C, 3, n]: prices of the three options under C constraints, never falling along the axis."""


@dataclass(frozen=True)
class Choice:
    """A pair of thresholds, named by how many samples are at or above them."""

    first: int
    """So many samples, in order of the first confidence, leave at the first exit."""
    second: int
    """Those of the first so many, in order of the second confidence, that remain leave there."""
    value: int
    price: int
    """Total under the first constraint."""


@dataclass(frozen=True)
class _Level:
    """All versions of the nodes over s = 2^k samples each, [nodes * (s + 1)]."""

    left: Small
    """Version of the left child that belongs to each version."""
    gain: Ints
    top: Ints
    """Largest running sum that ends where a cut is possible."""
    saved: Ints
    """[C, nodes * (s + 1)]."""


class Plane:
    """All pairs of thresholds on two confidences ``x`` [n] and ``y`` [n], n at least 1.

    With ``x`` None none leaves at the first exit. Equal confidences are never separated.
    """

    def __init__(
        self, x: npt.NDArray[np.floating] | None, y: npt.NDArray[np.floating], options: Options
    ) -> None:
        count = len(y)
        by_y = np.argsort(-y, kind="stable")
        place = np.empty(count, np.int64)
        place[by_y] = np.arange(count)
        value, price = options.value, options.price
        if x is None:
            gone = np.arange(count)
            self._firsts = np.zeros(1, np.int64)
        else:
            by_x = np.argsort(-x, kind="stable")
            gone, ordered = place[by_x], x[by_x]
            self._firsts = np.append(0, np.flatnonzero(_ends(ordered)) + 1)
            value, price = value[:, by_x], price[:, :, by_x]
        self._value = _moved(value)[self._firsts]
        self._price = np.stack([_moved(p)[self._firsts] for p in price])
        self._build(
            gone,
            _ends(y[by_y]),
            (options.value[1] - options.value[2])[by_y],
            (options.price[:, 2] - options.price[:, 1])[:, by_y],
        )

    def best(self, allowance: Ints) -> Choice | None:
        """The most value at prices up to ``allowance`` [C]; the cheapest among equals."""
        value = self._value + self._most(self._price - allowance[:, None])
        top = int(value.max())
        return self.cheapest(top, allowance, np.flatnonzero(value == top)) if top >= 0 else None

    def cheapest(self, value: int, allowance: Ints, among: Ints | None = None) -> Choice | None:
        """The lowest price with ``value`` at least, at prices up to ``allowance`` [C].

        ``among`` are the first thresholds to look at, by index; all where it is None.
        """
        rows = np.arange(len(self._firsts)) if among is None else among
        need = value - self._value[rows]
        node, seen, taken, saved = self._last(need, self._firsts[rows])
        price = self._price[:, rows] - saved
        price[0, (seen < need) | (price > allowance[:, None]).any(axis=0)] = np.iinfo(np.int64).max
        at = int(price[0].argmin())
        if price[0, at] == np.iinfo(np.int64).max:
            return None
        return Choice(
            int(self._firsts[rows[at]]),
            int(node[at]) + 1 if taken[at] else 0,
            int(self._value[rows[at]] + seen[at]),
            int(price[0, at]),
        )

    def _build(self, gone: Ints, ends: Bools, gain: Ints, saved: Ints) -> None:
        """``gone`` [n]: places in the second order, in the order in which samples vanish."""
        count, depth = len(gone), (len(gone) - 1).bit_length()
        size = 1 << depth
        order = np.append(gone, np.arange(count, size)).reshape(1, size)  # the padding goes last
        splits: list[Small] = []
        for level in range(depth, 0, -1):
            right = ((order >> (level - 1)) & 1).astype(bool)
            left = np.zeros((len(order), order.shape[1] + 1), np.int32)
            np.cumsum(~right, axis=1, out=left[:, 1:])
            splits.append(left.ravel())
            half = order.shape[1] // 2
            order = np.stack(
                [order[~right].reshape(-1, half), order[right].reshape(-1, half)], axis=1
            ).reshape(-1, half)
        here = np.zeros((size, 2), np.int64)
        here[:count, 0] = gain
        top = np.full((size, 2), NONE, np.int64)
        top[:count][ends] = here[:count][ends]
        kept = np.zeros((len(saved), size, 2), np.int64)
        kept[:, :count, 0] = saved
        empty = np.zeros(0, np.int32)
        levels = [_Level(empty, here.ravel(), top.ravel(), kept.reshape(len(saved), -1))]
        for level, left in enumerate(reversed(splits), 1):
            versions = (1 << level) + 1
            nodes = np.arange(size >> level)[:, None]
            version = np.arange(versions)
            a, b = _children(nodes, version, left.reshape(-1, versions), versions)
            a, b, below = a.ravel(), b.ravel(), levels[-1]
            first = below.gain[a]
            levels.append(
                _Level(
                    left,
                    first + below.gain[b],
                    np.maximum(below.top[a], first + below.top[b]),
                    below.saved[:, a] + below.saved[:, b],
                )
            )
        self._levels = levels

    def _most(self, need: Ints) -> Ints:
        """[F]: the largest gain for every first threshold that saves ``need`` [C, F] at least."""
        top = self._levels[-1]
        version = self._firsts.copy()
        node, before = np.zeros_like(version), np.zeros_like(version)
        best = np.where((need <= 0).all(axis=0), 0, 2 * NONE)
        possible = (top.saved[:, version] >= need).all(axis=0)
        need = need.copy()
        for level in range(len(self._levels) - 1, 0, -1):
            versions, below = (1 << level) + 1, self._levels[level - 1]
            left = self._levels[level].left[node * versions + version]
            a, b = _children(node, version, left, versions)
            kept, gain = below.saved[:, a], below.gain[a]
            enough = (kept >= need).all(axis=0)
            np.maximum(best, before + gain + below.top[b], out=best, where=enough)
            before += np.where(enough, 0, gain)
            need -= np.where(enough, 0, kept)
            node = 2 * node + ~enough
            version = np.where(enough, left, version - left)
        best = np.maximum(best, before + self._levels[0].top[2 * node + version])
        return np.where(possible, best, 2 * NONE)

    def _last(self, need: Ints, firsts: Ints) -> tuple[Ints, Ints, Bools, Ints]:
        """The last place whose running sum is ``need`` [F] at least, for each first threshold.

        Returns the place, the sum, whether there is one (else none leaves, sum 0) and what is
        saved [C, F]; the sum shows whether the need is met.
        """
        top, version = self._levels[-1], firsts.copy()
        node, before = np.zeros_like(version), np.zeros_like(version)
        taken = top.top[version] >= need
        saved = np.zeros((len(top.saved), len(firsts)), np.int64)
        for level in range(len(self._levels) - 1, 0, -1):
            versions, below = (1 << level) + 1, self._levels[level - 1]
            left = self._levels[level].left[node * versions + version]
            a, b = _children(node, version, left, versions)
            gain = below.gain[a]
            later = before + gain + below.top[b] >= need
            before += np.where(later, gain, 0)
            saved += np.where(later, below.saved[:, a], 0)
            node = 2 * node + later
            version = np.where(later, version - left, left)
        leaf = 2 * node + version
        before += self._levels[0].gain[leaf]
        saved += self._levels[0].saved[:, leaf]
        return node, np.where(taken, before, 0), taken, np.where(taken, saved, 0)


def _children(node: Ints, version: Ints, left: Small, versions: int) -> tuple[Ints, Ints]:
    """Where the versions of both children are in the level below."""
    half = versions // 2 + 1
    return 2 * node * half + left, (2 * node + 1) * half + version - left


def _moved(options: Ints) -> Ints:
    """[n + 1]: total when the first i of n take option 0 and the others option 2 of [3, n]."""
    result = np.zeros(options.shape[1] + 1, np.int64)
    np.cumsum(options[0] - options[2], out=result[1:])
    return np.asarray(result + options[2].sum())


def _ends(ordered: npt.NDArray[np.floating]) -> Bools:
    """[n]: where a cut after this place separates no equal values."""
    return np.append(ordered[1:] != ordered[:-1], True)
