"""The blocks of a traced model that could carry a skip: what repeats in it, up to the activation that ends it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from skipway.graph.ir import Call, Operation, Trace
from skipway.graph.operations import ACTIVATIONS, weight_layers
from skipway.graph.skipgraph import SkipGraph

_CONTAINERS = ("Sequential", "ModuleList", "ModuleDict")


@dataclass(frozen=True)
class Block:
    """A stretch of a trace: from the tensor `source` that the call `entry` takes, to the operation `joint`.

    A skip joins what `joint` gives if `after`, else what it takes: then it is the activation that ends the block.
    `taken` and `given` are the shapes where the stream leaves and where it is joined.
    """

    path: str
    entry: int
    source: int
    joint: int
    after: bool
    operations: tuple[int, ...]
    taken: tuple[int, ...]
    given: tuple[int, ...]


def blocks(graph: SkipGraph) -> list[Block]:
    """The blocks that have no skip past them, in the order in which they run.

    Where modules of one kind with two weight layers or more occur several times, the innermost such modules are the
    blocks; else every two weight layers in a row of one sequence.
    """
    trace = graph.trace
    weights = [weight_layers(operation, trace) > 0 for operation in trace.operations]
    found = list(_repeated(trace, weights)) or list(_pairs(trace, weights))
    merges = [(skip.source, skip.merge) for skip in graph.skips]
    return [
        block for block in found
        if not any(source == block.source and merge in block.operations for source, merge in merges)
        and not any(block.joint in skip.branch_operations for skip in graph.skips if skip.source == block.source)
    ]  # fmt: skip


def _repeated(trace: Trace, weights: list[bool]) -> Iterator[Block]:
    composite = [
        call for call in trace.calls
        if call.parent is not None and call.kind not in _CONTAINERS and sum(weights[call.start : call.stop]) >= 2
        and any(other.parent == call.index for other in trace.calls[call.index + 1 :])
    ]  # fmt: skip
    kinds = Counter(call.kind for call in composite)
    repeated = [call for call in composite if kinds[call.kind] >= 2]
    around = {outer.index for call in repeated for outer in trace.enclosing(call.parent)}
    for call in repeated:
        block = None if call.index in around else _block(trace, call, call.start, call.stop, call.module)
        if block is not None:
            yield block


def _pairs(trace: Trace, weights: list[bool]) -> Iterator[Block]:
    """Runs of two weight layers among the calls of one sequence, that pass one tensor on to each other."""
    for around in trace.calls:
        children = [call for call in trace.calls[around.index + 1 :] if call.parent == around.index]
        layers = [call for call in children if call.stop == call.start + 1 and weights[call.start]]
        if around.kind != "Sequential" or len(layers) < 2:
            continue
        position = 0
        while position + 1 < len(layers):
            first, second = layers[position], layers[position + 1]
            after = (call for call in children if call.index > second.index and call.start >= second.stop)
            follower = next(after, None)
            stop = second.stop
            if follower is not None and follower.start < follower.stop:
                normalised = "norm" in trace.operations[follower.start].name
                stop = follower.stop if normalised else stop
            block = _block(trace, first, first.start, stop, first.module)
            resampled = any("pool" in trace.operations[index].name for index in range(first.start, stop))
            if block is None or resampled:
                position += 1
                continue
            yield block
            position += 2


def _block(trace: Trace, entry: Call, start: int, stop: int, path: str) -> Block | None:
    """The stretch of operations as a block, if one signal goes in and one comes out."""
    if stop <= start:
        return None
    signals = [value for value in entry.given if value >= 0 and trace.values[value].signal]
    last = trace.operations[stop - 1]
    if not signals or len(last.results) != 1 or len(trace.values[last.results[0]].shape) < 2:
        return None
    source, after = signals[0], True
    end = stop
    if last.name in ACTIVATIONS and _sole_operand(trace, last, start):
        after, end = False, stop - 1
    if end <= start:
        return None
    joined = last.results[0] if after else last.operands[0]
    return Block(
        path=path,
        entry=entry.index,
        source=source,
        joint=last.index,
        after=after,
        operations=tuple(range(start, end)),
        taken=trace.values[source].shape,
        given=trace.values[joined].shape,
    )


def _sole_operand(trace: Trace, operation: Operation, start: int) -> bool:
    producer = trace.values[operation.operands[0]].producer
    return len(operation.operands) == 1 and producer is not None and producer >= start
