"""A thousand simulated deployments: is the budget kept, and where it is not, does anybody say so?

    python benchmarks/promise_audit.py [--deployments 1000] [--seed 0] [--out FILE.json]
    python benchmarks/promise_audit.py --only SEED

Each is a real Runtime on simulated time (``benchmarks/simulated.py``) with a budget that it can
keep: made scenes (``benchmarks/controller.py``), latencies that were recorded on a machine
(``benchmarks/results/cpu/latency_traces.json``), and disturbances by chance. With which chances is
said in ``benchmarks/deployments.py``. The promise is judged by the simulated clock around
``classify``, never by what the Runtime says of itself.

**Broken** is a promise where, from frame 500 on, the mean over some 1,000 frames is over 1.05
limits and over the limit by more than 3 of its standard errors (of independent frames as varied as
these); for a percentile, where the share of some 2,000 frames that is over the limit is over 1.05
times the allowed one, and over it by more than 3 of its binomial standard errors. It was
**reported** where each of these windows saw an alarm: from 1,000 frames before its start to its end
one was raised, or one from before that was not called off. Alarms are ``BudgetBroken`` (until
``BudgetKept``), ``OtherConditions`` (until ``SameConditions``), a ``Change`` that says that the
budget cannot be kept (until the next), and an ``AuditEvent``, which raises thresholds (until a
``Change`` says that answers agree again). The others are **silent**: some were reported late,
within the next 1,000 frames, the rest **never**. A **false alarm** is a ``BudgetBroken`` where no
300 frames in a row were over the limit, up to those that began with it; the last column counts
alarms around which no 1,000 frames were.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from controller import Floats, images
from deployments import Deployment, draw
from rich.console import Console
from rich.table import Table
from simulated import (
    SIDE,
    SimulatedBackend,
    SimulatedClock,
    simulated_costs,
    simulated_time,
    write_bundle,
)
from traces import Trace, load_traces

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.errors import BudgetError
from dvt_edge.machine.board import processor_name
from dvt_edge.machine.clock import now_utc
from dvt_edge.policy import solve
from dvt_edge.policy.live.promise import Promise
from dvt_edge.policy.statistic import TAIL_SHARE
from dvt_edge.profile import BudgetConfig
from dvt_edge.runtime.cascade_loop import open_loop

ROOT = Path(__file__).resolve().parents[1]
TRACES = ROOT / "benchmarks/results/cpu/latency_traces.json"
Traces = dict[tuple[float | None, bool], Trace]

SETTLE = 500
"""Frames that are not judged."""
WINDOW, PERCENTILE_WINDOW, STEP = 1000, 2000, 50
"""Frames whose mean, or percentile, is judged; and from one window to the next."""
OVER, SURE = 1.05, 3.0
"""What counts as broken: so much over the limit, and so many standard errors."""
NOTICE = 1000
"""Frames before a window from which on a report counts; so much later it is late, not missing."""
SHORT = 300
"""Frames in a row that are over the limit where an alarm is not false."""


@dataclass
class Shown:
    """What happened."""

    limit_ms: float
    wall_ms: Floats
    """[N]."""
    alarmed: npt.NDArray[np.bool_]
    """[N]: whether an alarm was on after the frame."""
    certified: bool
    """Whether the budget is."""
    events: list[tuple[int, str, str]]
    """Frame from 0, kind, reason."""
    promise: Promise | None = None
    """In the end, by the Runtime's own account."""


ENDS = {"BudgetKept": "BudgetBroken", "SameConditions": "OtherConditions"}
"""Which alarm an event calls off."""


class Alarms:
    """Which alarms are on, by what the Runtime reported."""

    def __init__(self) -> None:
        self._on: set[str] = set()
        self._raised = False

    def hear(self, event: Any) -> None:
        kind, reason = type(event).__name__, event.reason
        self._on.discard(ENDS.get(kind, ""))
        cannot = "over the budget" in reason or "before the budget" in reason
        if kind == "Change":
            self._on.discard(kind)
            if "again as often as promised" in reason:
                self._on.discard("AuditEvent")
        if kind in ("BudgetBroken", "OtherConditions", "AuditEvent") or (
            kind == "Change" and cannot
        ):
            self._on.add(kind)
            self._raised = True

    def on(self) -> bool:
        """Whether any was raised since the last question or is still on."""
        now, self._raised = bool(self._on) or self._raised, False
        return now


def show(deployment: Deployment, folder: Path, traces: Traces) -> Shown:
    """Profile, open, and show all frames."""
    live, clock = deployment.live(), SimulatedClock()
    rng = np.random.default_rng((deployment.seed, 2))
    profiled = traces[deployment.profiled_fps, False]
    backend = SimulatedBackend(clock, live, profiled)
    backend.play(profiled, int(rng.integers(10**6)))
    with simulated_time(clock):
        bundle = Bundle(folder)
        seconds = deployment.profiled_s if deployment.profiled_fps else 2.0
        costs = simulated_costs(
            open_loop(bundle, backend), bundle.manifest, clock, deployment.profiled_fps, seconds
        )
        bundle.store(COSTS, costs)
        with Runtime(folder, backend=backend) as runtime:
            limit_ms = _set_budget(runtime, deployment, costs)
            return _show_frames(runtime, backend, deployment, limit_ms, traces, clock, rng)


def _set_budget(runtime: Runtime, deployment: Deployment, costs: Costs) -> float:
    """Put the nearest possible budget in force; returns its limit."""
    statistic = deployment.statistic
    if statistic == "mean":
        low, high = costs.mean_ms[0], solve(runtime.records, costs.mean_ms, 1e9).cost
    else:
        low, high = (getattr(costs.exits[at], f"{statistic}_ms") for at in (0, -1))
    limits = (low + deployment.way * (high - low)) * 1.03 ** np.arange(200)
    certified = [(limit, 0.95) for limit in limits[:14]] if deployment.certify else []
    for limit, level in (*certified, *((limit, None) for limit in limits)):
        budget = BudgetConfig(
            latency_ms=limit,
            statistic=deployment.statistic,
            adapt=deployment.adapt,
            audit=deployment.audit,
            confidence_level=level,
            deadline_ms=deployment.deadline and deployment.deadline * limit,
        )
        try:
            runtime.set_budget(budget)
        except BudgetError:
            continue
        return float(limit)
    raise AssertionError("a limit this high is always kept")


def _show_frames(
    runtime: Runtime,
    backend: SimulatedBackend,
    deployment: Deployment,
    limit_ms: float,
    traces: Traces,
    clock: SimulatedClock,
    rng: np.random.Generator,
) -> Shown:
    frame, alarms = np.zeros((SIDE, SIDE), np.uint8), Alarms()
    heard: list[Any] = []
    runtime.watch(on_event=heard.append)
    slowness = deployment.slowness().tolist()
    busy_from, busy_to = deployment.neighbour or (-1, -1)
    wall, alarmed, events = [], [], []
    period = 1 / deployment.fps if deployment.fps else 0.0
    due = clock()
    backend.play(traces[deployment.fps, busy_from == 0], int(rng.integers(10**6)))
    for t in range(deployment.frames):
        if t in (busy_from, busy_to) and t:
            trace = traces[deployment.fps, t == busy_from]
            backend.play(trace, int(rng.integers(10**6)))
        backend.shown, backend.factor = t, slowness[t]
        due = clock.seconds = max(due + period, clock.seconds)
        answer_from = clock.seconds
        runtime.classify(frame)
        wall.append(1e3 * (clock.seconds - answer_from))
        for event in heard:
            alarms.hear(event)
            events.append((t, type(event).__name__, event.reason))
        heard.clear()
        alarmed.append(alarms.on())
    return Shown(
        limit_ms,
        np.array(wall),
        np.array(alarmed),
        runtime.certificate is not None,
        events,
        runtime.promise,
    )


def _windows(values: Floats, frames: int) -> Floats:
    """[n - frames + 1]: means of all windows."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((total[frames:] - total[:-frames]) / frames)


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    mean: float
    """From frame 500 on, over the limit; for percentiles the share that is over it."""
    worst: float
    """The worst window, likewise."""
    broken: list[int]
    """First frames of the windows in which the promise was broken."""
    unreported: list[int]
    """Of these, those without a report until their end."""
    never: list[int]
    """Of these, those without one until :data:`NOTICE` frames later, as far as frames came."""
    false_alarms: list[int]
    """Frames with a ``BudgetBroken`` that nothing explains."""
    within: list[int]
    """Frames with one around which no 1,000 frames were over the limit."""
    certified: bool
    promise: str
    """State in the end, by the Runtime's own account."""
    events: dict[str, int]


def judge(statistic: str, shown: Shown) -> Verdict:
    """By the clock; the module says how."""
    x, limit = shown.wall_ms, shown.limit_ms
    if statistic == "mean":
        size, allowed, figure = WINDOW, limit, x
        squares = _windows(x**2, size)
        means = _windows(x, size)
        error = np.sqrt(np.maximum(0.0, squares - means**2) / size)
    else:
        size, allowed = PERCENTILE_WINDOW, TAIL_SHARE[statistic]
        figure = (x > limit).astype(float)
        means = _windows(figure, size)
        error = np.full(len(means), np.sqrt(allowed * (1 - allowed) / size))
    broken = (means > OVER * allowed) & (means - allowed > SURE * error)
    starts = [t for t in range(SETTLE, len(means), STEP) if broken[t]]
    silent, never = (
        [t for t in starts if not shown.alarmed[max(0, t - NOTICE) : t + size + later].any()]
        for later in (0, NOTICE)
    )
    broken_at = [t for t, kind, _ in shown.events if kind == "BudgetBroken"]
    short, long = _windows(figure, SHORT), _windows(figure, WINDOW)
    false = [t for t in broken_at if short[: t + 1].max() <= allowed]
    within = [t for t in broken_at if long[max(0, t - WINDOW + 1) : t + 1].max() <= allowed]
    return Verdict(
        float(figure[SETTLE:].mean() / allowed),
        float(means[SETTLE:].max() / allowed),
        starts,
        silent,
        never,
        false,
        within,
        shown.certified,
        shown.promise.state if shown.promise else "",
        dict(Counter(kind for _, kind, _ in shown.events)),
    )


@contextmanager
def bundles() -> Iterator[Callable[[Deployment], Path]]:
    """Folders of bundles by their number of records; every number has several."""
    made: dict[tuple[int, int], Path] = {}
    with tempfile.TemporaryDirectory() as folder:

        def of(deployment: Deployment) -> Path:
            key = deployment.records, deployment.seed % 7
            if key not in made:
                records = images(50 + key[1], 0.2, key[0])
                made[key] = write_bundle(Path(folder, f"{key[0]}-{key[1]}"), records)
            return made[key]

        yield of


def table(found: Sequence[tuple[Deployment, Verdict]]) -> Table:
    """Counts by condition."""
    result = Table(caption=processor_name())
    names = (
        "",
        "all",
        "broken",
        "reported",
        "silent",
        "never",
        "false alarms",
        "within limit",
    )
    for name in names:
        result.add_column(name, justify="right" if name else "left", no_wrap=not name)
    groups: dict[str, list[Verdict]] = {}
    for deployment, verdict in found:
        for condition in deployment.conditions(verdict.certified):
            groups.setdefault(condition, []).append(verdict)
    for condition, verdicts in sorted(groups.items(), key=lambda item: (item[0] != "all", item[0])):
        broken, silent, never, false, within = (
            sum(bool(getattr(verdict, name)) for verdict in verdicts)
            for name in ("broken", "unreported", "never", "false_alarms", "within")
        )
        counts = (len(verdicts), broken, broken - silent, silent, never, false, within)
        result.add_row(condition, *map(str, counts))
    return result


def tell(console: Console, deployment: Deployment, shown: Shown, verdict: Verdict) -> None:
    """All that happened in one deployment, in order."""
    console.print(deployment, f"limit {shown.limit_ms:.4g} ms", verdict)
    lines = [(t, f"{kind}: {reason}") for t, kind, reason in shown.events]
    for end in range(500, deployment.frames + 1, 500):
        part = shown.wall_ms[end - 500 : end]
        over = (part > shown.limit_ms).mean()
        mean = part.mean() / shown.limit_ms
        lines.append((end, f"mean of 500: {mean:.3f} limits; over the limit: {over:.2%}"))
    for t, line in sorted(lines):
        console.print(f"{t:6} {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        shown.promise.sentence if shown.promise else "",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--deployments", type=int, default=1000)
    parser.add_argument("--frames", type=int, default=6000)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--only", type=int, help="one seed, with all that happened")
    parser.add_argument("--traces", type=Path, default=TRACES)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    console = Console()
    traces = load_traces(options.traces)
    first = options.seed if options.only is None else options.only
    count = options.deployments if options.only is None else 1
    found, started = [], perf_counter()
    with bundles() as folder_of:
        for seed in range(first, first + count):
            deployment = draw(seed, options.frames)
            shown = show(deployment, folder_of(deployment), traces)
            verdict = judge(deployment.statistic, shown)
            found.append((deployment, verdict))
            if options.only is not None:
                tell(console, deployment, shown, verdict)
            elif len(found) in (10, 50) or len(found) % 100 == 0:
                spent = perf_counter() - started
                console.print(
                    f"{len(found)} deployments in {spent:.0f} s, "
                    f"{len(found) * options.frames / spent:.0f} frames/s; "
                    f"{(count - len(found)) * spent / len(found) / 60:.1f} minutes to go"
                )
    Console(width=100).print(table(found))
    if options.out:
        result = {
            "command": " ".join(["python", "benchmarks/promise_audit.py", *sys.argv[1:]]),
            "machine": processor_name(),
            "date": now_utc(),
            "seconds": perf_counter() - started,
            "traces": options.traces.name,
            "deployments": [asdict(d) | {"verdict": asdict(v)} for d, v in found],
        }
        options.out.write_text(json.dumps(result, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
