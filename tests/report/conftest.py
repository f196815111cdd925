"""A report on the demo bundle, with figures that no machine measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs, ExitCost
from dvt_edge.bundle.measurement import (
    Bounds,
    DataFigures,
    Distribution,
    EnergyFigures,
    ExitTiming,
    Measurement,
    PacedTiming,
)
from dvt_edge.machine.conditions import Conditions
from dvt_edge.profile import Profile
from dvt_edge.report import ReportData, collect

STAGE_MS = (0.3, 0.5, 2.0)
GROSS_MJ = (2.0, 5.0, 16.0)
NO_SENSOR = "no energy sensor on this machine; run dvt-edge doctor"


def _distribution(mean_ms: float, seed: int) -> Distribution:
    times = np.random.default_rng(seed).normal(mean_ms, 0.05 * mean_ms, 400).clip(mean_ms / 2)
    counts, edges = np.histogram(times, 20)
    if seed == 0:  # one run took long: the last bin gathers it
        edges, counts = np.append(edges, 10 * mean_ms), np.append(counts, 1)
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    return Distribution(
        mean_ms=float(times.mean()),
        p50_ms=float(p50),
        p95_ms=float(p95),
        p99_ms=float(p99),
        max_ms=float(times.max()),
        runs=len(times),
        edges_ms=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )


def _timing(fps: float | None) -> PacedTiming:
    return PacedTiming(
        fps=fps,
        exits=tuple(
            ExitTiming(
                latency=_distribution(sum(STAGE_MS[: k + 1]), k),
                preprocess=_distribution(0.02, 10 + k),
                stages=tuple(_distribution(STAGE_MS[i], 20 + i) for i in range(k + 1)),
                decision=_distribution(0.002, 30 + k),
            )
            for k in range(len(STAGE_MS))
        ),
        missed=0 if fps is None else 3,
    )


@pytest.fixture(scope="session")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle)


@pytest.fixture(scope="session")
def costs(bundle: Bundle) -> Costs:
    latencies = [exit_.latency for exit_ in _timing(None).exits]
    return Costs(
        machine="a machine",
        content_hash=bundle.manifest.content_hash,
        measured_at="2026-01-02T03:04:05+00:00",
        runs_per_exit=400,
        frame_shape=(48, 48),
        exits=tuple(
            ExitCost(
                **latency.model_dump(include={"mean_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms"}),
                preprocess_ms=0.02,
                stage_ms=STAGE_MS[: k + 1],
                at_most=Bounds(
                    **latency.model_dump(include={"mean_ms", "p50_ms", "p95_ms"}),
                    p99_ms=None,
                    independent_runs=400,
                ),
            )
            for k, latency in enumerate(latencies)
        ),
        stage_p99_ms=STAGE_MS,
    )


@pytest.fixture(scope="session")
def measurement(bundle: Bundle) -> Measurement:
    """Without energy, without warnings, back to back alone."""
    return Measurement(
        machine="a machine",
        content_hash=bundle.manifest.content_hash,
        measured_at="2026-01-02T03:04:05+00:00",
        seconds=20.0,
        frame_shape=(48, 48),
        warm_up_runs=60,
        settled=True,
        bytes_resident=bundle.manifest.bytes_resident,
        back_to_back=_timing(None),
        paced=None,
        energy=EnergyFigures(unavailable=NO_SENSOR),
        before=Conditions(governor="schedutil", cpu_mhz=(1500.0, 1500.0)),
        after=Conditions(governor="schedutil", cpu_mhz=(1400.0, 1400.0)),
    )


@pytest.fixture(scope="session")
def full_measurement(measurement: Measurement) -> Measurement:
    """With all that a measurement may hold."""
    return measurement.model_copy(
        update={
            "paced": _timing(30.0),
            "energy": EnergyFigures(
                source="INA3221 VDD_IN",
                idle_mw=3100.0,
                gross_mj=GROSS_MJ,
                net_mj=(1.0, 2.5, 8.0),
                gross_error_mj=(0.1, 0.2, 0.4),
                net_error_mj=(0.1, 0.2, 0.5),
                seconds=30.0,
            ),
            "data": DataFigures(
                folder="/data/of/the/field/images",
                images=500,
                labelled=True,
                exit_fraction=(0.25, 0.25, 0.5),
                accuracy=0.8125,
                exit_accuracy=(0.6, 0.7, 0.8),
                class_exit_fraction={"bag": (0.5, 0.3, 0.2), "coat": (0.1, 0.1, 0.8)},
            ),
            "after": Conditions(governor="powersave", temperatures_c={"tj-thermal": 88.0}),
            "warnings": ("tj-thermal is at 88 degC; cool the machine",),
        }
    )


@pytest.fixture(scope="session")
def profile(demo_profile: Path) -> Callable[..., Profile]:
    """A function giving the demo's profile with the budget that its keywords make."""

    def make(**budget: Any) -> Profile:
        loaded = Profile.from_yaml(demo_profile)
        return Profile.model_validate(loaded.model_dump() | {"budget": budget})

    return make


@pytest.fixture(scope="session")
def plain_data(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, measurement: Measurement
) -> ReportData:
    return collect(bundle, profile(latency_ms=1.2), costs, measurement)


@pytest.fixture(scope="session")
def full_data(
    bundle: Bundle, profile: Callable[..., Profile], costs: Costs, full_measurement: Measurement
) -> ReportData:
    budget = profile(latency_ms=1.8, confidence_level=0.9)
    return collect(bundle, budget, costs, full_measurement)
