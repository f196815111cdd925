"""What people look at: one HTML file with all that was measured, without any network."""

from dvt_edge.report.collect import collect
from dvt_edge.report.data import ReportData
from dvt_edge.report.page import render, write_report

__all__ = ["ReportData", "collect", "render", "write_report"]
