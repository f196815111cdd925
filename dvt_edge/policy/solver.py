"""The exit thresholds with the highest accuracy on the records that keep a mean-cost budget.

A sample leaves at the first exit k with ``confidence >= thresholds[k]``; the last exit takes all
that are left. Up to three exits the result is the exact optimum over all thresholds: for each
first threshold the best second one is read off running sums over the samples that remain. With
more exits, the thresholds before the last two are searched over quantiles of the confidence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy.records import Floats, Records

OUTER_QUANTILES = 64
"""Candidates per threshold before the last two, with four exits or more."""
_BLOCK = 64  # first thresholds that one vectorised sweep handles


@dataclass(frozen=True)
class Solution:
    """Thresholds, and what they give on the records they were chosen on."""

    thresholds: Floats
    """[K]: leave at exit k when the confidence is at least this; the last is -inf."""
    accuracy: float
    """Share of right answers, 0..1 (agreement with the last exit where labels are missing)."""
    cost: float
    """Mean cost per sample, in the budget's unit."""
    exit_fraction: Floats
    """[K]: share of samples that leave at each exit."""


def replay(records: Records, cost: npt.ArrayLike, thresholds: npt.ArrayLike) -> Solution:
    """What ``thresholds`` [K] give on ``records`` when leaving at exit k costs ``cost[k]``."""
    costs, limits = _check_cost(records, cost), np.asarray(thresholds, float)
    if limits.shape != costs.shape:
        raise DataError(f"expected {records.exits} thresholds, found {limits.shape}")
    leaves = records.confidence >= limits
    leaves[:, -1] = True
    at = leaves.argmax(axis=1)
    fraction = np.bincount(at, minlength=records.exits) / len(records)
    accuracy = records.correct[np.arange(len(records)), at].mean()
    final = limits.copy()
    final[-1] = -np.inf
    return Solution(final, float(accuracy), float(fraction @ costs), fraction)


def solve(records: Records, cost: npt.ArrayLike, limit: float) -> Solution:
    """The most accurate thresholds with mean cost at most ``limit``; the cheapest among equals.

    ``cost`` [K] is the cumulative cost of leaving at each exit, increasing.
    Raises :class:`~dvt_edge.errors.BudgetError`, with the smallest feasible limit, when even
    leaving at the first exit costs more than ``limit``.
    """
    costs = _check_cost(records, cost)
    if not np.isfinite(limit) or limit <= 0:
        raise BudgetError(f"a budget is a positive number, found {limit}")
    if limit < costs[0]:
        raise BudgetError(
            f"the budget of {limit:g} is smaller than the first exit's cost; the smallest possible "
            f"is {_round_up(costs[0]):g}"
        )
    best: Solution | None = None
    for outer in _outer_thresholds(records):
        alive = np.ones(len(records), bool)
        spent, right = 0.0, 0
        for k, threshold in enumerate(outer):
            leaves = alive & (records.confidence[:, k] >= threshold)
            spent += leaves.sum() * costs[k]
            right += int(records.correct[leaves, k].sum())
            alive &= ~leaves
        inner = _solve_inner(records, costs, limit * len(records) - spent, alive, len(outer))
        if inner is not None:
            found = replay(records, costs, [*outer, *inner])
            if best is None or (found.accuracy, -found.cost) > (best.accuracy, -best.cost):
                best = found
    assert best is not None  # leaving at the first exit is always among the candidates
    return best


def _check_cost(records: Records, cost: npt.ArrayLike) -> Floats:
    costs = np.asarray(cost, float)
    if costs.shape != (records.exits,):
        raise DataError(f"expected {records.exits} costs, one per exit, found {costs.shape}")
    if not np.isfinite(costs).all() or costs[0] <= 0 or (np.diff(costs) <= 0).any():
        raise DataError(
            f"costs must be positive and increase from exit to exit, found {costs.tolist()}"
        )
    return costs


def _outer_thresholds(records: Records) -> Iterator[tuple[float, ...]]:
    """Candidates for the thresholds before the last two; a single empty tuple up to three exits."""
    combinations: list[tuple[float, ...]] = [()]
    for k in range(records.exits - 3):
        values = np.unique(
            np.quantile(records.confidence[:, k], np.linspace(0, 1, OUTER_QUANTILES))
        )
        candidates = [np.inf, *values[::-1]]
        combinations = [(*head, float(t)) for head in combinations for t in candidates]
    return iter(combinations)


def _solve_inner(
    records: Records, costs: Floats, allowance: float, alive: npt.NDArray[np.bool_], first: int
) -> Sequence[float] | None:
    """Best thresholds of the last exits (up to three) for the samples ``alive``, or None.

    ``allowance`` is the total cost that they may have.
    """
    exits = records.exits - first
    conf = records.confidence[alive, first:].astype(float)
    correct = records.correct[alive, first:].astype(int)
    if exits == 1 or not len(conf):
        return [-np.inf] * exits if len(conf) * costs[first] <= allowance else None
    if exits == 2:  # a first exit that nobody can use
        conf = np.column_stack([np.full(len(conf), -1.0), conf])
        correct = np.column_stack([np.zeros(len(conf), int), correct])
        inner = _sweep(conf, correct, np.array([0.0, *costs[first:]]), allowance, fixed=True)
        return None if inner is None else inner[1:]
    return _sweep(conf, correct, costs[first:], allowance, fixed=False)


def _sweep(
    conf: npt.NDArray[np.float64],
    correct: npt.NDArray[np.int64],
    costs: Floats,
    allowance: float,
    *,
    fixed: bool,
) -> list[float] | None:
    """Exact optimum of two thresholds: all first ones, and for each the best second one.

    With ``fixed`` nobody leaves at the first exit. O(N^2) sums in blocks, no Python per pair.
    """
    count = len(conf)
    firsts, first_left = _cuts(conf[:, 0])
    if fixed:
        firsts, first_left = firsts[:1], first_left[:1]
    order = np.argsort(-conf[:, 1], kind="stable")
    second = conf[order, 1]
    ends = np.append(second[1:] != second[:-1], True)  # a cut may not split equal confidences
    gain = (correct[order, 1] - correct[order, 2]).astype(np.int32)
    first_order = np.argsort(-conf[:, 0], kind="stable")
    rank = np.empty(count, np.int64)  # how early a sample leaves at the first exit
    rank[first_order] = np.arange(count)
    rank = rank[order]
    right_first = np.append(0, np.cumsum(correct[first_order, 0]))
    right_last = np.append(0, np.cumsum(correct[first_order, 2]))
    best: tuple[float, float] | None = None
    choice: list[float] | None = None
    for start in range(0, len(firsts), _BLOCK):
        left = first_left[start : start + _BLOCK]
        stays = rank[None, :] >= left[:, None]  # (block, N), in order of the second confidence
        leavers = np.cumsum(stays, axis=1, dtype=np.int32)
        gains = np.cumsum(np.where(stays, gain, 0), axis=1, dtype=np.int32)
        base = right_first[left] + right_last[-1] - right_last[left]
        spent = left * costs[0] + (count - left) * costs[2]
        total = spent[:, None] - leavers * (costs[2] - costs[1])
        value = np.where(ends & (total <= allowance * (1 + 1e-12)), base[:, None] + gains, -1)
        none = np.where(spent <= allowance * (1 + 1e-12), base, -1)  # nobody at the second exit
        for row in range(len(left)):
            top = int(value[row].max())
            if none[row] > top:
                found, cut, price = int(none[row]), np.inf, float(spent[row])
            elif top >= 0:
                at = int(np.flatnonzero(value[row] == top)[-1])  # more leavers, less cost
                found, price = top, float(total[row, at])
                cut = _between(second, at)
            else:
                continue
            if best is None or (found, -price) > best:
                best, choice = (found, -price), [float(firsts[start + row]), float(cut), -np.inf]
    return choice


def _cuts(confidence: npt.NDArray[np.float64]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """All thresholds that make a difference, from +inf down, and how many samples reach each."""
    ordered = np.sort(confidence)[::-1]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    cuts = np.array([np.inf, *(_between(ordered, int(end)) for end in ends)])
    return cuts, np.append(0, ends + 1)


def _between(ordered: npt.NDArray[np.float64], last: int) -> float:
    """A threshold that lets position ``last`` of the descending ``ordered`` leave and not the next.

    Halfway between the two, so that rounding on another machine moves nobody across it.
    """
    if last + 1 == len(ordered):
        return float(ordered[last])
    value = (float(ordered[last]) + float(ordered[last + 1])) / 2
    return value if value > ordered[last + 1] else float(ordered[last])


def _round_up(value: float) -> float:
    """``value`` rounded up to four digits, so that the number named is feasible."""
    digits = 10.0 ** (3 - int(np.floor(np.log10(value))))
    steps = np.ceil(value * digits)
    return float((steps if steps / digits >= value else steps + 1) / digits)
