"""Thresholds whose budget holds for unseen frames, with a stated probability.

Thresholds chosen on records look better there than they are. Bounds that hold for all thresholds at
once (Massart 1990 and Naaman 2021) need no split of the records, but say nothing about accuracy and
are wide. Used here is *learn then test* (Angelopoulos et al. 2021, arXiv 2110.01052; for early
exits Jazbec et al. 2024, arXiv 2405.20915); ``benchmarks/policy.py`` measures what both cost.

One half of the records proposes thresholds for a ladder of budgets, from well inside the wanted one
up to the wanted one. The other half tests "the true mean exceeds the limit" for one after the
other, each at the full level, and stops at the first that cannot be rejected: fixed-sequence
testing, which keeps the family-wise error without a correction. The last rejected one is returned.
The test is a bet against the limit (Waudby-Smith and Ramdas 2024, arXiv 2010.09686), valid for any
sample size. What it rests on: frames in the field are drawn like the records, and leaving at an
exit costs what was measured. Drift and clocks are for the controller and the audit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError, DataError
from dvt_edge.policy.budget import budget_targets, solve_limits, tightest
from dvt_edge.policy.exit_costs import ExitCosts, with_audit
from dvt_edge.policy.records import Exits, Floats, Records
from dvt_edge.policy.solver import Certificate, Limit, Solution, closed_before, make_problem, replay
from dvt_edge.policy.targets import Budget, mean_latency_ms

LADDER = (3.0, 2.5, 2.1, 1.8, 1.5, 1.3, 1.1, 0.95, 0.8, 0.65, 0.5, 0.35, 0.2)
"""Distances to the wanted limit that are tested in turn, in half-widths of a confidence bound."""
LARGEST_BET = 0.75
MINIMUM_RECORDS = 20
_BISECTIONS = 24  # to 6e-8 of the range, rounded up


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
    Half of the error that is left goes to the budget, half to the reported bounds. The solution's
    own figures are those on all records. ``seed`` draws the split.

    Raises :class:`~dvt_edge.errors.BudgetError` as ``solve_budget`` does, and where the records
    cannot prove ``min_accuracy``, with the accuracy that they can; limits alone never fail, as
    leaving at the first exit keeps them. :class:`~dvt_edge.errors.DataError` for fewer than 20
    records.
    """
    delta = 1 - confidence_level - bound_error
    if delta <= 0:
        raise BudgetError(
            f"measured costs are wrong with a probability of up to {bound_error:.2g}, so "
            f"confidence_level can be at most {1 - 2 * bound_error:.3g}"
        )
    if len(records) < MINIMUM_RECORDS:
        raise DataError(
            f"a certificate needs at least {MINIMUM_RECORDS} records, found {len(records)}; "
            "record more images or drop confidence_level"
        )
    bounds = at_most or costs
    exits, targets = budget_targets(records, bounds, budget)
    limits = tightest(targets, bounds.latency, exits, budget.audit)
    price = with_audit(bounds.latency.mean, budget.audit, exits)
    if budget.min_accuracy is not None:  # refuses what even uncertified thresholds cannot reach
        solve_limits(records, price, limits, exits, budget.min_accuracy)
    order = np.random.default_rng(seed).permutation(len(records))
    chooser, judge = (records.take(part) for part in np.array_split(order, 2))
    best, provable = None, 0.0
    each = delta / 4 / (len(LADDER) + 1)  # for bounds that hold for the whole ladder
    for thresholds in _ladder(chooser, len(judge), price, limits, exits, budget, delta / 2):
        at = judge.exits_taken(thresholds)
        passed = all(
            float(limit.cost.max()) <= limit.most or _rejected(limit.cost[at], limit, delta / 2)
            for limit in limits
        )
        if budget.min_accuracy is not None:
            right = judge.correct_at(at).astype(float)
            bound = 1 - float(upper_bound(1 - right, delta / 2))
            provable = max(provable, bound)
            passed = passed and bound >= budget.min_accuracy
        if not passed:
            break
        best = thresholds, at
    if best is None and budget.min_accuracy is not None:
        raise BudgetError(
            f"{len(judge)} records prove an accuracy of {np.floor(provable * 1e4) / 1e4:g} within "
            f"the other limits, not min_accuracy {budget.min_accuracy:g}; lower it or record more"
        )
    if best is None:  # leaving at the first exit keeps every limit, whatever the frames are
        first = closed_before(records.exits, 0)
        best = first, judge.exits_taken(first)
    thresholds, at = best
    certificate = _bounds(judge, price, at, 1 - confidence_level, each)
    mean_limit = mean_latency_ms(targets)
    if mean_limit is not None and mean_limit < certificate.cost_bound:
        certificate = replace(certificate, cost_bound=float(mean_limit))
    return replay(
        records, with_audit(costs.latency.mean, budget.audit, exits), thresholds
    ), certificate


def upper_bound(values: npt.NDArray[np.float64], delta: float) -> Floats:
    """Upper confidence bound of the mean of ``values`` [..., n] in 0..1, drawn independently.

    Betting (Waudby-Smith and Ramdas 2024): whoever stakes ``1 + bet_i * (mean - values_i)`` on each
    value multiplies the capital by 1 / delta at some time with probability delta at most, where
    the mean is the true one; means that would make so rich are ruled out. Returns [...].
    """
    bets = _bets(values, delta)
    low, high = np.zeros(values.shape[:-1]), np.ones(values.shape[:-1])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        rich = _wealth(values, bets, middle) >= np.log(1 / delta)
        low, high = np.where(rich, low, middle), np.where(rich, middle, high)
    return np.asarray(high)


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
    at = chooser.exits_taken(plain)
    widths = [
        _half_width(limit.cost[at], float(np.ptp(limit.cost)), judges, delta) for limit in limits
    ]
    right = chooser.correct_at(at).astype(float)

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
            accuracy = min(1.0, accuracy + distance * _half_width(right, 1.0, judges, delta))
        try:
            found = solve_limits(chooser, price, tighter(distance), exits, accuracy, like)
        except BudgetError:
            continue
        if last is None or found.tolist() != last.tolist():
            last = found
            yield found


def _half_width(values: Floats, span: float, count: int, delta: float) -> float:
    """About how far a bound from ``count`` values lies above their mean."""
    log = np.log(1 / delta)
    return float(values.std() * np.sqrt(2 * log / count) + span * log / 2 / count)


def _rejected(values: Floats, limit: Limit, delta: float) -> bool:
    """Whether a mean above the limit is ruled out."""
    low, span = float(limit.cost[0]), float(np.ptp(limit.cost))
    scaled = np.clip((values - low) / span, 0, 1)
    bound = np.array((limit.most - low) / span)
    return bool(_wealth(scaled, _bets(scaled, delta), bound) >= np.log(1 / delta))


def _bets(values: npt.NDArray[np.float64], delta: float) -> Floats:
    """[..., n]: stakes that depend on earlier values only."""
    count = values.shape[-1]
    seen = np.arange(1, count + 1)
    mean = (0.5 + np.cumsum(values, axis=-1)) / (seen + 1)
    variance = (0.25 + np.cumsum((values - mean) ** 2, axis=-1)) / (seen + 1)
    before = np.concatenate([np.full((*values.shape[:-1], 1), 0.25), variance[..., :-1]], axis=-1)
    return np.asarray(np.minimum(LARGEST_BET, np.sqrt(2 * np.log(1 / delta) / count / before)))


def _wealth(values: npt.NDArray[np.float64], bets: Floats, mean: Floats) -> Floats:
    """Largest logarithm of the capital at any time if ``mean`` [...] were the true one."""
    steps = np.log1p(bets * (mean[..., None] - values))
    return np.asarray(np.cumsum(steps, axis=-1).max(axis=-1))


def _bounds(records: Records, cost: Floats, at: Exits, delta: float, each: float) -> Certificate:
    """Bounds on cost and gap, each wrong with probability ``each``, of leaving at ``at`` [N]."""
    span = float(cost[-1] - cost[0])
    dear = np.clip((cost[at] - cost[0]) / span, 0, 1) if span else np.zeros(len(at))
    right = records.correct_at(at).astype(float)
    lost = (1 + records.correct[:, -1] - right) / 2
    gap = 2 * float(upper_bound(lost, each / 2)) - 1
    lowest = None if records.label is None else 1 - float(upper_bound(1 - right, each / 2))
    return Certificate(
        n=len(at),
        delta=delta,
        cost_bound=float(cost[0]) + span * float(upper_bound(dear, each)),
        accuracy_gap_bound=min(1.0, gap),
        accuracy_bound=lowest,
        method="learn-then-test",
    )
