"""Budgets through the Runtime: what they limit, what is refused, certificates and replays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from dvt_edge import Runtime
from dvt_edge.errors import BudgetError
from dvt_edge.policy import Records
from dvt_edge.profile import BudgetConfig
from tests.conftest import write_yaml
from tests.runtime.conftest import FakeBackend, Live


def test_set_budget_by_key(live: Live) -> None:
    """The keys given change, the others stay."""
    live.runtime.set_budget(latency_ms=1.5, deadline_ms=7.0)
    first = live.runtime.solution
    assert first.cost <= 1.5
    found = live.runtime.set_budget(latency_ms=3.5)
    assert found is live.runtime.solution
    assert first.cost < found.cost <= 3.5
    assert found.accuracy > first.accuracy
    assert live.runtime.budget == BudgetConfig(latency_ms=3.5, deadline_ms=7.0)
    assert live.classify(0).thresholds == tuple(found.thresholds)


def test_set_budget_whole(live: Live) -> None:
    """A whole budget replaces the old one; keys beside it change that one."""
    live.runtime.set_budget(latency_ms=1.5, deadline_ms=7.0)
    live.runtime.set_budget(BudgetConfig(max_stage=2))
    assert live.runtime.budget == BudgetConfig(max_stage=2)
    live.runtime.set_budget(BudgetConfig(latency_ms=3.0), statistic="max")
    assert live.runtime.budget == BudgetConfig(latency_ms=3.0, statistic="max")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"latency": 5},
            r"^latency: no such key; the keys of a budget are latency_ms, statistic, fps, ",
        ),
        ({"latency_ms": "soon"}, "^latency_ms: "),
        ({"latency_ms": 0}, "^latency_ms: expected a positive number of milliseconds, found 0$"),
        ({"latency_ms": -2}, "^latency_ms: expected a positive number of milliseconds"),
        ({"latency_ms": np.nan}, "^latency_ms: expected a positive number of milliseconds"),
        (
            {"latency_ms": True},
            "^latency_ms: expected a positive number of milliseconds, found True",
        ),
        (
            {"battery": {"wh": True, "hours": 1, "fps": 1}},
            "^battery.wh: expected a positive number",
        ),
        ({"latency_ms": 0.5}, "the smallest possible is 1 ms"),
        (
            {"latency_ms": None},
            "give latency_ms, fps, duty_cycle, energy_mj, battery, min_accuracy or max_stage",
        ),
        ({"latency_ms": 1.0, "statistic": "max"}, "the smallest possible is 2 ms"),
        ({"statistic": "p90"}, "^statistic: "),
        ({"statistic": "p95", "adapt": True}, "adapt keeps a mean latency"),
        ({"energy_mj": 5.0}, "needs the measured energy per exit, and none was measured"),
        ({"min_accuracy": 0.999}, "the highest possible is 0.[0-9]+"),
        ({"min_accuracy": 80}, "^min_accuracy: "),
        ({"max_stage": 4}, "max_stage 4 does not exist; the cascade has 3 stages"),
        ({"max_stage": 0}, "^max_stage: "),
        ({"deadline_ms": 0}, "^deadline_ms: expected a positive number of milliseconds"),
        ({"audit": 0.6}, "^audit: "),
        ({"confidence_level": 1.0}, "^confidence_level: "),
    ],
)
def test_budgets_that_cannot_be(live: Live, changes: dict[str, Any], message: str) -> None:
    """Refused by name or with the nearest feasible value; what was in force stays."""
    solution, budget = live.runtime.solution, live.runtime.budget
    with pytest.raises(BudgetError, match=message):
        live.runtime.set_budget(**changes)
    assert live.runtime.solution is solution
    assert live.runtime.budget is budget
    assert live.classify(0).thresholds == tuple(solution.thresholds)


@pytest.mark.parametrize("budget", [5, "fast", {"latency_ms": 5.0}, True, BudgetConfig])
def test_budgets_that_are_none(live: Live, budget: Any) -> None:
    """A number could be of anything: keys say of what."""
    solution = live.runtime.solution
    with pytest.raises(BudgetError, match=r"a budget is a BudgetConfig, or keys such as set_budg"):
        live.runtime.set_budget(budget)
    with pytest.raises(BudgetError, match="a budget is a BudgetConfig"):
        live.runtime.solve(budget)
    assert live.runtime.solution is solution


def test_budget_on_a_percentile(live: Live) -> None:
    """Exit 3's p95 is 4 ms: with 3 ms at most 5 % of the frames may leave there."""
    mean = live.runtime.set_budget(latency_ms=3.0)
    tail = live.runtime.set_budget(latency_ms=3.0, statistic="p95")
    assert mean.exit_fraction[2] > 0.05 >= tail.exit_fraction[2] > 0


def test_budget_on_the_maximum(live: Live) -> None:
    """Exit 2 takes at most 4 ms, exit 3 at most 8 ms: it is closed, NaN or not."""
    live.runtime.set_budget(latency_ms=5.0, statistic="max", min_accuracy=0.6)
    live.backend.inner.confidence[:50] = np.nan
    assert {p.exit_stage for p in live.stream(200)} == {1, 2}


def test_min_accuracy_is_kept_cheaply(live: Live) -> None:
    """The cheapest thresholds of that accuracy."""
    wanted = float(live.runtime.records.accuracy[1])
    found = live.runtime.set_budget(BudgetConfig(min_accuracy=wanted))
    assert found.accuracy >= wanted
    assert found.cost < 2.0, "leaving early where it is right is cheaper than exit 2 for all"


def test_max_stage_is_never_passed(live: Live) -> None:
    """Alone, in batches, and for confidences that are NaN."""
    live.runtime.set_budget(BudgetConfig(max_stage=2, latency_ms=1.5))
    live.backend.inner.confidence[:50] = np.nan
    live.backend.inner.runs.clear()
    single = [live.classify(v) for v in range(0, 250, 5)]
    batch = live.runtime.classify_batch([live.frame(v) for v in range(0, 250, 5)])
    assert {stage for stage, _ in live.backend.inner.runs} == {0, 1}
    assert [p.exit_stage for p in batch] == [p.exit_stage for p in single]
    assert [p.class_id for p in batch] == [p.class_id for p in single]
    assert {p.exit_stage for p in single} == {1, 2}


@pytest.mark.parametrize("confidence_level", [0.9, 0.95])
def test_certificate(live: Live, confidence_level: float) -> None:
    """The bound lies within the budget and costs accuracy; without a level there is none."""
    plain = live.runtime.set_budget(latency_ms=2.5)
    assert live.runtime.certificate is None
    sure = live.runtime.set_budget(confidence_level=confidence_level)
    certificate = live.runtime.certificate
    assert certificate is not None
    assert certificate.delta == pytest.approx(1 - confidence_level)
    assert sure.cost < certificate.cost_bound <= 2.5
    assert sure.accuracy <= plain.accuracy
    assert certificate.accuracy_bound is not None
    assert certificate.accuracy_bound <= sure.accuracy
    live.runtime.use(sure)
    assert live.runtime.certificate is None


def test_profile_turns_everything_on(
    live_bundle: Path,
    live_records: Records,
    demo_profile: Path,
    tmp_path: Path,
    fake_backend: type[FakeBackend],
) -> None:
    """Every key of the budget is read from YAML and acts."""
    values = yaml.safe_load(demo_profile.read_text(encoding="utf-8"))
    values["input"] |= {"resize": 4, "crop": 4, "mean": [0.0], "std": [1.0]}
    values |= {
        "output": str(live_bundle),
        "budget": {
            "latency_ms": 3.0,
            "max_stage": 2,
            "confidence_level": 0.9,
            "deadline_ms": 1e-6,
            "adapt": True,
            "audit": 0.25,
            "video": True,
        },
    }
    path = write_yaml(tmp_path / "live.yaml", values)
    backend = fake_backend(live_records.confidence, live_records.prediction)
    with Runtime(path, backend=backend) as runtime:
        assert runtime.certificate is not None
        answers = [runtime.classify(np.full((4, 4), v, np.uint8)) for v in range(40)]
    assert {p.exit_stage for p in answers} == {1}
    assert any(p.truncated for p in answers)


# without running anything, and fixed thresholds


def test_replay_is_what_would_happen(live: Live) -> None:
    """On the records: the exits and the mean latency that classifying them gives."""
    thresholds = (0.7, 0.6, -np.inf)
    live.backend.inner.runs.clear()
    expected = live.runtime.replay(thresholds)
    slower = live.runtime.replay(thresholds, [2.0, 4.0, 8.0])
    assert live.backend.inner.runs == []
    assert slower.cost == pytest.approx(2 * expected.cost)
    assert slower.accuracy == expected.accuracy
    live.runtime.use(expected)
    answers = [live.classify(v) for v in range(250)]
    assert np.mean([p.latency_ms for p in answers]) == pytest.approx(expected.cost)
    right = np.array([p.class_id for p in answers]) == live.runtime.records.truth
    assert right.mean() == pytest.approx(expected.accuracy)
    share = np.bincount([p.exit_stage for p in answers], minlength=4)[1:] / 250
    np.testing.assert_allclose(share, expected.exit_fraction)


def test_use_turns_the_budgets_rules_off(live: Live) -> None:
    """Fixed thresholds: no adapting, no audits, no kept answers, no deadline."""
    live.runtime.set_budget(adapt=True, audit=0.5, video=True, deadline_ms=0.1)
    solution = live.runtime.replay((0.7, 0.6, -np.inf))
    live.runtime.use(solution)
    assert live.runtime.solution.thresholds is solution.thresholds
    live.backend.takes_ms *= 3
    for p in [*live.stream(200), *(live.classify(9) for _ in range(800))]:
        assert p.thresholds == (0.7, 0.6, -np.inf)
        assert (p.reason, p.truncated) == (None, False)
        assert len(p.stage_latency_ms) == p.exit_stage
    assert live.heard == []


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_explanations(live: Live, stage: int) -> None:
    """The sentence names the exit and why, alone and in a batch."""
    value = live.value(stage)
    for p in (live.classify(value), *live.runtime.classify_batch([live.frame(value)])):
        text = p.explain()
        assert text.startswith(f"'{p.label}' left at exit {stage} of 3 because ")
        assert ("reached the threshold of" in text) == (stage < 3)
