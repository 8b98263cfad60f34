"""The page of a set of probes on one or more networks, side by side on shared scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipway import probe
from skipway.probe import Result
from skipway.report.findings import finding
from skipway.report.page import Details, Page, Plot, Section, Table

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
_ROWS = 200


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
    names = list(dict.fromkeys(one.probe for one in measured))
    return Page(
        title="What the skips do",
        question=f"What do the skips of {_listed(labels)} do?",
        answer="\n".join(_answer(label, [one for one in measured if one.label == label]) for label in labels),
        subject=f"Measured on {samples} images of {data}.",
        sections=[_section(name, [one for one in measured if one.probe == name]) for name in names],
    ).html()


def _section(name: str, found: Sequence[Measured]) -> Section:
    title, text = _TITLES.get(name, (name.replace("_", " ").capitalize(), ""))
    compare = getattr(probe, f"compare_{name}", None)
    if compare is not None and len(found) > 1:
        joint = compare([one.result for one in found], [one.label for one in found])
        plots = [Plot(title, joint.interactive(), joint.caption)]
    else:
        figures = [one.result.interactive() for one in found]
        _share_scale(figures)
        plots = [Plot(one.label, figure, one.result.caption) for one, figure in zip(found, figures, strict=True)]
    return Section(title, text, [*plots, *(Details(f"Numbers: {one.label}", _table(one), one.file) for one in found)])


def _table(one: Measured) -> Table:
    frame = one.result.table().head(_ROWS)
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False)]
    return Table([str(column) for column in frame.columns], rows, compact=True)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _share_scale(figures: Sequence[Any]) -> None:
    """Give the same plot of several networks one range: of heights and colours, or of the upright axis."""
    import numpy as np

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
    import numpy as np

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
