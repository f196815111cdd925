"""Thresholds from records and costs: pure NumPy, no I/O, no backend."""

from dvt_edge.policy.budget import Budget, ExitLatency, solve_budget
from dvt_edge.policy.certificate import Certificate, certify, solve_certified
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Solution, frontier, replay, solve

__all__ = [
    "Budget",
    "Certificate",
    "ExitLatency",
    "Records",
    "Solution",
    "certify",
    "frontier",
    "replay",
    "solve",
    "solve_budget",
    "solve_certified",
]
