"""What the slider may set, and what the records say it will cost, without changing anything."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dvt_edge.errors import BudgetError, DvtEdgeError
from dvt_edge.policy.exit_costs import with_audit
from dvt_edge.policy.solver import Solution, round_up
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.runtime import Runtime

MOST_STEPS = 64
DIGITS = 3
"""Of a budget, so that it reads alike wherever it is shown."""
SOLVING_S = 2.0
"""About how long solving for the steps may take: it runs beside the stages."""


@dataclass(frozen=True)
class Steps:
    """Budgets that the slider may set, from the cheapest to the most accurate."""

    values: tuple[dict[str, Any], ...]
    """For the page: each has ``latency_ms``, and what :func:`figures` says or ``error``."""
    note: str
    """For people: what else the budget keeps, or why nothing can be moved."""


def other_keys(budget: BudgetConfig) -> BudgetConfig:
    """``budget`` but for what the slider moves; steps are for budgets in which this is equal."""
    return budget.model_copy(update={"latency_ms": None})


def figures(solution: Solution, energy_mj: tuple[float, ...] | None) -> dict[str, Any]:
    """What ``solution`` gives on the records; ``energy_mj`` [K] is that of leaving at each exit."""
    exits = solution.exit_fraction
    return {
        "accuracy": solution.accuracy,
        "cost_ms": solution.cost,
        "energy_mj": None if energy_mj is None else float(exits @ np.array(energy_mj)),
        "exits": exits.tolist(),
    }


def find_steps(runtime: Runtime, clock: Callable[[], float] = time.monotonic) -> Steps:
    """Solve for budgets over the range of ``latency_ms`` in which it matters, the other keys of
    the budget as they are.

    Steps are halved until there are :data:`MOST_STEPS` or :data:`SOLVING_S` are about to be over.
    What is solved for is what the slider sets, so the page shows in advance exactly what comes.
    """
    budget = runtime.budget
    if fixed := _why_fixed(budget):
        return Steps((), fixed)

    def solve(latency_ms: float) -> Solution:
        return runtime.solve(budget.changed(latency_ms=latency_ms))

    try:
        least, most = _range(runtime, budget, solve)
    except DvtEdgeError as error:
        return Steps((), str(error))
    if least >= most:
        return Steps((), "no other budget gives other answers: only one exit is open")

    def step(share: float) -> dict[str, Any]:
        latency_ms = min(most, round_up(least + share * (most - least), DIGITS))
        try:
            found = figures(solve(latency_ms), runtime.costs.energy_mj)
        except DvtEdgeError as error:
            return {"latency_ms": latency_ms, "error": str(error)}
        return {"latency_ms": latency_ms, **found}

    started = clock()
    steps, count = {0.0: step(0.0), 1.0: step(1.0)}, 1
    while count < MOST_STEPS and (clock() - started) * (2 * count + 1) / (count + 1) < SOLVING_S:
        count *= 2
        steps |= {at / count: step(at / count) for at in range(1, count, 2)}
    values = {found["latency_ms"]: found for _, found in sorted(steps.items())}
    return Steps(tuple(values.values()), _note(budget))


def _range(
    runtime: Runtime, budget: BudgetConfig, solve: Callable[[float], Solution]
) -> tuple[float, float]:
    """The lowest ``latency_ms`` that can be kept, and that from which on nothing is gained."""
    latency = runtime.costs.exit_costs.latency
    of_exits = getattr(latency, budget.statistic)[: budget.max_stage]
    if budget.statistic != "mean":
        return round_up(float(of_exits[0]), DIGITS), round_up(float(of_exits[-1]), DIGITS)
    least = float(with_audit(of_exits, budget.audit)[0])
    try:
        most = solve(2 * float(of_exits[-1])).cost
    except BudgetError:  # the other limits cannot be kept; the steps say so
        most = float(of_exits[-1])
    return round_up(least, DIGITS), round_up(most, DIGITS)


def _why_fixed(budget: BudgetConfig) -> str:
    """Why ``latency_ms`` may not be moved; empty where it may."""
    if budget.point is not None:
        return (
            "The budget is recorded thresholds, which keep no limit. Give latency_ms in the "
            "profile instead, and it can be moved here."
        )
    if budget.min_accuracy is not None:
        return (
            f"The budget asks for an accuracy of at least {budget.min_accuracy:g} and takes the "
            "cheapest thresholds that have it, so a latency budget would change nothing. What can "
            "be moved is min_accuracy, in the profile."
        )
    return ""


def _note(budget: BudgetConfig) -> str:
    """What else is kept."""
    kept = str(other_keys(budget))
    if budget.confidence_level is not None:
        kept += f"{', ' if kept else ''}certified at {100 * budget.confidence_level:g} %"
    if not kept:
        return ""
    if budget.latency_ms is None:
        return f"The budget has no latency_ms. One set here is kept as well as {kept}."
    return f"Kept as well: {kept}."
