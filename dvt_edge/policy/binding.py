"""Which limit of a budget keeps the answers from being better, and what moving it would buy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor, log10

import numpy as np

from dvt_edge.policy.budget import budget_targets, solve_limits, tightest
from dvt_edge.policy.exit_costs import ExitCosts
from dvt_edge.policy.records import Floats, Records
from dvt_edge.policy.solver import Solution, replay
from dvt_edge.policy.targets import Budget, Target

STEP = 0.05
"""Share of a limit by which it is moved to find its price; rounded to one digit."""
ACCURACY_STEP = 0.01
"""The same of ``min_accuracy``, in shares."""
_NOTHING = 1e-6  # of an expected accuracy


@dataclass(frozen=True)
class Binding:
    """The binding limit and its price."""

    key: str
    """Of the budget."""
    limit: str
    """For people: ``mean latency of 1.5 ms``."""
    used: float | None
    """What the thresholds use of it on the records, in its unit; None for ``max_stage``."""
    step: float
    """By which the limit is moved: milliseconds, millijoules or stages more, accuracy less."""
    unit: str
    """Of ``used`` and ``step``: ``ms``, ``mJ``, ``stage``, or nothing for an accuracy."""
    gain: float
    """What that buys: expected accuracy, 0..1; for ``min_accuracy`` mean milliseconds saved."""

    def __str__(self) -> str:
        if self.key == "min_accuracy":
            return (
                f"{self.limit} binds; {100 * self.step:g} point less saves {self.gain:.3g} ms of "
                "the mean"
            )
        used = "" if self.used is None else f", of which {self.used:.4g} {self.unit} are used,"
        return (
            f"the {self.limit}{used} binds; {self.step:g} {self.unit} more would buy "
            f"{100 * self.gain:.2f} points of accuracy"
        )


def find_binding(
    records: Records, costs: ExitCosts, budget: Budget, solution: Solution
) -> Binding | None:
    """The limit of ``budget`` that binds ``solution``, or None where none does: the most accurate
    thresholds there are keep all of them.

    Of several limits that of which the largest share is used. The price is what the best
    thresholds gain, by the accuracy to be expected of them on unseen images
    (``records.probability_right``), when this limit alone is moved by about 5 %. It is that of a
    budget without a certificate. Raises as :func:`~dvt_edge.policy.budget.solve_budget`.
    """
    if budget.point is not None:
        return None
    exits, targets = budget_targets(records, costs, budget)
    every = len(costs.latency.mean)

    def best(moved: tuple[Target, ...], exits: int, accuracy: float | None = None) -> Floats:
        limits = tightest(moved, costs.latency, exits, budget.audit)
        return solve_limits(records, costs.latency.mean, limits, exits, accuracy)

    def expected(thresholds: Floats) -> float:
        at = records.exits_taken(thresholds)
        return float(records.probability_right[np.arange(len(records)), at].mean())

    if budget.min_accuracy is not None:
        less = max(budget.min_accuracy - ACCURACY_STEP, 1e-9)
        now, then = (
            replay(records, costs.latency.mean, best(targets, exits, accuracy)).cost
            for accuracy in (budget.min_accuracy, less)
        )
        what = f"accuracy of at least {budget.min_accuracy:g}"
        used = solution.accuracy
        return Binding("min_accuracy", what, used, ACCURACY_STEP, "", now - then)
    now = expected(best(targets, exits))
    if expected(best((), every)) <= now + _NOTHING:
        return None
    shares = [_used(target, costs, exits, budget.audit, solution) for target in targets]
    if expected(best((), exits)) <= now + _NOTHING:  # the limits on costs alone would not matter
        closed = [t for t in targets if t.statistic == "max" and t.key == "latency_ms"]
        if not closed:
            more = expected(best(targets, exits + 1))
            what = f"max_stage of {budget.max_stage}"
            return Binding("max_stage", what, None, 1, "stage", max(0.0, more - now))
        at = targets.index(closed[0])
    else:
        at = int(np.argmax([share for share, _ in shares]))
    target = targets[at]
    step = _one_digit(STEP * target.most)
    relaxed = (*targets[:at], replace(target, most=target.most + step), *targets[at + 1 :])
    if target.statistic == "max":
        exits = max(exits, int((costs.latency.exceeding(target.most + step) == 0).sum()))
    gain = expected(best(relaxed, exits)) - now
    return Binding(target.key, str(target), shares[at][1], step, target.unit, max(0.0, gain))


def _used(
    target: Target, costs: ExitCosts, exits: int, audit: float, solution: Solution
) -> tuple[float, float]:
    """Share of the limit that ``solution`` uses on the records, and that in the target's unit."""
    fraction = (1 - audit) * solution.exit_fraction
    fraction[exits - 1] += audit
    limit = target.limit(costs.latency, exits, audit)
    if target.statistic == "mean" or limit is None:
        used = float(fraction @ target.cost)
        if limit is None:
            used = costs.latency.at(fraction, target.statistic)
        return used / target.most, used
    share = float(solution.exit_fraction @ limit.cost)
    return share / limit.most, costs.latency.at(fraction, target.statistic)


def _one_digit(value: float) -> float:
    return round(value, -floor(log10(value)))
