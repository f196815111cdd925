"""The exit thresholds with the highest accuracy to be expected that keep a limit on the records.

A sample leaves at the first exit k with ``confidence >= thresholds[k]``; the last exit takes all
that are left. What is maximised is the mean of the records' estimated probability of being right,
because the share that is right can be fitted by luck (:mod:`dvt_edge.policy.estimate`); what a
solution reports is that share. Up to four exits the result is the exact optimum over all
thresholds, beyond that a search (:mod:`dvt_edge.policy.search` says how). Budgets in milliseconds
and joules are in :mod:`dvt_edge.policy.budget`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy.plane import SCALE, Ints
from dvt_edge.policy.records import Floats, Records
from dvt_edge.policy.search import Found, Problem, search

RIGHT = 2**32
"""Units of value that a right answer is worth."""
FRONTIER_POINTS = 256
"""Most points of a frontier of up to three exits."""
FRONTIER_POINTS_SLOW = 33
"""The same with four exits and more, where every point is a search of its own."""


@dataclass(frozen=True)
class Certificate:
    """All statements hold together with probability 1 - ``delta`` over the records drawn."""

    n: int
    """Records that the statements were tested on; the thresholds were chosen on others."""
    groups: int | None
    """Groups that these came in, which are what was drawn independently; None for single ones."""
    delta: float
    cost_bound: float
    """The true mean cost (mean latency in ms) is at most this."""
    accuracy_gap_bound: float
    """The true accuracy is at most this much below the last exit's, 0..1."""
    accuracy_bound: float | None
    """The true accuracy is at least this; None where labels are missing."""
    method: str
    """How the statements were obtained: ``learn-then-test``."""


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
    certificate: Certificate | None = None
    """What holds for unseen frames, where the budget has a ``confidence_level``."""


class Limit(NamedTuple):
    """The mean of ``cost[exit]`` over the frames is at most ``most``."""

    cost: Floats
    """[K], never falling."""
    most: float


def closed_before(exits: int, exit_at: int) -> Floats:
    """[K] thresholds with which everything leaves at ``exit_at`` (from 0) of ``exits``."""
    return np.array([np.inf] * exit_at + [-np.inf] * (exits - exit_at))


def replay(records: Records, cost: npt.ArrayLike, thresholds: npt.ArrayLike) -> Solution:
    """What ``thresholds`` [K] give on ``records`` when leaving at exit k costs ``cost[k]``."""
    costs, final = check_cost(records, cost), np.array(thresholds, float)
    at = records.exits_taken(final)
    final[-1] = -np.inf
    fraction = records.exit_shares(at)
    return Solution(final, float(records.correct_at(at).mean()), float(fraction @ costs), fraction)


def solve(records: Records, cost: npt.ArrayLike, limit: float) -> Solution:
    """The best thresholds whose mean cost is at most ``limit``; the cheapest among equals.

    The best are those with the highest mean of ``records.probability_right``.

    ``cost`` [K] is the cumulative cost of leaving at each exit, positive and increasing, in the
    unit of ``limit``. For percentiles and several limits use
    :func:`~dvt_edge.policy.budget.solve_budget`. Thresholds lie halfway between neighbouring
    confidences.

    Exact for up to four exits. O(N log N) with up to three (50,000 records: about 0.15 s on two
    cores). Four are solved by branch and bound: O(N^2 log N) at worst, far less where the value
    depends on the thresholds as a trained cascade's does (2,000 records: about 0.2 s, 10,000:
    about 2 s). With five or more, a search over pairs of thresholds.

    Raises :class:`~dvt_edge.errors.BudgetError`, with the smallest feasible limit, when even
    leaving at the first exit costs more than ``limit``, and
    :class:`~dvt_edge.errors.DataError` for costs that are not one per exit, positive and
    increasing.
    """
    costs = check_cost(records, cost)
    if not np.isfinite(limit) or limit <= 0:
        raise BudgetError(f"a budget is a positive number, found {limit}")
    if limit < costs[0]:
        raise BudgetError(
            f"the budget of {limit:g} is smaller than the first exit's cost; the smallest possible "
            f"is {round_up(costs[0]):g}"
        )
    found = search(make_problem(records, [Limit(costs, limit)]))
    assert found is not None  # leaving at the first exit keeps the limit
    return replay(records, costs, found.thresholds)


def frontier(
    records: Records, cost: npt.ArrayLike, points: int | None = None
) -> tuple[Solution, ...]:
    """The accuracy/cost curve: from all leaving at the first exit to the highest accuracy.

    Accuracy is the expected one here, as in :func:`solve`: the mean of
    ``records.probability_right``. Every point is the cheapest solution of its accuracy and the most
    accurate of its cost; cost and expected accuracy increase along the curve, the counted accuracy
    nearly so. The points are the exact solutions for ``points`` accuracies spread evenly over the
    range, both ends included (256 for up to three exits, else 33, where None); those that coincide
    are given once. ``cost`` as in :func:`solve`; raises as it does, and
    :class:`~dvt_edge.errors.DataError` for fewer than two points.
    """
    costs = check_cost(records, cost)
    if points is None:
        points = FRONTIER_POINTS if records.exits <= 3 else FRONTIER_POINTS_SLOW
    if points < 2:
        raise DataError(f"a frontier needs at least 2 points, found {points}")
    problem = make_problem(records, [Limit(costs, np.inf)])
    highest = search(problem)
    assert highest is not None  # nothing is forbidden
    first = int(problem.value[:, 0].sum())
    needs = np.unique(np.linspace(first, highest.value, points).round().astype(int))
    found = [highest]
    for need in reversed(needs[1:-1]):
        if need <= found[-1].value:
            point = search(problem.limited(problem.allowance, int(need)))
            assert point is not None  # a higher accuracy was possible
            if point.price < found[-1].price:
                found.append(point)
    solutions = [replay(records, costs, point.thresholds) for point in reversed(found)]
    start = replay(records, costs, closed_before(records.exits, 0))
    return tuple(s for s in (start, *solutions) if s is start or s.cost > start.cost)


def check_cost(records: Records, cost: npt.ArrayLike) -> Floats:
    """``cost`` as float [K]; raises DataError unless it is positive and increasing."""
    costs = np.asarray(cost, float)
    if costs.shape != (records.exits,):
        raise DataError(f"expected {records.exits} costs, one per exit, found {costs.shape}")
    if not np.isfinite(costs).all() or costs[0] <= 0 or (np.diff(costs) <= 0).any():
        raise DataError(
            f"costs must be positive and increase from exit to exit, found {costs.tolist()}"
        )
    return costs


def make_problem(
    records: Records, limits: list[Limit], exits: int | None = None, *, counted: bool = False
) -> Problem:
    """The search problem of ``records`` cut down to its first ``exits``.

    Its value is the sum of the records' ``probability_right`` in units of 1 / :data:`RIGHT`, or
    the right answers, if they are to be ``counted``.
    """
    exits = exits or records.exits
    count = len(records)
    worth = records.correct if counted else np.rint(records.probability_right * RIGHT)
    price, allowance = [], []
    for cost, limit in limits:
        used = cost[:exits]
        if used[-1] > 0:  # otherwise all of it costs nothing and nothing is forbidden
            price.append(integer_prices(used))
            share = min(limit / float(used[-1]), 1.0)
            # Half a unit per sample is granted for rounding: 1e-12 of the dearest exit's cost.
            allowance.append(int(share * SCALE * count) + count // 2 + 1)
    return Problem(
        records.confidence[:, :exits],
        worth[:, :exits].astype(np.int64),
        np.array(price),
        np.array(allowance),
    )


def integer_prices(cost: Floats) -> Ints:
    """[K]: ``cost`` in units of its last, dearest one / SCALE, correctly rounded."""
    return np.asarray(np.rint(cost / cost[-1] * SCALE), np.int64)


def cheapest(problem: Problem, need: int) -> Found | None:
    """The lowest first price with a value of ``need``, and the highest value of that price."""
    found = search(problem.limited(problem.allowance, need))
    if found is None:
        return None
    allowance = problem.allowance.copy()
    allowance[0] = min(int(allowance[0]), found.price)
    return search(problem.limited(allowance, None))


def round_up(value: float, digits: int = 4) -> float:
    """``value`` rounded up to so many ``digits``, so that the number named is feasible."""
    scale = 10.0 ** (digits - 1 - int(np.floor(np.log10(value))))
    units = float(np.ceil(value * scale))
    return units / scale if units / scale >= value else (units + 1) / scale
