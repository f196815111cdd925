"""Thresholds whose budget holds for unseen frames, with a stated probability.

Thresholds chosen on records look better there than they are. Bounds that hold for all thresholds at
once (Massart 1990 and Naaman 2021) need no split of the records, but say nothing about accuracy and
are wide. Used here is *learn then test* (Angelopoulos et al. 2021, arXiv 2110.01052; for early
exits Jazbec et al. 2024, arXiv 2405.20915); ``benchmarks/policy.py`` measures what both cost.

One half of the records proposes thresholds for a ladder of budgets, from well inside the wanted one
up to the wanted one. The other half tests "the true mean exceeds the limit" for one after the
other, each at the full level, and stops at the first that cannot be rejected: fixed-sequence
testing, which keeps the family-wise error without a correction. The last rejected one is returned.
The test is a bet against the limit (:mod:`dvt_edge.policy.betting`), valid for any sample size.
Records that come in groups, such as the frames of a clip, are split and tested by group. What it
rests on: frames (or groups) in the field are drawn like the records, and the bounds on what leaving
at an exit costs. Drift and clocks are for the controller and the audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy.betting import ruled_out, upper_bound
from dvt_edge.policy.budget import budget_targets, solve_limits, tightest
from dvt_edge.policy.exit_costs import ExitCosts, with_audit
from dvt_edge.policy.records import Exits, Floats, Records
from dvt_edge.policy.solver import Certificate, Limit, Solution, closed_before, make_problem, replay
from dvt_edge.policy.targets import Budget, mean_latency_ms

LADDER = (3.0, 2.5, 2.1, 1.8, 1.5, 1.3, 1.1, 0.95, 0.8, 0.65, 0.5, 0.35, 0.2)
"""Distances to the wanted limit that are tested in turn, in half-widths of a confidence bound."""
MINIMUM_RECORDS = 20
"""Or groups of them, where they come in groups."""


class _Judge:
    """Records that test: what is drawn independently are their groups."""

    def __init__(self, records: Records) -> None:
        self.records = records
        self._group = _group_numbers(records)
        self.sizes: Floats = np.bincount(self._group).astype(float)

    def means(self, values: Floats) -> Floats:
        """[G]: of ``values`` [N] in each group."""
        return np.bincount(self._group, weights=values) / self.sizes

    def bound(self, values: Floats, delta: float) -> float:
        """Upper confidence bound of the mean of ``values`` [N], 0..1."""
        return float(upper_bound(self.means(values), delta, self.sizes))


def _group_numbers(records: Records) -> npt.NDArray[np.intp]:
    """[N]: from 0 in the order in which groups appear; every record is one where nothing is known
    of groups."""
    if records.group is None:
        return np.arange(len(records))
    _, first, number = np.unique(records.group, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[number.reshape(-1)])


def _split(records: Records, seed: int) -> tuple[Records, Records]:
    """Two parts of half of the groups each, in random order."""
    group = _group_numbers(records)
    place = np.random.default_rng(seed).permutation(int(group.max()) + 1)[group]
    order = np.argsort(place, kind="stable")
    first = int((2 * place < place.max() + 1).sum())
    return records.take(order[:first]), records.take(order[first:])


def solve_certified(
    records: Records,
    costs: ExitCosts,
    budget: Budget,
    confidence_level: float = 0.95,
    *,
    at_most: ExitCosts | None = None,
    bound_error: float = 0.0,
    unlabelled: Records | None = None,
    seed: int = 0,
) -> tuple[Solution, Certificate]:
    """The best thresholds found whose budget holds with probability ``confidence_level``.

    Arguments as :func:`~dvt_edge.policy.budget.solve_budget`; every limit of the budget, tails,
    energy and ``min_accuracy`` included, is certified. ``at_most`` are upper bounds on ``costs``;
    any of them is wrong with probability ``bound_error`` at most. Without them ``costs`` are exact.
    Half of the error that is left goes to the budget, half to the reported bounds. With
    ``unlabelled``, records of other frames, all ``records`` choose and these test, unless the
    budget has a ``min_accuracy``; the accuracy gap is then bounded by how often early answers
    differ from the last exit's. The solution's own figures are those on ``records``. ``seed`` draws
    the split.

    Raises :class:`~dvt_edge.errors.BudgetError` as ``solve_budget`` does, and where the records
    cannot prove ``min_accuracy``, with the accuracy that they can; limits alone never fail, as
    leaving at the first exit keeps them. :class:`~dvt_edge.errors.DataError` for fewer than 20
    records, or groups of them.
    """
    delta = 1 - confidence_level - bound_error
    if delta <= 0:
        raise BudgetError(
            f"measured costs are wrong with a probability of up to {bound_error:.2g}, so "
            f"confidence_level can be at most {1 - 2 * bound_error:.3g}"
        )
    if unlabelled is not None and unlabelled.exits != records.exits:
        raise DataError(
            f"the unlabelled records have {unlabelled.exits} exits, the others {records.exits}; "
            "rebuild the bundle"
        )
    if unlabelled is None or budget.min_accuracy is not None:
        _check_enough(records, "")
        chooser, judging = _split(records, seed)
    else:  # cost needs no labels, so that all labelled records may choose
        _check_enough(unlabelled, "unlabelled ")
        chooser, judging = records, unlabelled
    bounds = at_most or costs
    exits, targets = budget_targets(records, bounds, budget)
    limits = tightest(targets, bounds.latency, exits, budget.audit)
    price = with_audit(bounds.latency.mean, budget.audit, exits)
    if budget.min_accuracy is not None:  # refuses what even uncertified thresholds cannot reach
        solve_limits(records, price, limits, exits, budget.min_accuracy)
    judge = _Judge(judging)
    best, provable = None, 0.0
    each = delta / 2 / (len(LADDER) + 1)  # for bounds that hold for the whole ladder
    # What few choose scatters, however many judge.
    fewer = min(len(judge.sizes), len(_Judge(chooser).sizes))
    ladder = _ladder(chooser, fewer, price, limits, exits, budget, delta / 2)
    for thresholds in ladder:
        at = judging.exits_taken(thresholds)
        passed = all(_kept(judge, at, limit, delta / 2) for limit in limits)
        if budget.min_accuracy is not None:
            right = judging.correct_at(at).astype(float)
            bound = 1 - judge.bound(1 - right, delta / 2)
            provable = max(provable, bound)
            passed = passed and bound >= budget.min_accuracy
        if not passed:
            break
        best = thresholds, at
    if best is None and budget.min_accuracy is not None:
        raise BudgetError(
            f"{len(judging)} records prove an accuracy of {np.floor(provable * 1e4) / 1e4:g} "
            f"within the other limits, not min_accuracy {budget.min_accuracy:g}; lower it or "
            "record more"
        )
    if best is None:  # leaving at the first exit keeps every limit, whatever the frames are
        first = closed_before(records.exits, 0)
        best = first, judging.exits_taken(first)
    thresholds, at = best
    certificate = _bounds(judge, price, at, 1 - confidence_level, each)
    mean_limit = mean_latency_ms(targets)
    if mean_limit is not None and mean_limit < certificate.cost_bound:
        certificate = replace(certificate, cost_bound=float(mean_limit))
    mean = with_audit(costs.latency.mean, budget.audit, exits)
    return replay(records, mean, thresholds), certificate


def _check_enough(records: Records, kind: str) -> None:
    independent = int(_group_numbers(records).max()) + 1
    if independent < MINIMUM_RECORDS:
        what = f"{kind}records" if records.group is None else f"groups of {kind}records"
        raise DataError(
            f"a certificate needs at least {MINIMUM_RECORDS} {what}, found {independent}; record "
            "more images or drop confidence_level"
        )


def _ladder(
    chooser: Records,
    judges: int,
    price: Floats,
    limits: list[Limit],
    exits: int,
    budget: Budget,
    delta: float,
) -> Iterator[Floats]:
    """Proposals, the safest first, one for every distance that leaves something to choose."""
    like = make_problem(chooser, [Limit(price, np.inf), *limits], exits)
    try:
        plain = solve_limits(chooser, price, limits, exits, budget.min_accuracy, like)
    except BudgetError:
        plain = closed_before(chooser.exits, exits - 1)
    at, alike = chooser.exits_taken(plain), _Judge(chooser)
    widths = [
        _half_width(
            alike.means(limit.cost[at]), alike.sizes, float(np.ptp(limit.cost)), judges, delta
        )
        for limit in limits
    ]
    right = alike.means(chooser.correct_at(at).astype(float))

    def tighter(distance: float) -> list[Limit]:
        return [
            Limit(limit.cost, max(limit.most - distance * width, float(limit.cost[0])))
            for limit, width in zip(limits, widths, strict=True)
        ]

    last: Floats | None = None
    if budget.min_accuracy is not None:  # before all others, the most accurate there is
        last = solve_limits(chooser, price, tighter(LADDER[0]), exits, None, like)
        yield last
    for distance in LADDER:
        accuracy = budget.min_accuracy
        if accuracy is not None:
            accuracy = min(
                1.0, accuracy + distance * _half_width(right, alike.sizes, 1.0, judges, delta)
            )
        try:
            found = solve_limits(chooser, price, tighter(distance), exits, accuracy, like)
        except BudgetError:
            continue
        if last is None or found.tolist() != last.tolist():
            last = found
            yield found


def _half_width(values: Floats, weights: Floats, span: float, count: int, delta: float) -> float:
    """About how far a bound from ``count`` groups lies above their mean."""
    log = np.log(1 / delta)
    mean = np.average(values, weights=weights)
    spread = np.sqrt(np.average((values - mean) ** 2, weights=weights))
    return float(spread * np.sqrt(2 * log / count) + span * log / 2 / count)


def _kept(judge: _Judge, at: Exits, limit: Limit, delta: float) -> bool:
    """Whether a mean above the limit is ruled out."""
    low, span = float(limit.cost[0]), float(np.ptp(limit.cost))
    if limit.cost.max() <= limit.most:
        return True
    scaled = judge.means(np.clip((limit.cost[at] - low) / span, 0, 1))
    return bool(ruled_out(scaled, (limit.most - low) / span, delta, judge.sizes))


def _bounds(judge: _Judge, cost: Floats, at: Exits, delta: float, each: float) -> Certificate:
    """Bounds on cost, gap and accuracy of leaving at ``at`` [N], wrong with probability ``each``
    together, of which the gap has half."""
    records = judge.records
    span = float(cost[-1] - cost[0])
    dear = np.clip((cost[at] - cost[0]) / span, 0, 1) if span else np.zeros(len(at))
    right = records.correct_at(at).astype(float)
    lost = (1 + records.correct[:, -1] - right) / 2
    labelled = records.label is not None
    lowest = 1 - judge.bound(1 - right, each / 4) if labelled else None
    return Certificate(
        n=len(at),
        groups=None if records.group is None else len(judge.sizes),
        delta=delta,
        cost_bound=float(cost[0]) + span * judge.bound(dear, each / 4),
        accuracy_gap_bound=min(1.0, 2 * judge.bound(lost, each / 2) - 1),
        accuracy_bound=lowest,
        method="learn-then-test",
    )
