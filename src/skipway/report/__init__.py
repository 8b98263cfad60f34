"""Pages and figures from results: self-contained HTML with interactive plots."""

from skipway.report.figures import Figure, Line, Panel
from skipway.report.page import Facts, Page, Section, Table

__all__ = ["Facts", "Figure", "Line", "Page", "Panel", "Section", "Table"]
