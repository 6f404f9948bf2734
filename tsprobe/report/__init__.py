"""A study as a page to look at: `render`, `write_report`, and `plot` for notebooks."""

from __future__ import annotations

from tsprobe.report.figures import plot
from tsprobe.report.page import render, write_report

__all__ = ["plot", "render", "write_report"]
