"""The search for skip connections: where two ways out of one tensor meet again and only one of them does work."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import prod

from skipway.graph.flow import Flow, Reach, reaching_outputs
from skipway.graph.ir import Operation, Trace
from skipway.graph.measure import Found
from skipway.graph.operations import Passage


@dataclass(slots=True)
class _Leaf:
    """A term of a sum of sums: which operation reads it, as which operand, and the sums around it, outermost first."""

    operation: Operation
    position: int
    around: tuple[int, ...]

    @property
    def value(self) -> int:
        return self.operation.operands[self.position]


class Search:
    """The skips found so far, as `visit` is called for each operation in order, before the flow advances past it."""

    def __init__(self, trace: Trace, flow: Flow):
        self.trace = trace
        self.flow = flow
        self.found: list[Found] = []
        self._outputs = set(trace.outputs)
        self._terms: dict[int, list[_Leaf]] = {}
        self._injected: dict[int, set[int]] = defaultdict(set)
        self._unfed = sum(1 << value.index for value in trace.values if value.live and not value.fed)

    def visit(self, operation: Operation) -> frozenset[int]:
        """Look for skips that merge in this operation; the values that are their shortcuts."""
        if operation.index in self.flow.arranging:
            return frozenset()
        leaves = self._leaves(operation)
        if len(leaves) < 2 or self._deferred(operation):
            if len(leaves) > 1:
                self._terms[operation.index] = leaves
            return frozenset()
        for leaf in leaves:
            self._note_injection(operation, leaf)
        reaches = [self.flow.through(leaf.operation, leaf.position) for leaf in leaves]
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for i, shortcut in enumerate(reaches):
            best: dict[int, tuple[int, int]] = {}
            for j, branch in enumerate(reaches):
                if i != j:
                    match = nearest(shortcut, branch)
                    if match is not None and not self._only_centres(leaves[i], leaves[j], branch, match[0]):
                        best[j] = match
            if best:
                source = max(match[0] for match in best.values())
                level = min(match[1] for match in best.values() if match[0] == source)
                groups[i, source, level] = [j for j, match in best.items() if match[0] == source]
        if not self._is_concat(operation):
            groups = _first_of_each_source(groups)
        self._collect(operation, leaves, groups)
        return frozenset(leaves[i].value for i, _, _ in groups)

    def _leaves(self, operation: Operation) -> list[_Leaf]:
        edges = [
            position for position, how in enumerate(self.flow.passages[operation.index])
            if how in (Passage.SUM, Passage.CONCAT)
        ]  # fmt: skip
        if edges and operation.name in ("addmm", "baddbmm", "addbmm", "addmv"):
            edges = [
                position for position, how in enumerate(self.flow.passages[operation.index]) if how != Passage.ASIDE
            ]
        leaves = []
        for position in edges:
            made = self._behind_views(operation.operands[position])
            if made is not None and made.index in self._terms and _adds(operation):
                leaves += [
                    _Leaf(leaf.operation, leaf.position, (operation.index, *leaf.around))
                    for leaf in self._terms[made.index]
                ]
            else:
                leaves.append(_Leaf(operation, position, (operation.index,)))
        return leaves

    def _deferred(self, operation: Operation) -> bool:
        """Whether this is a sum whose only reader is another sum, so that both are one sum of several terms."""
        if not _adds(operation):
            return False
        reader = operation
        while True:
            result = reader.results[0]
            readers = self.flow.readers[result]
            if len(readers) != 1 or result in self._outputs:
                return False
            reader = self.trace.operations[readers[0]]
            if not self._is_view(reader):
                break
        signals = sum(self.trace.values[value].live for value in reader.operands)
        return _adds(reader) and signals > 1

    def _is_view(self, operation: Operation) -> bool:
        return self.flow.passages[operation.index] == (Passage.SAME,)

    def _behind_views(self, value: int) -> Operation | None:
        """The operation that made a value, views and dropouts of what it made aside."""
        made = self.trace.operation_of(value)
        while made is not None and self._is_view(made):
            made = self.trace.operation_of(made.operands[0])
        return made

    def concatenates(self, found: Found) -> bool:
        """Whether a found skip merges by concatenation."""
        return self._is_concat(self.trace.operations[found.merge])

    def _is_concat(self, operation: Operation) -> bool:
        return Passage.CONCAT in self.flow.passages[operation.index]

    def _note_injection(self, operation: Operation, leaf: _Leaf) -> None:
        """Remember where what parameters alone compute (positions, queries) is joined to something."""
        bits = self.flow.reach[leaf.value].bare & self._unfed
        while bits:
            lowest = bits & -bits
            self._injected[lowest.bit_length() - 1].add(operation.results[0])
            bits ^= lowest

    def _only_centres(self, shortcut: _Leaf, branch: _Leaf, reach: Reach, source: int) -> bool:
        subtracts = any(
            self.trace.operations[index].name in ("sub", "rsub") for index in {*shortcut.around, *branch.around}
        )
        return subtracts and not reach.weighted >> source & 1

    def _collect(
        self, operation: Operation, leaves: list[_Leaf], groups: dict[tuple[int, int, int], list[int]]
    ) -> None:
        if self._is_concat(operation):
            for (i, source, level), branches in groups.items():
                values = tuple(dict.fromkeys(leaves[j].value for j in branches))
                self.found.append(Found(operation.index, source, leaves[i].value, values, level))
            return
        # The sums of a sum of sums are merges of their own where a skip closes inside; the innermost come first.
        shown = [leaf.value for leaf in leaves]
        ordered = sorted(groups.items(), key=lambda item: -len(_common([leaves[k] for k in (item[0][0], *item[1])])))
        for (i, source, level), branches in ordered:
            around = _common([leaves[k] for k in (i, *branches)])
            # In a fused x + w * x both terms read x: the weight stands in the operation itself.
            values = tuple(dict.fromkeys(shown[j] for j in branches if shown[j] != shown[i] or self._fused(leaves[j])))
            if not values:
                continue
            merge = around[-1]
            self.found.append(Found(merge, source, shown[i], values, level))
            for k, leaf in enumerate(leaves):
                if merge in leaf.around:
                    shown[k] = self.trace.operations[merge].results[0]

    def _fused(self, leaf: _Leaf) -> bool:
        return self.flow.passages[leaf.operation.index][leaf.position] == Passage.WEIGHT

    def accepted(self) -> list[Found]:
        """The found skips without those that the place of their merge rules out."""
        content = reaching_outputs(self.flow, content_only=True)
        used = reaching_outputs(self.flow, content_only=False)
        return [found for found in self.found if self._accept(found, content, used)]

    def _accept(self, found: Found, content: int, used: int) -> bool:
        trace, flow = self.trace, self.flow
        operation = trace.operations[found.merge]
        result = operation.results[0]
        if not used >> result & 1:
            return False
        source = trace.values[found.source]
        if not trace.values[result].fed:
            return False
        # A learned position or query that is added again in every layer is no stream.
        if not source.fed and sum(content >> joined & 1 for joined in self._injected[found.source]) > 1:
            return False
        if not content >> result & 1 and not self._inside_weighting(found, content):
            return False
        if flow.weighs(found.source):
            return False
        if self._is_concat(operation):
            return operation.name != "stack" or self._mixed(result)
        size, whole = prod(trace.values[found.carried].shape), prod(trace.values[result].shape)
        return found.level < 2 or size == whole

    def _mixed(self, value: int) -> bool:
        """Whether anything computes with a value: a stack of intermediate results may be no more than a list."""
        waiting = [value]
        while waiting:
            for index in self.flow.readers[waiting.pop()]:
                ways = set(self.flow.passages[index])
                if ways - {Passage.SAME, Passage.PART, Passage.PICK, Passage.ASIDE}:
                    return True
                waiting += self.trace.operations[index].results
        return False

    def _inside_weighting(self, found: Found, content: int) -> bool:
        """Whether a skip whose merge only weights others lies in the weighting as a whole, or carries logits on."""
        if content >> found.source & 1:
            return False
        between = 0
        for branch in found.branches:
            between |= self.flow.reach[branch].all
        inside = [
            value for value in range(found.source + 1, max(found.branches) + 1)
            if between >> value & 1 and self.flow.reach[value].all >> found.source & 1
        ]  # fmt: skip
        if not any(content >> value & 1 for value in inside):
            return True
        made = self.trace.operation_of(found.source)
        while found.level == 0 and made is not None:
            edges = self.flow.carried(made)
            if len(edges) > 1 and all(how == Passage.PRODUCT for _, how in edges):
                return True
            calm = [value for value, how in edges if how in (Passage.SAME, Passage.SCALE, Passage.SUM)]
            made = self.trace.operation_of(calm[0]) if calm else None
        return False


def nearest(shortcut: Reach, branch: Reach) -> tuple[int, int] | None:
    """The nearest tensor that one operand carries and the other only reaches past more work, and how directly.

    For the levels see `Found`.
    """
    for level, (carried, reached) in enumerate((
        (shortcut.bare, branch.strict | branch.bent),
        (shortcut.gated, branch.calm | branch.bent),
        (shortcut.dressed, branch.light | branch.bent),
        (shortcut.projected, branch.light | branch.once | branch.bent),
        (shortcut.lateral, branch.light | branch.once | branch.bent),
    )):  # fmt: skip
        common = carried & branch.content & ~reached
        if common:
            return common.bit_length() - 1, level
    return None


def _first_of_each_source(groups: dict[tuple[int, int, int], list[int]]) -> dict[tuple[int, int, int], list[int]]:
    """Of several terms that carry one source, the most direct is the shortcut and the others are branches."""
    best: dict[int, tuple[int, int, int]] = {}
    for key in groups:
        _, source, level = key
        if source not in best or level < best[source][2]:
            best[source] = key
    return {key: groups[key] for key in groups if best[key[1]] == key}


def _adds(operation: Operation) -> bool:
    return operation.name == "add"


def _common(leaves: list[_Leaf]) -> tuple[int, ...]:
    """The sums around all of these terms, outermost first."""
    shared = []
    for sums in zip(*(leaf.around for leaf in leaves), strict=False):
        if len(set(sums)) > 1:
            break
        shared.append(sums[0])
    return tuple(shared)
