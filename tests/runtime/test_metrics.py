"""Metrics of a running Runtime, as Prometheus reads them."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.errors import ConfigError
from dvt_edge.runtime.events import Event, kind_of
from dvt_edge.runtime.metrics import MetricsExporter
from tests.runtime.conftest import FakeBackend

FRAME = np.zeros((48, 48), np.uint8)


@pytest.fixture
def runtime(costed_bundle: Path) -> Iterator[Runtime]:
    with Runtime(costed_bundle) as opened:
        yield opened


def value(metrics: MetricsExporter, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"dvt_edge_{name}", labels)


def test_answers_are_counted(runtime: Runtime) -> None:
    """Single frames and batches, by exit, with their latencies; not those before and after."""
    runtime.classify(FRAME)
    with MetricsExporter(runtime) as metrics:
        answers = [runtime.classify(FRAME), *runtime.classify_batch([FRAME] * 3)]
        assert value(metrics, "frames_total") == 4
        by_exit = [value(metrics, "exits_total", stage=str(k)) for k in (1, 2, 3)]
        assert by_exit == [sum(a.exit_stage == k for a in answers) for k in (1, 2, 3)]
        assert value(metrics, "latency_seconds_count") == 4
        total_s = sum(answer.latency_ms for answer in answers) / 1e3
        assert value(metrics, "latency_seconds_sum") == pytest.approx(total_s)
        assert value(metrics, "latency_seconds_bucket", le="+Inf") == 4
        assert value(metrics, "energy_joules_total") == 0
    runtime.classify(FRAME)
    assert value(metrics, "frames_total") == 4
    metrics.close()


def test_deadlines_and_drops(runtime: Runtime) -> None:
    """A frame cut short, a frame that was late, frames that a camera loop threw away."""
    with MetricsExporter(runtime) as metrics:
        runtime.set_budget(deadline_ms=1e-6)
        assert runtime.classify(FRAME).truncated
        metrics.dropped()
        metrics.dropped(4)
        assert value(metrics, "truncated_total") == 1
        assert value(metrics, "late_total") == 1
        assert value(metrics, "dropped_total") == 5
        assert value(metrics, "budget", limit="deadline_ms") == 1e-6


def test_state(runtime: Runtime, board_root: Callable[..., Path]) -> None:
    """Budget and thresholds in force now, temperatures at the moment of the question."""
    zone = "sys/class/thermal/thermal_zone0"
    root = board_root("pc", {f"{zone}/type": "tj-thermal", f"{zone}/temp": "45500"})
    with MetricsExporter(runtime, root=root) as metrics:
        assert value(metrics, "temperature_celsius", zone="tj-thermal") == 45.5
        (root / zone / "temp").write_text("60000")
        assert value(metrics, "temperature_celsius", zone="tj-thermal") == 60
        assert value(metrics, "budget", limit="latency_ms") == 1000
        runtime.set_budget(latency_ms=None, max_stage=1)
        assert value(metrics, "budget", limit="latency_ms") is None
        assert value(metrics, "budget", limit="max_stage") == 1
        shown = [value(metrics, "threshold", stage=str(k)) for k in (1, 2, 3)]
        assert shown == list(runtime.thresholds) == [-np.inf] * 3


def test_events(
    own_bundle: Path, fake_backend: type[FakeBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By kind, those before the start included, which the Runtime remembers."""
    monkeypatch.setattr("dvt_edge.runtime.runtime.QUICK_MEASUREMENT_S", 1e-3)
    bundle = Bundle(own_bundle)
    costs = Costs.model_validate_json((own_bundle / COSTS).read_text(encoding="utf-8"))
    bundle.store(COSTS, costs.model_copy(update={"machine": "another machine"}))
    backend = fake_backend([[np.nan, np.nan, 0.5]], shape=(1, 48, 48))
    with Runtime(own_bundle, backend=backend) as runtime, MetricsExporter(runtime) as metrics:
        runtime.set_budget(latency_ms=None, max_stage=3)
        answer = runtime.classify(FRAME)
        assert answer.exit_stage == 3
        assert value(metrics, "events_total", kind="costs_refused") == 1
        assert value(metrics, "events_total", kind="not_finite") == 2
        assert value(metrics, "events_total", kind="thresholds_changed") == 0


def test_estimated_energy(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """Joules, as Prometheus wants its units."""
    costs = known_costs(Bundle(own_bundle)).model_copy(update={"energy_mj": (2.0, 4.0, 8.0)})
    Bundle(own_bundle).store(COSTS, costs)
    with Runtime(own_bundle) as runtime, MetricsExporter(runtime) as metrics:
        joules = sum(runtime.classify(FRAME).energy_mj or 0.0 for _ in range(2)) / 1e3
        assert joules > 0
        assert value(metrics, "energy_joules_total") == pytest.approx(joules)


def test_several_runtimes_do_not_meet(runtime: Runtime) -> None:
    """Each has a registry of its own, unless one is given."""
    with MetricsExporter(runtime) as one, MetricsExporter(runtime) as two:
        runtime.classify(FRAME)
        assert value(one, "frames_total") == value(two, "frames_total") == 1
    own = CollectorRegistry()
    with MetricsExporter(runtime, own):
        assert b"dvt_edge_frames_total 0.0" in generate_latest(own)


def test_served(runtime: Runtime) -> None:
    """Over HTTP until closed; a port that is taken is named."""
    with MetricsExporter(runtime) as metrics:
        port = metrics.serve(0)
        runtime.classify(FRAME)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            assert b"dvt_edge_frames_total 1.0" in answer.read()
        with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port} .*choose another port"):
            metrics.serve(port)
        with pytest.raises(ConfigError, match="choose another port"):
            metrics.serve(70000)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30)


def test_without_the_extra(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """What to install."""
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ConfigError, match=r"pip install 'dvt-edge\[metrics\]'"):
        MetricsExporter(runtime)


def test_every_kind_of_event_is_counted_under_a_name_of_its_own(runtime: Runtime) -> None:
    """One that is not known would end the loop that it is reported in."""
    kinds = [kind_of(kind) for kind in get_args(Event)]
    assert len(set(kinds)) == len(kinds)
    assert {"thresholds_changed", "audit_failed", "budget_broken", "not_finite"} <= set(kinds)
    with MetricsExporter(runtime) as metrics:
        assert {value(metrics, "events_total", kind=kind) for kind in kinds} == {0}
