"""Cells and links that both pages have: a number over seeds, a comparison, a file of the study's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from skipway.report import Cell, Table
from skipway.report.tables import number
from skipway.study.answering.answer import Asked
from skipway.study.answering.differences import LEVEL, Comparison
from skipway.study.answering.summary import Spread
from skipway.study.pages.figures import spaced
from skipway.study.records.measures import written


def address(folder: Path, name: str, target: Path) -> str:
    """Where a file of the study's folder is found from the page."""
    return quote(Path(os.path.relpath(folder.absolute() / name, target.absolute().parent)).as_posix())


def quantity_cell(measure: str, spread: Spread | None) -> Cell:
    """A cell of a number over seeds, written as people write the measure."""
    if spread is None:
        return Cell("–")
    differ = spread.high > spread.low
    low, high = (spread.low, spread.high) if differ else (None, None)
    # The unit stands behind the mean.
    ends = [written(measure, value).removesuffix(" %") for value in (spread.low, spread.high)]
    note = " to ".join(ends) if differ else ""
    return Cell(written(measure, spread.mean), spread.mean, note, low, high)


def differences_table(asked: Asked, comparisons: Sequence[Comparison]) -> Table:
    """Every comparison with the baseline: both numbers, the difference with its interval, and what follows."""
    places = list(dict.fromkeys(name for one in comparisons for name in one.where))
    unit = "rounds" if asked.reach is not None else asked.measure
    rows = [
        [
            *(one.where.get(name, "") for name in places), one.value, quantity_cell(unit, one.ours),
            quantity_cell(unit, one.theirs), _difference(unit, one), number(one.seeds), one.verdict,
        ]
        for one in comparisons
    ]  # fmt: skip
    columns = [*map(spaced, places), spaced(asked.compare), asked.quantity, f"of '{asked.baseline}'"]
    return Table([*columns, f"difference ({LEVEL:.0%} interval)", "seeds", "verdict"], rows, "Differences")


def _difference(unit: str, one: Comparison) -> Cell:
    if one.difference is None or one.low is None or one.high is None:
        return Cell("–")
    factor, ending = (100.0, " points") if unit.endswith("error") else (1.0, "")
    mean, low, high = (f"{factor * value:+.3g}" for value in (one.difference, one.low, one.high))
    note = f"{low} to {high}" if one.seeds > 1 else ""
    return Cell(f"{mean}{ending}", one.difference, note, one.low, one.high)
