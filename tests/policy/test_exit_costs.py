"""What leaving at an exit costs, with audited frames."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import BudgetError
from dvt_edge.policy import ExitCosts, ExitLatency, Records, replay, solve_budget
from dvt_edge.policy.exit_costs import with_audit
from dvt_edge.profile import BudgetConfig
from tests.conftest import made_records

MEAN = np.array([1.0, 2.0, 4.0])
FRAMES = 200_000


@pytest.mark.parametrize(
    ("share", "exits", "expected"),
    [
        (0.0, None, [1.0, 2.0, 4.0]),
        (1.0, None, [4.0, 4.0, 4.0]),
        (0.1, None, [1.3, 2.2, 4.0]),
        (0.1, 2, [1.1, 2.0, 4.0]),
        (0.5, 1, [1.0, 2.0, 4.0]),
    ],
)
def test_audits_run_all_stages_that_the_budget_allows(
    share: float, exits: int | None, expected: list[float]
) -> None:
    assert with_audit(MEAN, share, exits) == pytest.approx(expected)
    assert MEAN.tolist() == [1.0, 2.0, 4.0]  # the caller's stay as they were


@pytest.fixture(scope="module")
def records() -> Records:
    return made_records(2000)


def _draw(rng: np.random.Generator, exit_at: np.ndarray) -> np.ndarray:
    """Latencies of frames that leave at ``exit_at``, of which about 1 % are slow."""
    slow = rng.random(len(exit_at)) < 0.008
    return MEAN[exit_at] * (1 + 0.05 * rng.random(len(exit_at))) * np.where(slow, 1.5, 1.0)


def _measured(rng: np.random.Generator) -> ExitLatency:
    figures = []
    for k in range(3):
        times = _draw(rng, np.full(FRAMES, k))
        tails = np.percentile(times, [50, 95, 99], method="inverted_cdf")
        figures.append([times.mean(), *tails, times.max()])
    return ExitLatency(*np.array(figures).T)


@pytest.mark.parametrize(
    ("statistic", "limit_ms", "audit"),
    [("p99", 3.2, 0.005), ("p95", 2.2, 0.04), ("mean", 2.0, 0.3)],
)
def test_audited_frames_are_in_the_plan(
    records: Records, statistic: str, limit_ms: float, audit: float
) -> None:
    """Those thresholds that were solved without them exceed the budget, these do not."""
    rng = np.random.default_rng(4)
    costs = ExitCosts(_measured(rng))
    over = {}
    for planned in (0.0, audit):
        budget = BudgetConfig(latency_ms=limit_ms, statistic=statistic, audit=planned)
        at = records.exits_taken(solve_budget(records, costs, budget).thresholds)
        at = rng.choice(at, FRAMES)
        at[rng.random(FRAMES) < audit] = 2
        took = _draw(rng, at)
        if statistic == "mean":
            over[planned] = took.mean() / limit_ms
        else:
            over[planned] = (took > limit_ms).mean() / {"p95": 0.05, "p99": 0.01}[statistic]
    assert over[audit] <= 1.02  # 200,000 frames tell a percent or two
    assert over[0.0] > 1.1


def test_the_cost_told_is_the_one_with_audits(records: Records) -> None:
    costs = ExitCosts(ExitLatency(MEAN, MEAN, MEAN, MEAN, MEAN))
    found = solve_budget(records, costs, BudgetConfig(latency_ms=2.5, audit=0.2))
    assert found.cost == pytest.approx(
        0.8 * replay(records, MEAN, found.thresholds).cost + 0.2 * MEAN[-1]
    )
    assert found.cost <= 2.5


def test_an_audit_that_breaks_the_budget_alone_is_refused(records: Records) -> None:
    costs = ExitCosts(ExitLatency(MEAN, MEAN, MEAN, MEAN, MEAN * 1.2))
    with pytest.raises(BudgetError, match=r"auditing 0\.4 .* p95 latency of 2 ms; lower audit"):
        solve_budget(records, costs, BudgetConfig(latency_ms=2, statistic="p95", audit=0.4))
    with pytest.raises(BudgetError, match=r"auditing 0\.5 .* mean latency of 2 ms"):
        solve_budget(records, costs, BudgetConfig(latency_ms=2, audit=0.5))
