"""Rows of a drawing, and the groups into which those that repeat are folded."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from skipway.graph.draw_labels import path_range
from skipway.graph.skips import Skip

_LONGEST_PERIOD = 24


@dataclass(frozen=True, slots=True)
class Box:
    """A block: its class, the path of its module, and a line of words for each of its layers."""

    title: str
    path: str
    lines: tuple[str, ...]


@dataclass(slots=True, eq=False)
class Row:
    """One place along a stream: a box on the line ("box"), a word on it ("word"), branches beside it ("skip",
    "parallel"), or the place where arcs or other streams come in ("join").

    `skips` end in the row, beside its boxes; `arcs` come in from further back. `given` names the inputs of the model
    that come in here. Where something leaves to another stream, a row may only be the last of what is folded.
    """

    kind: str
    operations: set[int]
    boxes: list[Box]
    result: int
    glyph: str = ""
    skips: list[Skip] = field(default_factory=list)
    arcs: list[Skip] = field(default_factory=list)
    shortcut: tuple[str, ...] = ()
    caption: Box | None = None
    shape_in: tuple[int, ...] = ()
    shape_out: tuple[int, ...] = ()
    fed_by: tuple[int, ...] = ()
    given: tuple[str, ...] = ()
    leaves: bool = False

    def key(self) -> Any:
        """Equal for rows that may be folded into one."""
        dense = self.glyph == "concat" and bool(self.skips)
        shapes = self.shape_in[2:] if dense else (self.shape_in, self.shape_out)
        words = tuple((box.title, box.lines) for box in self.boxes)
        look = frozenset((skip.kind, skip.shortcut) for skip in (*self.skips, *self.arcs))
        return self.kind, words, self.glyph, look, self.shortcut, shapes, self.fed_by, self.given


@dataclass(slots=True, eq=False)
class Group:
    """Rows that are drawn once, the first of its `periods`, and stand for them all; `path` is the module of each."""

    periods: list[list[Row]]
    path: str = ""

    @property
    def rows(self) -> list[Row]:
        return self.periods[0]

    @property
    def skips(self) -> int:
        """The skips of all periods."""
        return sum(len(row.skips) for rows in self.periods for row in rows)


def fold_rows(rows: list[Row], arcs: list[tuple[int, int]]) -> list[Group]:
    """Put neighbouring rows that repeat, alone or several in turn, into groups.

    `arcs` are the long skips, each from a place between rows (as many rows lie before it) to a row.
    """
    numbers: dict[Any, int] = {}
    coming = [tuple(sorted(target - source for source, target in arcs if target == p)) for p in range(len(rows))]
    keys = [numbers.setdefault((row.key(), reach), len(numbers)) for row, reach in zip(rows, coming, strict=True)]
    groups: list[Group] = []
    position = 0
    while position < len(rows):
        period, times = 1, 1
        for length in range(1, min(_LONGEST_PERIOD, (len(rows) - position) // 2) + 1):
            count = _repetitions(rows, keys, arcs, position, length)
            if count > 1 and count * length > period * times:
                period, times = length, count
        if times > 1:
            # The same repetition may start at any row of its period: it starts where it follows the model's modules.
            starts = [
                p for p in range(position, position + period) if _repetitions(rows, keys, arcs, p, period) >= times
            ]
            start = max(starts, key=lambda p: (len(_module(rows[p : p + period])), -p))
            groups += [Group([[row]]) for row in rows[position:start]]
            position = start
        periods = [rows[position + k * period : position + (k + 1) * period] for k in range(times)]
        groups.append(_named(periods))
        position += period * times
    return groups


def _repetitions(rows: list[Row], keys: list[int], arcs: list[tuple[int, int]], position: int, length: int) -> int:
    """How often the rows from a position on repeat, as long as no more goes in and out than one repetition shows."""
    if rows[position].kind == "word":
        return 1
    first, count = keys[position : position + length], 0
    while keys[position + count * length : position + (count + 1) * length] == first:
        count += 1
    count = max(count, 1)
    while count > 1 and not _foldable(rows, arcs, position, length, count):
        count -= 1
    return count


def _foldable(rows: list[Row], arcs: list[tuple[int, int]], position: int, length: int, count: int) -> bool:
    end = position + length * count
    if any(rows[p].leaves for p in range(position, end - 1)):
        return False
    for source, target in arcs:
        if position <= target < end and source < position + (target - position) // length * length:
            return False
        inside = position < source < end
        if inside and target >= position + ((source - position) // length + 1) * length:
            return False
    return True


def _named(periods: list[list[Row]]) -> Group:
    """A group whose boxes say of which modules they stand."""
    if len(periods) == 1:
        return Group(periods)
    first, last = _module(periods[0]), _module(periods[-1])
    path = path_range(".".join(first), ".".join(last)) if first and first != last else ""

    def relative(own: str, other: str) -> str:
        whole = path_range(own, other)
        return whole[len(path) :].lstrip(".") if path and whole.startswith(path) else whole

    for row, final in zip(periods[0], periods[-1], strict=True):
        row.boxes = [
            replace(box, path=relative(box.path, other.path)) for box, other in zip(row.boxes, final.boxes, strict=True)
        ]
        if row.caption is not None and final.caption is not None:
            row.caption = replace(row.caption, path=relative(row.caption.path, final.caption.path))
    return Group(periods, path)


def _module(rows: list[Row]) -> list[str]:
    """The path of the innermost module that all boxes of some rows stand in, in parts."""
    paths = [box.path.split(".") for row in rows for box in ([row.caption] if row.caption else row.boxes) if box.path]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared
