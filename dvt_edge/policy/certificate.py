"""Thresholds whose budget holds for unseen frames, with a stated probability.

Thresholds chosen on records look better there than they are. Bounds that hold for all thresholds at
once (Massart 1990 and Naaman 2021) need no split of the records, but say nothing about accuracy and
are wide. Used here is *learn then test* (Angelopoulos et al. 2021, arXiv 2110.01052; for early
exits Jazbec et al. 2024, arXiv 2405.20915); ``benchmarks/policy.py`` measures what both cost.

One part of the records proposes thresholds for a ladder of budgets, from well inside the wanted one
to beyond it. The other part tests "the true mean exceeds the limit" for one after the other, each
at the full level, and stops at the first that cannot be rejected: fixed-sequence testing, which
keeps the family-wise error without a correction. The last rejected one is returned. The test is a
bet against the limit (:mod:`dvt_edge.policy.betting`), valid for any sample size. Few records are
enough to choose (:mod:`dvt_edge.policy.estimate`), so most of them test.

Cost needs no labels: where there are unlabelled records, these test the limits, and most labelled
ones choose. What the others say of the accuracy then has no part in where the ladder ends, and
holds at its full level; otherwise each rung has a share of the error, large where the ladder is
likely to end.

Records that come in groups, such as the frames of a clip, are split and tested by group. What it
rests on: frames (or groups) in the field are drawn like the records, no group is larger than the
largest of them, and leaving at an exit costs at most what its bounds say. Drift and clocks are for
the controller and the audit.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy.betting import Sample, ruled_out, upper_bound
from dvt_edge.policy.budget import budget_targets, solve_limits, tightest
from dvt_edge.policy.exit_costs import ExitCosts, with_audit
from dvt_edge.policy.records import Exits, Floats, Records
from dvt_edge.policy.solver import Certificate, Limit, Solution, closed_before, make_problem, replay
from dvt_edge.policy.targets import Budget, Target, mean_latency_ms

LADDER = (
    *(12.0, 8.0, 6.0, 5.0, 4.0, 3.3, 2.8, 2.4, 2.0, 1.7, 1.4, 1.1, 0.85, 0.6, 0.35, 0.1),
    *(-0.15, -0.4, -0.7, -1.0, -1.4, -1.8, -2.3),
)
"""How much safer than what a test is about to reject proposals look on the records that propose
them, in standard errors of the difference between these and those that test."""
CHOOSING, CHOOSING_BESIDE = 0.4, 2 / 3
"""Share of the labelled groups that proposes; the second where unlabelled ones test the costs."""
SCOUTING = 0.15
"""Share of the unlabelled groups that tells what proposals cost before the others test it: images
in the field may be harder than those that propose."""
BUDGET_ERROR = 0.5
"""Of the error, what the limits may take; the bounds that are reported have the rest:"""
GAP_ERROR, COST_ERROR, ACCURACY_ERROR = 0.75, 0.125, 0.125
EVENLY = 0.2
"""Of the error of a bound, what is spread evenly over the ladder; the rest is where it is likely to
end."""
MINIMUM_RECORDS = 20
"""Or groups of them, where they come in groups."""
_PLACE = 1.05  # times a normal quantile: about where a bound is
_FIRST = 2.0  # distance of the most accurate proposal, where there are limits besides
_NORMAL = NormalDist()

Figure = Callable[[Records, Exits], Floats]
"""[N], 0..1: what is bounded, of every record that leaves at its own exit."""


class _Part:
    """Records whose groups are what was drawn independently."""

    def __init__(self, records: Records, largest: int) -> None:
        self.records = records
        self._group = _group_numbers(records)
        self._sizes = np.bincount(self._group)
        self._weight = self._sizes / largest

    def __len__(self) -> int:
        """Groups."""
        return len(self._sizes)

    def sample(self, figure: Figure, thresholds: Floats) -> Sample:
        """The figure by groups, as it is bet on."""
        values = figure(self.records, self.records.exits_taken(thresholds))
        return Sample(np.bincount(self._group, weights=values) / self._sizes, self._weight)

    def mean(self, figure: Figure, thresholds: Floats) -> float:
        return float(figure(self.records, self.records.exits_taken(thresholds)).mean())

    def spread(self, figure: Figure, thresholds: Floats) -> float:
        """Standard error of the figure's mean, times the root of the number of groups."""
        values, weight = self.sample(figure, thresholds)
        off = weight * (values - np.average(values, weights=weight))
        return float(np.sqrt((off**2).mean()) / weight.mean())


class _Parts:
    """Who proposes thresholds, who tells what these cost, who tests it, and who tests what labels
    tell: four parts, or with labelled records alone two."""

    def __init__(self, records: Records, unlabelled: Records | None, seed: int) -> None:
        rng = np.random.default_rng(seed)
        given = (records,) if unlabelled is None else (records, unlabelled)
        largest = max(int(np.bincount(_group_numbers(part)).max()) for part in given)
        share = CHOOSING if unlabelled is None else CHOOSING_BESIDE
        choosing, judging = _split(records, share, rng)
        self.chooser = self.scout = _Part(choosing, largest)
        self.judge = self.field = _Part(judging, largest)
        if unlabelled is not None:
            scouting, testing = _split(unlabelled, SCOUTING, rng)
            self.scout, self.field = _Part(scouting, largest), _Part(testing, largest)

    def upper_bound(self, part: _Part, figure: Figure, thresholds: Floats, delta: float) -> float:
        """Of the figure's true mean."""
        alike = (self.scout if part is self.field else self.chooser).sample(figure, thresholds)
        return upper_bound(part.sample(figure, thresholds), delta, alike)

    def kept(self, limit: Limit, thresholds: Floats, delta: float) -> bool:
        """Whether a true mean above the limit is ruled out."""
        if limit.cost.max() <= limit.most:
            return True
        figure, low, span = _dear(limit.cost), float(limit.cost[0]), float(np.ptp(limit.cost))
        sample, alike = (part.sample(figure, thresholds) for part in (self.field, self.scout))
        return bool(ruled_out(sample, [(limit.most - low) / span], delta, alike)[0])


class _Rung(NamedTuple):
    thresholds: Floats
    likely: float
    """Share of the error of a bound that must hold wherever the ladder ends."""


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
    Half of the error that is left goes to the budget, half to the reported bounds. ``unlabelled``
    are records of other frames, which then test all limits but ``min_accuracy``: costs are promised
    for frames like these, accuracy for frames like ``records``. The solution's own figures are
    those on ``records``. ``seed`` draws the split.

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
    for kind, some in (("", records), ("unlabelled ", unlabelled)):
        if some is not None:
            _check(some, kind, records.exits)
    parts = _Parts(records, unlabelled, seed)
    bounds = at_most or costs
    exits, targets = budget_targets(records, bounds, budget)
    limits = [
        Limit(limit.cost[:exits], limit.most)
        for limit in tightest(targets, bounds.latency, exits, budget.audit)
    ]
    price = with_audit(bounds.latency.mean, budget.audit, exits)[:exits]
    if budget.min_accuracy is not None:  # refuses what even uncertified thresholds cannot reach
        solve_limits(records, price, limits, exits, budget.min_accuracy)
    level = BUDGET_ERROR * delta
    ladder = _ladder(parts, price, limits, exits, budget, level)
    best = _climb(parts, ladder, limits, budget, level)
    share = 1.0 if unlabelled is not None and budget.min_accuracy is None else best.likely
    reported = delta - level
    found = best.thresholds
    gap = 2 * parts.upper_bound(parts.judge, _lost, found, GAP_ERROR * reported * share) - 1
    lowest = None
    if records.label is not None:
        wrong = parts.upper_bound(parts.judge, _wrong, found, ACCURACY_ERROR * reported * share)
        lowest = max(1 - wrong, budget.min_accuracy or 0.0)
    certificate = Certificate(
        n=len(parts.judge.records),
        groups=None if records.group is None else len(parts.judge),
        delta=1 - confidence_level,
        cost_bound=_cost_bound(parts, price, best, targets, COST_ERROR * reported),
        accuracy_gap_bound=min(1.0, gap),
        accuracy_bound=lowest,
        method="learn-then-test",
        unlabelled=None if unlabelled is None else len(unlabelled),
    )
    mean = with_audit(costs.latency.mean, budget.audit, exits)
    return replay(records, mean, found), certificate


def _climb(
    parts: _Parts, ladder: Iterator[_Rung], limits: list[Limit], budget: Budget, level: float
) -> _Rung:
    """The last rung that is proven to keep the budget, all before it included."""
    # Leaving at the first exit keeps every limit, whatever the frames are.
    best = _Rung(closed_before(parts.judge.records.exits, 0), EVENLY / (len(LADDER) + 2))
    proven, provable = budget.min_accuracy is None, 0.0
    for rung in ladder:
        if proven and rung.thresholds.tolist() == best.thresholds.tolist():
            best = _Rung(rung.thresholds, best.likely + rung.likely)
            continue
        passed = all(parts.kept(limit, rung.thresholds, level) for limit in limits)
        if budget.min_accuracy is not None:
            bound = 1 - parts.upper_bound(parts.judge, _wrong, rung.thresholds, level)
            provable = max(provable, bound)
            passed = passed and bound >= budget.min_accuracy
        if not passed:
            break
        best, proven = rung, True
    if not proven:
        raise BudgetError(
            f"{len(parts.judge.records)} records prove an accuracy of "
            f"{np.floor(provable * 1e4) / 1e4:g} within the other limits, not min_accuracy "
            f"{budget.min_accuracy:g}; lower it or record more"
        )
    return best


def _cost_bound(
    parts: _Parts, price: Floats, rung: _Rung, targets: tuple[Target, ...], delta: float
) -> float:
    """Of the mean latency: what a limit on it says already, or what the frames tell."""
    low, span = float(price[0]), float(np.ptp(price))
    bound = low
    if span:
        delta *= rung.likely
        bound += span * parts.upper_bound(parts.field, _dear(price), rung.thresholds, delta)
    return float(min(bound, mean_latency_ms(targets) or np.inf))


def _dear(cost: Floats) -> Figure:
    """Where between the first and the last exit's a frame's cost is."""
    low, span = float(cost[0]), float(np.ptp(cost))
    return lambda records, at: np.asarray(np.clip((cost[at] - low) / span, 0, 1))


def _wrong(records: Records, at: Exits) -> Floats:
    return 1.0 - records.correct_at(at)


def _lost(records: Records, at: Exits) -> Floats:
    """1 where the last exit alone is right, 0 where the one taken alone is, else 0.5."""
    return np.asarray((1.0 + records.correct[:, -1] - records.correct_at(at)) / 2)


def _group_numbers(records: Records) -> npt.NDArray[np.intp]:
    """[N]: from 0, without gaps; every record is one where nothing is known of groups."""
    if records.group is None:
        return np.arange(len(records))
    return np.asarray(np.unique(records.group, return_inverse=True)[1].reshape(-1))


def _check(records: Records, kind: str, exits: int) -> None:
    if records.exits != exits:
        raise DataError(
            f"the {kind}records have {records.exits} exits, the others {exits}; rebuild the bundle"
        )
    independent = int(_group_numbers(records).max()) + 1
    if independent < MINIMUM_RECORDS:
        grouped = records.group is not None
        what = f"groups of {kind}records" if grouped else f"{kind}records"
        more = "images of other groups" if grouped else "images"
        raise DataError(
            f"a certificate needs at least {MINIMUM_RECORDS} {what}, found {independent}; record "
            f"more {more} or drop confidence_level"
        )


def _split(records: Records, share: float, rng: np.random.Generator) -> tuple[Records, Records]:
    """Two parts, the first with a ``share`` of the groups, both in random order."""
    group = _group_numbers(records)
    groups = int(group.max()) + 1
    place = rng.permutation(groups)[group]
    order = np.argsort(place, kind="stable")
    first = int((place < round(share * groups)).sum())
    return records.take(order[:first]), records.take(order[first:])


def _ladder(
    parts: _Parts,
    price: Floats,
    limits: list[Limit],
    exits: int,
    budget: Budget,
    delta: float,
) -> Iterator[_Rung]:
    """Proposals, the safest first."""
    chooser = parts.chooser
    like = make_problem(chooser.records, [Limit(price, np.inf), *limits], exits)

    def solved(limits: list[Limit], accuracy: float | None) -> Floats:
        return solve_limits(chooser.records, price, limits, exits, accuracy, like)

    plain = solved(limits, None)

    def margin(tester: _Part, teller: _Part, figure: Figure, distance: float) -> float:
        """By how much it must look better to ``teller`` than what ``tester`` is to prove."""
        errors = _PLACE * _NORMAL.inv_cdf(1 - delta) / np.sqrt(len(tester))
        errors += distance * np.sqrt(1 / len(tester) + 1 / len(teller))
        return float(teller.spread(figure, plain) * errors + 1 / len(tester))

    def tighter(limit: Limit, distance: float) -> Limit:
        figure, span = _dear(limit.cost), float(np.ptp(limit.cost))
        dearer = parts.scout.mean(figure, plain) - chooser.mean(figure, plain)
        off = margin(parts.field, parts.scout, figure, distance) + dearer
        return Limit(limit.cost, max(limit.most - span * max(0.0, off), float(limit.cost[0])))

    evenly = EVENLY / (len(LADDER) + 2)
    if budget.min_accuracy is not None:  # before all others, the most accurate there is
        yield _Rung(solved([tighter(limit, _FIRST) for limit in limits], None), evenly)
    for distance, next_one in itertools.pairwise((*LADDER, -np.inf)):
        accuracy = budget.min_accuracy
        if accuracy is not None:
            accuracy = min(1.0, accuracy + margin(parts.judge, chooser, _wrong, distance))
        try:
            found = solved([tighter(limit, distance) for limit in limits], accuracy)
        except BudgetError:
            continue
        ends_here = _NORMAL.cdf(distance) - _NORMAL.cdf(next_one)
        yield _Rung(found, (1 - EVENLY) * ends_here + evenly)
