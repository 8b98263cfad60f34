"""Line plots in panels side by side on one scale, as data that the page's script draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from skipway.errors import SkipwayError

# Room around the lines of a linear plot, as a share of their range; on a logarithmic one, in powers of ten.
_MARGIN, _LOG_MARGIN = 0.04, 0.15


@dataclass(frozen=True)
class Line:
    """One line: `colour` and `weight` are places in the figure's legends; `low` and `high` bound a band around it.

    None in `y`, `low` or `high` is a point that is not there.
    """

    x: Sequence[float | int]
    y: Sequence[float | None]
    colour: int
    weight: int
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    labels: Sequence[str] | None = None


@dataclass(frozen=True)
class Panel:
    """Lines in one pair of axes."""

    title: str
    lines: Sequence[Line]


@dataclass(frozen=True)
class Figure:
    """Panels with one scale and one legend.

    `colours` and `weights` name what a line's colour and weight stand for: weight 0 is thin and dashed, 1 is bold.
    `palette` is "ordered" where the colours stand for a quantity that grows, "kinds" where they do not.
    """

    name: str
    panels: Sequence[Panel]
    x_title: str
    y_title: str
    colours: Sequence[str]
    weights: tuple[str, str]
    palette: Literal["ordered", "kinds"] = "kinds"
    log_y: bool = False

    def __post_init__(self) -> None:
        for panel in self.panels:
            for line in panel.lines:
                if not (0 <= line.colour < len(self.colours) and line.weight in (0, 1)):
                    raise SkipwayError(
                        f"figure '{self.name}': a line of panel '{panel.title}' has colour {line.colour} and weight "
                        f"{line.weight}; there are {len(self.colours)} colours, and weights 0 and 1"
                    )

    def y_range(self) -> tuple[float, float] | None:
        """The range that holds every line and band of every panel; exponents of ten where the scale is logarithmic.

        None where there is nothing to show.
        """
        values = [
            value
            for panel in self.panels
            for line in panel.lines
            for series in (line.y, line.low or (), line.high or ())
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

    def data(self) -> dict[str, Any]:
        """What the page's script needs to draw the figure."""
        return {
            "xTitle": self.x_title,
            "yTitle": self.y_title,
            "logY": self.log_y,
            "range": self.y_range(),
            "palette": self.palette,
            "colours": list(self.colours),
            "weights": list(self.weights),
            "panels": [
                {
                    "title": panel.title,
                    "lines": [
                        {
                            "x": list(line.x),
                            "y": list(line.y),
                            "colour": line.colour,
                            "weight": line.weight,
                            "low": None if line.low is None else list(line.low),
                            "high": None if line.high is None else list(line.high),
                            "labels": None if line.labels is None else list(line.labels),
                        }
                        for line in panel.lines
                    ],
                }
                for panel in self.panels
            ],
        }
