"""Latencies frame by frame, as recorded on a machine: how, how they are kept, and who disturbs.

``python benchmarks/wall_clock.py --traces FILE`` records them, with the paces and the neighbour
that its table has; ``benchmarks/promise_audit.py`` simulates with them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.machine.board import processor_name
from dvt_edge.machine.clock import RealClock, now_utc
from dvt_edge.runtime.cascade_loop import open_loop
from dvt_edge.runtime.measuring.timing import ForcedExits, warm_up


@dataclass(frozen=True)
class Trace:
    """Latencies that were recorded on a machine, exit by exit in turn (1, 2, ..., K, 1, 2, ...)."""

    fps: float | None
    """Frames per second; None for back to back."""
    neighbour: bool
    """Whether another process kept a core busy."""
    total_us: list[list[int]]
    """[K][R] microseconds: all of ``classify``, for R frames that left at each exit, in order."""
    stages_us: list[list[list[int]]]
    """[K][stages that ran][R]: of each stage."""

    @property
    def name(self) -> str:
        pace = "back to back" if self.fps is None else f"{self.fps:g} fps"
        return pace + (", busy neighbour" if self.neighbour else "")

    def segments(self) -> npt.NDArray[np.float64]:
        """[K * R, 1 + K] seconds: what each frame in turn took beside its stages, and stage by
        stage. Stages that it did not run are those of the next frame that did."""
        exits, rounds = len(self.total_us), len(self.total_us[0])
        rows = np.empty((rounds, exits, 1 + exits))
        for at in range(exits):
            own = np.array(self.stages_us[at], float)  # [stages, R]
            rows[:, at, 0] = np.maximum(0.0, np.array(self.total_us[at]) - own.sum(axis=0))
            for stage in range(exits):
                of = max(at, stage)
                rows[:, at, 1 + stage] = self.stages_us[of][stage]
        return rows.reshape(rounds * exits, 1 + exits) / 1e6


def save_traces(path: Path, traces: Sequence[Trace], about: dict[str, Any]) -> None:
    """Write ``traces`` and what is to be known ``about`` them, one trace a line."""
    lines = [json.dumps(asdict(trace), separators=(",", ":")) for trace in traces]
    head = json.dumps(about, indent=1)[1:-2]
    body = ",\n".join(lines)
    path.write_text(f'{{{head},\n "traces": [\n{body}\n]}}\n', encoding="utf-8")


def load_traces(path: Path) -> dict[tuple[float | None, bool], Trace]:
    """Traces by pace and neighbour."""
    found = [Trace(**values) for values in json.loads(path.read_text("utf-8"))["traces"]]
    return {(trace.fps, trace.neighbour): trace for trace in found}


class Camera:
    """Frames that are due at multiples of a period, or at once."""

    def __init__(self, fps: float | None) -> None:
        self._fps = fps
        self._started, self._due = perf_counter(), 0

    def wait(self) -> None:
        """Until the next frame comes; those that came while the last one was worked on are lost."""
        if self._fps is None:
            return
        passed = (perf_counter() - self._started) * self._fps
        self._due = max(self._due + 1, math.ceil(passed))
        sleep(max(0.0, self._started + self._due / self._fps - perf_counter()))


@contextmanager
def busy_neighbour(wanted: bool) -> Iterator[None]:
    """A process that never rests, on whatever core the system gives it."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def record_traces(folder: Path, path: Path, frames: int, say: Callable[[str], None]) -> None:
    """Exits in turn at every pace, alone and beside a busy process."""
    counts = {None: 15 * frames, 60.0: 5 * frames, 30.0: 3 * frames, 10.0: frames}
    seconds = 2 * sum(n / (fps or 1e3) for fps, n in counts.items())
    say(f"recording takes about {seconds / 60:.1f} minutes")
    bundle, clock, traces = Bundle(folder), RealClock(), []
    before = os.getloadavg()
    loop = open_loop(bundle)
    exits = ForcedExits(loop, bundle.manifest)
    for fps, count in counts.items():
        for neighbour in (False, True):
            with busy_neighbour(neighbour):
                warm_up(exits.round_ms, clock, 2.0)
                rows: list[list[list[int]]] = [[] for _ in range(exits.count)]
                camera = Camera(fps)
                for t in range(count // exits.count * exits.count):
                    camera.wait()
                    answer = exits.run(t % exits.count)
                    took = (answer.latency_ms, *answer.stage_latency_ms)
                    rows[t % exits.count].append([round(1e3 * ms) for ms in took])
            columns = [np.array(row).T.tolist() for row in rows]
            traces.append(Trace(fps, neighbour, [c[0] for c in columns], [c[1:] for c in columns]))
            say(f"{traces[-1].name}: {[round(float(np.mean(c[0]))) for c in columns]} us")
    loop.backend.close()
    about = {
        "command": f"python benchmarks/wall_clock.py --traces FILE --trace-frames {frames}",
        "machine": processor_name(),
        "date": now_utc(),
        "load_average": {"before": before[0], "after": os.getloadavg()[0]},
    }
    save_traces(path, traces, about)
