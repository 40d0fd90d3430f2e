"""Results as self-contained HTML pages."""

from __future__ import annotations

from convlens.report.explanation_page import ReportRow, render, write

__all__ = ["ReportRow", "render", "write"]
