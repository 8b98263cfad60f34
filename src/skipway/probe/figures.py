"""What the plots of all results share: where they are drawn, and the caption under them."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from skipway.errors import SkipwayError


@contextmanager
def canvas(
    axes: Any, caption: str, rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.8), **options: Any
) -> Iterator[Any]:
    """The axes to draw into: those given, or those of a new figure, under which the caption is written.

    One axes where rows and columns are 1, else an array of them; `options` go to `matplotlib.pyplot.subplots`.
    """
    if axes is not None:
        expected = rows * columns
        given = getattr(axes, "size", 1)
        if given != expected:
            raise SkipwayError(f"this plot draws into {expected} axes, and {given} were given")
        yield axes
        return
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", **options)
    yield axes
    width = int(figure.get_figwidth() * 14)
    figure.supxlabel("\n".join(_lines(caption, width)), fontsize=8, color="0.35")


def plotly_figure(traces: Any, caption: str, **layout: Any) -> Any:
    """A plotly figure of these traces with the caption under it; `layout` goes to plotly's layout."""
    import plotly.graph_objects as go

    figure = go.Figure(traces)
    figure.update_layout(template="plotly_white", margin={"t": 50, "b": 110}, **layout)
    figure.add_annotation(
        text="<br>".join(_lines(caption, 110)), xref="paper", yref="paper", x=0, y=-0.17, yanchor="top",
        align="left", showarrow=False, font={"size": 11, "color": "#555"},
    )  # fmt: skip
    return figure


def _lines(caption: str, width: int) -> list[str]:
    # A number and its per cent sign stay on one line.
    return textwrap.wrap(caption.replace(" %", "\u00a0%"), width)
