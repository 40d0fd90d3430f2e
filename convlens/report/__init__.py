"""Frozen results -> one self-contained HTML page."""

from __future__ import annotations

from convlens.report.page import render
from convlens.report.rows import ReportRow
from convlens.report.store import write

__all__ = ["ReportRow", "render", "write"]
