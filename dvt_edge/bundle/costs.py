"""``costs.json``: what leaving at each exit costs on one machine, as the solver reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, inf, sqrt

import numpy as np
from pydantic import Field, ValidationError, model_validator
from typing_extensions import Self

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import COSTS, Manifest
from dvt_edge.bundle.measurement import Bounds, EnergyFigures, Measurement, PacedTiming, Spread
from dvt_edge.bundle.members import read_text
from dvt_edge.errors import BundleError
from dvt_edge.files.documents import Document
from dvt_edge.policy.exit_costs import ExitCosts, ExitLatency
from dvt_edge.policy.records import Floats
from dvt_edge.policy.statistic import (
    BOUND_ERROR,
    MIN_RUNS,
    PERCENTILES,
    TAIL_SHARE,
    Statistic,
    runs_needed,
)

SESSION_SPREAD = {"paced": 0.10, "back to back": 0.02}
"""Relative standard deviation of an exit's mean latency between sessions of measuring, where a
machine's own is not known. Measured on the demo: the documentation of profiling has the figures."""
SPREAD_WEIGHT = 4
"""Sessions that :data:`SESSION_SPREAD` counts as."""
SESSIONS_KEPT = 8
SESSION_ERROR = 0.01
"""Probability that sessions differ by more than is allowed for."""
STUDENT_T = (3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764, 2.718, 2.681)
"""One-sided quantiles at :data:`SESSION_ERROR`, for :data:`SPREAD_WEIGHT` degrees of freedom and
one more for each earlier session."""
ENERGY_T = 10.215
"""The same for the three degrees of freedom of the energy's regression, at
:data:`~dvt_edge.policy.statistic.BOUND_ERROR`."""
HALVES = 2
"""Of the duration one half is paced, one is back to back."""
MARGIN = 1.3
"""Runs are asked for with this margin: how far they are independent is an estimate."""
_STEP = 1 + 1e-6  # between exits that noise made equal or reversed


class ExitCost(Spread):
    """Latency of ``classify`` for a frame that leaves at one exit, at batch 1, in milliseconds."""

    preprocess_ms: float = Field(ge=0)
    """Mean, part of ``mean_ms``."""
    stage_ms: tuple[float, ...]
    """Mean of each stage that ran, part of ``mean_ms``."""
    at_most: Bounds | None = None
    """Upper confidence bounds within the session that measured; None where it was too short."""

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
    earlier_mean_ms: tuple[tuple[float, ...], ...] = Field(default=(), max_length=SESSIONS_KEPT)
    """[S, K]: means of earlier sessions with the same machine, stages, pace and frames, the latest
    first: how far sessions differ."""
    frame_shape: tuple[int, int]
    """Height and width of the frames that were classified, in pixels."""
    exits: tuple[ExitCost, ...]
    stage_p99_ms: tuple[float | None, ...]
    """[K]: p99 of each stage alone with its exit's decision."""
    energy_mj: tuple[float, ...] | None = None
    """[K]: mean gross energy of leaving at each exit, increasing; None where nothing could measure
    it."""
    net_mj: tuple[float, ...] | None = None
    """[K]: the same above idle."""
    idle_mw: float | None = None
    """Power at rest, in milliwatts, as far as it is known."""
    energy_error_mj: tuple[float, ...] | None = None
    """[K]: standard errors of ``energy_mj``; None where it is declared."""
    net_error_mj: tuple[float, ...] | None = None
    """[K]: the same of ``net_mj``."""
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

    @property
    def exit_costs(self) -> ExitCosts:
        """As measured, for the solver."""
        return ExitCosts(
            self.latency,
            None if self.energy_mj is None else np.array(self.energy_mj),
            None if self.net_mj is None else np.array(self.net_mj),
            self.idle_mw,
            self.paced_fps,
        )

    @property
    def session_spread(self) -> float:
        """Relative standard deviation of an exit's mean between sessions of measuring, at the exit
        that differs most.

        The usual one counts as :data:`SPREAD_WEIGHT` sessions, each one known here as one more: a
        scaled inverse chi-square prior, so that another session follows Student's distribution.
        """
        sessions = np.array([self.mean_ms, *self.earlier_mean_ms])
        relative = sessions / sessions.mean(axis=0) - 1
        squares = SPREAD_WEIGHT * self._usual_spread**2 + float((relative**2).sum(axis=0).max())
        return sqrt(squares / (SPREAD_WEIGHT + len(sessions) - 1))

    @property
    def _usual_spread(self) -> float:
        return SESSION_SPREAD["back to back" if self.paced_fps is None else "paced"]

    @property
    def session_allowance(self) -> float:
        """Share by which another session may be slower than this one, but for a probability of
        :data:`SESSION_ERROR`: both scatter, by :attr:`session_spread`, which is an estimate."""
        return STUDENT_T[len(self.earlier_mean_ms)] * sqrt(2) * self.session_spread

    @property
    def exit_costs_at_most(self) -> ExitCosts:
        """Upper confidence bounds of :attr:`exit_costs` in another session on this machine;
        infinite where too few runs were measured, and for every ``max``; None where nothing is
        known of an energy's error.

        Each is wrong within the session with probability
        :data:`~dvt_edge.policy.statistic.BOUND_ERROR`, and :attr:`session_allowance` is added.
        :attr:`bound_error` is for all together. The power at rest is as measured.
        """
        slower = 1 + self.session_allowance
        columns = {name: np.full(len(self.exits), inf) for name in ("mean", *PERCENTILES)}
        for k, cost in enumerate(self.exits):
            for name, column in columns.items():
                found = getattr(cost.at_most, f"{name}_ms", None)
                if found is not None:
                    column[k] = found * slower
        mean = np.array(_increasing(columns["mean"].tolist()))
        p50, p95, p99 = np.maximum.accumulate([columns[name] for name in PERCENTILES])
        latency = ExitLatency(mean, p50, p95, p99, np.full(len(mean), inf))
        ratio = mean / self.mean_ms
        energy = self._energy_at_most(self.energy_mj, self.energy_error_mj, ratio)
        net = self._energy_at_most(self.net_mj, self.net_error_mj, ratio)
        return ExitCosts(latency, energy, net, self.idle_mw, self.paced_fps)

    def _energy_at_most(
        self, energy_mj: Sequence[float] | None, error_mj: Sequence[float] | None, ratio: Floats
    ) -> Floats | None:
        """[K]: of an energy; None where it or its error is not known.

        A declared one grows with the latency, by ``ratio``. A measured one is that of frames back
        to back, and no earlier session is known of it.
        """
        if energy_mj is None or (error_mj is None and not self.energy_declared):
            return None
        above = np.array(energy_mj) * ratio
        if error_mj is not None:
            session = 1 + STUDENT_T[0] * sqrt(2) * SESSION_SPREAD["back to back"]
            above = (np.array(energy_mj) + ENERGY_T * np.array(error_mj)) * session
        return np.array(_increasing(above.tolist()))

    @property
    def bound_error(self) -> float:
        """Probability, 0..1, that any bound that a certificate uses is wrong.

        It uses of each exit the mean, one percentile, and the energy with idle power and without,
        where they are known. One percentile, though three are compared with the limit: they
        increase, so if any seems to keep a limit that it exceeds, the lowest such one does. That
        sessions differ by more than allowed for is one event: a slow session is slow at every exit.
        """
        kinds = 2 + (self.energy_mj is not None) + (self.net_mj is not None)
        return SESSION_ERROR + BOUND_ERROR * len(self.exits) * kinds

    def seconds_needed(self, statistic: Statistic) -> float:
        """``--duration`` of ``dvt-edge profile`` with which ``statistic`` has a bound, if runs are
        as independent as these were; infinite for ``max``."""
        needed = runs_needed(statistic)
        if needed is None:
            return inf
        known: list[int] = []
        if statistic != "mean":  # whose error counts in that runs are alike
            known = [cost.at_most.independent_runs for cost in self.exits if cost.at_most]
        runs = needed * self.runs_per_exit / min(known, default=self.runs_per_exit)
        round_s = sum(self.mean_ms) / 1e3
        if self.paced_fps is not None:
            round_s = max(round_s, len(self.exits) / self.paced_fps)
        return ceil(HALVES * MARGIN * runs * round_s)


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


def with_earlier(costs: Costs, before: Costs | None) -> Costs:
    """``costs`` that remember the sessions of ``before``, if these were of the same kind."""
    alike = before is not None and all(
        getattr(costs, name) == getattr(before, name)
        for name in ("machine", "content_hash", "frame_shape", "paced_fps")
    )
    if before is None or not alike or before.runs_per_exit < MIN_RUNS:
        return costs
    sessions = (tuple(before.mean_ms), *before.earlier_mean_ms)
    return costs.model_copy(update={"earlier_mean_ms": sessions[:SESSIONS_KEPT]})


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
                at_most=exit_.latency.at_most,
            )
            for exit_ in timing.exits
        ),
        stage_p99_ms=tuple(stage.p99_ms for stage in timing.exits[-1].stages),
        energy_mj=energy.gross_mj and tuple(_increasing(energy.gross_mj)),
        energy_error_mj=energy.gross_error_mj if energy.gross_mj else None,
        net_mj=energy.net_mj and tuple(_increasing(energy.net_mj)),
        net_error_mj=energy.net_error_mj if energy.net_mj else None,
        idle_mw=energy.idle_mw if energy.gross_mj else None,
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
        costs = Costs.model_validate_json(read_text(bundle.folder, COSTS))
    except FileNotFoundError:
        return None
    except (OSError, BundleError, ValidationError, UnicodeDecodeError):
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
    if costs.content_hash != engines:
        return (
            f"they were measured for other engines ({costs.content_hash[:12]}, these are "
            f"{engines[:12]})"
        )
    if len(costs.exits) != len(manifest.stages):
        return f"they are of {len(costs.exits)} exits, the bundle has {len(manifest.stages)}"
    return ""


def _increasing(values: Sequence[float]) -> list[float]:
    result: list[float] = []
    for value in values:
        result.append(max(value, result[-1] * _STEP) if result else value)
    return result
