"""How long frames take on a GPU: reported, never a claim."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from time import perf_counter

import numpy as np
from gpu_cascades import CPU
from gpu_case import Case, Values

RUNS, RUNS_OF_BATCHES = 200, 30
REHEARSED = 2
WARMING_UP = 3


def latency(case: Case) -> Values:
    """Reported, never a claim: all stages run for every frame."""
    found: Values = {}
    frames = list(case.prepared.frames)
    through = (*[inf] * (case.stages - 1), -inf)
    with case.runtime() as runtime:
        runtime.use(runtime.replay(through))
        for batch, most in ((1, RUNS), (case.count, RUNS_OF_BATCHES)):
            runs = REHEARSED if case.backend_name == CPU else most
            whole, preprocess = [], []
            part = [frames[i % len(frames)] for i in range(batch)]
            for run in range(-WARMING_UP, runs):
                started = perf_counter()
                if batch == 1:
                    answer = runtime.classify(frames[run % len(frames)])
                else:
                    answer = runtime.classify_batch(part)[0]
                if run >= 0:
                    whole.append(1e3 * (perf_counter() - started))
                    preprocess.append(answer.preprocess_ms)
            row = found[f"batch {batch}"] = {
                "classify_ms": two(whole),
                "preprocess_ms": two(preprocess),
                "runs": runs,
            }
            events = _by_events(case, batch, runs)
            if events is not None:
                row["stages_by_events_ms"] = two(events)
                row["gap_us"] = 1e3 * float(
                    np.median(whole) - np.median(preprocess) - np.median(events)
                )
    return found


def _by_events(case: Case, batch: int, runs: int) -> list[float] | None:
    """Milliseconds of all stages together by the GPU's own events; None without a GPU."""
    backend = case.backend
    backend.image_buffer(batch)[:] = case.prepared.images[:batch]
    totals = []
    backend.time_stages = True
    try:
        for run in range(-WARMING_UP, runs):
            total = 0.0
            for k in range(case.stages):
                backend.run_stage(k, batch)
                if backend.stage_ms is None:
                    return None
                total += backend.stage_ms
            if run >= 0:
                totals.append(total)
    finally:
        backend.time_stages = False
    return totals


def two(values: Sequence[float]) -> Values:
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}
