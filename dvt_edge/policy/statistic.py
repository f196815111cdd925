"""The statistics of a latency that are measured, stored and budgeted."""

from __future__ import annotations

from typing import Literal

Statistic = Literal["mean", "p50", "p95", "p99", "max"]
PERCENTILES = {"p50": 50, "p95": 95, "p99": 99}
TAIL_SHARE = {name: (100 - percent) / 100 for name, percent in PERCENTILES.items()} | {"max": 0.0}
"""Share of the frames that may exceed a limit, for every statistic but the mean."""
