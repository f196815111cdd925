"""Search over all thresholds of a cascade: exact up to four exits, a documented search beyond.

Everything here counts: values and prices are totals over the samples, as integers. What an answer
is worth may be any integer: 0 or 1 for right or wrong, or units of the probability of being right.

* one exit: nothing to choose; two and three: one :class:`~dvt_edge.policy.plane.Plane`,
  O(N log N);
* four: branch and bound over the first threshold. An interval of first thresholds is bounded by a
  three-exit problem in which the samples between its ends leave at the first exit's price and yet
  are worth as much as at the better of two exits; intervals that cannot win are dropped, the others
  halved down to single thresholds. Exact; at worst 2 N planes, O(N^2 log N), in practice a few
  dozen to a few hundred of them;
* five and more: two thresholds at a time are chosen exactly with the others held, from the best
  cascades of three exits, until no pair gains. A local optimum in that sense, not proven global.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.plane import Choice, Ints, Options, Plane

STARTS = 3
"""Three-exit cascades from which the search with five exits or more starts."""
_Key = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """Thresholds [K] (the last one -inf), their total value and their total first price."""

    thresholds: tuple[float, ...]
    value: int
    price: int


@dataclass(frozen=True)
class Problem:
    """Maximise the value under C price limits; with ``need``, the first price is minimised."""

    confidence: npt.NDArray[np.floating]
    """[N, K]."""
    value: Ints
    """[N, K]: what each exit's answer is worth, 0 .. 2^32."""
    price: Ints
    """[C, K]: never falling from exit to exit; the first row decides among equals."""
    allowance: Ints
    """[C]: limits of the totals."""
    need: int | None = None
    """At least so much value, at the lowest first price."""

    @property
    def exits(self) -> int:
        return int(self.confidence.shape[1])

    @cached_property
    def plane(self) -> Plane:
        """The plane of a problem of two or three exits."""
        count = len(self.confidence)
        first = [0] if self.exits == 2 else [0, 1]
        columns = [*first, self.exits - 1] if self.exits == 3 else [0, 0, 1]
        options = Options(
            self.value[:, columns].T,
            np.repeat(self.price[:, columns][:, :, None], count, axis=2),
        )
        x = self.confidence[:, 0] if self.exits == 3 else None
        return Plane(x, self.confidence[:, self.exits - 2], options)

    def limited(self, allowance: Ints, need: int | None) -> Problem:
        """The same problem under other limits; what was prepared for it is used again."""
        other = replace(self, allowance=allowance, need=need)
        if self.exits in (2, 3):
            vars(other)["plane"] = self.plane
        return other

    def key(self, value: int, price: int) -> _Key:
        """What is minimised."""
        return (-value, price) if self.need is None else (price, -value)

    def pick(self, plane: Plane, value: int, spent: Ints) -> Choice | None:
        """The best pair of ``plane``, where other samples have ``value`` and ``spent`` [C]."""
        allowance = self.allowance - spent
        if self.need is None:
            return plane.best(allowance)
        return plane.cheapest(self.need - value, allowance)


def search(problem: Problem) -> Found | None:
    """The best thresholds, or None where no thresholds keep the limits."""
    if problem.exits == 1:
        spent = len(problem.confidence) * problem.price[:, 0]
        value = int(problem.value.sum())
        met = (spent <= problem.allowance).all() and value >= (problem.need or 0)
        return Found((-np.inf,), value, int(spent[0])) if met else None
    if problem.exits > 3:
        found = _improve_pairs(problem)
        return _branch_and_bound(problem, found) if problem.exits == 4 else found
    choice = problem.pick(problem.plane, 0, np.zeros_like(problem.allowance))
    if choice is None:
        return None
    thresholds = [cut(problem.confidence[:, problem.exits - 2], choice.second), -np.inf]
    if problem.exits == 3:
        thresholds.insert(0, cut(problem.confidence[:, 0], choice.first))
    return Found(tuple(thresholds), choice.value, choice.price)


def cut(confidence: npt.NDArray[np.floating], count: int) -> float:
    """The threshold that exactly the ``count`` largest of ``confidence`` [N] reach.

    Halfway to the next one, so that rounding on another machine moves none across it; inf where
    ``count`` is 0.
    """
    if not count:
        return np.inf
    if count == len(confidence):
        return float(confidence.min())
    upper, lower = -np.partition(-confidence, [count - 1, count])[count - 1 : count + 1]
    middle = (float(upper) + float(lower)) / 2
    return middle if np.float32(middle) > np.float32(lower) else float(upper)


def _improve_pairs(problem: Problem) -> Found | None:
    """Two thresholds at a time, from the best cascades of three exits."""
    free = range(problem.exits - 1)
    closed = (*[np.inf] * (problem.exits - 1), -np.inf)
    pairs = list(combinations(free, 2))
    starts = [s for p, q in pairs if (s := _pair(problem, closed, p, q)) is not None]
    starts.sort(key=lambda s: problem.key(s.value, s.price))
    best: Found | None = None
    for start in starts[:STARTS]:
        now, since = start, 0
        while since < len(pairs):
            for p, q in pairs:
                found = _pair(problem, now.thresholds, p, q)
                since += 1
                if found and problem.key(found.value, found.price) < problem.key(
                    now.value, now.price
                ):
                    now, since = found, 0
                if since >= len(pairs):
                    break
        if best is None or problem.key(now.value, now.price) < problem.key(best.value, best.price):
            best = now
    return best


def _pair(problem: Problem, thresholds: tuple[float, ...], p: int, q: int) -> Found | None:
    """The best thresholds p and q with the others held."""
    held = problem.confidence >= np.asarray(thresholds)
    held[:, [p, q]] = False
    held[:, -1] = True
    rows = np.arange(len(held))
    rest = held.argmax(axis=1)  # where a sample leaves that neither p nor q lets go
    at_q, at_p = np.where(rest < q, rest, q), np.where(rest < p, rest, p)
    exits = np.stack([at_p, at_q, rest])  # (3, N)
    chosen = rest > p
    value = problem.value[rows, exits]
    price = problem.price[:, exits]  # (C, 3, N)
    base, spent = int(value[0, ~chosen].sum()), price[:, 0, ~chosen].sum(axis=1)
    if not chosen.any():
        return None
    x, y = problem.confidence[chosen, p], problem.confidence[chosen, q]
    plane = Plane(x, y, Options(value[:, chosen], price[:, :, chosen]))
    choice = problem.pick(plane, base, spent)
    if choice is None:
        return None
    new = list(thresholds)
    new[p] = _cut_among(problem.confidence[:, p], x, choice.first)
    new[q] = _cut_among(problem.confidence[:, q], y, choice.second)
    return Found(tuple(new), base + choice.value, int(spent[0]) + choice.price)


def _cut_among(
    everyone: npt.NDArray[np.floating], some: npt.NDArray[np.floating], count: int
) -> float:
    """:func:`cut` among ``everyone`` that the ``count`` largest of ``some`` reach."""
    if not count:
        return np.inf
    lowest = -np.partition(-some, count - 1)[count - 1]
    return cut(everyone, int((everyone >= lowest).sum()))


def _branch_and_bound(problem: Problem, incumbent: Found | None) -> Found | None:
    """Exact optimum of four exits, given a good solution to beat."""
    order = np.argsort(-problem.confidence[:, 0], kind="stable")
    confidence, worth = problem.confidence[order], problem.value[order]
    first = confidence[:, 0]
    cuts = np.append(0, np.flatnonzero(np.append(first[1:] != first[:-1], True)) + 1)
    gained = np.append(0, np.cumsum(worth[:, 0]))
    bound = _interval_bound(problem, confidence, worth, gained)
    best = incumbent
    limit = None if best is None else problem.key(best.value, best.price)
    queue: list[tuple[_Key, int, int]] = []

    def consider(low: int, high: int) -> None:
        nonlocal best, limit
        choice, value, price = bound(int(cuts[low]), int(cuts[high]))
        if choice is None and value < 0:
            return
        key = problem.key(value, price)
        if limit is not None and key >= limit:
            return
        if low < high:
            heapq.heappush(queue, (key, low, high))
            return
        stays = confidence[cuts[low] :]
        thresholds = [cut(first, int(cuts[low])), np.inf, np.inf, -np.inf]
        if choice is not None:
            thresholds[1] = _cut_among(confidence[:, 1], stays[:, 1], choice.first)
            thresholds[2] = _cut_among(confidence[:, 2], stays[:, 2], choice.second)
        best, limit = Found(tuple(thresholds), value, price), key

    consider(0, len(cuts) - 1)
    while queue:
        key, low, high = heapq.heappop(queue)
        if limit is not None and key >= limit:
            break
        middle = (low + high) // 2
        consider(low, middle)
        consider(middle + 1, high)
    return best


def _interval_bound(
    problem: Problem, confidence: npt.NDArray[np.floating], worth: Ints, gained: Ints
) -> Callable[[int, int], tuple[Choice | None, int, int]]:
    """Bounds for first thresholds that let ``low`` to ``high`` samples leave; exact where equal."""

    def bound(low: int, high: int) -> tuple[Choice | None, int, int]:
        spent, value = low * problem.price[:, 0], int(gained[low])
        open_ = high - low  # undecided samples, each given the better of leaving and staying
        options = worth[low:, 1:].T.copy()
        options[:, :open_] = np.maximum(options[:, :open_], worth[low:high, 0])
        price = np.repeat(problem.price[:, 1:, None], options.shape[1], axis=2)
        price[:, :, :open_] = problem.price[:, :1, None]
        matters = np.ones(options.shape[1], bool)
        matters[:open_] = (options[:, :open_] != options[:1, :open_]).any(axis=0)
        value += int(options[0, ~matters].sum())
        spent = spent + price[:, 0, ~matters].sum(axis=1)
        if not matters.any():
            met = (spent <= problem.allowance).all() and value >= (problem.need or 0)
            return None, value if met else -1, int(spent[0])
        rows = confidence[low:][matters]
        plane = Plane(rows[:, 1], rows[:, 2], Options(options[:, matters], price[:, :, matters]))
        choice = problem.pick(plane, value, spent)
        if choice is None:
            return None, -1, 0
        return choice, value + choice.value, int(spent[0]) + choice.price

    return bound
