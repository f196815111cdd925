"""What leaving at each exit costs on this machine: measured, never assumed."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import onnxruntime
from pydantic import Field, ValidationError

from dvt_edge.bundle.bundle import Bundle, write_aside
from dvt_edge.bundle.manifest import COSTS, Manifest
from dvt_edge.bundle.measurement import ExitTiming, Measurement, PacedTiming
from dvt_edge.errors import BundleError
from dvt_edge.files.documents import Document
from dvt_edge.machine.board import available_cores, read_power_mode
from dvt_edge.machine.driver import read_driver
from dvt_edge.policy.budget import ExitLatency
from dvt_edge.runtime.backends.opening import on_gpu
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.timing import ForcedExits, RealClock, time_back_to_back, warm_up

QUICK_WARM_UP_S = 0.5
"""Most time that the warm-up of :func:`measure_costs` takes."""

_STEP = 1 + 1e-6  # between exits that noise made equal or reversed


@dataclass(frozen=True)
class CostsRefused:
    """Stored costs belong to another machine or to other engines, or are damaged."""

    reason: str


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
    """The bundle's :attr:`~dvt_edge.bundle.manifest.Manifest.content_hash`."""
    measured_at: str
    """UTC, ISO 8601."""
    runs_per_exit: int = Field(ge=1)
    frame_shape: tuple[int, int]
    """Height and width of the frames that were classified, in pixels."""
    exits: tuple[ExitCost, ...]
    stage_p99_ms: tuple[float | None, ...]
    """[K]: p99 of each stage alone with its exit's decision."""
    energy_mj: tuple[float, ...] | None = None
    """[K]: mean gross energy of leaving at each exit, increasing; None where nothing could measure
    it."""
    energy_source: str | None = None
    """Sensor and rails that ``energy_mj`` comes from."""
    energy_declared: bool = False
    """Whether ``energy_mj`` is a declared power times measured time, and no measurement."""
    paced_fps: float | None = None
    """Frames per second that were timed; None for back to back."""

    @property
    def mean_ms(self) -> list[float]:
        """[K]: mean latency of leaving at each exit, made to increase where noise reversed it."""
        return _increasing([cost.mean_ms for cost in self.exits])

    @property
    def latency(self) -> ExitLatency:
        """The same with percentiles, for budgets on other statistics than the mean."""
        rows = [(c.p50_ms, c.p95_ms, c.p99_ms, c.max_ms) for c in self.exits]
        p50, p95, p99, longest = np.asarray(rows).T
        return ExitLatency(np.asarray(self.mean_ms), p50, p95, p99, longest)


def _increasing(values: Sequence[float]) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(max(value, result[-1] * _STEP) if result else value)
    return result


def machine_name(manifest: Manifest | None = None) -> str:
    """What timings depend on: processor, cores, power mode, and what executes the stages of
    ``manifest``: GPU and TensorRT, or ONNX Runtime, as :func:`open_backend` takes them here."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(("model name", "Model")):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    parts = [platform.machine(), model, f"{available_cores()} cores"]
    if manifest is not None and on_gpu(manifest):
        driver = read_driver()
        parts += [gpu.name for gpu in driver.gpus[:1]] if driver else []
    parts.append(engine_name(manifest))
    mode = read_power_mode()  # the one in force, not the one that engines were built in
    if mode:
        parts.append(f"power mode {mode}")
    return ", ".join(parts)


def engine_name(manifest: Manifest | None = None) -> str:
    """What executes the stages of ``manifest`` here, with its version."""
    if manifest is not None and manifest.engines is not None and on_gpu(manifest):
        built = manifest.engines.platform
        name = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}[built.backend]
        return f"{name} {built.version}"
    return f"ONNX Runtime {onnxruntime.__version__}"


def now_utc() -> str:
    """The time, ISO 8601, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def measure_costs(
    loop: CascadeLoop,
    bundle: Bundle,
    seconds: float,
    progress: Callable[[float], None] | None = None,
) -> Costs:
    """Time ``classify`` for every exit in turn, for about ``seconds`` after a short warm-up.

    For a start without stored costs; :func:`~dvt_edge.runtime.measuring.measure.measure` takes its
    time and looks at more. ``progress`` is called with the share done, 0..1.
    """
    manifest = bundle.manifest
    exits, clock = ForcedExits(loop, manifest), RealClock()
    warm_up(exits, clock, QUICK_WARM_UP_S)

    def report(what: str, share: float) -> None:
        if progress:
            progress(share)

    timing = time_back_to_back(exits, clock, seconds, report)
    return _costs(machine_name(manifest), manifest.content_hash, manifest.frame_shape, timing)


def costs_of(measurement: Measurement, *, paced: bool = False) -> Costs:
    """What the solver reads of ``measurement``: its figures back to back, or at the camera's pace.

    The energy is gross, as a battery or a plug would see it, and always that of frames back to
    back. Raises :class:`~dvt_edge.errors.BundleError` for a pace that was not measured.
    """
    timing = measurement.paced if paced else measurement.back_to_back
    if timing is None:
        raise BundleError("nothing was timed at a camera's pace; measure with --pace FPS")
    energy = measurement.energy
    return _costs(
        measurement.machine, measurement.content_hash, measurement.frame_shape, timing
    ).model_copy(
        update={
            "measured_at": measurement.measured_at,
            "energy_mj": energy.gross_mj and tuple(_increasing(energy.gross_mj)),
            "energy_source": energy.source if energy.gross_mj else None,
            "energy_declared": energy.declared,
        }
    )


def _costs(
    machine: str, content_hash: str, frame_shape: tuple[int, int], timing: PacedTiming
) -> Costs:
    return Costs(
        machine=machine,
        content_hash=content_hash,
        measured_at=now_utc(),
        runs_per_exit=min(exit_.latency.runs for exit_ in timing.exits),
        frame_shape=frame_shape,
        exits=tuple(_exit_cost(exit_) for exit_ in timing.exits),
        stage_p99_ms=tuple(stage.p99_ms for stage in timing.exits[-1].stages),
        paced_fps=timing.fps,
    )


def _exit_cost(timing: ExitTiming) -> ExitCost:
    latency = timing.latency
    return ExitCost(
        mean_ms=latency.mean_ms,
        p50_ms=latency.p50_ms,
        p95_ms=latency.p95_ms,
        p99_ms=latency.p99_ms,
        max_ms=latency.max_ms,
        preprocess_ms=timing.preprocess.mean_ms,
        stage_ms=tuple(stage.mean_ms for stage in timing.stages),
    )


def save_costs(bundle: Bundle, costs: Costs) -> None:
    """Store ``costs`` in the bundle; raises :class:`~dvt_edge.errors.BundleError`."""
    try:
        write_aside(bundle.folder / COSTS, costs.model_dump_json(indent=2))
    except OSError as error:
        raise BundleError(
            f"{bundle.folder / COSTS}: cannot be written ({error}); make the folder writable"
        ) from None


def load_costs(bundle: Bundle, refused: Callable[[str], None] | None = None) -> Costs | None:
    """Stored costs, or None where there are none for these stages on this machine.

    Where there are some of another machine or of other stages, ``refused`` is called with what
    differs.
    """
    path = bundle.folder / COSTS
    try:
        costs = Costs.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError):
        problem = "they cannot be read"
    else:
        problem = _misfit(costs, bundle.manifest)
        if not problem:
            return costs
    if refused:
        refused(f"the costs in {path} are not used: {problem}")
    return None


def _misfit(costs: Costs, manifest: Manifest) -> str:
    """What keeps ``costs`` from being used; empty where nothing does."""
    here, engines = machine_name(manifest), manifest.content_hash
    if costs.machine != here:
        return f"they were measured on '{costs.machine}', this is '{here}'"
    if costs.content_hash != engines or len(costs.exits) != len(manifest.stages):
        return (
            f"they were measured for other engines ({costs.content_hash[:12]}, these are "
            f"{engines[:12]})"
        )
    return ""
