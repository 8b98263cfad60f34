"""What a drawing shows: the streams of a graph in rows, with the words of their units, and what connects them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from skipway.graph.draw_groups import Box, Group, Row, fold_rows
from skipway.graph.draw_labels import Labels
from skipway.graph.draw_streams import Stream, Unit, find_streams
from skipway.graph.operations import Passage
from skipway.graph.skips import Skip

if TYPE_CHECKING:
    from skipway.graph.skipgraph import SkipGraph

_MOST_LINES = 7
_MOST_BOXES = 6
_SAYS_NOTHING = re.compile(r"(Conv|Linear|Embedding|Sequential|ModuleList|BatchNorm|LayerNorm|ReLU|GELU|Identity).*")


@dataclass(slots=True, eq=False)
class Column:
    """A stream in groups of rows. It starts from the row `tap` of another column, or from the inputs `source`; it
    ends in the row `end` of another, or in an output."""

    groups: list[Group]
    tap: Row | None
    source: str
    shape: tuple[int, ...]
    output: str

    @property
    def rows(self) -> list[Row]:
        return [row for group in self.groups for row in group.rows]


@dataclass(slots=True)
class Plan:
    """Everything a drawing shows, before it has coordinates; `feeds` go from a row to a row, `row_of` says which row
    shows a value of the trace."""

    columns: list[Column]
    feeds: list[tuple[Row, Row]]
    row_of: dict[int, Row]


def plan(graph: SkipGraph, fold: bool = True) -> Plan:
    """The columns, rows and connections of a graph's drawing."""
    return _Planner(graph).run(fold)


class _Planner:
    def __init__(self, graph: SkipGraph):
        self.trace = graph.trace
        self.flow = graph.flow
        self.labels = Labels(self.trace, self.flow)
        self.found = find_streams(graph)
        self.row_of: dict[int, Row] = {}

    def run(self, fold: bool) -> Plan:
        cuts = self._cuts()
        made: list[tuple[Stream, list[Row]]] = []
        for stream in self.found.streams:
            rows: list[Row] = []
            for before, unit in zip([None, *stream.units], stream.units, strict=False):
                for row in self._rows_of(unit, before, cuts):
                    rows.append(row)
                    self.row_of.update(dict.fromkeys(row.operations, row))
            made.append((stream, [row for row in rows if row.kind != "silent"]))
            self._merge_silent(rows, stream.start)
            shape = self._shape(stream.start)
            for row in rows:
                row.shape_in, row.shape_out = shape, self._shape(row.result)
                shape = row.shape_out
        feeds = self._feeds()
        for stream, rows in made:
            tap = self._row_that_made(stream.start)
            if tap is not None:
                tap.leaves = True
            for row in rows:
                for source in (self._row_that_made(skip.source) for skip in row.arcs):
                    if source is not None and source not in rows:
                        source.leaves = True
        columns = []
        stands_for: dict[int, Row] = {}
        for stream, rows in made:
            groups = fold_rows(rows, self._arcs_among(rows)) if fold else [Group([[row]]) for row in rows]
            for group in groups:
                for period in group.periods:
                    stands_for.update({id(row): shown for row, shown in zip(period, group.rows, strict=True)})
            columns.append(self._column(stream, groups))
        for column in columns:
            column.tap = None if column.tap is None else stands_for[id(column.tap)]
        row_of = {
            result: stands_for[id(row)] for index, row in self.row_of.items() if id(row) in stands_for
            for result in self.trace.operations[index].results
        }  # fmt: skip
        shown_feeds = dict.fromkeys((stands_for[id(a)], stands_for[id(b)]) for a, b in feeds)
        return Plan(columns, list(shown_feeds), row_of)

    def _arcs_among(self, rows: list[Row]) -> list[tuple[int, int]]:
        places = {id(row): position for position, row in enumerate(rows)}
        arcs: list[tuple[int, int]] = []
        for target, row in enumerate(rows):
            for source in (self._row_that_made(skip.source) for skip in row.arcs):
                arcs.append((places[id(source)] + 1 if id(source) in places else 0, target))
        return arcs

    def _cuts(self) -> set[int]:
        """The values after which a plain stretch is cut, since something else starts there."""
        arcs = {skip.source for stream in self.found.streams for unit in stream.units for skip in unit.arcs}
        taps = {stream.start for stream in self.found.streams if stream.start is not None}
        return arcs | taps | {feed.value for feed in self.found.feeds}

    def _shape(self, value: int | None) -> tuple[int, ...]:
        return () if value is None else self.trace.values[value].shape

    def _row_that_made(self, value: int | None) -> Row | None:
        producer = None if value is None else self.trace.values[value].producer
        return None if producer is None else self.row_of.get(producer)

    def _merge_silent(self, rows: list[Row], start: int | None) -> None:
        """Let operations that no word stands for count as part of the row before them, or of the first."""
        before = self._row_that_made(start)
        first = next((row for row in rows if row.kind != "silent"), None)
        for row in rows:
            if row.kind != "silent":
                before = row
                continue
            standing = before or first
            if standing is None:
                for index in row.operations:
                    del self.row_of[index]
                continue
            self.row_of.update(dict.fromkeys(row.operations, standing))
            if before is not None and before in rows:
                before.operations |= row.operations
                before.result = row.result

    def _feeds(self) -> list[tuple[Row, Row]]:
        feeds: list[tuple[Row, Row]] = []
        for feed in self.found.feeds:
            readers = (i for i in sorted(feed.target.operations) if feed.value in self.trace.operations[i].operands)
            target = self.row_of.get(next(readers, min(feed.target.operations, default=-1)))
            source = self._row_that_made(feed.value)
            if target is None or source is target:
                continue
            if source is None:
                name = self.trace.values[feed.value].name
                target.given = tuple(dict.fromkeys([*target.given, name])) if name else target.given
                continue
            source.leaves = True
            if id(source) not in target.fed_by:
                target.fed_by += (id(source),)
                feeds.append((source, target))
        return feeds

    def _column(self, stream: Stream, groups: list[Group]) -> Column:
        tap = self._row_that_made(stream.start)
        value = None if stream.start is None else self.trace.values[stream.start]
        source, shape = "", self._shape(stream.start)
        if tap is None:
            first = groups[0].rows[0].operations if groups else set()
            inputs = [value] if value is not None and value.origin == "input" else self._inputs_of(first)
            source = ", ".join(one.name or "input" for one in inputs)
            shape = inputs[0].shape if inputs else shape
        position = self.trace.outputs.index(stream.end) if stream.end in self.trace.outputs else -1
        return Column(
            groups, tap, source, shape, self.trace.output_names[position] or "output" if position >= 0 else ""
        )

    def _inputs_of(self, operations: set[int]) -> list[Any]:
        """The model's inputs that some operations were computed from, integers such as token ids included."""
        waiting = [value for index in operations for value in self.trace.operations[index].operands]
        seen, found = set[int](), []
        while waiting:
            value = self.trace.values[waiting.pop()]
            if value.index in seen:
                continue
            seen.add(value.index)
            if value.origin == "input":
                found.append(value)
            elif value.producer is not None:
                waiting += self.trace.operations[value.producer].operands
        return sorted(found, key=lambda value: value.index)

    def _rows_of(self, unit: Unit, before: Unit | None, cuts: set[int]) -> list[Row]:
        if unit.kind == "plain":
            ending, rest = self._still_inside(sorted(unit.operations), before)
            return [self._plain_row(part) for part in (*ending, *self._parts(rest, cuts))]
        assert unit.merge is not None
        merge = self.trace.operations[unit.merge]
        if unit.kind == "join":
            glyph = unit.arcs[0].kind if unit.arcs else self._glyph(merge.index)
            boxes = [] if glyph else [Box("", "", tuple(self.labels.lines({merge.index})) or (merge.name,))]
            return [Row("join", unit.operations, boxes, unit.result, glyph, arcs=unit.arcs)]
        several = len(unit.branches) > 1
        boxes = []
        for way in unit.branches:
            title, path = self.labels.home(
                way, set(way) if several else unit.operations, None if several else merge.index
            )
            boxes.append(self._box(title, path, self.labels.lines(way)))
        if len(boxes) > _MOST_BOXES:
            rest = len(boxes) - _MOST_BOXES + 1
            boxes = [*boxes[: _MOST_BOXES - 1], Box("", "", (f"… {rest} more",))]
        if unit.inner:
            note = f"+ {len(unit.inner)} skip{'s' if len(unit.inner) > 1 else ''} inside"
            boxes[-1] = Box(boxes[-1].title, boxes[-1].path, (*boxes[-1].lines, note))
        row = Row(unit.kind, unit.operations, boxes, unit.result, self._glyph(merge.index), unit.skips, unit.arcs)
        if unit.skips:
            row.glyph = unit.skips[0].kind
            row.shortcut = self._shortcut(unit.skips[0])
        if several:
            title, path = self.labels.home(sorted(unit.operations), unit.operations, merge.index)
            row.caption = self._box(title, path, [])
            row.boxes = [_under(one, row.caption) for one in row.boxes]
        return [row]

    def _box(self, title: str, path: str, lines: list[str]) -> Box:
        if len(lines) > _MOST_LINES:
            lines = [*lines[: _MOST_LINES - 2], f"… {len(lines) - _MOST_LINES + 1} more", lines[-1]]
        return Box("" if _SAYS_NOTHING.fullmatch(title) else title, path, tuple(lines))

    def _shortcut(self, skip: Skip) -> tuple[str, ...]:
        if skip.shortcut == "identity":
            return ()
        return tuple(self.labels.lines(skip.shortcut_operations)) if skip.shortcut == "projection" else (skip.shortcut,)

    def _glyph(self, merge: int) -> str:
        ways = {how for _, how in self.flow.carried(self.trace.operations[merge])}
        for how, glyph in ((Passage.CONCAT, "concat"), (Passage.SUM, "add"), (Passage.GATE, "gate")):
            if how in ways:
                return glyph
        return ""

    def _plain_row(self, operations: list[int]) -> Row:
        lines = self.labels.lines(operations)
        result = self.trace.operations[operations[-1]].results[0]
        if not lines:
            return Row("silent", set(operations), [], result)
        heavy = [index for index in operations if self.labels.is_heavy(index)]
        if not heavy:
            return Row("word", set(operations), [Box("", "", tuple(lines))], result)
        title, path = self.labels.home(operations, set(operations))
        return Row("box", set(operations), [self._box(title, path, lines)], result)

    def _still_inside(self, operations: list[int], before: Unit | None) -> tuple[list[list[int]], list[int]]:
        """What each module around a merge still does after it, such as an activation; and what is left then."""
        parts: list[list[int]] = []
        position = 0
        around = (
            []
            if before is None or before.merge is None
            else self.trace.enclosing(self.trace.operations[before.merge].call)
        )
        for call in around:
            end = position
            while end < len(operations) and call.parent is not None and operations[end] < call.stop:
                end += 1
            if any(self.labels.is_heavy(index) for index in operations[position:end]):
                break
            parts.append(operations[position:end])
            position = end
        return [part for part in parts if part], operations[position:]

    def _parts(self, operations: list[int], cuts: set[int]) -> list[list[int]]:
        """Cut a plain stretch where something starts, where the resolution falls, and between blocks of layers."""
        parts: list[list[int]] = [[]]
        heavy: list[int] = []
        for index in operations:
            if self.labels.is_heavy(index):
                if heavy and self._new_block(heavy, index):
                    parts.append([])
                    heavy = []
                heavy.append(index)
            parts[-1].append(index)
            if any(result in cuts for result in self.trace.operations[index].results):
                parts.append([])
                heavy = []
        return [part for part in parts if part]

    def _new_block(self, heavy: list[int], index: int) -> bool:
        trace = self.trace
        read, made = (
            trace.values[trace.operations[index].operands[0]],
            trace.values[trace.operations[heavy[-1]].results[0]],
        )
        if len(read.shape) != len(made.shape) and "conv" in trace.operations[heavy[-1]].name:
            return True
        if 1 < _positions(read.shape) < _positions(made.shape) or len(heavy) >= _MOST_LINES - 1:
            return True
        last = [call.index for call in trace.enclosing(trace.operations[heavy[-1]].call)]
        below = 0
        for call in trace.enclosing(trace.operations[index].call):
            if call.index in last:
                break
            below += 1
        return below >= 3


def _under(one: Box, caption: Box) -> Box:
    """A box without what the caption above it says already."""
    if (one.title, one.path) == (caption.title, caption.path):
        return replace(one, title="", path="")
    inside = caption.path and one.path.startswith(f"{caption.path}.")
    return replace(one, path=one.path[len(caption.path) + 1 :]) if inside else one


def _positions(shape: tuple[int, ...]) -> int:
    positions = 1
    for extent in shape[2:]:
        positions *= extent
    return positions
