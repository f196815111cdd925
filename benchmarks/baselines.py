"""What ``policy.py`` compares our solver and our certificates with.

The DVT authors' rule over all its parameters, the genetic search over thresholds that their paper
describes (Wang et al., NeurIPS 2021, arXiv 2105.15075), the thresholds with the most right answers
on the records, and a bound that holds for all thresholds at once. The authors' rule and the genetic
search do not know the best thresholds for a budget.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy.authors import AUTHORS_BUDGETS, authors_thresholds
from dvt_edge.policy.records import Floats, Records
from dvt_edge.policy.search import search
from dvt_edge.policy.solver import (
    Limit,
    Solution,
    cheapest,
    check_cost,
    make_problem,
    replay,
    round_up,
)

POPULATION = 64
GENERATIONS = 60
_PARENTS = 3  # a parent is the best of so many drawn
_ELITE = 4
_MUTATION = 0.08  # standard deviation, of a quantile
_CHUNK = 2**22  # confidences compared at once


def authors_rule(records: Records, cost: npt.ArrayLike) -> tuple[Solution, ...]:
    """Their solutions for all 59 values of p on ``records``; ``cost`` [K] as in ``solve``."""
    return tuple(replay(records, cost, authors_thresholds(records, p)) for p in AUTHORS_BUDGETS)


def most_right(records: Records, cost: npt.ArrayLike, limit: float) -> Solution:
    """The exact optimum of what is right on ``records``, by count: it fits their luck.

    Arguments and errors as :func:`~dvt_edge.policy.solver.solve`, which maximises an estimate.
    """
    costs = _check(records, cost, limit)
    found = search(make_problem(records, [Limit(costs, limit)], counted=True))
    assert found is not None  # leaving at the first exit keeps the limit
    return replay(records, costs, found.thresholds)


def cheapest_right(records: Records, cost: npt.ArrayLike, accuracy: float) -> Solution | None:
    """The cheapest thresholds with ``accuracy`` on ``records``, by count; None where none have it.

    ``cost`` as in :func:`~dvt_edge.policy.solver.solve`.
    """
    costs = check_cost(records, cost)
    problem = make_problem(records, [Limit(costs, np.inf)], counted=True)
    found = cheapest(problem, int(np.ceil(accuracy * len(records) - 1e-9)))
    return None if found is None else replay(records, costs, found.thresholds)


def genetic_search(
    records: Records,
    cost: npt.ArrayLike,
    limit: float,
    *,
    seed: int = 0,
    population: int = POPULATION,
    generations: int = GENERATIONS,
) -> Solution:
    """The best thresholds that a genetic search finds for a mean cost of at most ``limit``.

    An individual is one quantile of the confidence per exit but the last. Fitness is the accuracy
    within the limit; beyond it, less the farther. Parents win a tournament of three, children mix
    them per exit or blend them, a quarter of the genes is moved by a normal step that shrinks with
    the generations, the four best survive. Deterministic for a ``seed``. Raises as
    :func:`~dvt_edge.policy.solver.solve`, and :class:`~dvt_edge.errors.DataError` for a population
    below eight or no generations.
    """
    costs = _check(records, cost, limit)
    if population < 2 * _ELITE or generations < 1:
        raise DataError(
            f"a genetic search needs a population of {2 * _ELITE} and a generation at least, "
            f"found {population} and {generations}"
        )
    if records.exits == 1:
        return replay(records, costs, [-np.inf])
    rng = np.random.default_rng(seed)
    genes = records.exits - 1
    ordered = np.sort(records.confidence[:, :-1], axis=0)
    people = rng.random((population, genes))
    people[0] = 0.0  # all leave at the first exit: always within the limit
    for generation in range(generations + 1):
        accuracy, spent = _judge(records, costs, _thresholds(ordered, people))
        over = spent - limit * (1 + 1e-12)
        fitness = np.where(over <= 0, accuracy, -over / costs[-1])
        people = people[np.argsort(-fitness, kind="stable")]
        if generation == generations:
            break
        # People are in order of fitness, so the smallest of the drawn wins.
        winners = rng.integers(0, population, (2, population - _ELITE, _PARENTS)).min(axis=2)
        first, second = people[winners[0]], people[winners[1]]
        share = np.where(
            rng.random((len(first), 1)) < 0.5,
            rng.integers(0, 2, first.shape),
            rng.random(first.shape),
        )
        children = share * first + (1 - share) * second
        step = rng.normal(0, _MUTATION * (1 - 0.9 * generation / generations), children.shape)
        children += np.where(rng.random(children.shape) < 0.25, step, 0)
        people = np.concatenate([people[:_ELITE], np.clip(children, 0, 1)])
    return replay(records, costs, _thresholds(ordered, people[:1])[0])


def _check(records: Records, cost: npt.ArrayLike, limit: float) -> Floats:
    costs = check_cost(records, cost)
    if limit < costs[0]:
        raise BudgetError(
            f"the budget of {limit:g} is smaller than the first exit's cost; the smallest possible "
            f"is {round_up(costs[0]):g}"
        )
    return costs


def _thresholds(ordered: npt.NDArray[np.floating], people: Floats) -> Floats:
    """[P, K]: quantiles [P, K-1] as confidences; 1 closes the exit."""
    count = len(ordered)
    place = np.ceil(people * count).astype(int)
    closed = np.vstack([ordered, np.full(ordered.shape[1], np.inf)])
    chosen = np.take_along_axis(closed, place, axis=0)
    return np.column_stack([chosen, np.full(len(people), -np.inf)])


def _judge(records: Records, costs: Floats, thresholds: Floats) -> tuple[Floats, Floats]:
    """[P] accuracy and [P] mean cost of thresholds [P, K]."""
    rows = np.arange(len(records))
    accuracy, spent = np.empty(len(thresholds)), np.empty(len(thresholds))
    size = max(1, _CHUNK // records.confidence.size)
    for start in range(0, len(thresholds), size):
        part = thresholds[start : start + size]
        at = (records.confidence >= part[:, None, :]).argmax(axis=2)  # (size, N)
        accuracy[start : start + size] = records.correct[rows, at].mean(axis=1)
        spent[start : start + size] = costs[at].mean(axis=1)
    return accuracy, spent


def uniform_margin(cost: npt.ArrayLike, count: int, delta: float) -> float:
    """How far the true mean cost of *any* thresholds may lie above that on ``count`` records.

    With probability 1 - ``delta`` for all thresholds at once, so that solving for ``limit`` minus
    this margin needs no split. The mean is linear in the shares that pass exit 1, exits 1 and 2 and
    so on: values of the joint distribution function of the confidences. Massart's constant for the
    first, Naaman's k (n + 1) exp(-2 n e^2) for k dimensions (Statistics & Probability Letters 173,
    2021), delta divided among the exits.
    """
    steps = np.diff(np.asarray(cost, float))
    each = delta / max(1, len(steps))
    factors = [1 if k == 1 else k * (count + 1) for k in range(1, len(steps) + 1)]
    widths = [np.sqrt(np.log(factor / each) / 2 / count) for factor in factors]
    return float(steps @ np.array(widths)) if widths else 0.0
