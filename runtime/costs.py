"""What leaving at each exit costs on this machine, in milliseconds: measured, never assumed."""

from __future__ import annotations

import platform
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime
from pydantic import Field, ValidationError

from dvt_edge.bundle import COSTS, Bundle, write_aside
from dvt_edge.documents import Document
from dvt_edge.errors import BundleError
from dvt_edge.policy.budget import ExitLatency
from dvt_edge.policy.deadline import stage_p99
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.onnxruntime_backend import available_cores
from dvt_edge.runtime.preprocess import frame_shape

WARM_UP_RUNS = 20


class ExitCost(Document):
    """Latency of ``classify`` for a frame that leaves at one exit, at batch 1, in milliseconds."""

    mean_ms: float = Field(gt=0)
    p50_ms: float = Field(gt=0)
    p95_ms: float = Field(gt=0)
    p99_ms: float = Field(gt=0)
    max_ms: float = Field(gt=0)
    preprocess_ms: float = Field(ge=0)
    """Mean, part of ``mean_ms``."""
    stage_ms: tuple[float, ...]
    """Mean of each stage that ran, part of ``mean_ms``."""


class Costs(Document):
    """``costs.json``: measured on one machine for the stages of one bundle."""

    machine: str
    content_hash: str
    """The bundle's :attr:`~dvt_edge.bundle.Manifest.content_hash`."""
    measured_at: str
    """UTC, ISO 8601."""
    runs_per_exit: int = Field(ge=1)
    frame_shape: tuple[int, int]
    """Height and width of the frames that were classified, in pixels."""
    exits: tuple[ExitCost, ...]
    stage_p99_ms: tuple[float | None, ...]
    """[K]: p99 of each stage alone with its exit's decision."""
    energy_mj: tuple[float, ...] | None = None
    """[K]: mean energy of leaving at each exit; None where nothing could measure it."""

    @property
    def mean_ms(self) -> list[float]:
        """[K]: mean latency of leaving at each exit, made to increase where noise reversed it."""
        result: list[float] = []
        for cost in self.exits:
            floor = result[-1] * (1 + 1e-6) if result else 0.0
            result.append(max(cost.mean_ms, floor))
        return result

    @property
    def latency(self) -> ExitLatency:
        """The same with percentiles, for budgets on other statistics than the mean."""
        rows = [(c.p50_ms, c.p95_ms, c.p99_ms, c.max_ms) for c in self.exits]
        p50, p95, p99, longest = np.asarray(rows).T
        return ExitLatency(np.asarray(self.mean_ms), p50, p95, p99, longest)


def machine_name() -> str:
    """What timings depend on: processor, cores, engine version."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    return (
        f"{platform.machine()}, {model}, {available_cores()} cores, "
        f"ONNX Runtime {onnxruntime.__version__}"
    )


def measure_costs(
    loop: CascadeLoop,
    bundle: Bundle,
    seconds: float,
    progress: Callable[[float], None] | None = None,
) -> Costs:
    """Time ``classify`` for every exit in turn, for about ``seconds`` after a warm-up.

    Frames are noise of the calibration images' median size; which stages run does not depend on
    what they show. ``progress`` is called with the share done, 0..1.
    """
    manifest = bundle.manifest
    exits = len(manifest.stages)
    shape = frame_shape(*manifest.frame_shape, manifest.input.color_order)
    frame = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    forced = [(np.inf,) * k + (-np.inf,) * (exits - k) for k in range(exits)]
    for _ in range(WARM_UP_RUNS):
        for thresholds in forced:
            loop.run_one(frame, thresholds)
    samples: list[list[tuple[float, ...]]] = [[] for _ in forced]
    started = perf_counter()
    while (spent := perf_counter() - started) < seconds or len(samples[0]) < 10:
        for k, thresholds in enumerate(forced):
            p = loop.run_one(frame, thresholds)
            samples[k].append((p.latency_ms, p.preprocess_ms, *p.stage_latency_ms))
        if progress:
            progress(min(1.0, spent / seconds))
    return Costs(
        machine=machine_name(),
        content_hash=manifest.content_hash,
        measured_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        runs_per_exit=len(samples[0]),
        frame_shape=manifest.frame_shape,
        exits=tuple(_exit_cost(np.asarray(rows)) for rows in samples),
        stage_p99_ms=stage_p99([row[2:] for row in samples[-1]]),
    )


def _exit_cost(rows: np.ndarray[tuple[int, int], np.dtype[np.float64]]) -> ExitCost:
    latency, means = rows[:, 0], rows.mean(axis=0)
    p50, p95, p99 = (float(v) for v in np.percentile(latency, (50, 95, 99)))
    return ExitCost(
        mean_ms=float(means[0]),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        max_ms=float(latency.max()),
        preprocess_ms=float(means[1]),
        stage_ms=tuple(float(v) for v in means[2:]),
    )


def save_costs(bundle: Bundle, costs: Costs) -> None:
    """Store ``costs`` in the bundle; raises :class:`~dvt_edge.errors.BundleError`."""
    try:
        write_aside(bundle.folder / COSTS, costs.model_dump_json(indent=2))
    except OSError as error:
        raise BundleError(
            f"{bundle.folder / COSTS}: cannot be written ({error}); make the folder writable"
        ) from None


def load_costs(bundle: Bundle) -> Costs | None:
    """Stored costs, or None where there are none for these stages on this machine."""
    try:
        costs = Costs.model_validate_json((bundle.folder / COSTS).read_text(encoding="utf-8"))
    except (OSError, ValidationError, UnicodeDecodeError):
        return None
    fits = (
        costs.machine == machine_name()
        and costs.content_hash == bundle.manifest.content_hash
        and len(costs.exits) == len(bundle.manifest.stages)
    )
    return costs if fits else None
