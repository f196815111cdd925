"""What people look at: one HTML file with all that was measured, without any network."""

from dvt_edge.report.collect import collect
from dvt_edge.report.data import ReportData
from dvt_edge.report.page import check_libraries, render, write_report

__all__ = ["ReportData", "check_libraries", "collect", "render", "write_report"]
