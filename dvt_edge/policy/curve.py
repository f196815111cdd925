"""The budgeted curve: accuracy against GFLOPs and milliseconds, by our solver and by the authors'.

Thresholds are chosen on one set of records (the bundle's calibration images) and judged on another
(an evaluation's images). For each of the 59 points of the authors' rule our solver gets as budget
what their point costs on the calibration records, in multiply-accumulates.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import BudgetError
from dvt_edge.policy import Records, replay, solve
from dvt_edge.policy.baselines import AUTHORS_BUDGETS, authors_thresholds

Rule = Literal["solver", "authors", "recorded"]


@dataclass(frozen=True)
class CurvePoint:
    """One budget."""

    rule: Rule
    """``solver``: ours; ``authors``: their quantile rule on the calibration records; ``recorded``:
    the thresholds stored in an imported checkpoint."""
    point: int
    """p of the authors' rule, from 1; the row of the recorded thresholds, from 1."""
    gflops: float
    """Mean giga multiply-accumulates per image, which the paper calls FLOPs."""
    latency_ms: float
    """Mean latency per image, from the costs measured on this machine."""
    energy_mj: float | None
    """Mean energy per image; None where nothing measured it."""
    accuracy: float
    """Top-1 on the evaluated images, 0..1."""
    exit_fraction: tuple[float, ...]
    """[K]: share of the images that leave at each exit."""
    thresholds: tuple[float, ...]
    """[K]."""


def budgeted_curve(
    calibration: Records,
    evaluated: Records,
    macs: Sequence[int],
    latency_ms: Sequence[float],
    energy_mj: Sequence[float] | None = None,
    recorded: npt.ArrayLike | None = None,
) -> list[CurvePoint]:
    """All points of all rules; ``macs`` [K] of each stage, the costs [K] of leaving at each exit.

    ``recorded`` [P, K] are thresholds to use as they are.
    """
    gflops = np.cumsum(macs) / 1e9

    def judged(rule: Rule, point: int, thresholds: npt.ArrayLike) -> CurvePoint:
        found = replay(evaluated, gflops, thresholds)
        return CurvePoint(
            rule,
            point,
            found.cost,
            float(found.exit_fraction @ np.asarray(latency_ms)),
            None if energy_mj is None else float(found.exit_fraction @ np.asarray(energy_mj)),
            found.accuracy,
            tuple(found.exit_fraction.tolist()),
            tuple(float(t) for t in found.thresholds),
        )

    curve = []
    for p in AUTHORS_BUDGETS:
        theirs = authors_thresholds(calibration, p)
        curve.append(judged("authors", p, theirs))
        limit = replay(calibration, gflops, theirs).cost
        curve.append(judged("solver", p, solve(calibration, gflops, limit).thresholds))
    if recorded is not None:
        for point, thresholds in enumerate(np.asarray(recorded, float), start=1):
            curve.append(judged("recorded", point, thresholds))
    return curve


def recorded_thresholds(
    metadata_thresholds: Sequence[Sequence[float | str]],
) -> npt.NDArray[np.float64]:
    """[P, K] from a checkpoint's ``dynamic_threshold``, where infinities are strings."""
    return np.asarray([[float(value) for value in row] for row in metadata_thresholds])


def recorded_point(table: npt.NDArray[np.float64], point: int) -> npt.NDArray[np.float64]:
    """Row ``point`` (from 1) of the recorded thresholds; raises BudgetError where it is none."""
    if not 1 <= point <= len(table):
        raise BudgetError(f"point {point} does not exist; the checkpoint records 1..{len(table)}")
    return np.asarray(table[point - 1])


def as_csv(curve: Sequence[CurvePoint]) -> str:
    """The curve as comma-separated values with a header line."""
    text = io.StringIO()
    writer = csv.writer(text)
    exits = len(curve[0].exit_fraction)
    numbered = range(1, exits + 1)
    writer.writerow(
        ["rule", "point", "gflops", "latency_ms", "energy_mj", "accuracy"]
        + [f"exit_{k}" for k in numbered]
        + [f"threshold_{k}" for k in numbered]
    )
    for p in curve:
        energy = "" if p.energy_mj is None else p.energy_mj
        means = (p.gflops, p.latency_ms, energy, p.accuracy)
        writer.writerow([p.rule, p.point, *means, *p.exit_fraction, *p.thresholds])
    return text.getvalue()
