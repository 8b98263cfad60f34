"""Fold: a model's function in fewer operations, for inference."""

from skipway.edit.folding.folded import Folded, fold
from skipway.edit.folding.report import Entry, Report

__all__ = ["Entry", "Folded", "Report", "fold"]
