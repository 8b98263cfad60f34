"""One column of a drawing: the rows of a stream from top to bottom, with its spine at x = 0."""

from __future__ import annotations

from dataclasses import dataclass, field

from skipway.graph.draw_groups import Box, Group, Row
from skipway.graph.draw_labels import shape_words
from skipway.graph.draw_rows import Column
from skipway.graph.draw_scene import Number, Point, Scene, Words, arrow, bow, box, circle, line, text_width
from skipway.graph.draw_style import (
    BLOCK,
    BLOCK_EDGE,
    DASHES,
    GREY,
    INK,
    PALE,
    PANEL,
    PANEL_EDGE,
    RADIUS,
    colour,
    sign,
    sign_radius,
)

_TITLE, _PATH, _LINE = 10.5, 9.0, 10.0
_LINE_STEP = 14.5
_PAD = 7.0
_GAP = 8.0
_BESIDE = 30.0
_BULGE = 34.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row came to stand: its spine, where its ways part, where it ends, and where what it is fed comes in."""

    x: Number
    top: Number
    bottom: Number
    entry: Point


@dataclass(slots=True)
class Drawn:
    """A laid-out column. `side` is 1 where branches stand to the right of the spine and -1 to the left; `arcs` and
    `boxes` say how far it reaches on the side of the arcs and on that of the branches."""

    side: int
    panels: Scene = field(default_factory=Scene)
    front: Scene = field(default_factory=Scene)
    places: dict[int, Place] = field(default_factory=dict)
    arcs: Number = 0.0
    boxes: Number = 0.0
    bottom: Number = 0.0


def draw_column(column: Column, side: int) -> Drawn:
    """Lay a column out from y = 0 downwards."""
    return _ColumnLayout(column, side).run()


class _ColumnLayout:
    def __init__(self, column: Column, side: int):
        self.column = column
        self.side = side
        self.drawn = Drawn(side)
        self.y = 0.0

    def run(self) -> Drawn:
        panels: list[tuple[Number, Number]] = []
        shape = self.column.shape
        words = "  ".join(part for part in (self.column.source, shape_words(shape) if shape else "") if part)
        if words and self.column.tap is None:
            self._chip(words, bold=True)
        start = self.y
        self.y += _GAP
        groups = self.column.groups
        for number, group in enumerate(groups):
            top = self.y
            folded = len(group.periods) > 1
            if folded:
                self._caption(group)
            for position, row in enumerate(group.rows):
                self._row(row)
                shape_out, following = row.shape_out, group.rows[position + 1 : position + 2]
                if not following:
                    shape_out = group.periods[-1][-1].shape_out
                    following = groups[number + 1].rows[:1] if number + 1 < len(groups) else []
                    if folded:
                        panels.append((top, self.y))
                        self.y += _GAP
                # What a block still does after its merge comes before the shape that it hands on.
                if shape_out and shape_out != shape and not (following and following[0].kind == "word"):
                    self._chip(shape_words(shape_out))
                    shape = shape_out
        end = self.y
        if self.column.output:
            self._chip(self.column.output, bold=True)
        drawn = self.drawn
        drawn.bottom = self.y
        for top, bottom in panels:
            left, right = (drawn.arcs, drawn.boxes) if self.side > 0 else (drawn.boxes, drawn.arcs)
            drawn.panels.add(box(-left, top, left + right, bottom - top, 6, fill=PANEL, stroke=PANEL_EDGE, thickness=1))
        drawn.panels.add(box(-5, start, 10, end - start, 5, fill=PALE))
        return drawn

    def _reach(self, arcs: Number, boxes: Number) -> None:
        self.drawn.arcs = max(self.drawn.arcs, arcs)
        self.drawn.boxes = max(self.drawn.boxes, boxes)

    def _chip(self, text: str, bold: bool = False) -> None:
        width = text_width(text, _PATH + bold, bold) + 8
        self.drawn.front.add(
            box(-width / 2, self.y, width, 15, 3, fill="#ffffff"),
            Words(0, self.y + 11, text, _PATH + bold, INK if bold else GREY, "middle", bold),
        )
        self._reach(width / 2, width / 2)
        self.y += 15 + _GAP

    def _caption(self, group: Group) -> None:
        times = f"× {len(group.periods)}"
        beside = sum(bool(row.skips) for row in group.rows) * len(group.periods)
        words = group.path + (f"   {group.skips} skips" if group.skips != beside else "")
        first, second = text_width(times, 12, True) + 8, text_width(words, _PATH)
        left = 12.0 if self.side > 0 else -12 - first - second
        self.y += 18
        self.drawn.front.add(
            Words(left, self.y - 4, times, 12, INK, "start", True),
            Words(left + first, self.y - 4, words, _PATH, GREY),
        )
        self._reach(0, 20 + first + second)
        self.y += 2

    def _row(self, row: Row) -> None:
        if row.kind == "word":
            self._word(row)
        elif row.kind == "box":
            self._block(row)
        elif row.kind == "join":
            self._join(row)
        else:
            self._branches(row)
        if row.given:
            place = self.drawn.places[id(row)]
            words = ", ".join(row.given)
            x, width = self.side * 1.0, text_width(words, _PATH)
            anchor = "start" if self.side > 0 else "end"
            at = place.entry[0] + x * 18
            self.drawn.front.add(
                line([(at, place.entry[1]), place.entry], stroke=GREY, thickness=1.2),
                arrow(place.entry, (-x, 0), 6, GREY),
                Words(at + x * 4, place.entry[1] + 3, words, _PATH, GREY, anchor),
            )
            self._reach(0, abs(at) + width + 10)

    def _word(self, row: Row) -> None:
        text = " · ".join(row.boxes[0].lines)
        width = text_width(text, _LINE) + 16
        self.drawn.front.add(
            box(-width / 2, self.y, width, 18, 9, fill=BLOCK, stroke=BLOCK_EDGE, thickness=0.8),
            Words(0, self.y + 12.5, text, _LINE, INK, "middle"),
        )
        self._place(row, self.y, self.y + 18 + 3, (self.side * width / 2, self.y + 9))
        self._reach(width / 2 + 6, width / 2 + 6)
        self.y += 18 + _GAP

    def _block(self, row: Row) -> None:
        width, height = self._size(row.boxes[0])
        self._box(row.boxes[0], -width / 2, self.y, width, height)
        self._place(row, self.y, self.y + height + 3, (self.side * width / 2, self.y + height / 2))
        self._reach(width / 2 + 6, width / 2 + 6)
        self.y += height + _GAP

    def _join(self, row: Row) -> None:
        if row.boxes:
            self._block(row)
            return
        at = (0.0, self.y + RADIUS + 4)
        self.drawn.front.add(*sign(row.glyph, at, colour(row.glyph) if row.arcs else GREY))
        self._place(row, at[1], at[1] + RADIUS + 3, (self.side * RADIUS, at[1]))
        self._reach(RADIUS + 6, RADIUS + 6)
        self.y = at[1] + RADIUS + 4 + _GAP

    def _branches(self, row: Row) -> None:
        sizes = [self._size(one) for one in row.boxes]
        height = max(size[1] for size in sizes)
        total = sum(size[0] for size in sizes) + 12 * (len(sizes) - 1)
        caption = row.caption is not None and (row.caption.title or row.caption.path)
        fork = self.y + 3
        if caption and row.caption is not None:
            fork += 15
        top, merge = fork + 13, fork + 13 + height + 17
        left = -total / 2 if row.kind == "parallel" else _BESIDE if self.side > 0 else -_BESIDE - total
        if caption and row.caption is not None:
            x = max(left, -total / 2) if row.kind == "parallel" else left
            self._header(
                row.caption,
                x + (14 if row.kind == "parallel" else 0) + (total / 2 if row.kind == "parallel" else 0),
                fork - 8,
            )
        radius = sign_radius(row.glyph)
        ink = {"stroke": INK, "thickness": 1.2}
        x = left
        for one, (width, own) in zip(row.boxes, sizes, strict=True):
            middle = x + width / 2
            way = 0.0 if abs(middle) < 1 else middle / abs(middle)
            self.drawn.front.add(
                line([(0, fork), (middle, fork), (middle, top - 1)], **ink), arrow((middle, top), (0, 1)),
                line([(middle, top + own), (middle, merge), (way * (radius + 3), merge)] if way else
                     [(middle, top + own), (middle, merge - radius)], **ink),
                arrow((way * radius, merge) if way else (0, merge - radius), (-way, 0) if way else (0, 1)),
            )  # fmt: skip
            self._box(one, x, top, width, own)
            x += width + 12
        stroke = colour(row.glyph) if row.skips else GREY
        if row.skips:
            self._shortcut(row, fork, merge)
        self.drawn.front.add(circle(0, fork, 2.6, fill=INK), *sign(row.glyph, (0, merge), stroke))
        reach = max(abs(left), abs(left + total)) + 10
        self._place(row, fork, merge + radius + 3, (left + total if self.side > 0 else left, top + height / 2))
        self._reach(total / 2 + 8 if row.kind == "parallel" else 0, reach)
        self.y = merge + radius + _GAP

    def _shortcut(self, row: Row, fork: Number, merge: Number) -> None:
        skip = row.skips[0]
        style = {"stroke": colour(skip.kind), "thickness": 2.0, "dash": DASHES.get(skip.shortcut, ())}
        outward, radius = -self.side, sign_radius(skip.kind)
        front = self.drawn.front
        if skip.shortcut == "projection":
            one = Box("", "", row.shortcut or ("projection",))
            width, height = self._size(one)
            away = width / 2 + 16
            x = outward * away
            front.add(
                line([(0, fork), (x, fork), (x, merge), (outward * radius, merge)], 10, **style),
                arrow((outward * radius, merge), (-outward, 0), 7, style["stroke"]),
            )
            self._box(one, x - width / 2, (fork + merge - height) / 2, width, height, style["stroke"])
            self._reach(away + width / 2 + 8, 0)
            return
        front.add(
            bow((0, fork), (outward * (radius + 2), merge), outward * _BULGE, **style),
            arrow((outward * radius, merge), (-outward, 0), 7, style["stroke"]),
        )
        words = ", ".join(row.shortcut)
        anchor = "end" if outward < 0 else "start"
        if words:
            front.add(Words(outward * (_BULGE + 7), (fork + merge) / 2 + 3, words, _PATH, style["stroke"], anchor))
        self._reach(_BULGE + 14 + text_width(words, _PATH), 0)

    def _place(self, row: Row, top: Number, bottom: Number, entry: Point) -> None:
        self.drawn.places[id(row)] = Place(0.0, top, bottom, entry)

    def _header(self, one: Box, x: Number, y: Number) -> None:
        if one.title:
            self.drawn.front.add(Words(x, y, one.title, _TITLE, INK, "start", True))
            x += text_width(one.title, _TITLE, True) + 6
        if one.path:
            self.drawn.front.add(Words(x, y, one.path, _PATH, GREY))

    def _size(self, one: Box) -> tuple[Number, Number]:
        header = (
            text_width(one.title, _TITLE, True) + (6 if one.title and one.path else 0) + text_width(one.path, _PATH)
        )
        lines = one.lines or ("identity",)
        width = max(header, *(text_width(words, _LINE) for words in lines))
        return width + 2 * _PAD, 2 * _PAD + (15 if header else 0) + _LINE_STEP * len(lines) - 4

    def _box(self, one: Box, x: Number, y: Number, width: Number, height: Number, edge: str = BLOCK_EDGE) -> None:
        dash = () if edge == BLOCK_EDGE else (4, 3)
        self.drawn.front.add(box(x, y, width, height, 4, fill=BLOCK, stroke=edge, thickness=1, dash=dash))
        base = y + _PAD + 8
        if one.title or one.path:
            self._header(one, x + _PAD, base)
            base += 15
        for words in one.lines or ("identity",):
            self.drawn.front.add(Words(x + _PAD, base, words, _LINE, INK))
            base += _LINE_STEP
