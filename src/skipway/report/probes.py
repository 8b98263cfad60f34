"""The page of a set of probes on one or more networks, side by side on shared scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from skipway import probe
from skipway.probe import Landscape, Result
from skipway.probe.landscape_plot import shared_levels
from skipway.report.findings import finding
from skipway.report.page import Details, Folded, Page, Section
from skipway.report.plots import Plot
from skipway.report.tables import Cell, Table, number

_TITLES = {
    "gradients": ("Gradients", "How much gradient arrives at each layer, and which way round every skip it came."),
    "responses": ("Responses", "How much each branch changes the stream (He et al. 2015, figure 7)."),
    "paths": ("Paths", "What paths of each length add to the gradient (Veit et al. 2016), summed exactly."),
    "lesions": ("Lesions", "What deleting or reordering blocks does to the trained network (Veit et al. 2016)."),
    "landscape": ("Loss landscape", "The loss around the weights, in filter-normalised directions (Li et al. 2018)."),
    "trajectory": ("Trajectory", "The way that training took, in the plane that shows most of it."),
    "curvature": ("Curvature", "Eigenvalues of the Hessian: the sharpest directions and the density of all."),
    "curvature_map": ("Curvature over a plane", "The lowest eigenvalue over the highest, around the weights."),
    "reuse": ("Feature reuse", "How much each layer weighs what earlier ones made (Huang et al. 2017)."),
    "shattering": ("Shattered gradients", "How alike gradients at neighbouring inputs are (Balduzzi et al. 2017)."),
}
# Rows of the numbers under each picture, and of those of all networks together.
_ROWS, _ALL_ROWS = 200, 1200
# More networks than this are told apart neither by colour in one figure nor, as surfaces, by a graphics card.
_TOGETHER = 8
# The height of many pictures side by side, and the losses that one linear scale shows.
_LOW, _FOLD = 320, 100.0


@dataclass(frozen=True)
class Measured:
    """A result on the page: of which network, by which probe, and where its numbers lie, relative to the page."""

    label: str
    probe: str
    result: Result
    file: str


def probes_page(measured: Sequence[Measured], data: str, samples: int) -> str:
    """The page as HTML: what each probe found in each network, in the order given."""
    labels = list(dict.fromkeys(one.label for one in measured))
    return Page(
        title="What the skips do",
        question=f"What do the skips of {_listed(labels)} do?",
        answer=findings(measured),
        subject=f"Measured on {samples} images of {data}.",
        sections=probe_sections(measured),
    ).html()


def findings(measured: Sequence[Measured]) -> str:
    """What the probes found, a line a network."""
    labels = list(dict.fromkeys(one.label for one in measured))
    return "\n".join(_answer(label, [one for one in measured if one.label == label]) for label in labels)


def probe_sections(measured: Sequence[Measured]) -> list[Section]:
    """A section a probe: the pictures of all networks side by side on shared scales, and their numbers."""
    names = list(dict.fromkeys(one.probe for one in measured))
    return [_section(name, [one for one in measured if one.probe == name]) for name in names]


def _section(name: str, found: Sequence[Measured]) -> Section:
    title, text = _TITLES.get(name, (name.replace("_", " ").capitalize(), ""))
    compare = getattr(probe, f"compare_{name}", None)
    told = " ".join(_answer(one.label, [one]) for one in found)
    if compare is not None and 1 < len(found) <= _TOGETHER:
        joint = compare([one.result for one in found], [one.label for one in found])
        plots = [Plot(title, joint.interactive(), joint.caption, told, joint.plot)]
    else:
        log = _wide([one.result for one in found])
        figures = [one.result.interactive(**({"log": True} if log else {})) for one in found]
        _share_scale(figures)
        if len(found) > _TOGETHER:
            figures = [_flat(figure) for figure in figures]
        pictures = _pictures(found)
        captions = {one.result.caption for one in found}
        if len(captions) == 1 and len(found) > 1:
            text = f"{text} {captions.pop()}"
        plots = [
            Plot(one.label, figure, one.result.caption if captions else "", _answer(one.label, [one]), picture)
            for one, figure, picture in zip(found, figures, pictures, strict=True)
        ]
        if len(plots) > 2:
            for plot in plots:
                plot.figure.update_layout(height=_LOW)
    rows = max(10, min(_ROWS, _ALL_ROWS // len(found)))
    numbers = [_numbers(one, rows) for one in found]
    if len(numbers) > 1:
        return Section(title, text, [*plots, Folded(f"Numbers of the {len(found)} networks", numbers)])
    return Section(title, text, [*plots, *numbers])


def _numbers(one: Measured, rows: int) -> Details:
    frame = one.result.table()
    cells = [[_cell(value) for value in row] for row in frame.head(rows).itertuples(index=False)]
    more = f" (the first {rows} of {len(frame)} rows)" if len(frame) > rows else ""
    table = Table([str(column) for column in frame.columns], cells, f"{one.probe} of {one.label}", compact=True)
    return Details(f"{one.label}{more}", table, one.file)


def _wide(results: Sequence[Result]) -> bool:
    """Whether these are surfaces of losses that only a logarithm shows together."""
    surfaces = [one.loss for one in results if isinstance(one, Landscape) and one.y is not None]
    if not surfaces or len(surfaces) < len(results):
        return False
    values = np.concatenate([surface[np.isfinite(surface)] for surface in surfaces])
    return len(values) > 0 and float(values.min()) > 0 and float(values.max()) > _FOLD * float(values.min())


def _pictures(found: Sequence[Measured]) -> list[Callable[[], Any]]:
    """What draws each result with matplotlib, on the scales of all: nothing is drawn before the first is asked for."""
    surfaces = [one.result for one in found if isinstance(one.result, Landscape) and one.result.y is not None]
    if found and len(surfaces) == len(found):
        log = _wide(surfaces)
        return [partial(one.plot, kind="filled", log=log, levels=shared_levels(surfaces, log)) for one in surfaces]
    drawn: list[Any] = []

    def draw(place: int) -> Any:
        if not drawn:
            drawn.extend(one.result.plot() for one in found)
            _share_limits([np.ravel(np.asarray(axes, dtype=object)) for axes in drawn])
        return drawn[place]

    return [partial(draw, place) for place in range(len(found))]


def _share_limits(figures: Sequence[Any]) -> None:
    """Give the same panel of several figures one range of heights."""
    for place in range(max(len(axes) for axes in figures)):
        panels = [axes[place] for axes in figures if place < len(axes)]
        if len({panel.get_yscale() for panel in panels}) == 1:
            limits = [panel.get_ylim() for panel in panels]
            ends = min(low for low, _ in limits), max(high for _, high in limits)
            for panel in panels:
                panel.set_ylim(*ends)


def _flat(figure: Any) -> Any:
    """A surface from above: a browser holds few pictures in space at once."""
    import plotly.graph_objects as go

    surfaces = [trace for trace in figure.data if trace.type == "surface"]
    if not surfaces:
        return figure
    bar = surfaces[0].colorbar
    flat = go.Figure([
        go.Contour(x=one.x, y=one.y, z=one.z, colorscale=one.colorscale, zmin=one.cmin, zmax=one.cmax, ncontours=24,
                   colorbar={"title": bar.title.text, "len": 1.0, "thickness": 9, "outlinewidth": 0})
        for one in surfaces
    ])  # fmt: skip
    flat.update_layout(
        margin={"l": 36, "r": 8, "t": 12, "b": 28}, xaxis={"constrain": "domain"},
        yaxis={"scaleanchor": "x", "constrain": "domain"},
    )  # fmt: skip
    return flat


def _cell(value: Any) -> str | Cell:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    return number(value if math.isfinite(value) else None)


def _share_scale(figures: Sequence[Any]) -> None:
    """Give the same plot of several networks one range: of heights and colours, or of the upright axis."""
    if len(figures) < 2:
        return
    traces = [trace for figure in figures for trace in figure.data if getattr(trace, "z", None) is not None]
    heights = [np.asarray(trace.z, dtype=float) for trace in traces]
    known = [values[np.isfinite(values)] for values in heights if np.isfinite(values).any()]
    if not known:
        _share_axis(figures)
        return
    low, high = min(float(values.min()) for values in known), max(float(values.max()) for values in known)
    for trace in traces:
        if trace.type == "surface":
            trace.update(cmin=low, cmax=high)
        elif trace.type in ("heatmap", "contour"):
            trace.update(zmin=low, zmax=high)
    for figure in figures:
        if any(trace.type == "surface" for trace in figure.data):
            # A surface that is cut off at the top lies below the end of its axis.
            figure.update_scenes(zaxis={"range": [low, high + 0.03 * (high - low)]})


def _share_axis(figures: Sequence[Any]) -> None:
    # Several panels in one figure have an axis each, and share none with each other.
    if any("yaxis2" in figure.layout for figure in figures):
        return
    logarithmic = any(figure.layout.yaxis.type == "log" for figure in figures)
    drawn = [np.asarray(trace.y, dtype=float) for figure in figures for trace in figure.data if trace.y is not None]
    lines = [float(y) for figure in figures for shape in figure.layout.shapes for y in (shape.y0, shape.y1)]
    values = np.concatenate([*drawn, np.array(lines)])
    values = values[np.isfinite(values) & ((values > 0) | (not logarithmic))]
    if not len(values):
        return
    ends = np.log10([values.min(), values.max()]) if logarithmic else np.array([values.min(), values.max()])
    margin = 0.05 * (ends[1] - ends[0] or 1.0)
    for figure in figures:
        figure.update_yaxes(range=[float(ends[0] - margin), float(ends[1] + margin)])


def _listed(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _answer(label: str, found: Sequence[Measured]) -> str:
    told = [told for told in (finding(one.result) for one in found) if told] or [one.result.what for one in found[:1]]
    return f"{label}: {'; '.join(told)}."
