"""Times every exit of a cascade, back to back and at a camera's pace, once it has settled."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.manifest import Manifest
from dvt_edge.bundle.measurement import Distribution, ExitTiming, PacedTiming
from dvt_edge.machine.clock import Clock
from dvt_edge.policy.live.promise_watch import PromiseWatch
from dvt_edge.policy.solver import closed_before
from dvt_edge.policy.statistic import PERCENTILES
from dvt_edge.policy.targets import Target
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.backends.protocol import Backend, StageAnswer
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.bounds import upper_bounds
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.preprocess import frame_shape

SETTLED_SHARE = 0.03
"""The latency has settled when the medians of two windows in a row differ by no more."""
WARM_UP_LIMIT_S = 10.0
WINDOW_S = 0.2
WINDOW_ROUNDS = (5, 200)
"""Fewest rounds in a window, and most."""
MAX_WINDOWS = 1000
MIN_ROUNDS = 10
"""Rounds over all exits that are timed back to back, however short the time."""
MIN_PACED_ROUNDS = 2
HISTOGRAM_BINS = 40


TIMED_SHARE = 8
"""On a GPU, one run in so many is timed by the device's own events, which takes time; its latency
is not counted."""


class _DeviceTimes:
    """A backend whose GPU times its stages, and how long it was busy with each that ran."""

    run_whole = None

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.busy_ms: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        self._backend.time_stages = True
        try:
            answer = self._backend.run_stage(stage, count, slot)
        finally:
            self._backend.time_stages = False
        self.busy_ms.append(self._backend.stage_ms or 0.0)
        return answer


class ForcedExits:
    """A cascade that leaves at the exit asked for, whatever the frame shows.

    The frame is noise of the camera's size: which stages run, and for how long, does not depend on
    what it shows. A budget is about all that a Runtime's ``classify`` takes. So this does what that
    does beside running stages: with caches that are cold, between a camera's frames, it takes some
    percent of the demo's first exit.
    """

    def __init__(self, loop: CascadeLoop, manifest: Manifest) -> None:
        self.count = len(manifest.stages)
        kept = Target("latency_ms", "mean latency", "mean", 1e9, "ms", np.ones(self.count))
        self._watch = PromiseWatch((kept,), np.ones(self.count), 1.0)
        self._lock = threading.Lock()
        self._loop = loop
        self._frame = noise_frame(manifest)
        self._thresholds = [tuple(closed_before(self.count, k).tolist()) for k in range(self.count)]

    @property
    def on_gpu(self) -> bool:
        return self._loop.backend.gpu is not None

    def run(self, exit_at: int) -> Prediction:
        """Classify the frame up to exit ``exit_at`` (from 0)."""
        started = perf_counter()
        with self._lock:
            answer = self._loop.run_one(self._frame, self._thresholds[exit_at])
            self._watch.observe(answer.exit_stage, answer.latency_ms)
        return replace(answer, latency_ms=1e3 * (perf_counter() - started))

    def transfer_ms(self, exit_at: int) -> float:
        """The same on a GPU: what the stages took beyond the device's own work, events included."""
        times = _DeviceTimes(self._loop.backend)
        loop = copy(self._loop)
        loop.backend = cast(Backend, times)
        answer = loop.run_one(self._frame, self._thresholds[exit_at])
        return max(0.0, sum(answer.stage_latency_ms) - sum(times.busy_ms))

    def round_ms(self) -> float:
        """Run all exits in turn; returns the sum of their latencies."""
        return sum(self.run(k).latency_ms for k in range(self.count))


def noise_frame(manifest: Manifest) -> npt.NDArray[np.uint8]:
    """A frame of noise, uint8, laid out as ``classify`` takes it by the profile."""
    shape = frame_shape(*manifest.measured_shape, manifest.input.color_order)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def warm_up(
    round_ms: Callable[[], float], clock: Clock, limit_s: float = WARM_UP_LIMIT_S
) -> tuple[int, bool]:
    """Run rounds until their latency, which ``round_ms`` returns, no longer changes.

    The first runs allocate, fill caches and raise clocks; how many that are differs by machine. So
    it is looked for: windows of rounds, until one's median agrees with that of the window before.
    Returns the number of rounds, and whether the latency had settled when ``limit_s`` were over.
    """
    started, rounds = clock.now(), 0
    least, most = WINDOW_ROUNDS
    before = math.inf
    for _ in range(MAX_WINDOWS):
        window: list[float] = []
        until = clock.now() + WINDOW_S
        while len(window) < least or (clock.now() < until and len(window) < most):
            window.append(round_ms())
            rounds += 1
            if clock.now() - started >= limit_s:
                return rounds, False
        found = median(window)
        if abs(found - before) <= SETTLED_SHARE * found:
            return rounds, True
        before = found
    return rounds, False


class Samples:
    """What was timed, exit by exit."""

    def __init__(self, exits: ForcedExits) -> None:
        self._exits = exits
        self._rows: list[list[tuple[float, ...]]] = [[] for _ in range(exits.count)]
        self._transfers: list[list[float]] = [[] for _ in range(exits.count)]

    def run(self, exit_at: int) -> None:
        """Run once, and keep the times."""
        rows, transfers = self._rows[exit_at], self._transfers[exit_at]
        if self._exits.on_gpu and (len(rows) + len(transfers)) % TIMED_SHARE == 1:
            transfers.append(self._exits.transfer_ms(exit_at))
            return
        answer = self._exits.run(exit_at)
        rows.append((answer.latency_ms, answer.preprocess_ms, *answer.stage_latency_ms))

    def timing(self, fps: float | None, missed: int = 0) -> PacedTiming:
        return PacedTiming(
            fps=fps,
            exits=tuple(
                _exit_timing(np.array(rows), transfers)
                for rows, transfers in zip(self._rows, self._transfers, strict=True)
            ),
            missed=missed,
        )


def _exit_timing(rows: npt.NDArray[np.float64], transfers: Sequence[float]) -> ExitTiming:
    """Of rows [R, 2 + stages]: the whole call, preprocessing, every stage."""
    decision = np.maximum(rows[:, 0] - rows[:, 1:].sum(axis=1), 0.0)
    return ExitTiming(
        latency=distribution(rows[:, 0], bins=HISTOGRAM_BINS, bounded=True),
        preprocess=distribution(rows[:, 1]),
        stages=tuple(distribution(column, bins=HISTOGRAM_BINS) for column in rows.T[2:]),
        decision=distribution(decision),
        transfer=distribution(transfers) if transfers else None,
    )


def distribution(
    samples_ms: npt.ArrayLike, bins: int = 0, *, bounded: bool = False
) -> Distribution:
    """Of samples [R], in the order measured; with a histogram of ``bins`` equal bins up to the 99th
    percentile and, where something took longer, one more from there to the longest; with upper
    confidence bounds, if they are to be ``bounded``.

    Percentiles are order statistics, rounded up: at least 99 % of the samples are not above p99,
    and of fewer than 100 it is the longest.
    """
    samples = np.asarray(samples_ms, float)
    percentiles = np.percentile(samples, [*PERCENTILES.values()], method="inverted_cdf")
    figures = {f"{name}_ms": float(q) for name, q in zip(PERCENTILES, percentiles, strict=True)}
    edges: Sequence[float] = ()
    counts: Sequence[int] = ()
    if bins:
        low, high = float(samples.min()), float(samples.max())
        top = (
            figures["p99_ms"] if figures["p99_ms"] > low else low + max(1e-6, 1e-6 * low)
        )  # all alike: one narrow range
        edges = np.linspace(low, top, bins + 1).tolist()
        if high > edges[-1]:
            edges = [*edges, high]
        counts = np.histogram(samples, edges)[0].tolist()
    return Distribution(
        **figures,
        mean_ms=float(samples.mean()),
        max_ms=float(samples.max()),
        runs=len(samples),
        at_most=upper_bounds(samples) if bounded else None,
        edges_ms=tuple(edges),
        counts=tuple(counts),
    )


def time_back_to_back(
    exits: ForcedExits, clock: Clock, seconds: float, progress: Progress = silent
) -> PacedTiming:
    """Time all exits in turn without a pause, for about ``seconds``."""
    samples, rounds, started = Samples(exits), 0, clock.now()
    while (spent := clock.now() - started) < seconds or rounds < MIN_ROUNDS:
        progress("back to back", min(spent, seconds), seconds)
        for k in range(exits.count):
            samples.run(k)
        rounds += 1
    progress("back to back", seconds, seconds)
    return samples.timing(None)


def time_paced(
    exits: ForcedExits, clock: Clock, seconds: float, fps: float, progress: Progress = silent
) -> PacedTiming:
    """Time all exits in turn on frames that come ``fps`` times a second, for about ``seconds``.

    Frames are due at multiples of the period from the start, so delays do not add up. Between
    frames nothing runs, as behind a camera. A frame that is not finished before the next is due is
    counted as missed, and the frames that came meanwhile are skipped.
    """
    samples, started = Samples(exits), clock.now()
    frames = missed = due = 0
    while due < seconds * fps or frames < MIN_PACED_ROUNDS * exits.count:
        progress(f"at {fps:g} fps", min(due / fps, seconds), seconds)
        wait = started + due / fps - clock.now()
        if wait > 0:
            clock.sleep(wait)
        samples.run(frames % exits.count)
        frames += 1
        passed = (clock.now() - started) * fps  # in frames of the camera
        missed += passed > due + 1 + 1e-9
        due = max(due + 1, math.ceil(passed - 1e-9))
    progress(f"at {fps:g} fps", seconds, seconds)
    return samples.timing(fps, missed)
