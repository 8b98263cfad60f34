"""Which way every reading of a skip's source goes: into the shortcut, into the branch, or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from skipway.graph.ir import Trace
from skipway.graph.operations import Passage
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import Skip

Way = Literal["shortcut", "branch", "elsewhere"]
Edge = tuple[int, int]


def ways_out(graph: SkipGraph, skip: Skip) -> dict[Edge, Way]:
    """For every operand (operation, position) that reads the source of a skip, which way it leads.

    What neither the shortcut nor the branch needs on its way to the merge leads elsewhere: other skips from the same
    tensor, what comes after the merge. A gate that weights both is of the branch.
    """
    trace = graph.trace
    to_branch = ancestors(trace, skip.branches, skip.source)
    to_carried = ancestors(trace, (skip.carried,), skip.source)
    inside = merging(trace, skip)
    found: dict[Edge, Way] = {}
    for index in dict.fromkeys(graph.flow.readers[skip.source]):
        operation = trace.operations[index]
        for position, value in enumerate(operation.operands):
            if value != skip.source:
                continue
            way: Way = "elsewhere"
            if index <= skip.merge:
                if index in inside:
                    way = _way_into_merge(graph, skip, index, position)
                elif index in skip.shortcut_operations and not to_branch.intersection(operation.results):
                    way = "shortcut"
                elif to_branch.intersection(operation.results):
                    way = "branch"
                elif to_carried.intersection(operation.results):
                    way = "shortcut"
            found[index, position] = way
    return found


def _way_into_merge(graph: SkipGraph, skip: Skip, index: int, position: int) -> Way:
    if skip.source == skip.carried:
        if skip.source not in skip.branches:
            return "shortcut"
        # A fused x + w * x reads x twice: the term that is weighted is the branch.
        return "shortcut" if graph.flow.passages[index][position] == Passage.SUM else "branch"
    return "branch" if skip.source in skip.branches else "elsewhere"


def ancestors(trace: Trace, values: Iterable[int], first: int = 0) -> set[int]:
    """These values and all that they were computed from, as far back as the value `first`."""
    found: set[int] = set()
    waiting = list(values)
    while waiting:
        value = waiting.pop()
        if value >= first and value not in found:
            found.add(value)
            operation = trace.operation_of(value)
            if operation is not None:
                waiting += operation.operands
    return found


def merging(trace: Trace, skip: Skip) -> frozenset[int]:
    """The merge of a skip and, where it is a sum of sums, the sums inside it."""
    ends = {skip.carried, *skip.branches}
    inside = {skip.merge}
    waiting = list(trace.operations[skip.merge].operands)
    while waiting:
        value = waiting.pop()
        operation = trace.operation_of(value)
        if value in ends or operation is None or operation.index in inside:
            continue
        if operation.name in ("add", "view_as", "dropout", "view", "reshape", "alias"):
            inside.add(operation.index)
            waiting += operation.operands
    return frozenset(inside)


def parameters_of(trace: Trace, operations: Iterable[int]) -> tuple[str, ...]:
    """The names of the parameters that these operations read, themselves or computed from (a standardised weight)."""
    names: dict[str, None] = {}
    waiting = [value for index in operations for value in trace.operations[index].operands]
    seen: set[int] = set()
    for value in waiting:
        if value in seen:
            continue
        seen.add(value)
        found = trace.values[value]
        if found.origin == "parameter":
            names[found.name] = None
        elif not found.fed and found.producer is not None:
            waiting += trace.operations[found.producer].operands
    return tuple(names)
