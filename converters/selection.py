"""What only the machine can say, measured here: which precision of a stage is faster and answers
well enough, and where frames become images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.engine_records import PrecisionFigures
from dvt_edge.bundle.manifest import Manifest, StageSpec
from dvt_edge.errors import BackendError, BuildError
from dvt_edge.machine.board import available_cores
from dvt_edge.policy.records import Records
from dvt_edge.profile import EngineConfig
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.backends.opening import open_stages
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.timing import noise_frame
from dvt_edge.runtime.preprocess import Preprocessor

Images = npt.NDArray[np.float32]

MEASURED_RUNS = 100
"""Timed runs per candidate; those of a stage come after all parity images."""
MEASURED_SECONDS = 2.0
"""Per stage, if that many runs would take longer."""
LEAST_RUNS = 5
SURE_ERRORS = 2.0
"""Standard errors by which a loss of top-1 must exceed the tolerance: a few hundred images show no
more. The whole of the calibration images decided on the quantized graphs before."""
MOST_CHANGED_DECISIONS = 0.05
"""Share of the parity images that may decide otherwise at an exit than in the records."""


@dataclass(frozen=True)
class Candidate:
    """One stage in one precision, ready to run."""

    path: Path
    spec: StageSpec


@dataclass(frozen=True)
class Parity:
    """What candidates must answer."""

    images: Images
    """[n, C, S, S], normalised."""
    records: Records
    """Reference answers to those images."""
    thresholds: npt.NDArray[np.float64]
    """[K] that decisions are compared at."""
    tolerance_points: float
    """Largest loss of top-1 at an exit; without labels the records' last exit is right."""


Place = Literal["host", "device"]

AnyCandidate = TypeVar("AnyCandidate", bound=Candidate)


def choose_precisions(
    candidates: Sequence[Sequence[AnyCandidate]],
    parity: Parity,
    engine: EngineConfig,
    progress: Progress = silent,
) -> tuple[list[AnyCandidate], list[PrecisionFigures]]:
    """Choose stage by stage, each behind the stages chosen before it.

    Candidates run as ``engine`` says and take turns while they are timed. Raises
    :class:`~dvt_edge.errors.BuildError` where none of them passes.
    """
    chosen: list[AnyCandidate] = []
    table: list[PrecisionFigures] = []
    for k, options in enumerate(candidates):
        progress("precision per stage", k, len(candidates))
        backends: list[Backend] = []
        try:
            for option in options:
                stages = [*chosen, option]
                paths, specs = [s.path for s in stages], [s.spec for s in stages]
                backends.append(open_stages(engine, paths, specs, max_batch=1))
            answers = [_answers(backend, k, parity) for backend in backends]
            times = _median_ms(backends, k)
        finally:
            for backend in backends:
                backend.close()
        rows = [
            _figures(k, option, answer, parity, ms)
            for option, answer, ms in zip(options, answers, times, strict=True)
        ]
        passing = [i for i, row in enumerate(rows) if not row.remark]
        if not passing:
            reasons = "; ".join(f"{row.precision}: {row.remark}" for row in rows)
            raise BuildError(
                f"stage {k + 1}: no precision passes ({reasons}); calibrate on more or more "
                "typical images, or raise calibration.tolerance_points"
            )
        best = min(passing, key=lambda i: times[i])
        chosen.append(options[best])
        table += [
            row.model_copy(
                update={
                    "chosen": i == best,
                    "remark": row.remark or ("faster" if i == best else "slower"),
                }
            )
            for i, row in enumerate(rows)
        ]
    progress("precision per stage", len(candidates), len(candidates))
    return chosen, table


def choose_native(
    stages: Sequence[Candidate],
    native: Sequence[Candidate],
    parity: Parity,
    engine: EngineConfig,
    progress: Progress = silent,
) -> tuple[bool, list[PrecisionFigures]]:
    """Whether the whole cascade runs on native operators: where its stages take less time together,
    and every exit passes. They hand on INT8 relations, so none runs behind another kind."""
    kinds = (stages, native)
    exits = range(len(stages))
    backends: list[Backend] = []
    answers, times = [], []
    progress("native operators", 0, 1)
    try:
        for kind in kinds:
            paths, specs = [s.path for s in kind], [s.spec for s in kind]
            backends.append(open_stages(engine, paths, specs, max_batch=1))
        for k in exits:
            answers.append(_answers(backends[1], k, parity))
            times.append(_median_ms(backends, k))
    except BackendError as error:
        return False, [not_native(k + 1, str(error)) for k in exits]
    finally:
        for backend in backends:
            backend.close()
        progress("native operators", 1, 1)
    tried = [_figures(k, native[k], answers[k], parity, times[k][1]) for k in exits]
    passes = not any(row.remark for row in tried)
    faster = passes and sum(ms[1] for ms in times) < sum(ms[0] for ms in times)
    otherwise = "faster" if faster else "slower" if passes else "passes, another stage does not"
    table = [
        row.model_copy(
            update={
                "precision": "native",
                "chosen": faster,
                "remark": row.remark or otherwise,
            }
        )
        for row in tried
    ]
    return faster, table


def not_native(stage: int, remark: str) -> PrecisionFigures:
    """A row of the table for a stage that could not be tried."""
    return PrecisionFigures(stage=stage, precision="native", chosen=False, remark=remark)


def choose_preprocessing(
    first: Candidate, manifest: Manifest, progress: Progress = silent
) -> tuple[Place, dict[str, float]]:
    """Where single frames become images sooner: on the GPU that runs ``first``, or on the host.

    Returns it, and the median milliseconds from a frame of the calibration images' size to the end
    of stage 1 by place; both take turns. Raises :class:`~dvt_edge.errors.BackendError` where the
    GPU cannot do it.
    """
    backends: dict[Place, Backend] = {}
    places: tuple[Place, ...] = ("host", "device")
    try:
        for place in places:
            backends[place] = open_stages(
                manifest.engine,
                [first.path],
                [first.spec],
                max_batch=1,
                preprocess=place == "device",
            )
        progress("preprocessing", 0, 1)
        preprocess = Preprocessor(manifest.input, manifest.engine.threads or available_cores())
        frame, leaves = noise_frame(manifest), (-math.inf,)
        loops = [CascadeLoop(b, preprocess, manifest.class_names) for b in backends.values()]
        times = _taking_turns([partial(loop.run_one, frame, leaves) for loop in loops])
    finally:
        for backend in backends.values():
            backend.close()
    progress("preprocessing", 1, 1)
    faster = places[times.index(min(times))]
    return faster, {str(place): ms for place, ms in zip(places, times, strict=True)}


def _answers(
    backend: Backend, stage: int, parity: Parity
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Confidences and classes of exit ``stage`` for all parity images."""
    confidence, classes = [], []
    for image in parity.images:
        backend.image_buffer(1)[0] = image
        for k in range(stage + 1):
            answer = backend.run_stage(k, 1)
        confidence.append(float(answer.confidence[0]))
        classes.append(int(answer.class_id[0]))
    return np.asarray(confidence, np.float32), np.asarray(classes, np.int32)


def _median_ms(backends: Sequence[Backend], stage: int) -> list[float]:
    """Median time of ``stage`` at batch 1 for every backend."""
    return _taking_turns([partial(backend.run_stage, stage, 1) for backend in backends])


def _taking_turns(ways: Sequence[Callable[[], object]]) -> list[float]:
    """Median milliseconds of each way, after one run that does not count."""
    samples: list[list[float]] = [[] for _ in ways]
    for way in ways:
        way()
    until = perf_counter() + MEASURED_SECONDS
    for run in range(MEASURED_RUNS):
        if run >= LEAST_RUNS and perf_counter() > until:
            break
        for way, times in zip(ways, samples, strict=True):
            started = perf_counter()
            way()
            times.append(1e3 * (perf_counter() - started))
    return [float(np.median(times)) for times in samples]


def _figures(
    stage: int,
    option: Candidate,
    answer: tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]],
    parity: Parity,
    latency_ms: float,
) -> PrecisionFigures:
    """A row of the table; ``remark`` says why it does not pass, and is empty if it does."""
    confidence, classes = answer
    records = parity.records
    expected = records.prediction[:, stage]
    same_class = float((classes == expected).mean())
    leaves, left = (
        c >= parity.thresholds[stage] for c in (confidence, records.confidence[:, stage])
    )
    same_exit = float((leaves == left).mean())
    change = records.correct[:, stage].astype(float) - (classes == records.truth)
    lost = 100 * float(change.sum()) / len(change)
    noise = 100 * float(change.std()) / math.sqrt(len(change))
    remark = ""
    if not np.isfinite(confidence).all():
        remark = "confidence is not finite"
    elif lost - SURE_ERRORS * noise > parity.tolerance_points:
        remark = f"loses {lost:.2f} points of top-1"
    elif 1 - same_exit > MOST_CHANGED_DECISIONS:
        remark = f"changes {100 * (1 - same_exit):.1f} % of the decisions"
    return PrecisionFigures(
        stage=stage + 1,
        precision=option.spec.precision,
        latency_ms=latency_ms,
        same_class=same_class,
        same_exit=same_exit,
        chosen=False,
        remark=remark,
    )
