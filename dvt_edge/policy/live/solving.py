"""Solving again during operation: a request that shares nothing, and the plan that answers it.

The controller makes a :class:`Request` on the thread of the frames, in microseconds.
:func:`solve_again` answers it, in milliseconds, on any thread.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError
from dvt_edge.policy.exit_costs import with_audit
from dvt_edge.policy.live.audit import early_agreement
from dvt_edge.policy.live.pacing import MIDDLE, Ladder, highest_step
from dvt_edge.policy.live.tracking import resample
from dvt_edge.policy.records import Floats, Records
from dvt_edge.policy.solver import Solution, replay, solve

LIVE_RECORDS = 1000
"""Records that a solve during operation uses."""
_ALMOST_ALL = 0.999  # frames audited: of what all cost alike no thresholds can be solved


@dataclass(frozen=True)
class Request:
    """Everything that a solve needs; nothing in it changes later."""

    number: int
    """Counts the controller's requests; only the answer to the last one is installed."""
    why: str
    records: Records
    record_bin: npt.NDArray[np.int64]
    """[N]: bin of each record's confidence at exit 1."""
    share: Floats
    """[B]: share of the frames seen in each bin."""
    cost_ms: Floats
    """[K]: what leaving at each exit takes now."""
    floor: Floats
    """[K]: thresholds must not fall below it."""
    audit: float
    """Share of the frames, 0..1, that runs all stages."""
    budget_ms: float


@dataclass(frozen=True)
class Plan:
    """Thresholds for what a request saw, and the ladder to pace along."""

    request: Request
    found: Solution
    """The ladder's middle step on the reweighted records."""
    ladder: Ladder
    """Its shares are those of frames that are not audited."""
    feasible: bool
    """Whether leaving at exit 1, with what is audited, costs at most the budget."""
    wanted: tuple[float, ...]
    """[K]: what would be in force without the floor."""
    agreement: float
    """Share, 0..1, of early answers that are the last exit's, expected at the budget."""


def solve_again(request: Request) -> Plan:
    """The thresholds for ``request``. Pure: call it on any thread."""
    budget_ms = request.budget_ms
    cost = with_audit(request.cost_ms, min(request.audit, _ALMOST_ALL))
    live = resample(request.records, request.record_bin, request.share, LIVE_RECORDS)
    feasible = True
    try:
        thresholds = solve(live, cost, budget_ms).thresholds
    except BudgetError:
        thresholds, feasible = np.full(live.exits, -np.inf), False
    ladder = Ladder(live, thresholds, request.floor)
    found = replay(live, cost, ladder.thresholds[MIDDLE])
    step = MIDDLE
    if feasible:  # what is left of the budget is spent
        step = min(highest_step(ladder.exit_share @ cost, budget_ms), ladder.top)
    return Plan(
        request,
        found,
        ladder,
        feasible,
        tuple(thresholds.tolist()),
        early_agreement(live, ladder.thresholds[step]),
    )
