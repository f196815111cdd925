"""How often certificates are wrong, and what they cost: many draws from populations that are known.

    python benchmarks/certificates.py --draws 1000 --out benchmarks/results/cpu/certificates.json

The population are made records of three exits (``images`` of ``benchmarks/controller.py``). A
*clip* is 20 of them that are alike: neighbours in the order of difficulty. In each draw, records
(single ones, or whole clips) are drawn with replacement, thresholds are certified at 95 %, and both
the mean cost and the accuracy gap on the whole population are compared with what the certificate
says. In the rows with measured costs, every draw also measures them anew: 50 runs of each exit,
from latencies with a tail, in bursts of 5 that are alike, in a session whose speed is its own
(2 %), and the thresholds are judged at the true latencies of yet another session.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.costs import SESSION_SPREAD, Costs, costs_from_timing
from dvt_edge.bundle.measurement import EnergyFigures, ExitTiming, PacedTiming
from dvt_edge.machine.board import processor_name
from dvt_edge.policy import ExitCosts, ExitLatency, Records, replay, solve, solve_certified
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.measuring.timing import distribution

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.controller import images

LEVEL = 0.95
COST = np.array([1.0, 2.6, 5.6])
BUDGET_MS = 3.0
POPULATION, CLIP, ALIKE = 20_000, 20, 60
RUNS, BURST, TAIL = 50, 5, 0.02
SESSION = SESSION_SPREAD["back to back"]


@dataclass(frozen=True)
class Row:
    """One way to draw and to certify."""

    name: str
    clips: bool = False
    """Whether records come in clips."""
    told: bool = True
    """Whether the certificate is told so."""
    records: int = 2000
    unlabelled: int = 0
    measured: bool = False
    """Whether costs are measured anew."""
    bounded: bool = True
    """Whether the certificate counts in how wrong measured costs may be."""


ROWS = (
    Row("2,000 records"),
    Row("1,000 records", records=1000),
    Row("1,000 records, 20,000 unlabelled ones", records=1000, unlabelled=20_000),
    Row("100 clips of 20, taken for single images", clips=True, told=False),
    Row("100 clips of 20", clips=True),
    Row("400 clips of 20", clips=True, records=8000),
    Row("2,000 records, 50 runs, taken for exact", measured=True, bounded=False),
    Row("2,000 records, 50 runs", measured=True),
    Row("100 clips of 20, 50 runs", clips=True, measured=True),
)


def clips_of(population: Records, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """[clips, 20]: rows of ``population``; as many clips as cover it once."""
    order = np.argsort(population.confidence.mean(axis=1) + 0.05 * rng.random(len(population)))
    start = rng.integers(0, len(population), len(population) // CLIP)
    within = rng.integers(0, ALIKE, (len(start), CLIP))
    return order[(start[:, None] + within) % len(population)]


def latencies(rng: np.random.Generator, exit_ms: float, count: int) -> npt.NDArray[np.float64]:
    """Milliseconds of ``count`` runs in a row; their true mean is ``exit_ms``."""
    bursts = np.exp(0.06 * rng.standard_normal(count // BURST + 1)).repeat(BURST)[:count]
    slow = np.where(rng.random(count) < TAIL, 2.0, 1.0)
    return exit_ms * bursts * slow / (np.exp(0.06**2 / 2) * (1 + TAIL))


def measured_costs(rng: np.random.Generator) -> Costs:
    """As ``dvt-edge profile`` would write them, after one session."""
    session = 1 + SESSION * rng.standard_normal()
    nothing = distribution([0.0])
    exits = tuple(
        ExitTiming(
            latency=distribution(latencies(rng, ms * session, RUNS), bounded=True),
            preprocess=nothing,
            stages=(nothing,),
            decision=nothing,
        )
        for ms in COST
    )
    timing = PacedTiming(fps=None, exits=exits)
    return costs_from_timing("made", "0" * 64, "", (48, 48), timing, EnergyFigures())


def draws(row: Row, count: int) -> Iterator[tuple[bool, bool, float, float]]:
    """Of each draw: whether the budget was exceeded, whether the gap's bound was wrong, accuracy
    given up against the best thresholds for the population, and the gap's bound."""
    rng = np.random.default_rng(7)
    everybody = images(3, 0.2, POPULATION)
    clips = clips_of(everybody, rng)
    if row.clips:
        everybody = everybody.take(clips.ravel())
    best = solve(everybody, COST, BUDGET_MS).accuracy
    last = everybody.accuracy[-1]
    budget = BudgetConfig(latency_ms=BUDGET_MS)
    exact = ExitCosts(ExitLatency(COST, COST, COST, COST, COST))
    for number in range(count):
        if row.clips:
            chosen = rng.integers(0, len(clips), row.records // CLIP)
            rows = (chosen[:, None] * CLIP + np.arange(CLIP)).ravel()
            sample = everybody.take(rows)
            if row.told:
                group = np.arange(len(chosen), dtype=np.int32).repeat(CLIP)
                sample = Records(sample.confidence, sample.prediction, sample.label, group)
        else:
            sample = everybody.take(rng.integers(0, len(everybody), row.records))
        unlabelled = None
        if row.unlabelled:
            field = everybody.take(rng.integers(0, len(everybody), row.unlabelled))
            unlabelled = Records(field.confidence, field.prediction)
        costs, at_most, error, true_cost = exact, None, 0.0, COST
        if row.measured:
            measured = measured_costs(rng)
            costs = measured.exit_costs
            true_cost = COST * (1 + SESSION * rng.standard_normal())
            if row.bounded:
                at_most, error = measured.exit_costs_at_most, measured.bound_error
        solution, certificate = solve_certified(
            sample, costs, budget, LEVEL,
            at_most=at_most, bound_error=error, unlabelled=unlabelled, seed=number,
        )  # fmt: skip
        truth = replay(everybody, true_cost, solution.thresholds)
        yield (
            truth.cost > min(BUDGET_MS, certificate.cost_bound),
            last - truth.accuracy > certificate.accuracy_gap_bound,
            best - truth.accuracy,
            certificate.accuracy_gap_bound,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(f"{processor_name()}; {options.draws} draws, certified at {LEVEL:.0%}")
    print(f"{'':<44}{'over budget':>12}{'gap wrong':>11}{'any':>8}{'lost':>8}{'gap bound':>11}")
    rows = []
    for row in ROWS:
        found = np.array(list(draws(row, options.draws)), float)
        over, wrong, lost, gap = found.mean(axis=0)
        either = float(found[:, :2].any(axis=1).mean())
        print(
            f"{row.name:<44}{over:>12.1%}{wrong:>11.1%}{either:>8.1%}{100 * lost:>8.2f}"
            f"{100 * gap:>11.2f}",
            flush=True,
        )
        rows.append(
            {
                "row": row.name,
                "over_budget": over,
                "gap_wrong": wrong,
                "any_wrong": either,
                "points_lost": 100 * lost,
                "gap_bound_points": 100 * gap,
            }
        )
    if options.out:
        result = {"machine": processor_name(), "draws": options.draws, "level": LEVEL, "rows": rows}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
