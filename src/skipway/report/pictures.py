"""Figures drawn with matplotlib, for pages that do not move: on paper and in Markdown."""

from __future__ import annotations

import io
import re
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from skipway.report.figures import Figure, Line, Panel
from skipway.report.plots import Plot

if TYPE_CHECKING:
    import matplotlib.figure

_SHADES = 6
_WIDTHS = (1.0, 1.8)
_STYLES: tuple[Literal["--"], Literal["-"]] = ("--", "-")
_MARKERS = ("o", "D", "s", "^", "P", "X")
_DOTS = 150


def picture(item: Figure | Plot) -> matplotlib.figure.Figure | None:
    """The figure as matplotlib has it; None for a plot that nothing draws."""
    if isinstance(item, Figure):
        return _draw(item)
    if item.picture is None:
        return None
    import matplotlib.pyplot as plt
    import numpy as np

    figure = np.ravel(np.asarray(item.picture(), dtype=object))[0].figure
    plt.close(figure)
    # The caption stands under the picture as text.
    figure.supxlabel("")
    return figure


def png(figure: matplotlib.figure.Figure) -> bytes:
    """A figure as the bytes of a PNG file of 256 colours, a third of the size that all colours take."""
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(_saved(figure, "png"))) as whole:
        whole.convert("RGB").quantize(256).save(file, format="png", optimize=True)
    return file.getvalue()


def svg(figure: matplotlib.figure.Figure) -> bytes:
    """A figure as the bytes of an SVG file."""
    return _saved(figure, "svg")


def _saved(figure: matplotlib.figure.Figure, kind: str) -> bytes:
    import matplotlib as mpl

    file = io.BytesIO()
    # Without a date and with one salt the same figure is the same file.
    with mpl.rc_context({"svg.hashsalt": "skipway", "svg.fonttype": "path"}):
        metadata: dict[str, Any] = {"Date": None} if kind == "svg" else {"Software": None}
        figure.savefig(file, format=kind, dpi=_DOTS, metadata=metadata)
    return file.getvalue()


def _draw(item: Figure) -> matplotlib.figure.Figure:
    import matplotlib.figure

    count = len(item.panels)
    columns = min(count, 4 if count > 9 else 3)
    rows = -(-count // columns)
    places = _places(item)
    width = 7.2 if columns == 1 else 9.6
    tall = 0.9 + 0.24 * len(places) if item.across else 3.2 if columns == 1 else 2.6
    figure = matplotlib.figure.Figure(figsize=(width, rows * tall + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=False, sharey=True)
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, item.panels, strict=False):
        _panel(axes, item, panel, places)
    for row in grid:
        row[0].set_ylabel(item.x_title if item.across else item.y_title, fontsize=9)
    _legend(figure, item)
    return figure


def _panel(axes: Any, item: Figure, panel: Panel, places: list[Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    palette = _palette()
    for number, line in enumerate(panel.lines):
        colour, weight = _colour(item, line.colour), 1 if len(item.weights) == 1 else line.weight
        if item.marks == "bands":
            axes.plot(line.x, _known(line.y), color=colour, linewidth=_WIDTHS[weight], linestyle=_STYLES[weight],
                      marker="." if len(line.x) == 1 else None)  # fmt: skip
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, _known(line.low), _known(line.high), color=colour, alpha=0.14, linewidth=0)
        else:
            _intervals(axes, item, line, colour, places, number - (len(panel.lines) - 1) / 2)
    if panel.title:
        axes.set_title(panel.title, fontsize=9, loc="left", fontweight="bold", wrap=True)
    axes.set_xlabel(item.y_title if item.across else item.x_title, fontsize=9)
    axes.tick_params(which="both", labelsize=8, length=0)
    axes.grid(color=palette["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color(palette["rule"])
    if item.marks == "bands":
        # Between whole epochs or layers there is nothing.
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if item.log_y:
        (axes.set_xscale if item.across else axes.set_yscale)("log")
    if (limits := item.y_range()) is not None:
        low, high = (10 ** limits[0], 10 ** limits[1]) if item.log_y else limits
        (axes.set_xlim if item.across else axes.set_ylim)(low, high)
    if item.marks == "intervals":
        names = [str(place) for place in places]
        (axes.set_yticks if item.across else axes.set_xticks)(range(len(places)), names)
        ends = (-0.6, len(places) - 0.4)
        if item.across:
            axes.set_ylim(*reversed(ends))
        else:
            axes.set_xlim(*ends)


def _intervals(axes: Any, item: Figure, line: Line, colour: str, places: list[Any], offset: float) -> None:
    numeric = not item.across and all(not isinstance(place, str) for place in places)
    at = [places.index(x) + offset * (0.03 if numeric else 0.14) for x in line.x]
    known = [place for place, y in enumerate(line.y) if y is not None]
    here, values = [at[place] for place in known], [line.y[place] for place in known]
    for place, points in zip(at, line.points or [], strict=False):
        x, y = [place] * len(points), list(points)
        axes.plot(*((y, x) if item.across else (x, y)), ".", color=colour, alpha=0.4, markersize=5, linewidth=0)
    bounds = None
    if line.low is not None and line.high is not None:
        ends = [(line.low[place], line.high[place], line.y[place]) for place in known]
        bounds = [
            [0 if low is None or y is None else y - low for low, _, y in ends],
            [0 if high is None or y is None else high - y for _, high, y in ends],
        ]
    axes.errorbar(
        *((values, here) if item.across else (here, values)), **{"xerr" if item.across else "yerr": bounds},
        color=colour, marker=_MARKERS[line.colour % len(_MARKERS)], markersize=5, capsize=3, linewidth=1,
        linestyle="-" if numeric and len(here) > 1 else "none",
    )  # fmt: skip


def _legend(figure: matplotlib.figure.Figure, item: Figure) -> None:
    from matplotlib.lines import Line2D

    handles = []
    if len(item.colours) > 1:
        handles += [Line2D([], [], color=_colour(item, i), linewidth=2.5, label=n) for i, n in enumerate(item.colours)]
    if len(item.weights) > 1:
        ink = _palette()["ink"]
        handles += [
            Line2D([], [], color=ink, linewidth=_WIDTHS[i], linestyle=_STYLES[i], label=name)
            for i, name in enumerate(item.weights)
        ]
    if handles:
        figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 7), fontsize=8, frameon=False)


def _places(item: Figure) -> list[Any]:
    if item.marks == "bands":
        return []
    found = list(dict.fromkeys(x for panel in item.panels for line in panel.lines for x in line.x))
    return found if any(isinstance(x, str) for x in found) else sorted(found)


def _known(values: Any) -> list[float]:
    return [float("nan") if value is None else value for value in values]


def _colour(item: Figure, place: int) -> str:
    count, palette = len(item.colours), _palette()
    if item.palette != "ordered" or count < 2:
        return palette[f"kind-{place % _SHADES}"]
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("ordered", [palette[f"ordered-{shade}"] for shade in range(_SHADES)])
    return to_hex(ramp(place / (count - 1)))


@cache
def _palette() -> dict[str, str]:
    """The light colours of the page's style sheet, by name."""
    from skipway.report.page import resource

    first = resource("page.css").split("}", 1)[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", first))
