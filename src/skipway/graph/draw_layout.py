"""Where everything in a drawing stands: columns beside each other, arcs in lanes outside, the legend below."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from skipway.graph.draw_column import Drawn, Place, draw_column
from skipway.graph.draw_groups import Row
from skipway.graph.draw_rows import Column, Plan
from skipway.graph.draw_scene import Number, Scene, Words, arrow, circle, line
from skipway.graph.draw_style import DASHES, GREY, INK, RADIUS, colour, legend

if TYPE_CHECKING:
    from skipway.graph.skips import Skip

_LANE = 14.0
_GUTTER = 26.0


def lay_out(plan: Plan, title: str, subtitle: str, with_legend: bool = True) -> Scene:
    """Give everything in a plan its coordinates."""
    return _Layout(plan).run(title, subtitle, with_legend)


class _Layout:
    def __init__(self, plan: Plan):
        self.plan = plan
        self.places: dict[int, Place] = {}
        self.arcs: dict[int, Number] = {}
        self.behind = Scene()
        self.lines = Scene()
        self.front = Scene()

    def run(self, title: str, subtitle: str, with_legend: bool) -> Scene:
        self._columns()
        self._long_arcs()
        self._feeds()
        scene = Scene([*self.behind.items, *self.lines.items, *self.front.items], title)
        left, top, right, bottom = scene.bounds()
        scene.add(Words(left, top - 40, title, 15, INK, "start", True), Words(left, top - 22, subtitle, 10.5, GREY))
        if with_legend:
            skips = [skip for column in self.plan.columns for row in column.rows for skip in (*row.skips, *row.arcs)]
            kinds = [kind for kind, _ in Counter(skip.kind for skip in skips).most_common()]
            shortcuts = [name for name in DASHES if any(skip.shortcut == name for skip in skips)]
            folded = any(len(group.periods) > 1 for column in self.plan.columns for group in column.groups)
            key = legend(kinds, shortcuts, folded, bool(self.plan.feeds), max(right - left, 420.0))
            scene.add(*key.moved(left, bottom + 30).items)
        return scene

    def _columns(self) -> None:
        main, *others = self.plan.columns
        # Streams that begin with an input of their own are read from left to right: before the stream that they feed.
        self.side = -1 if any(column.tap is None for column in others) else 1
        drawn = draw_column(main, self.side)
        self._put(drawn, 0.0, 0.0)
        self.arcs[id(main)] = drawn.arcs
        lanes = len({id(source) for source, _ in self.plan.feeds}) + sum(column.tap is not None for column in others)
        self.gutter = drawn.boxes + _GUTTER / 2
        edge = drawn.boxes + _GUTTER + _LANE * lanes
        slots: list[list[tuple[Number, Number, Drawn, Column]]] = []
        waiting = sorted(
            ((draw_column(column, -self.side), column) for column in others), key=lambda pair: pair[0].bottom
        )
        tops: dict[int, Number] = {id(row): place.bottom for row, place in ((r, self.places[id(r)]) for r in main.rows)}
        while waiting:
            ready = [pair for pair in waiting if pair[1].tap is None or id(pair[1].tap) in tops] or waiting[:1]
            waiting.remove(ready[0])
            one, column = ready[0]
            top = tops.get(id(column.tap), 0.0) + (12 if column.tap is not None else 0)
            tops |= {row: place.bottom + top for row, place in one.places.items()}
            span = (top, top + one.bottom)
            for slot in slots:
                if all(span[1] + 20 < low or high + 20 < span[0] for low, high, _, _ in slot):
                    slot.append((*span, one, column))
                    break
            else:
                slots.append([(*span, one, column)])
        for slot in slots:
            boxes = max(one.boxes for _, _, one, _ in slot)
            x = self.side * (edge + boxes)
            for top, _, one, column in slot:
                self._put(one, x, top)
                self.arcs[id(column)] = one.arcs
            edge += (
                boxes
                + max(one.arcs + _LANE * len({s.source for row in c.rows for s in row.arcs}) for _, _, one, c in slot)
                + _GUTTER
            )
        for column in others:
            if column.tap is not None and column.rows:
                self._tap(column.tap, self.places[id(column.rows[0])], tops.get(id(column.tap), 0.0))

    def _put(self, drawn: Drawn, x: Number, y: Number) -> None:
        self.behind.add(*drawn.panels.moved(x, y).items)
        self.front.add(*drawn.front.moved(x, y).items)
        for row, place in drawn.places.items():
            entry = (place.entry[0] + x, place.entry[1] + y)
            self.places[row] = replace(place, x=x, top=place.top + y, bottom=place.bottom + y, entry=entry)

    def _tap(self, row: Row, first: Place, level: Number) -> None:
        place = self.places.get(id(row))
        if place is None:
            return
        x, top = first.x, level + 20
        self.lines.add(
            line([(place.x, place.bottom), (x, place.bottom), (x, top - 4)], stroke=GREY, thickness=1.2),
            arrow((x, top), (0, 1), 6, GREY),
            circle(place.x, place.bottom, 2.6, fill=GREY),
        )

    def _long_arcs(self) -> None:
        """Arcs that come in from further back, in lanes outside their column, the shortest innermost."""
        for column in self.plan.columns:
            arcs: dict[tuple[int, str], list[tuple[Skip, Row]]] = {}
            for row in column.rows:
                for skip in row.arcs:
                    arcs.setdefault((skip.source, skip.kind), []).append((skip, row))
            if not arcs:
                continue
            reach = self.arcs[id(column)]
            spans = {
                source: (self._source(ends[0][0], column)[1], max(self.places[id(row)].top for _, row in ends))
                for source, ends in arcs.items()
            }
            lanes: list[list[tuple[Number, Number]]] = []
            for source, span in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
                number = next(
                    (i for i, lane in enumerate(lanes) if all(span[1] < low or high < span[0] for low, high in lane)
                     and not any(low <= span[0] and span[1] <= high for later in lanes[:i] for low, high in later)),
                    len(lanes),
                )  # fmt: skip
                if number == len(lanes):
                    lanes.append([])
                lanes[number].append(span)
                for skip, row in arcs[source]:
                    self._long_arc(skip, row, column, reach + 12 + _LANE * number)

    def _source(self, skip: Skip, column: Column) -> tuple[Number, Number]:
        row = self.plan.row_of.get(skip.source)
        place = None if row is None else self.places.get(id(row))
        if place is not None:
            return place.x, place.bottom
        first = self.places[id(column.rows[0])]
        return first.x, first.top - 6

    def _long_arc(self, skip: Skip, row: Row, column: Column, away: Number) -> None:
        x, start = self._source(skip, column)
        place = self.places[id(row)]
        outward = -self.side if column is self.plan.columns[0] else self.side
        lane = place.x + outward * away
        end = (place.x + outward * RADIUS, place.top if row.kind == "join" else place.bottom - RADIUS - 3)
        style = {"stroke": colour(skip.kind), "thickness": 2.0, "dash": DASHES.get(skip.shortcut, ())}
        self.lines.add(line([(x, start), (lane, start), (lane, end[1]), end], 12, **style))
        self.front.add(
            arrow(end, (-outward, 0), 7, style["stroke"]), circle(x, start, 3, fill=style["stroke"]),
        )  # fmt: skip
        if skip.shortcut not in ("identity", "scaled"):
            self.front.add(
                Words(
                    end[0] + outward * 12,
                    end[1] - 5,
                    skip.shortcut,
                    9,
                    style["stroke"],
                    "end" if outward < 0 else "start",
                )
            )

    def _feeds(self) -> None:
        lanes: dict[int, Number] = {}
        for source, target in self.plan.feeds:
            start, end = self.places.get(id(source)), self.places.get(id(target))
            if start is None or end is None:
                continue
            if id(source) not in lanes:
                lanes[id(source)] = self.side * (self.gutter + _LANE * len(lanes))
            lane = lanes[id(source)]
            direction = -1.0 if lane > end.entry[0] else 1.0
            self.lines.add(
                line(
                    [(start.x, start.bottom), (lane, start.bottom), (lane, end.entry[1]), end.entry],
                    stroke=GREY,
                    thickness=1.2,
                ),
                circle(start.x, start.bottom, 2.6, fill=GREY),
            )
            self.front.add(arrow(end.entry, (direction, 0), 6, GREY))
