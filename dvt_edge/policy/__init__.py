"""Thresholds from records and costs: pure NumPy, no I/O, no backend."""

from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Solution, frontier, replay, solve

__all__ = ["Records", "Solution", "frontier", "replay", "solve"]
