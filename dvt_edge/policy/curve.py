"""The budgeted curve: accuracy against GFLOPs and milliseconds, by our solver and by the authors'.

Thresholds are chosen on one set of records (the bundle's calibration images) and judged on another
(an evaluation's images). For each of the 59 points of the authors' rule our solver gets as budget
what their point costs on the calibration records, in multiply-accumulates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from dvt_edge.policy.authors import AUTHORS_BUDGETS, authors_thresholds
from dvt_edge.policy.choose import RecordedThresholds
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import replay, solve

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
    recorded: RecordedThresholds | None = None,
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
    for point, row in enumerate(recorded or (), start=1):
        curve.append(judged("recorded", point, [float(value) for value in row]))
    return curve
