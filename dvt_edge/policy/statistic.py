"""The statistics of a latency that are measured, stored and budgeted."""

from __future__ import annotations

from math import ceil, log
from typing import Literal

Statistic = Literal["mean", "p50", "p95", "p99", "max"]
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}
TAIL_SHARE = {name: (100 - percent) / 100 for name, percent in PERCENTILES.items()} | {"max": 0.0}
"""Share of the frames that may exceed a limit, for every statistic but the mean."""
BOUND_ERROR = 1e-3
"""Probability that an upper confidence bound of a measured latency is below the truth."""
MIN_RUNS = 30
"""Runs of an exit from which on its mean has a bound."""


def runs_needed(statistic: Statistic) -> int | None:
    """Independent runs of an exit with which ``statistic`` has a bound; None for ``max``, which no
    number of runs bounds."""
    if statistic == "mean":
        return MIN_RUNS
    percent = PERCENTILES.get(statistic)
    return None if percent is None else max(MIN_RUNS, ceil(log(BOUND_ERROR) / log(percent / 100)))
