"""Thresholds from records and costs: pure NumPy, no I/O, no backend."""

from dvt_edge.policy.budget import solve_budget
from dvt_edge.policy.certificate import solve_certified
from dvt_edge.policy.choose import choose_thresholds
from dvt_edge.policy.exit_costs import ExitCosts, ExitLatency
from dvt_edge.policy.records import Records
from dvt_edge.policy.solver import Certificate, Solution, frontier, replay, solve

__all__ = [
    "Certificate",
    "ExitCosts",
    "ExitLatency",
    "Records",
    "Solution",
    "choose_thresholds",
    "frontier",
    "replay",
    "solve",
    "solve_budget",
    "solve_certified",
]
