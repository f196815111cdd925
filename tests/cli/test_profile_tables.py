"""What ``dvt-edge profile`` says of how far its figures may be wrong."""

from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.bundle.costs import costs_from_measurement, with_earlier
from dvt_edge.bundle.measurement import EnergyFigures, ExitTiming, Measurement, PacedTiming
from dvt_edge.cli.profile_tables import show_measurement
from dvt_edge.machine.conditions import Conditions
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.measuring.timing import distribution

NOTHING = distribution([0.01])


def _timing(fps: float | None, runs: int) -> PacedTiming:
    """Three exits of 1, 2 and 3 ms, one run independent of the next."""
    rng = np.random.default_rng(0)
    exits = tuple(
        ExitTiming(
            latency=distribution(ms * np.exp(0.1 * rng.standard_normal(runs)), bounded=True),
            preprocess=NOTHING,
            stages=(NOTHING,) * ms,
            decision=NOTHING,
        )
        for ms in (1, 2, 3)
    )
    return PacedTiming(fps=fps, exits=exits)


def _measured(paced_runs: int) -> Measurement:
    return Measurement(
        machine="a machine",
        content_hash="0" * 64,
        measured_at="2026-01-02T03:04:05+00:00",
        seconds=20.0,
        frame_shape=(48, 48),
        warm_up_runs=60,
        settled=True,
        bytes_resident=1000,
        back_to_back=_timing(None, 1500),
        paced=_timing(30.0, paced_runs),
        energy=EnergyFigures(unavailable="no sensor"),
        before=Conditions(),
        after=Conditions(),
    )


@pytest.mark.parametrize(
    ("runs", "missing"),
    [
        (20, ["mean", "p50", "p95", "p99"]),
        (50, ["p95", "p99"]),
        (400, ["p99"]),
        (1500, []),
    ],
)
def test_bounds(runs: int, missing: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """One for each figure, or how long to measure for it at the pace that is solved for."""
    measured = _measured(runs)
    costs = costs_from_measurement(measured)
    costs = with_earlier(costs, costs)
    show_measurement(measured, costs, BudgetConfig(latency_ms=4.0), None)
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 100
    text = " ".join(shown.split())
    assert "The true figures are at most, each with 99.9 % certainty, ms" in text
    assert ("Too few independent runs for a bound: " in text) == bool(missing)
    for name in ("mean", "p50", "p95", "p99"):
        advice = f"{name} takes --duration {costs.seconds_needed(name):.0f}"
        assert (advice in text) == (name in missing)
    known = "0 earlier sessions" if runs < 30 else "1 earlier session"
    assert f"for what sessions differ by: {known} known" in text
    bound = costs.exits[2].at_most
    if bound is not None:
        assert f" {bound.independent_runs} │ {bound.mean_ms:.3f} │" in text
