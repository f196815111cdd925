"""The slider's steps: what they promise is what comes, and budgets that cannot be moved say so."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dvt_edge import Runtime
from dvt_edge.policy import frontier
from dvt_edge.serve.budgets import MOST_STEPS, figures, find_steps, other_keys


@pytest.fixture
def runtime(served_runtime: Runtime) -> Iterator[Runtime]:
    """Whose budget the test may change."""
    before = served_runtime.budget
    yield served_runtime
    served_runtime.set_budget(before)


def test_steps_are_what_the_runtime_does(runtime: Runtime) -> None:
    """From the cheapest to the most accurate; each gives exactly what it shows."""
    runtime.set_budget(latency_ms=2.0)
    before = runtime.solution
    steps = find_steps(runtime)
    assert runtime.solution is before
    limits = [step["latency_ms"] for step in steps.values]
    curve = frontier(runtime.records, runtime.costs.mean_ms)
    assert limits == sorted(set(limits))
    assert limits[0] == 1.0
    assert curve[-1].cost <= limits[-1] < 1.01 * curve[-1].cost
    assert 10 < len(limits) <= MOST_STEPS + 1
    assert steps.note == ""
    for step in (steps.values[0], steps.values[len(limits) // 2], steps.values[-1]):
        found = runtime.set_budget(latency_ms=step["latency_ms"])
        assert figures(found, None) == {k: v for k, v in step.items() if k != "latency_ms"}
    assert steps.values[0]["exits"] == [1, 0, 0]
    assert steps.values[-1]["accuracy"] >= steps.values[0]["accuracy"]


def test_solving_takes_a_limited_time(runtime: Runtime) -> None:
    """Where each solution takes long, there are few steps."""
    ticks = iter(range(1000))
    steps = find_steps(runtime, clock=lambda: float(next(ticks)))
    assert len(steps.values) == 3


@pytest.mark.parametrize(
    ("changes", "least", "most"),
    [
        ({"statistic": "p95"}, 1.0, 4.0),
        ({"statistic": "max"}, 1.0, 4.0),
        ({"max_stage": 2}, 1.0, 2.0),
        ({"audit": 0.1}, 1.3, 4.0),  # 0.9 * 1 + 0.1 * 4
        ({"confidence_level": 0.9, "latency_ms": 4.0}, 1.0, 4.0),
    ],
)
def test_other_budgets(
    runtime: Runtime, changes: dict[str, Any], least: float, most: float
) -> None:
    """Over the range of their own statistic; what cannot be kept says why."""
    runtime.set_budget(**{"latency_ms": 4.0, **changes})
    steps = find_steps(runtime)
    limits = [step["latency_ms"] for step in steps.values]
    assert limits[0] == pytest.approx(least)
    assert limits[-1] <= most
    assert all(("error" in step) != ("accuracy" in step) for step in steps.values)
    assert "error" not in steps.values[-1]


def test_energy(runtime: Runtime) -> None:
    found = figures(runtime.solution, (1.0, 2.0, 3.0))
    expected = sum(share * mj for share, mj in zip(found["exits"], (1, 2, 3), strict=True))
    assert found["energy_mj"] == pytest.approx(expected)


def test_a_budget_without_latency(runtime: Runtime) -> None:
    """It may get one, which is kept as well."""
    runtime.set_budget(latency_ms=None, max_stage=2)
    steps = find_steps(runtime)
    assert steps.note == (
        "The budget has no latency_ms. One set here is kept as well as at most stage 2."
    )
    assert len(steps.values) > 2


def test_what_else_is_kept(runtime: Runtime) -> None:
    runtime.set_budget(latency_ms=3.0, fps=100, confidence_level=0.9)
    assert find_steps(runtime).note == (
        "Kept as well: 100 fps at 80 % utilisation, certified at 90 %."
    )


def test_an_accuracy_is_not_moved(runtime: Runtime) -> None:
    """What may be moved is named."""
    runtime.set_budget(latency_ms=None, min_accuracy=0.5)
    steps = find_steps(runtime)
    assert steps.values == ()
    assert "What can be moved is min_accuracy" in steps.note


def test_recorded_thresholds_are_not_moved(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = runtime.budget.changed(latency_ms=None, thresholds="recorded", point=1)
    monkeypatch.setattr(runtime, "budget", recorded)
    assert "recorded thresholds, which keep no limit" in find_steps(runtime).note


def test_one_exit(runtime: Runtime) -> None:
    """There is nothing to choose from."""
    runtime.set_budget(latency_ms=4.0, max_stage=1)
    assert find_steps(runtime).note.endswith("only one exit is open")


def test_when_steps_are_solved_for_again(runtime: Runtime) -> None:
    """Where anything but the slider's own key differs."""
    budget = runtime.budget
    assert other_keys(budget) == other_keys(budget.changed(latency_ms=1.5))
    assert other_keys(budget) != other_keys(budget.changed(audit=0.1))
