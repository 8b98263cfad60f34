"""Figures in panels side by side on one scale, as data that the page's script draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skipway.errors import SkipwayError
from skipway.report.tables import Cell, Table, number

# Room around the lines of a linear plot, as a share of their range; on a logarithmic one, in powers of ten.
_MARGIN, _LOG_MARGIN = 0.04, 0.15
# Of more lines than this, one sentence would be a list that nobody listens to.
_TOLD = 8


@dataclass(frozen=True)
class Line:
    """One line: `colour` and `weight` are places in the figure's legends; `low` and `high` bound it at every point.

    `x` are numbers or, as the names of what stands side by side, texts. None in `y`, `low` or `high` is a point that
    is not there. `points` are the single numbers that each value of `y` comes from.
    """

    x: Sequence[float | int | str]
    y: Sequence[float | int | None]
    colour: int
    weight: int
    low: Sequence[float | int | None] | None = None
    high: Sequence[float | int | None] | None = None
    labels: Sequence[str] | None = None
    points: Sequence[Sequence[int | float]] | None = None


@dataclass(frozen=True)
class Panel:
    """Lines in one pair of axes."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Figure:
    """Panels with one scale and one legend.

    `colours` and `weights` name what a line's colour and weight stand for: weight 0 is thin and dashed, 1 is bold.
    `palette` is "ordered" where the colours stand for a quantity that grows, "kinds" where they do not. `marks` says
    how a line's bounds are drawn: "bands" for curves, "intervals" for single points. `across` lays the values along the
    horizontal axis, for many names under one another. `note` says what the bounds are.
    """

    name: str
    panels: Sequence[Panel]
    x_title: str
    y_title: str
    colours: Sequence[str]
    weights: tuple[str, str] | tuple[str]
    palette: Literal["ordered", "kinds"] = "kinds"
    log_y: bool = False
    marks: Literal["bands", "intervals"] = "bands"
    across: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        for panel in self.panels:
            for line in panel.lines:
                if not (0 <= line.colour < len(self.colours) and 0 <= line.weight < len(self.weights)):
                    raise SkipwayError(
                        f"figure '{self.name}': a line of panel '{panel.title}' has colour {line.colour} and weight "
                        f"{line.weight}; there are {len(self.colours)} colours, and {len(self.weights)} weights"
                    )

    def y_range(self) -> tuple[float, float] | None:
        """The range that holds every line and bound of every panel; exponents of ten where the scale is logarithmic.

        None where there is nothing to show.
        """
        values = [
            value
            for panel in self.panels
            for line in panel.lines
            for series in (line.y, line.low or (), line.high or (), *(line.points or ()))
            for value in series
            if value is not None and (value > 0 or not self.log_y)
        ]
        if not values:
            return None
        low, high = min(values), max(values)
        if self.log_y:
            return math.log10(low) - _LOG_MARGIN, math.log10(high) + _LOG_MARGIN
        margin = _MARGIN * (high - low or abs(high) or 1.0)
        return low - margin, high + margin

    def line_name(self, line: Line) -> str:
        """What the legends say of a line."""
        parts = [self.colours[line.colour], self.weights[line.weight]]
        return ", ".join(part for part in parts if part)

    def sentence(self) -> str:
        """What those hear who do not see the figure: its axes, and where its lines begin and end."""
        count = sum(len(panel.lines) for panel in self.panels)
        panels = f"{len(self.panels)} panels" if len(self.panels) > 1 else "one panel"
        told = [f"{self.name}: {self.y_title} by {self.x_title}, {count} lines in {panels}."]
        for panel in self.panels if count <= _TOLD else ():
            for line in panel.lines:
                known = [(x, y) for x, y in zip(line.x, line.y, strict=False) if y is not None]
                parts = ", ".join(part for part in (panel.title, self.line_name(line)) if part)
                if not known:
                    told.append(f"{parts}: nothing.")
                elif self.marks == "intervals":
                    told.append(f"{parts}: {', '.join(f'{y:.3g} at {x}' for x, y in known)}.")
                else:
                    (first, start), (last, end) = known[0], known[-1]
                    lowest = min(y for _, y in known)
                    told.append(f"{parts}: {start:.3g} at {first}, {end:.3g} at {last}, lowest {lowest:.3g}.")
        if count > _TOLD:
            told.append("The table under it holds the numbers.")
        return " ".join(told)

    def numbers(self) -> Table:
        """The figure as a table: of each interval its ends, of each curve its first, lowest, highest and last value."""
        name = f"{self.name}, numbers"
        lines = [(panel.title, line) for panel in self.panels for line in panel.lines]
        if self.marks == "intervals":
            columns = ["panel", "line", self.x_title, self.y_title, "from", "to"]
            rows = [
                [title, self.line_name(line), Cell(str(x)), number(y), number(_at(line.low, i)),
                 number(_at(line.high, i))]
                for title, line in lines for i, (x, y) in enumerate(zip(line.x, line.y, strict=False))
            ]  # fmt: skip
        else:
            columns = ["panel", "line", "first", "lowest", "highest", "last"]
            rows = []
            for title, line in lines:
                known = [y for y in line.y if y is not None]
                ends = (known[0], min(known), max(known), known[-1]) if known else (None,) * 4
                rows.append([title, self.line_name(line), *map(number, ends)])
        if not any(panel.title for panel in self.panels):
            columns, rows = columns[1:], [row[1:] for row in rows]
        return Table(columns, rows, name, compact=True)

    def data(self) -> dict[str, Any]:
        """What the page's script needs to draw the figure."""
        return {
            "name": self.name,
            "xTitle": self.x_title,
            "yTitle": self.y_title,
            "logY": self.log_y,
            "range": self.y_range(),
            "palette": self.palette,
            "marks": self.marks,
            "across": self.across,
            "colours": list(self.colours),
            "weights": list(self.weights),
            "panels": [{"title": panel.title, "lines": [_line(line) for line in panel.lines]} for panel in self.panels],
        }


def _line(line: Line) -> dict[str, Any]:
    found: dict[str, Any] = {"x": list(line.x), "y": _short(line.y), "colour": line.colour, "weight": line.weight}
    for name in ("low", "high"):
        values = getattr(line, name)
        found[name] = None if values is None else _short(values)
    found["labels"] = None if line.labels is None else list(line.labels)
    if line.points is not None:
        found["points"] = [_short(values) for values in line.points]
    return found


def _short(values: Sequence[float | int | None]) -> list[float | None]:
    # Six digits are more than a screen shows, and a third of the page's size.
    return [None if value is None else float(f"{value:.6g}") for value in values]


def _at(values: Sequence[float | int | None] | None, place: int) -> float | int | None:
    return None if values is None else values[place]
