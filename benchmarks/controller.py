"""The controller before a made camera: scenes that change, slow clocks, spikes, and what it costs.

    python benchmarks/controller.py [--seeds 4] [--exits 3] [--out FILE.json]

A frame is easy or hard; its difficulty decides the confidences of all exits, and an answer is right
with the probability that its exit's confidence states. Accuracy is the mean of that probability
over the frames, so that sequences of a few thousand frames can be compared to a tenth of a point.
The *best possible* are thresholds solved on 10,000 records of the very scene for the very
latencies, in every part of a sequence, with the mean at the budget there. The tests of
``dvt_edge/policy/live`` use the same camera. Prints tables with the machine; writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from dvt_edge.errors import BudgetError
from dvt_edge.machine.board import processor_name
from dvt_edge.policy import Records, solve
from dvt_edge.policy.live.controller import Change, Controller

Floats = npt.NDArray[np.float64]

PREPROCESS_MS = 0.3
STAGES_MS = (1.0, 1.6, 3.0, 5.0)
ABLE = (0.6, 0.9, 1.3, 1.6)
"""Difficulty at which an exit is as often right as wrong."""
BUDGET_MS = 3.0
OVERTHINKING = (0.7, 1.0, 1.5)
"""Logits by which later exits are less sure of very easy images; scenes are judged at each."""
overthinking = OVERTHINKING[-1]
"""The one in force, which the tests use: chosen so that a controller that never solves again for
another mix fails."""
KNOWN = 10_000
"""Records of a scene that the best possible thresholds are solved on."""
GRACE = 2000
"""Frames after a change of scene or speed that are not judged."""


def costs_of(exits: int = 3) -> Floats:
    """[K] ms of leaving at each exit, as profiled."""
    return PREPROCESS_MS + np.cumsum(STAGES_MS[:exits])


def images(
    seed: int, hard: npt.ArrayLike, count: int | None = None, *, night: bool = False, exits: int = 3
) -> Records:
    """Records of images that are hard with probability ``hard``, one number or one for each.

    At ``night`` there is next to nothing to see. Of what is so easy, exit 1 is surer and more often
    right than the later exits ("overthinking": Kaya et al., ICML 2019).
    """
    rng = np.random.default_rng(seed)
    chance = np.full(count, hard) if count is not None else np.asarray(hard)
    is_hard, n = rng.random(len(chance)) < chance, len(chance)
    difficulty = np.where(is_hard, rng.normal(0.9, 0.25, n), rng.normal(0.25, 0.2, n))
    if night:
        difficulty = rng.normal(-0.4, 0.1, n)
    able = np.array(ABLE[:exits])
    logit = 4 * (able - difficulty[:, None]) + 0.7 * rng.standard_normal((n, exits))
    clear = difficulty < 0
    logit[clear, 1:] = (
        logit[clear, :1] - overthinking + 0.2 * rng.standard_normal((clear.sum(), exits - 1))
    )
    confidence = 0.1 + 0.9 / (1 + np.exp(-logit))
    right = rng.random(confidence.shape) < confidence
    return Records(
        confidence.astype(np.float32),
        np.where(right, 0, np.arange(1, exits + 1)).astype(np.int32),
        np.zeros(n, np.int32),
    )


@dataclass(frozen=True)
class Part:
    """Some frames of one scene at one speed."""

    frames: int
    hard: float = 0.2
    night: bool = False
    speed: float = 1.0
    """What stages take, relative to the profile."""


NORMAL, EASY, HARD = Part(6000), Part(10_000, hard=0.0), Part(6000, hard=0.8)
SEQUENCES: dict[str, tuple[Part, ...]] = {
    "easy, normal": (EASY, NORMAL),
    "normal, hard": (Part(3000), HARD),
    "hard, normal": (Part(10_000, hard=0.8), NORMAL),
    "alternating": tuple(Part(3000, hard=h) for h in (0.0, 0.8) * 4),
    "slow drift": tuple(Part(400, hard=h) for h in np.linspace(0.05, 0.8, 25).tolist()),
    "night": (Part(3000), Part(10_000, night=True), NORMAL),
    "sudden throttle": (Part(3000), Part(6000, speed=1.8)),
    "recovery": (Part(3000), Part(6000, speed=1.8), NORMAL),
}


@dataclass
class Run:
    """What happened, frame by frame."""

    latency_ms: Floats
    """[N]."""
    chance: Floats
    """[N]: probability, 0..1, that the answer is right."""
    right: npt.NDArray[np.bool_]
    """[N]."""
    exit_at: npt.NDArray[np.int64]
    """[N], from 0."""
    changes: list[Change] = field(default_factory=list)

    def means(self, start: int, frames: int = 300) -> Floats:
        """Mean latency of every window of ``frames`` from frame ``start`` on."""
        return np.convolve(self.latency_ms[start:], np.ones(frames) / frames, "valid")


@dataclass(frozen=True)
class Camera:
    """Frames to come, with what every stage would take."""

    records: Records
    stages_ms: Floats
    """[N, K]."""
    before_ms: Floats
    """[N]: preprocessing."""

    def __len__(self) -> int:
        return len(self.records)

    def run(
        self,
        controller: Controller | None,
        thresholds: Sequence[float] = (),
        *,
        audited: Callable[[int], bool] = lambda t: False,
        deadline: Callable[[int, float], bool] = lambda stage, spent: True,
    ) -> Run:
        """Show all frames; fixed ``thresholds`` without a controller.

        ``deadline`` says with a stage, from 0, and the milliseconds spent whether it may start.
        """
        latency, exits, changes = [], [], []
        rows = zip(
            self.records.confidence.tolist(),
            self.stages_ms.tolist(),
            self.before_ms.tolist(),
            strict=True,
        )
        for t, (confidence, stages, before) in enumerate(rows):
            limits = controller.thresholds if controller else thresholds
            audit, cut, ran, spent = audited(t), False, 0, before
            for value, took, limit in zip(confidence, stages, limits, strict=True):
                if ran and not deadline(ran, spent):
                    cut = True
                    break
                spent += took
                ran += 1
                if value >= limit and not audit:
                    break
            latency.append(spent)
            exits.append(ran - 1)
            if controller:
                change = controller.observe(
                    ran, stages[:ran], spent, confidence[:ran], forced=audit or cut
                )
                if change:
                    changes.append(change)
        at = np.array(exits)
        rows_at = np.arange(len(at))
        return Run(
            np.array(latency),
            self.records.confidence[rows_at, at].astype(float),
            self.records.correct_at(at),
            at,
            changes,
        )


def camera(
    live: Records,
    speed: npt.ArrayLike = 1.0,
    seed: int = 0,
    *,
    jitter: float = 0.08,
    spikes: float = 0.0,
    spike: float = 20.0,
) -> Camera:
    """Frame t shows record t while all takes ``speed[t]`` times as long as profiled.

    Stages scatter by ``jitter``; a share ``spikes`` of the frames takes ``spike`` times as long.
    """
    rng = np.random.default_rng(seed)
    factor = np.broadcast_to(np.asarray(speed, float), len(live)).copy()
    noise = np.exp(jitter * rng.standard_normal(live.confidence.shape) - jitter**2 / 2)
    factor[rng.random(len(live)) < spikes] *= spike
    stages = np.array(STAGES_MS[: live.exits]) * noise * factor[:, None]
    return Camera(live, stages, PREPROCESS_MS * factor)


def show(parts: Sequence[Part], seed: int, *, exits: int = 3) -> Camera:
    """The frames of a whole sequence."""
    records = [
        images(1000 * seed + i, p.hard, p.frames, night=p.night, exits=exits)
        for i, p in enumerate(parts)
    ]
    speed = np.concatenate([np.full(p.frames, p.speed) for p in parts])
    return camera(joined(records), speed, seed)


def joined(parts: Sequence[Records]) -> Records:
    return Records(
        np.concatenate([p.confidence for p in parts]),
        np.concatenate([p.prediction for p in parts]),
        np.concatenate([p.truth for p in parts]),
    )


@cache
def best_thresholds(
    hard: float, night: bool, speed: float, budget_ms: float, exits: int = 3
) -> Floats:
    """[K]: solved by one who knows the scene and the speed."""
    scene = images(99, hard, KNOWN if exits <= 3 else 2000, night=night, exits=exits)
    try:
        return solve(scene, costs_of(exits) * speed, budget_ms).thresholds
    except BudgetError:
        return np.full(exits, -np.inf)


@dataclass(frozen=True)
class Judged:
    """A run against the best possible, over the frames that are judged."""

    points: float
    """Accuracy below the best possible, in points."""
    mean: float
    """Mean latency as a multiple of the budget."""
    changes: int


def judge(parts: Sequence[Part], shown: Camera, run: Run, budget_ms: float, grace: int) -> Judged:
    """Leaves out ``grace`` frames after each jump; a drift is judged after the first ``grace``."""
    exits = shown.records.exits
    below, spent, start = [], [], 0
    for i, part in enumerate(parts):
        end = start + part.frames
        # What is too short to be one scene is part of a drift: only its beginning is left out.
        begin = start + grace if part.frames > grace else max(start, grace)
        if begin < end and (i or part.frames <= grace):
            best = best_thresholds(part.hard, part.night, part.speed, budget_ms, exits)
            at = shown.records.exits_taken(best)
            chance = shown.records.confidence[np.arange(len(at)), at].astype(float)
            below.append((chance - run.chance)[begin:end])
            spent.append(run.latency_ms[begin:end])
        start = end
    return Judged(
        100 * float(np.concatenate(below).mean()),
        float(np.concatenate(spent).mean()) / budget_ms,
        len(run.changes),
    )


def made_controller(seed: int, budget_ms: float, exits: int = 3, **options: Any) -> Controller:
    """As opened on the normal scene: 3,000 calibration records, the solver's thresholds."""
    records, costs = images(seed, 0.2, 3000, exits=exits), costs_of(exits)
    return Controller(
        records, costs, budget_ms, solve(records, costs, budget_ms).thresholds, **options
    )


def scenes(seeds: int, exits: int) -> list[dict[str, Any]]:
    """Every sequence with the controller and without, at each of :data:`OVERTHINKING`."""
    global overthinking
    rows = []
    for overthinking, (name, parts) in itertools.product(OVERTHINKING, SEQUENCES.items()):
        best_thresholds.cache_clear()  # they were solved for other images
        found: list[Judged] = []
        plain: list[Judged] = []
        budget = BUDGET_MS if exits == 3 else 4.0
        for seed in range(seeds):
            shown = show(parts, seed + 1, exits=exits)
            controller = made_controller(500 + seed, budget, exits)
            fixed = controller.thresholds
            found.append(judge(parts, shown, shown.run(controller), budget, GRACE))
            plain.append(judge(parts, shown, shown.run(None, fixed), budget, GRACE))
        rows.append(
            {
                "sequence": name,
                "overthinking": overthinking,
                "points_below_best": float(np.mean([j.points for j in found])),
                "worst": max(j.points for j in found),
                "mean": float(np.mean([j.mean for j in found])),
                "changes": float(np.mean([j.changes for j in found])),
                "fixed_points_below_best": float(np.mean([j.points for j in plain])),
                "fixed_mean": float(np.mean([j.mean for j in plain])),
            }
        )
    return rows


def spikes(seeds: int) -> list[dict[str, Any]]:
    """Means of 10,000 normal frames from frame 500 on, with spikes and constant slowness."""
    rows = []
    for budget in (1.8, 2.4, 3.0, 4.2):
        for name, speed, share in (
            ("as profiled", 1.0, 0.0),
            ("1 % of the frames 20 times slower", 1.0, 0.01),
            ("all 5 % slower", 1.05, 0.0),
        ):
            means, first = [], []
            for seed in range(seeds):
                controller = made_controller(600 + seed, budget)
                shown = camera(images(700 + seed, 0.2, 10_500), speed, seed, spikes=share)
                run = shown.run(controller)
                means.append(run.latency_ms[500:].mean() / budget)
                first.append(run.changes[0].frame if run.changes else 0)
            rows.append(
                {
                    "budget_ms": budget,
                    "latencies": name,
                    "mean": float(np.mean(means)),
                    "worst": float(max(means)),
                    "first_change": float(np.median(first)),
                }
            )
    return rows


def overhead(exits: int) -> dict[str, float]:
    """Microseconds of ``observe`` on this machine: as certified, adapted, and its slowest."""
    result = {}
    for state, speed in (("as certified", 1.0), ("adapted", 1.8)):
        best: list[float] = []
        for _ in range(3):
            times = _observe_times(exits, speed)
            best = [min(pair) for pair in zip(best, times, strict=True)] if best else times
        later = np.array(best[2000:]) * 1e6
        result[f"{state}: mean"] = float(later.mean())
        result[f"{state}: p99"] = float(np.quantile(later, 0.99))
    return result


def _observe_times(exits: int, speed: float) -> list[float]:
    budget = BUDGET_MS if exits == 3 else 4.0
    controller = made_controller(1, budget, exits)
    shown = camera(images(2, 0.2, 10_000, exits=exits), speed, 3)
    times = []
    for confidence, stages, before in zip(
        shown.records.confidence.tolist(),
        shown.stages_ms.tolist(),
        shown.before_ms.tolist(),
        strict=True,
    ):
        limits = controller.thresholds
        ran = next(k for k in range(exits) if confidence[k] >= limits[k]) + 1
        took, seen, total = stages[:ran], confidence[:ran], before + sum(stages[:ran])
        started = perf_counter()
        controller.observe(ran, took, total, seen)
        times.append(perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--exits", type=int, default=3, choices=(3, 4))
    parser.add_argument("--only", choices=("scenes", "spikes", "overhead"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": processor_name(), "exits": options.exits}
    if options.only in (None, "scenes"):
        result["scenes"] = scenes(options.seeds, options.exits)
    if options.only in (None, "spikes"):
        result["spikes"] = spikes(options.seeds)
    if options.only in (None, "overhead"):
        result["observe_us"] = overhead(options.exits)
    console = Console()
    for name, rows in result.items():
        if isinstance(rows, list):
            table = Table(*rows[0], title=f"{name} ({result['machine']})")
            for row in rows:
                table.add_row(
                    *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values())
                )
            console.print(table)
        elif isinstance(rows, dict):
            console.print(name, {key: round(value, 1) for key, value in rows.items()})
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
