"""``costs.json``: what leaving at each exit costs on one machine, as the solver reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import COSTS, Manifest
from dvt_edge.bundle.measurement import EnergyFigures, Measurement, PacedTiming, Spread
from dvt_edge.errors import BundleError
from dvt_edge.files.documents import Document
from dvt_edge.policy.budget import ExitLatency
from dvt_edge.policy.statistic import TAIL_SHARE

_STEP = 1 + 1e-6  # between exits that noise made equal or reversed


class ExitCost(Spread):
    """Latency of ``classify`` for a frame that leaves at one exit, at batch 1, in milliseconds."""

    preprocess_ms: float = Field(ge=0)
    """Mean, part of ``mean_ms``."""
    stage_ms: tuple[float, ...]
    """Mean of each stage that ran, part of ``mean_ms``."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not (self.mean_ms > 0 and 0 < self.p50_ms <= self.p95_ms <= self.p99_ms <= self.max_ms):
            raise ValueError("expected a positive mean and 0 < p50 <= p95 <= p99 <= max")
        return self


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
        tails = [[getattr(cost, f"{name}_ms") for cost in self.exits] for name in TAIL_SHARE]
        return ExitLatency(np.array(self.mean_ms), *np.array(tails))


def costs_from_measurement(measurement: Measurement, *, paced: bool = True) -> Costs:
    """What the solver reads of ``measurement``: its figures at the camera's pace, or back to back.

    The energy is gross, as a battery or a plug would see it, and always that of frames back to
    back. Raises :class:`~dvt_edge.errors.BundleError` for a pace that was not measured.
    """
    timing = measurement.paced if paced else measurement.back_to_back
    if timing is None:
        raise BundleError("nothing was timed at a camera's pace; measure with --pace FPS")
    return costs_from_timing(
        measurement.machine,
        measurement.content_hash,
        measurement.measured_at,
        measurement.frame_shape,
        timing,
        measurement.energy,
    )


def costs_from_timing(
    machine: str,
    content_hash: str,
    measured_at: str,
    frame_shape: tuple[int, int],
    timing: PacedTiming,
    energy: EnergyFigures,
) -> Costs:
    """What the solver reads of ``timing`` and the gross ``energy``."""
    return Costs(
        machine=machine,
        content_hash=content_hash,
        measured_at=measured_at,
        runs_per_exit=min(exit_.latency.runs for exit_ in timing.exits),
        frame_shape=frame_shape,
        exits=tuple(
            ExitCost(
                **exit_.latency.model_dump(include=set(Spread.model_fields)),
                preprocess_ms=exit_.preprocess.mean_ms,
                stage_ms=tuple(stage.mean_ms for stage in exit_.stages),
            )
            for exit_ in timing.exits
        ),
        stage_p99_ms=tuple(stage.p99_ms for stage in timing.exits[-1].stages),
        energy_mj=energy.gross_mj and tuple(_increasing(energy.gross_mj)),
        energy_source=energy.source if energy.gross_mj else None,
        energy_declared=energy.declared,
        paced_fps=timing.fps,
    )


def load_costs(
    bundle: Bundle,
    machine: str | None = None,
    refused: Callable[[str], None] = lambda problem: None,
) -> Costs | None:
    """Stored costs, or None where there are none for these stages on ``machine``.

    Without ``machine`` those of any are taken. Where there are some of another machine or of other
    stages, ``refused`` is called with what differs.
    """
    path = bundle.folder / COSTS
    try:
        costs = Costs.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError, UnicodeDecodeError):
        problem = "they cannot be read"
    else:
        problem = _misfit(costs, bundle.manifest, machine)
        if not problem:
            return costs
    refused(f"the costs in {path} are not used: {problem}")
    return None


def stored_costs(bundle: Bundle) -> Costs:
    """Costs of these stages, of whatever machine they were measured on.

    Raises :class:`~dvt_edge.errors.BundleError` where there are none.
    """
    problems: list[str] = []
    costs = load_costs(bundle, refused=problems.append)
    if costs is None:
        why = problems[0] if problems else f"{bundle.folder}: what its exits cost is not known"
        raise BundleError(f"{why}; measure with 'dvt-edge profile --profile FILE'")
    return costs


def _misfit(costs: Costs, manifest: Manifest, machine: str | None) -> str:
    """What keeps ``costs`` from being used; empty where nothing does."""
    engines = manifest.content_hash
    if machine is not None and costs.machine != machine:
        return f"they were measured on '{costs.machine}', this is '{machine}'"
    if costs.content_hash != engines or len(costs.exits) != len(manifest.stages):
        return (
            f"they were measured for other engines ({costs.content_hash[:12]}, these are "
            f"{engines[:12]})"
        )
    return ""


def _increasing(values: Sequence[float]) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(max(value, result[-1] * _STEP) if result else value)
    return result
