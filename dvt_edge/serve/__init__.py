"""A page with the live picture, what its answers cost, and a slider for the budget."""

from dvt_edge.serve.page import LivePage

__all__ = ["LivePage"]
