"""Which operations of a trace stand on which straight line: streams, and the units along them.

A stream is followed backwards, from an output to where it starts. At the merge of a skip it goes straight on to the
skip's source, so that what lies between (the branch) becomes one unit beside the line; where the skip is long or
encloses others, it goes through the branch and the skip becomes an arc outside. A join of several signals that is no
skip is one unit back to where they part; where they come from different inputs, or skips lie between, one of them is
the stream and the others become streams of their own that feed it (encoder and decoder, two towers).
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skipway.graph.ir import Operation
from skipway.graph.operations import Passage
from skipway.graph.skips import Skip

if TYPE_CHECKING:
    from skipway.graph.flow import Flow
    from skipway.graph.skipgraph import SkipGraph


@dataclass(slots=True, eq=False)
class Unit:
    """A piece of a stream: plain operations on the line ("plain"), branches beside it ("skip", "parallel"), or the
    place where an arc or another stream comes in ("join").

    `source` is the value at which its branches part, `merge` the operation that joins them, `branches` the operations
    of each way; `skips` are those drawn within the unit, `arcs` those that come in from further back.
    """

    kind: str
    operations: set[int]
    result: int
    source: int | None = None
    merge: int | None = None
    branches: list[list[int]] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    arcs: list[Skip] = field(default_factory=list)
    inner: list[Skip] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Stream:
    """Units in the order in which they run, from the value `start` (if a stream or an input gives one) to `end`."""

    units: list[Unit]
    start: int | None
    end: int


@dataclass(slots=True)
class Feed:
    """A value that one unit hands to another that is not the next on its line."""

    value: int
    target: Unit


@dataclass(slots=True)
class Streams:
    """All streams of a trace, the one of the main output first; `unit_of` says where each operation stands."""

    streams: list[Stream]
    feeds: list[Feed]
    unit_of: dict[int, Unit]


def find_streams(graph: SkipGraph) -> Streams:
    """Lay every signal operation of a graph's trace on a stream."""
    return _Walk(graph).run()


class _Walk:
    def __init__(self, graph: SkipGraph):
        self.trace = graph.trace
        self.flow: Flow = graph.flow
        self.streams: list[Stream] = []
        self.feeds: list[Feed] = []
        self.unit_of: dict[int, Unit] = {}
        self.by_merge: dict[int, list[Skip]] = defaultdict(list)
        for skip in graph.skips:
            self.by_merge[skip.merge].append(skip)
        self._earlier_concats = self._find_earlier_concats()
        self._readers = self.trace.readers()

    def run(self) -> Streams:
        outputs = sorted(self.trace.outputs, key=lambda value: -self.flow.reach[value].all.bit_count())
        waiting: deque[tuple[int, Unit | None]] = deque((value, None) for value in outputs)
        while waiting:
            value, target = waiting.popleft()
            known = self._unit_that_made(value)
            if target is not None:
                self.feeds.append(Feed(value, target))
            elif known is not None or (self.streams and not self._works(value)):
                continue
            if known is None:
                stream = self._follow(value)
                if stream.units or target is not None or not self.streams:
                    self.streams.append(stream)
                # Feeds are followed before further outputs: what feeds the main stream comes before what leaves it.
                waiting.extendleft(reversed([(v, u) for u in stream.units for v in self._outside(u)]))
        return Streams(self.streams, self.feeds, self.unit_of)

    def _unit_that_made(self, value: int) -> Unit | None:
        producer = self.trace.values[value].producer
        return None if producer is None else self.unit_of.get(producer)

    def _works(self, value: int) -> bool:
        """Whether some layer lies between an output and what is drawn already; views and sums of it are not drawn."""
        waiting, seen = [value], set[int]()
        while waiting:
            current = waiting.pop()
            producer = self.trace.values[current].producer
            if current in seen or producer is None or producer in self.unit_of:
                continue
            seen.add(current)
            operation = self.trace.operations[producer]
            if not {Passage.WEIGHT, Passage.PRODUCT}.isdisjoint(self.flow.passages[producer]):
                return True
            waiting += self.signals(operation)
        return False

    def signals(self, operation: Operation) -> list[int]:
        """The values whose content an operation passes on and that come from the model's inputs."""
        return list(dict.fromkeys(v for v, _ in self.flow.carried(operation) if self.trace.values[v].signal))

    def _follow(self, end: int) -> Stream:
        units: list[Unit] = []
        value: int | None = end
        start: int | None = None
        while value is not None:
            producer = self.trace.values[value].producer
            if producer is None or producer in self.unit_of:
                start = value
                break
            unit, value = self._step(self.trace.operations[producer], value)
            for index in unit.operations:
                self.unit_of[index] = unit
            if units and unit.kind == units[-1].kind == "plain":
                units[-1].operations |= unit.operations
                self.unit_of.update(dict.fromkeys(unit.operations, units[-1]))
            else:
                units.append(unit)
        return Stream(units[::-1], start, end)

    def _step(self, operation: Operation, result: int) -> tuple[Unit, int | None]:
        skips = self.by_merge.get(operation.index, [])
        short = [skip for skip in skips if not skip.long]
        if operation.index in self._earlier_concats:
            source = self.trace.operations[self._earlier_concats[operation.index]].results[0]
            return self._skip_unit(operation, result, source, skips, []), source
        if short:
            source = max(skip.source for skip in short)
            inside = [skip for skip in short if skip.source == source]
            source = self._part_of(operation, source)
            return self._skip_unit(operation, result, source, inside, [s for s in skips if s not in inside]), source
        if skips:
            way = max((value for skip in skips for value in skip.branches), key=self._new_work)
            merged = self._between([skip.carried for skip in skips] + [way], operation)
            shortcuts = {index for skip in skips for index in skip.shortcut_operations if index not in self.unit_of}
            own = shortcuts - self._ancestors_of(way)
            return Unit("join", merged | own, result, way, operation.index, arcs=list(skips)), way
        signals = self.signals(operation)
        if len(signals) < 2:
            return Unit("plain", {operation.index}, result), signals[0] if signals else None
        return self._join(operation, result, signals)

    def _part_of(self, merge: Operation, source: int) -> int:
        """Where a skip's branch parts from the stream: at its source, or further back if it holds a skip from there.

        A highway at a stage border, y = s + T(x) (F(x) - s) with s = pad(x), parts at x and not at s.
        """
        region = self._region(merge, source)
        if not self._closed(region, source):
            inner = {skip.source for index in region for skip in self.by_merge.get(index, []) if skip.source < source}
            for earlier in sorted(inner, reverse=True):
                if self._closed(self._region(merge, earlier), earlier):
                    return earlier
        return source

    def _skip_unit(self, merge: Operation, result: int, source: int, skips: list[Skip], arcs: list[Skip]) -> Unit:
        inside = self._region(merge, source)
        carried = {skip.carried for skip in skips}
        branches = list(dict.fromkeys(v for skip in skips for v in skip.branches if self._makes(v) in inside))
        branches = [v for v in branches if v not in carried] or branches
        if len(branches) > 1 and skips[0].kind == "concat":
            branches = branches[-1:]
        shortcut = {index for skip in skips for index in skip.shortcut_operations}
        ways = [sorted(self._ancestors_of(v, inside) - {merge.index}) for v in branches]
        ways = [[index for index in way if index not in shortcut] or way for way in ways]
        inner = [skip for index in inside if index != merge.index for skip in self.by_merge.get(index, [])]
        return Unit("skip", inside, result, source, merge.index, ways, skips, arcs, inner)

    def _join(self, operation: Operation, result: int, signals: list[int]) -> tuple[Unit, int | None]:
        common = self.flow.reach[signals[0]].all
        for value in signals[1:]:
            common &= self.flow.reach[value].all
        for _ in range(64):
            if not common:
                break
            source = common.bit_length() - 1
            common ^= 1 << source
            if not self.trace.values[source].signal:
                continue
            region = self._region(operation, source)
            if self._closed(region, source):
                if any(index in self.by_merge for index in region):
                    break
                return self._parallel(operation, result, source, region, signals), source
        way = max(signals, key=self._new_work)
        return Unit("join", {operation.index}, result, way, operation.index), way

    def _parallel(self, operation: Operation, result: int, source: int, region: set[int], signals: list[int]) -> Unit:
        ways = [sorted(self._ancestors_of(value, region)) for value in signals]
        sums = {how for _, how in self.flow.carried(operation)} <= {Passage.SUM, Passage.CONCAT}
        heavy = [way for way in ways if any(Passage.WEIGHT in self.flow.passages[index] for index in way)]
        if not sums or len(heavy) < 2:
            return Unit("plain", region, result)
        return Unit("parallel", region, result, source, operation.index, ways)

    def _makes(self, value: int) -> int:
        producer = self.trace.values[value].producer
        return -1 if producer is None else producer

    def _new_work(self, value: int) -> int:
        """How many operations before a value are not drawn yet, a skip's merge counting for many."""
        count = 0
        for index in self._ancestors_of(value):
            if index not in self.unit_of:
                count += 1000 if index in self.by_merge else 1
        return count

    def _ancestors_of(self, value: int, within: set[int] | None = None) -> set[int]:
        found: set[int] = set()
        waiting = [value]
        while waiting:
            producer = self.trace.values[waiting.pop()].producer
            if producer is None or producer in found or (within is not None and producer not in within):
                continue
            found.add(producer)
            waiting += self.signals(self.trace.operations[producer])
        return found

    def _region(self, merge: Operation, source: int) -> set[int]:
        """The operations on the ways from a value to the operation that merges them, that one included."""
        found, waiting = {merge.index}, [merge.index]
        while waiting:
            for value in self.signals(self.trace.operations[waiting.pop()]):
                producer = self.trace.values[value].producer
                if value == source or producer is None or producer in found:
                    continue
                if self.flow.reach[value].all >> source & 1:
                    found.add(producer)
                    waiting.append(producer)
        return found

    def _between(self, values: list[int], merge: Operation) -> set[int]:
        """The sums that lie between the terms of a sum of sums and its outermost sum, that one included."""
        found, waiting = {merge.index}, [merge.index]
        while waiting:
            for value in self.signals(self.trace.operations[waiting.pop()]):
                producer = self.trace.values[value].producer
                if value in values or producer is None or producer in found or producer in self.unit_of:
                    continue
                if self.trace.operations[producer].name == "add":
                    found.add(producer)
                    waiting.append(producer)
        return found

    def _closed(self, region: set[int], source: int) -> bool:
        values = (value for index in region for value in self.signals(self.trace.operations[index]))
        return all(value == source or self._makes(value) in region for value in values)

    def _outside(self, unit: Unit) -> list[int]:
        """The values that come into a unit from elsewhere; what only prepares them for it is made part of the unit."""
        arriving = {value for skip in (*unit.arcs, *unit.skips) for value in (skip.carried, skip.source)} | {
            unit.source
        }
        home = self._home(unit)
        found: dict[int, None] = {}
        waiting = sorted(unit.operations, reverse=True)
        while waiting:
            index = waiting.pop(0)
            operation = self.trace.operations[index]
            for value in self.signals(operation):
                producer = self.trace.values[value].producer
                if value in arriving or (producer in unit.operations if producer is not None else unit.kind == "plain"):
                    continue
                if producer is None:
                    found[value] = None
                elif producer in self.unit_of:
                    if unit.kind != "plain" or self.unit_of[producer] is not unit:
                        found[value] = None
                elif unit.kind != "plain" and home[0] <= producer < home[1] and self._prepares(producer, unit):
                    unit.operations.add(producer)
                    self.unit_of[producer] = unit
                    if len(unit.branches) == 1:
                        unit.branches[0].append(producer)
                    waiting.append(producer)
                else:
                    found[value] = None
        if unit.kind == "plain":
            first = min(unit.operations, default=0)
            before = set(self.signals(self.trace.operations[first])) if unit.operations else set()
            return [value for value in found if value not in before]
        return list(found)

    def _prepares(self, index: int, unit: Unit) -> bool:
        """Whether an operation is no merge and all that reads it stands in the unit."""
        readers = {reader for value in self.trace.operations[index].results for reader in self._readers[value]}
        return index not in self.by_merge and readers <= unit.operations

    def _home(self, unit: Unit) -> tuple[int, int]:
        """From which to which operation the innermost module call runs that holds the whole unit."""
        first, last = min(unit.operations), max(unit.operations)
        for call in self.trace.enclosing(self.trace.operations[last].call):
            if call.start <= first and last < call.stop and call.parent is not None:
                return call.start, call.stop
        return first, last + 1

    def _find_earlier_concats(self) -> dict[int, int]:
        """For each dense concatenation the one before it, whose tensors it holds all and one more."""
        earlier: dict[int, int] = {}
        seen: list[tuple[int, set[int]]] = []
        for index in sorted(self.by_merge):
            operation = self.trace.operations[index]
            if self.by_merge[index][0].kind != "concat" or any(skip.long for skip in self.by_merge[index]):
                continue
            held = set(self.signals(operation))
            for other, fewer in reversed(seen):
                if len(fewer) > 1 and fewer < held:
                    earlier[index] = other
                    break
            seen.append((index, held))
        return earlier
