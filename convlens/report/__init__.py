"""Results as HTML pages: one file that needs nothing else, or a page beside the folders of its images."""

from __future__ import annotations

from convlens.report.explanation_page import ReportRow, render, write
from convlens.report.explanation_views import MapScales, TrueClass
from convlens.report.grid_page import GridRow, render_grid

__all__ = ["GridRow", "MapScales", "ReportRow", "TrueClass", "render", "render_grid", "write"]
