"""Small traces of made latencies, for the tests of what is simulated."""

from __future__ import annotations

import numpy as np
from traces import Trace

STAGES_US = (100, 200, 900)


def made_trace(fps: float | None, neighbour: bool, rounds: int = 200) -> Trace:
    """Stages of about 0.1, 0.2 and 0.9 ms, a fifth longer beside a neighbour; 20 us beside them."""
    rng = np.random.default_rng(0 if fps is None else int(fps))
    slower = 1.2 if neighbour else 1.0
    totals, stages = [], []
    for at in range(3):
        took = slower * np.array(STAGES_US[: at + 1])[:, None] * rng.normal(1, 0.05, (1, rounds))
        columns = np.rint(took).astype(int)
        stages.append(columns.tolist())
        totals.append((columns.sum(axis=0) + 20).tolist())
    return Trace(fps, neighbour, totals, stages)


def made_traces() -> dict[tuple[float | None, bool], Trace]:
    return {
        (fps, neighbour): made_trace(fps, neighbour)
        for fps in (None, 60.0, 30.0, 10.0)
        for neighbour in (False, True)
    }
