"""Pages and figures from results: self-contained HTML with interactive plots."""

from skipway.report.figures import Figure, Line, Panel
from skipway.report.page import Code, Details, Facts, Folded, Page, Section
from skipway.report.plots import Drawing, Plot
from skipway.report.tables import Cell, Table

__all__ = [
    "Cell",
    "Code",
    "Details",
    "Drawing",
    "Facts",
    "Figure",
    "Folded",
    "Line",
    "Page",
    "Panel",
    "Plot",
    "Section",
    "Table",
]
