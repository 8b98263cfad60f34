"""Pictures of landscapes: curves with twin axes, contours, surfaces, and several side by side on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skipway.errors import SkipwayError, choose
from skipway.probe.figures import canvas, plotly_figure

if TYPE_CHECKING:
    from skipway.probe.landscape import Landscape

KINDS = ("contour", "filled", "heat", "surface")
VALUES = ("loss", "error", "test_loss", "test_error")
_TITLES = {"loss": "loss", "error": "error", "test_loss": "test loss", "test_error": "test error"}
# Li et al. draw contours at 0.1, 0.6, ... 9.6; losses beyond are cut there.
_PUBLISHED = np.arange(0.1, 10, 0.5)
_USUAL = 1.5


def draw(result: Landscape, axes: Any, kind: str, log: bool, levels: Any, values: str) -> Any:
    """The plot of one landscape: see `Landscape.plot`."""
    if result.y is None:
        with canvas(axes, result.caption) as axes:
            _curve(axes, result, log)
        return axes
    choose("kind of plot", kind, KINDS)
    options: Any = {"subplot_kw": {"projection": "3d"}} if kind == "surface" else {}
    with canvas(axes, result.caption, **options) as axes:
        surface = _surface(result, values)
        levels = _levels([surface], log) if levels is None else np.asarray(levels, dtype=float)
        _plane(axes, result, surface, kind, log, levels, values)
    return axes


def side_by_side(
    *landscapes: Landscape,
    titles: Sequence[str] | None = None,
    kind: str = "contour",
    log: bool = False,
    levels: Any = None,
    values: str = "loss",
    axes: Any = None,
) -> Any:
    """Draw landscapes in a row on one scale, one range of colours and the same levels; returns the axes.

    Each title bears the two numbers of roughness. Raises SkipwayError for landscapes that do not compare: measured
    under different BatchNorm policies, one a curve and one a surface, or of different losses.
    """
    _check_comparable(landscapes)
    options: Any = {"subplot_kw": {"projection": "3d"}} if kind == "surface" and landscapes[0].y is not None else {}
    count = len(landscapes)
    caption = " | ".join(dict.fromkeys(part.caption for part in landscapes))
    names = titles or [part.policy.model for part in landscapes]
    if len(names) != count:
        raise SkipwayError(f"{len(names)} titles for {count} landscapes")
    with canvas(axes, caption, 1, count, size=(5.2 * count, 4.8), **options) as panels:
        panels = np.atleast_1d(panels)
        if landscapes[0].y is None:
            top = max(_curve(panel, part, log) for panel, part in zip(panels, landscapes, strict=True))
            for panel in panels:
                panel.set_ylim(top=top)
        else:
            choose("kind of plot", kind, KINDS)
            surfaces = [_surface(part, values) for part in landscapes]
            levels = _levels(surfaces, log) if levels is None else np.asarray(levels, dtype=float)
            for panel, part, surface in zip(panels, landscapes, surfaces, strict=True):
                _plane(panel, part, surface, kind, log, levels, values)
        for panel, part, name in zip(panels, landscapes, names, strict=True):
            panel.set_title(f"{name}\n{_rough(part)}", fontsize=10)
    return panels


def shared_levels(landscapes: Sequence[Landscape], log: bool = False) -> np.ndarray:
    """The levels at which the losses of all of these are drawn, where each has a picture of its own."""
    return _levels([_surface(part, "loss") for part in landscapes], log)


def interactive(landscapes: Sequence[Landscape], log: bool, values: str) -> Any:
    """Landscapes as a plotly figure, surfaces on one scale of colours."""
    import plotly.graph_objects as go

    first = landscapes[0]
    caption = first.caption
    if first.y is None:
        lines = [
            go.Scatter(x=part.x, y=getattr(part, name), name=_TITLES[name], yaxis="y2" if "error" in name else "y",
                       line={"dash": "dash" if "test" in name else "solid",
                             "color": "#c0392b" if "error" in name else "#1f77b4"})
            for part in landscapes for name in VALUES if getattr(part, name) is not None
        ]  # fmt: skip
        return plotly_figure(
            lines, caption, xaxis={"title": first.labels[0]},
            yaxis={"title": "loss", "type": "log" if log else "linear"},
            yaxis2={"title": "error", "overlaying": "y", "side": "right", "range": [0, 1]},
        )  # fmt: skip
    surface = _surface(first, values)
    shown = np.log10(np.maximum(surface, _floor(surface))) if log else _capped(surface, [surface])
    title = f"log10 of {_TITLES[values]}" if log else _TITLES[values]
    traces: list[Any] = [
        go.Surface(x=first.x, y=first.y, z=shown.T, colorscale="RdBu_r",
                   colorbar={"title": title, "len": 0.7, "thickness": 14},
                   contours={"z": {"show": True, "usecolormap": True, "project_z": True}})
    ]  # fmt: skip
    if first.path is not None:
        heights = [_nearest(first, shown, point) for point in first.path]
        traces.append(
            go.Scatter3d(x=first.path[:, 0], y=first.path[:, 1], z=heights, mode="lines+markers", name="checkpoints",
                         line={"color": "black"}, marker={"size": 3})
        )  # fmt: skip
    scene = {"xaxis_title": first.labels[0], "yaxis_title": first.labels[1], "zaxis_title": title,
             "camera": {"eye": {"x": 1.6, "y": 1.6, "z": 1.0}}}  # fmt: skip
    return plotly_figure(traces, caption, scene=scene, height=640)


def _check_comparable(landscapes: Sequence[Landscape]) -> None:
    if not landscapes:
        raise SkipwayError("side_by_side draws one landscape or more")
    for name, of in (
        ("BatchNorm policies", lambda part: part.policy.batch_norm),
        ("losses", lambda part: part.loss_name),
        ("numbers of axes", lambda part: part.loss.ndim),
        ("normalisations", lambda part: part.normalize),
    ):
        found = list(dict.fromkeys(of(part) for part in landscapes))
        if name == "BatchNorm policies":
            found = [policy for policy in found if policy != "none"] or found[:1]
        if len(found) > 1:
            raise SkipwayError(f"these landscapes do not compare: their {name} differ ({', '.join(map(str, found))})")


def _surface(result: Landscape, values: str) -> np.ndarray:
    choose("values", values, VALUES)
    surface = getattr(result, values)
    if surface is None:
        raise SkipwayError(f"there are no values '{values}': the landscape was measured without test data")
    if not np.isfinite(surface).any():
        raise SkipwayError(f"the values '{values}' hold no finite number to draw")
    return surface


def _floor(surface: np.ndarray) -> float:
    positive = surface[np.isfinite(surface) & (surface > 0)]
    return float(positive.min()) if positive.size else 1e-12


def _levels(surfaces: Sequence[np.ndarray], log: bool) -> np.ndarray:
    """The published levels where the losses lie there; else round ones over the range without its spikes."""
    values = np.concatenate([surface[np.isfinite(surface)] for surface in surfaces])
    low, high = float(values.min()), float(np.quantile(values, 0.95))
    if log:
        low = max(low, min(_floor(surface) for surface in surfaces))
        decades = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(float(values.max()))) + 1)
        steps = (1.0, 2.0, 5.0) if len(decades) < 8 else (1.0,)
        marks = np.array([step * 10.0**decade for decade in decades for step in steps])
        inside = np.flatnonzero((marks >= low) & (marks <= values.max()))
        return marks[max(0, inside[0] - 1) : inside[-1] + 2] if inside.size else marks
    if low < _USUAL and high > _PUBLISHED[len(_PUBLISHED) // 2]:
        return _PUBLISHED
    from matplotlib.ticker import MaxNLocator

    return np.asarray(MaxNLocator(16).tick_values(low, high if high > low else low + max(abs(low), 1.0) * 1e-6))


def _capped(surface: np.ndarray, all_of: Sequence[np.ndarray]) -> np.ndarray:
    top = _levels(all_of, False)[-1]
    return np.minimum(np.where(np.isfinite(surface), surface, top), top)


def _plane(
    axes: Any, result: Landscape, surface: np.ndarray, kind: str, log: bool, levels: np.ndarray, values: str
) -> None:
    from matplotlib.colors import LogNorm, Normalize

    norm = LogNorm(levels[0], levels[-1]) if log else Normalize(levels[0], levels[-1])
    # What diverged lies above every level; contours are drawn around it, not through holes.
    shown = np.where(np.isfinite(surface), surface, np.nanmax(np.append(surface[np.isfinite(surface)], levels[-1])))
    title = _TITLES[values]
    if not result.measured.all():
        shown = np.ma.masked_array(shown, ~result.measured)
    if kind == "surface":
        height = np.clip(shown, levels[0] if log else None, levels[-1])
        x, y = np.meshgrid(result.x, result.y if result.y is not None else [], indexing="ij")
        height = np.log10(height) if log else height
        low, high = np.log10(levels[[0, -1]]) if log else (min(levels[0], 0.0), levels[-1])
        axes.plot_surface(x, y, height, cmap="coolwarm", linewidth=0, rstride=1, cstride=1, vmin=low, vmax=high)
        axes.set_zlim(low, high)
        axes.set_zlabel(f"log10 of {title}" if log else title)
        axes.set_box_aspect((4, 4, 3))
        axes.locator_params(nbins=5)
    elif kind == "heat":
        image = axes.pcolormesh(result.x, result.y, shown.T, cmap="viridis", norm=norm, shading="nearest")
        axes.figure.colorbar(image, ax=axes, label=title)
    elif kind == "filled":
        image = axes.contourf(result.x, result.y, shown.T, levels=levels, cmap="summer", norm=norm, extend="both")
        axes.figure.colorbar(image, ax=axes, label=title, format="%.3g")
    else:
        lines = axes.contour(result.x, result.y, shown.T, levels=levels, cmap="summer", norm=norm, linewidths=1)
        axes.clabel(lines, inline=True, fontsize=7, fmt="%.3g")
    axes.set_xlabel(result.labels[0])
    axes.set_ylabel(result.labels[1])
    if kind != "surface":
        if result.kind == "random":
            axes.set_aspect("equal")
        _marks(axes, result)


def _marks(axes: Any, result: Landscape) -> None:
    if result.path is not None:
        axes.plot(result.path[:, 0], result.path[:, 1], ".-", color="tab:blue", linewidth=1, markersize=5)
        dropped = result.path[list(result.drops)]
        axes.plot(dropped[:, 0], dropped[:, 1], "o", color="tab:red", markersize=5)
        axes.plot(*result.path[-1], "*", color="black", markersize=9)
    elif result.kind == "between models":
        axes.plot([0, 1, 0], [0, 0, 1], "o", color="black", markersize=4)
    else:
        axes.plot(0, 0, "+", color="black", markersize=8)


def _curve(axes: Any, result: Landscape, log: bool) -> float:
    """Loss in blue on the left, error in red on the right, test dashed; returns the top of the left axis."""
    losses = [("loss", result.loss, "-"), ("test loss", result.test_loss, "--")]
    errors = [("error", result.error, "-"), ("test error", result.test_error, "--")]
    for name, curve, style in losses:
        if curve is not None:
            axes.plot(result.x, curve, style, color="tab:blue", label=name)
    axes.set_xlabel(result.labels[0])
    axes.set_ylabel("loss", color="tab:blue")
    axes.tick_params(axis="y", labelcolor="tab:blue")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=min(0.0, float(np.nanmin(result.loss))))
    marks = (0.0, 1.0) if result.kind == "between models" else (0.0,)
    for mark in marks:
        axes.axvline(mark, color="0.8", linewidth=0.8, zorder=0)
    if np.isfinite(result.error).any():
        twin = axes.twinx()
        for _, curve, style in errors:
            if curve is not None:
                twin.plot(result.x, 100 * curve, style, color="tab:red")
        twin.set_ylim(0, 100)
        twin.set_ylabel("error, %", color="tab:red")
        twin.tick_params(axis="y", labelcolor="tab:red")
    if result.test_loss is not None:
        axes.plot([], [], "-", color="0.4", label="training")
        axes.plot([], [], "--", color="0.4", label="test")
        handles = axes.get_legend_handles_labels()[0][-2:]
        axes.legend(handles, ["training data", "test data"], fontsize=8, loc="upper center")
    return float(axes.get_ylim()[1])


def _rough(result: Landscape) -> str:
    if min(result.loss.shape) < 3:
        return ""
    return f"roughness {result.roughness:.3f}, bends down at {result.negative_curvature:.0%}"


def _nearest(result: Landscape, shown: np.ndarray, point: np.ndarray) -> float:
    assert result.y is not None
    return float(shown[np.abs(result.x - point[0]).argmin(), np.abs(result.y - point[1]).argmin()])
