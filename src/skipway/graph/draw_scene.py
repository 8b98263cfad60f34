"""What a drawing is made of: boxes, lines, circles and words at coordinates, and how they become SVG or a figure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

if TYPE_CHECKING:
    from pathlib import Path

FONT = "'DejaVu Sans', Verdana, Helvetica, Arial, sans-serif"
# Widths of DejaVu Sans from the space to the tilde, in hundredths of its size: no common sans-serif is much wider.
_WIDTHS = (
    32, 40, 46, 84, 64, 95, 78, 27, 39, 39, 50, 84, 32, 36, 32, 34, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 34, 34, 84,
    84, 84, 53, 100, 68, 69, 70, 77, 63, 58, 77, 75, 29, 29, 66, 56, 86, 75, 79, 60, 79, 69, 63, 61, 73, 68, 99, 69, 61,
    69, 39, 34, 39, 84, 50, 50, 61, 63, 55, 63, 62, 35, 63, 63, 28, 28, 58, 28, 97, 63, 61, 63, 63, 41, 52, 39, 63, 59,
    82, 59, 59, 52, 64, 34, 64, 84,
)  # fmt: skip

Number = int | float
Point = tuple[Number, Number]


def text_width(text: str, size: Number, bold: bool = False) -> Number:
    """How wide a text is, in the units of its size; never less than what a viewer's own font takes.

    >>> text_width("iii", 10) < text_width("mmm", 10) < text_width("mmm", 10, bold=True)
    True
    """
    hundredths = sum(_WIDTHS[ord(c) - 32] if 32 <= ord(c) < 127 else 32 if c == "·" else 88 for c in text)
    return hundredths * size / 100 * (1.12 if bold else 1.0)


@dataclass(frozen=True, slots=True)
class Shape:
    """A closed or open outline: straight and curved segments, as ("M" | "L" | "C" | "Z", points...)."""

    steps: tuple[tuple[str, tuple[Point, ...]], ...]
    stroke: str = "none"
    thickness: Number = 1.0
    dash: tuple[Number, ...] = ()
    fill: str = "none"


@dataclass(frozen=True, slots=True)
class Words:
    """A line of text; `anchor` is "start", "middle" or "end", y is its base line."""

    x: Number
    y: Number
    text: str
    size: Number
    fill: str = "#222222"
    anchor: str = "start"
    bold: bool = False


@dataclass(slots=True)
class Scene:
    """Shapes and words in the order in which they are painted, and what a reader is told in place of the picture."""

    items: list[Shape | Words] = field(default_factory=list)
    title: str = ""

    def add(self, *items: Shape | Words) -> None:
        self.items.extend(items)

    def bounds(self) -> tuple[Number, Number, Number, Number]:
        """Left, top, right and bottom of all that is painted."""
        xs: list[Number] = []
        ys: list[Number] = []
        for item in self.items:
            if isinstance(item, Words):
                width = text_width(item.text, item.size, item.bold)
                left = item.x - {"start": 0.0, "middle": width / 2, "end": width}[item.anchor]
                xs += [left, left + width]
                ys += [item.y - item.size * 0.8, item.y + item.size * 0.25]
            else:
                half = item.thickness / 2 if item.stroke != "none" else 0.0
                for _, points in item.steps:
                    xs += [x + side for x, _ in points for side in (-half, half)]
                    ys += [y + side for _, y in points for side in (-half, half)]
        return (min(xs), min(ys), max(xs), max(ys)) if xs else (0.0, 0.0, 0.0, 0.0)

    def moved(self, dx: Number, dy: Number) -> Scene:
        """The same picture elsewhere."""
        items: list[Shape | Words] = []
        for item in self.items:
            if isinstance(item, Words):
                items.append(replace(item, x=item.x + dx, y=item.y + dy))
            else:
                steps = tuple((step, tuple((x + dx, y + dy) for x, y in points)) for step, points in item.steps)
                items.append(replace(item, steps=steps))
        return Scene(items, self.title)

    def svg(self, margin: Number = 16.0) -> str:
        """The picture as the text of an SVG file."""
        left, top, right, bottom = self.bounds()
        width, height = right - left + 2 * margin, bottom - top + 2 * margin
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_number(width)}" height="{_number(height)}" '
            f'viewBox="{_number(left - margin)} {_number(top - margin)} {_number(width)} {_number(height)}" '
            f'font-family="{FONT}" role="img" style="max-width:100%;height:auto">',
            f"<title>{escape(self.title)}</title>",
            f'<rect x="{_number(left - margin)}" y="{_number(top - margin)}" width="{_number(width)}" '
            f'height="{_number(height)}" fill="#ffffff"/>',
        ]
        return "\n".join([*lines, *(_svg(item) for item in self.items), "</svg>\n"])

    def save_figure(self, path: Path, margin: Number = 16.0, scale: Number = 2.0) -> None:
        """Paint the picture with matplotlib into a file of any format that it writes; `scale` pixels a unit."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        left, top, right, bottom = self.bounds()
        width, height = right - left + 2 * margin, bottom - top + 2 * margin
        # Agg takes at most 2^16 pixels a side.
        scale = min(scale, 60000 / max(width, height))
        figure = Figure(figsize=(width / 72, height / 72), dpi=72 * scale, facecolor="white")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(left - margin, right + margin)
        axes.set_ylim(bottom + margin, top - margin)
        for order, item in enumerate(self.items):
            _paint(axes, item, order)
        figure.savefig(path, dpi=72 * scale, facecolor="white")


def _number(value: Number) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _svg(item: Shape | Words) -> str:
    if isinstance(item, Words):
        weight = ' font-weight="bold"' if item.bold else ""
        anchor = f' text-anchor="{item.anchor}"' if item.anchor != "start" else ""
        place = f'x="{_number(item.x)}" y="{_number(item.y)}" font-size="{_number(item.size)}" fill="{item.fill}"'
        return f"<text {place}{anchor}{weight}>{escape(item.text)}</text>"
    data = "".join(step + " ".join(f"{_number(x)},{_number(y)}" for x, y in points) for step, points in item.steps)
    dash = f' stroke-dasharray="{" ".join(map(_number, item.dash))}"' if item.dash else ""
    line = f' stroke="{item.stroke}" stroke-width="{_number(item.thickness)}"{dash}' if item.stroke != "none" else ""
    return f'<path d={quoteattr(data)} fill="{item.fill}"{line}/>'


def _paint(axes: Any, item: Shape | Words, order: int) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Outline

    if isinstance(item, Words):
        axes.text(
            item.x, item.y, item.text, fontsize=item.size, color=item.fill, zorder=order, family="DejaVu Sans",
            ha={"start": "left", "middle": "center", "end": "right"}[item.anchor], va="baseline",
            fontweight="bold" if item.bold else "normal", parse_math=False,
        )  # fmt: skip
        return
    kinds = {"M": Outline.MOVETO, "L": Outline.LINETO, "C": Outline.CURVE4}
    vertices: list[Point] = []
    codes: list[Any] = []
    for step, points in item.steps:
        if step == "Z":
            vertices.append(vertices[0])
            codes.append(Outline.CLOSEPOLY)
        vertices += points
        codes += [kinds[step]] * len(points) if step != "Z" else []
    dash = (0, tuple(part / item.thickness for part in item.dash)) if item.dash else "-"
    axes.add_patch(
        PathPatch(
            Outline(vertices, codes), facecolor=item.fill, edgecolor=item.stroke, linewidth=item.thickness,
            linestyle=dash, zorder=order, capstyle="butt", joinstyle="round",
        )
    )  # fmt: skip


def box(x: Number, y: Number, width: Number, height: Number, radius: Number = 4.0, **style: Any) -> Shape:
    """A rectangle with round corners."""
    r = min(radius, width / 2, height / 2)
    k = r * 0.4477
    right, bottom = x + width, y + height
    return Shape(
        (
            ("M", ((x + r, y),)), ("L", ((right - r, y),)), ("C", ((right - k, y), (right, y + k), (right, y + r))),
            ("L", ((right, bottom - r),)), ("C", ((right, bottom - k), (right - k, bottom), (right - r, bottom))),
            ("L", ((x + r, bottom),)), ("C", ((x + k, bottom), (x, bottom - k), (x, bottom - r))),
            ("L", ((x, y + r),)), ("C", ((x, y + k), (x + k, y), (x + r, y))), ("Z", ()),
        ),
        **style,
    )  # fmt: skip


def circle(x: Number, y: Number, radius: Number, **style: Any) -> Shape:
    """A circle around a point."""
    return box(x - radius, y - radius, 2 * radius, 2 * radius, radius, **style)


def line(points: list[Point], radius: Number = 6.0, **style: Any) -> Shape:
    """Straight segments from point to point, their corners rounded."""
    steps: list[tuple[str, tuple[Point, ...]]] = [("M", (points[0],))]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        r = min(radius, math.dist(before, corner) / 2, math.dist(corner, after) / 2)
        start, end = _towards(corner, before, r), _towards(corner, after, r)
        steps += [("L", (start,)), ("C", (_towards(start, corner, r * 0.55), _towards(end, corner, r * 0.55), end))]
    steps.append(("L", (points[-1],)))
    return Shape(tuple(steps), **style)


def bow(start: Point, end: Point, x: Number, **style: Any) -> Shape:
    """An arc between two points one above the other that bends out as far as `x`."""
    control = (8 * x - start[0] - end[0]) / 6
    return Shape((("M", (start,)), ("C", ((control, start[1]), (control, end[1]), end))), **style)


def arrow(tip: Point, direction: Point, size: Number = 6.0, fill: str = "#222222") -> Shape:
    """An arrow head with its tip at a point."""
    length = math.hypot(*direction)
    dx, dy = direction[0] / length * size, direction[1] / length * size
    back = (tip[0] - dx, tip[1] - dy)
    wings = ((back[0] - dy * 0.5, back[1] + dx * 0.5), (back[0] + dy * 0.5, back[1] - dx * 0.5))
    return Shape((("M", (tip,)), ("L", (wings[0],)), ("L", (wings[1],)), ("Z", ())), fill=fill)


def _towards(start: Point, end: Point, by: Number) -> Point:
    length = math.dist(start, end)
    if length == 0:
        return start
    return start[0] + (end[0] - start[0]) * by / length, start[1] + (end[1] - start[1]) * by / length
