"""What lies on one way of a skip: the calls and operations that need not run when that way is not taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from skipway.graph.ir import Call, Operation, Trace


@dataclass(frozen=True)
class Region:
    """Whole calls of modules, and single operations outside of them; `scope` is the call around them and the merge."""

    calls: tuple[Call, ...]
    operations: tuple[Operation, ...]
    scope: Call


def needless(trace: Trace, merges: set[int], values: Iterable[int]) -> set[int]:
    """The operations that nothing reads any more, directly or not, once the merges do not read `values`."""
    readers = trace.readers()
    kept = set(trace.outputs)
    waiting = list(values)
    gone = set(waiting)
    found: set[int] = set()
    while waiting:
        made = trace.operation_of(waiting.pop())
        if made is None or made.index in found or made.index in merges:
            continue
        unread = all(
            result not in kept
            and all(reader in found or (reader in merges and result in gone) for reader in readers[result])
            for result in made.results
        )
        if unread:
            found.add(made.index)
            waiting.extend(made.operands)
    return found


def region(trace: Trace, way: Iterable[int], unneeded: set[int], merges: set[int]) -> Region | None:
    """A way as whole calls, the outermost that make nothing else, and single operations beside the merge.

    None where the way is entangled with what is still needed: a module of it also gives something that others read, or
    computes in its own code what is none of this way.
    """
    calls: dict[int, Call] = {}
    bare: list[Operation] = []
    for index in sorted(way):
        whole = outermost(trace, index, unneeded)
        if whole is not None:
            calls[whole.index] = whole
        elif index in unneeded:
            bare.append(trace.operations[index])
        else:
            return None
    if not calls and not bare:
        return None
    around = {call.parent for call in calls.values() if call.parent is not None}
    around |= {operation.call for operation in bare} | {trace.operations[index].call for index in merges}
    scope = _common(trace, around)
    beside = {call.index for index in merges for call in trace.enclosing(trace.operations[index].call)}
    if any(operation.call not in beside for operation in bare):
        return None
    return Region(tuple(calls.values()), tuple(bare), scope)


def outermost(trace: Trace, index: int, operations: set[int]) -> Call | None:
    """The outermost call around an operation that runs none but these operations and gives back only their results."""
    found = None
    for call in trace.enclosing(trace.operations[index].call):
        if call.parent is None or "<" in call.module:
            break
        if not all(inside in operations for inside in range(call.start, call.stop)):
            break
        if all(value >= 0 and trace.values[value].producer in operations for value in call.returned):
            found = call
    return found


def _common(trace: Trace, calls: set[int]) -> Call:
    """The innermost call around all of these calls."""
    first, *others = calls
    shared = [call.index for call in trace.enclosing(first)]
    for other in others:
        around = {call.index for call in trace.enclosing(other)}
        shared = [index for index in shared if index in around]
    return trace.calls[shared[0]]
