"""Does the budget hold by the clock on the wall? The demo with the real Runtime, on this machine.

    python benchmarks/wall_clock.py [--quick] [--frames 400] [--rows TEXT ...] [--out FILE.json]
    python benchmarks/wall_clock.py --traces benchmarks/results/cpu/latency_traces.json

Frames are real test scenes, each timed by ``perf_counter`` around ``runtime.classify``. A row is a
pace (back to back, or a camera's) and what disturbs it: nothing, a process that keeps one core
busy, or 1 % of the frames taking 20 times as long. Costs are measured first in every row, at its
pace and undisturbed, as ``dvt-edge profile`` would, and are kept in a copy of the bundle. Then all
budgets follow, each without ``adapt`` and right after that with it. Budgets are the same in all
rows: five between exit 1's cost at the slowest pace and the most accurate thresholds' cost at the
fastest; at 10 fps, where frames take long to come, two of them.

Cells are the lowest and the highest, over the budgets, of mean over budget; the first frames
(:data:`SETTLE` with ``adapt``, :data:`FIRST` without) are left out. A budget below what exit 1
takes when its row comes is refused, and counted. Scenes come in an order in which any hundred are
as mixed as all of them, so that chance in the images does not blur what the clock says;
``--order random`` shuffles them. Afterwards some frames have a deadline of twice the budget, and
the share that is answered later is counted. ``--traces`` records what leaving at each exit takes,
frame by frame, for ``benchmarks/promise_audit.py``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table
from traces import Camera, busy_neighbour, record_traces

from dvt_edge import Profile, Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs, costs_from_timing
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.bundle.measurement import EnergyFigures
from dvt_edge.errors import BudgetError
from dvt_edge.files.datasets import Pixels, find_images, load_image
from dvt_edge.machine.board import processor_name
from dvt_edge.machine.clock import RealClock, now_utc
from dvt_edge.policy.live.audit import evenly
from dvt_edge.policy.solver import closed_before, replay, solve
from dvt_edge.profile import BudgetConfig, CameraConfig
from dvt_edge.runtime.backends.opening import open_backend
from dvt_edge.runtime.backends.protocol import Backend, StageAnswer, machine_name
from dvt_edge.runtime.cascade_loop import open_loop
from dvt_edge.runtime.measuring.timing import (
    ForcedExits,
    time_back_to_back,
    time_paced,
    warm_up,
)

ROOT = Path(__file__).resolve().parents[1]
PROFILE = ROOT / "samples/profiles/demo-cpu.yaml"
SCENES = ROOT / "samples/demo/scenes/test"

SHARES = (0.15, 0.3, 0.45, 0.6, 0.8)
"""Of the way from exit 1's cost to the most accurate thresholds', where the budgets are."""
SETTLE, FIRST = 500, 50
"""Frames of each run that are not judged, with ``adapt`` and without."""
LATE = 2.0
"""The deadline, in budgets."""
SLOW_SHARE, SLOW_TIMES = 0.01, 20.0
"""With spikes: the share of the frames that take so many times as long."""
MEASURE_S = 10.0
"""Time for the costs of each row."""
EVEN = 2**0.5
"""Multiples of it modulo 1 are evenly spread; not the golden ratio, by which spikes come."""
BACK_TO_BACK_S = 1e-3
"""What a frame back to back roughly takes, to estimate durations."""


@dataclass(frozen=True)
class Row:
    """A pace and what disturbs it."""

    fps: float | None
    disturbed: str = "alone"
    """``alone``, ``busy`` or ``spikes``."""
    frames: int = 400
    """Judged in each run."""
    budgets: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Which ones, from 0."""
    measure_s: float = MEASURE_S

    @property
    def name(self) -> str:
        pace = "back to back" if self.fps is None else f"{self.fps:g} fps"
        what = {"alone": "", "busy": ", busy neighbour", "spikes": ", 1 % of the frames 20x"}
        return pace + what[self.disturbed]

    @property
    def deadline_frames(self) -> int:
        return max(20, self.frames // 8)

    @property
    def seconds(self) -> float:
        """How long it takes, roughly."""
        runs = SETTLE + FIRST + 2 * (self.frames + self.deadline_frames)
        each = BACK_TO_BACK_S if self.fps is None else 1 / self.fps
        return self.measure_s + 2 + len(self.budgets) * runs * each


def rows_to_run(frames: int, quick: bool) -> list[Row]:
    """``frames`` are judged in each run at a camera's pace, and many more back to back."""
    many, paces, two = 8 * frames, (60.0, 30.0), (1, 3)
    rows = [
        Row(None, "alone", many),
        Row(None, "busy", many),
        Row(None, "spikes", 3 * many),
        *(Row(fps, disturbed, frames) for fps in paces for disturbed in ("alone", "busy")),
        *(Row(10.0, disturbed, frames // 2, two) for disturbed in ("alone", "busy")),
    ]
    if quick:
        rows = [replace(r, frames=min(r.frames, 1500), budgets=two, measure_s=2.0) for r in rows]
        return [*rows[:3], replace(rows[3], frames=100)]
    return rows


class SpikingBackend:
    """A backend that takes :data:`SLOW_TIMES` as long for :data:`SLOW_SHARE` of the frames, while
    :attr:`spikes` is set."""

    run_whole = None

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.spikes = False
        self._frame, self._slow = 0, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        started = perf_counter()
        answer = self._backend.run_stage(stage, count, slot)
        if stage == 0:
            self._frame += 1
            self._slow = self.spikes and evenly(self._frame, SLOW_SHARE)
        if self._slow:
            until = started + SLOW_TIMES * (perf_counter() - started)
            while perf_counter() < until:
                pass
        return answer


def bundle_copy(folder: Path) -> Profile:
    """The demo's profile with a copy of its bundle in ``folder``, so that costs can be stored."""
    profile = Profile.from_yaml(PROFILE)
    if not (profile.output / "manifest.json").is_file():
        sys.exit(f"{profile.output} does not exist: run 'make demo' first")
    output = Path(shutil.copytree(profile.output, folder / "bundle"))
    budget = BudgetConfig(latency_ms=1e6)
    return profile.model_copy(update={"output": output, "budget": budget})


def measure(profile: Profile, fps: float | None, seconds: float) -> Costs:
    """Costs at this pace, which are stored in the bundle."""
    bundle = Bundle(profile.output)
    loop = open_loop(bundle)
    try:
        exits, clock = ForcedExits(loop, bundle.manifest), RealClock()
        warm_up(exits.round_ms, clock, 2.0)
        timing = (
            time_back_to_back(exits, clock, seconds)
            if fps is None
            else time_paced(exits, clock, seconds, fps)
        )
        costs = costs_from_timing(
            machine_name(loop.backend),
            bundle.manifest.content_hash,
            now_utc(),
            bundle.manifest.measured_shape,
            timing,
            EnergyFigures(),
        )
    finally:
        loop.backend.close()
    bundle.store(COSTS, costs)
    return costs


def choose_budgets(profile: Profile, rows: Sequence[Row]) -> list[float]:
    """Five that mean something at every pace of ``rows``."""
    records = Bundle(profile.output).records()
    paces = sorted({row.fps or math.inf for row in rows})
    seconds = min(5.0, *(row.measure_s for row in rows))
    found = [measure(profile, None if p == math.inf else p, seconds).mean_ms for p in paces]
    low = max(costs[0] for costs in found)
    high = min(solve(records, costs, 1e6).cost for costs in found)
    if low >= high:
        sys.exit(f"no budget suits all paces: exit 1 takes {low:.3g} ms, at most {high:.3g} ms")
    return [low + share * (high - low) for share in SHARES]


def scenes_in_order(profile: Profile, order: str) -> list[Pixels]:
    """All test scenes; ``even``: by multiples of an irrational number over the scenes in the order
    of their confidences at exit 1, among like ones at exit 2."""
    scenes = [load_image(path) for path in find_images(SCENES)]
    if order == "random":
        chosen = np.random.default_rng(0).permutation(len(scenes))
    else:
        with Runtime(profile) as runtime:
            exits = len(runtime.costs.exits)
            closed = closed_before(exits, exits - 1)
            runtime.use(replay(runtime.records, runtime.costs.mean_ms, closed))
            confidence = np.array([runtime.classify(scene).confidences[:2] for scene in scenes])
        groups = np.argsort(np.argsort(confidence[:, 0])) // 50
        ranked = np.lexsort((confidence[:, 1], groups))
        points = (np.arange(len(scenes)) * EVEN) % 1.0
        chosen = ranked[np.argsort(np.argsort(points))]
    return [scenes[at] for at in chosen]


@dataclass(frozen=True)
class Run:
    """One budget in one row, with ``adapt`` or without."""

    budget_ms: float
    adapt: bool
    frames: int
    wall: float
    """Mean by the wall, over the budget."""
    wall_error: float
    """Standard error of that, had frames been drawn by chance."""
    own: float
    """Mean of ``latency_ms``, over the budget."""
    expected: float
    """Mean that the thresholds were chosen for, over the budget."""
    exits: list[float]
    """Share of the frames that left at each exit."""
    deadline_frames: int
    late: int
    """Of these, answered after the deadline, by the wall."""
    events: dict[str, int]
    """How many of each kind."""
    reasons: list[str]
    promise: str
    """Its state in the end, by the Runtime's own account."""


def one_run(
    runtime: Runtime, scenes: Sequence[Pixels], row: Row, budget_ms: float, adapt: bool
) -> Run:
    """Show frames under one budget."""
    events: list[Any] = []
    stop = runtime.watch(on_event=events.append)
    expected = runtime.set_budget(latency_ms=budget_ms, adapt=adapt).cost
    camera, skipped = Camera(row.fps), SETTLE if adapt else FIRST
    wall, own, exits, late = [], [], [], 0
    for t in range(skipped + row.frames + row.deadline_frames):
        scene = scenes[t % len(scenes)]
        judged = t < skipped + row.frames
        deadline_ms = None if judged else LATE * budget_ms
        camera.wait()
        started = perf_counter()
        answer = runtime.classify(scene, deadline_ms=deadline_ms)
        took_ms = 1e3 * (perf_counter() - started)
        if not judged:
            late += took_ms > LATE * budget_ms
        elif t >= skipped:
            wall.append(took_ms)
            own.append(answer.latency_ms)
            exits.append(answer.exit_stage - 1)
    stop()
    return Run(
        budget_ms,
        adapt,
        row.frames,
        float(np.mean(wall)) / budget_ms,
        float(np.std(wall)) / len(wall) ** 0.5 / budget_ms,
        float(np.mean(own)) / budget_ms,
        expected / budget_ms,
        (np.bincount(exits, minlength=len(runtime.thresholds)) / len(exits)).tolist(),
        row.deadline_frames,
        late,
        dict(Counter(type(event).__name__ for event in events)),
        [str(event.reason) for event in events],
        runtime.promise.state,
    )


def run_row(
    profile: Profile,
    row: Row,
    budgets: Sequence[float],
    scenes: Sequence[Pixels],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Measure, then all budgets."""
    say(f"{row.name}: costs")
    costs = measure(profile, row.fps, row.measure_s)
    camera = CameraConfig() if row.fps is None else CameraConfig(fps=row.fps)
    backend = SpikingBackend(open_backend(Bundle(profile.output)))
    opened = profile.model_copy(update={"camera": camera})
    runs: list[Run] = []
    refused: list[str] = []
    before = os.getloadavg()
    with (
        Runtime(opened, backend=cast(Backend, backend)) as runtime,
        busy_neighbour(row.disturbed == "busy"),
    ):
        backend.spikes = row.disturbed == "spikes"
        for at in row.budgets:
            say(f"{row.name}: {budgets[at]:.3f} ms")
            try:
                runs += [
                    one_run(runtime, scenes, row, budgets[at], adapt) for adapt in (False, True)
                ]
            except BudgetError as error:  # exit 1 takes more than when the budgets were chosen
                refused.append(str(error))
    return {
        "row": row.name,
        "fps": row.fps,
        "disturbed": row.disturbed,
        "costs_ms": costs.mean_ms,
        "runs_per_exit": costs.runs_per_exit,
        "load_average": {"before": before[0], "after": os.getloadavg()[0]},
        "runs": [asdict(run) for run in runs],
        "refused": refused,
    }


def show(rows: Sequence[dict[str, Any]], budgets: Sequence[float]) -> Table:
    """Lowest and highest over the budgets."""
    shown = ", ".join(f"{budget:.3f}" for budget in budgets)
    table = Table(
        title=f"mean over budget, budgets of {shown} ms", caption=processor_name(), show_lines=True
    )
    for name in ("", "without\nadapt", "adapt, by\nlatency_ms", "adapt, by\nthe wall", "late, %"):
        table.add_column(name, justify="right" if name else "left", no_wrap=bool(name))
    table.add_column("events; promise in the end")
    for row in rows:
        fixed, adapted = ([r for r in row["runs"] if r["adapt"] is a] for a in (False, True))
        refused = f", {len(row['refused'])} refused" if row["refused"] else ""
        if not fixed:
            table.add_row(f"{row['row']}{refused}")
            continue
        table.add_row(
            f"{row['row']} ({len(fixed)} x {fixed[0]['frames']}{refused})",
            _range(fixed, "wall"),
            _range(adapted, "own"),
            _range(adapted, "wall"),
            f"{_late(fixed)} / {_late(adapted)}",
            f"without: {_told(fixed)}\nadapt: {_told(adapted)}",
        )
    return table


def _range(runs: Sequence[dict[str, Any]], key: str) -> str:
    values = [run[key] for run in runs]
    return f"{min(values):.2f}-{max(values):.2f}"


def _late(runs: Sequence[dict[str, Any]]) -> str:
    return f"{100 * sum(r['late'] for r in runs) / sum(r['deadline_frames'] for r in runs):.1f}"


def _told(runs: Sequence[dict[str, Any]]) -> str:
    events: Counter[str] = sum((Counter(run["events"]) for run in runs), Counter())
    states = Counter(run["promise"] for run in runs)
    told = ", ".join(f"{name} {count}" for name, count in sorted(events.items())) or "none"
    return told + "".join(f"; {state} {count}" for state, count in sorted(states.items()))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=400, help="judged at a camera's pace")
    parser.add_argument(
        "--rows", nargs="*", default=[""], help="only those with this in their name"
    )
    parser.add_argument("--order", choices=("even", "random"), default="even")
    parser.add_argument("--quick", action="store_true", help="four rows, two budgets, a minute")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--traces", type=Path, help="record latencies into this file instead")
    parser.add_argument("--trace-frames", type=int, default=600, help="at 10 fps; more at others")
    options = parser.parse_args()
    console, started = Console(), perf_counter()

    def say(what: str) -> None:
        console.print(f"[{perf_counter() - started:5.0f} s] {what}", markup=False, highlight=False)

    with tempfile.TemporaryDirectory() as folder:
        profile = bundle_copy(Path(folder))
        if options.traces:
            record_traces(profile.output, options.traces, options.trace_frames, say)
            return
        rows = [
            row
            for row in rows_to_run(options.frames, options.quick)
            if any(text in row.name for text in options.rows)
        ]
        if not rows:
            parser.error("no row has that in its name")
        seconds = sum(row.seconds for row in rows) + 20
        say(f"{len(rows)} rows take about {seconds / 60:.1f} minutes")
        budgets = choose_budgets(profile, rows)
        scenes = scenes_in_order(profile, options.order)
        result: dict[str, Any] = {
            "command": " ".join(["python", "benchmarks/wall_clock.py", *sys.argv[1:]]),
            "machine": processor_name(),
            "date": now_utc(),
            "order": options.order,
            "budgets_ms": budgets,
            "rows": [],
        }
        for row in rows:
            result["rows"].append(run_row(profile, row, budgets, scenes, say))
            if options.out:
                options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    Console(width=100).print(show(result["rows"], budgets))


if __name__ == "__main__":
    main()
