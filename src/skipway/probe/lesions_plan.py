"""What to change in a network for a lesion: the branch of a skip left out, a layer left out, blocks exchanged."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from skipway.graph import SkipGraph
from skipway.graph.ir import Operation, Ref, Trace
from skipway.graph.operations import Passage, weight_layers
from skipway.graph.skips import Skip
from skipway.probe.edges import ancestors, merging
from skipway.probe.replay import Change


def without_branches(graph: SkipGraph, skips: Iterable[Skip]) -> Change:
    """Leave out the branches of skips: their merges read zeros in their place, so that y = shortcut(x).

    In a concatenation, the branch's channels are zeros. What only the branch needed is not computed.
    """
    trace = graph.trace
    zeroed: set[tuple[int, int]] = set()
    on_branch: set[int] = set()
    for skip in skips:
        on_branch |= ancestors(trace, skip.branches, skip.source)
        for index in merging(trace, skip):
            passages = graph.flow.passages[index]
            for position, value in enumerate(trace.operations[index].operands):
                # A fused x + w * x reads x twice: the plain term is the shortcut.
                plain = value == skip.carried and passages[position] == Passage.SUM
                if value in skip.branches and not plain:
                    zeroed.add((index, position))
    return Change(skipped=_unneeded(trace, on_branch, zeroed), zeroed=frozenset(zeroed))


def _unneeded(trace: Trace, values: set[int], zeroed: set[tuple[int, int]]) -> frozenset[int]:
    """The operations whose results, all among these values, nothing reads any more."""
    needed = set(trace.outputs)
    skipped: set[int] = set()
    for operation in reversed(trace.operations):
        results = operation.results
        if results and values.issuperset(results) and needed.isdisjoint(results):
            skipped.add(operation.index)
            continue
        needed.update(
            value for position, value in enumerate(operation.operands) if (operation.index, position) not in zeroed
        )
    return frozenset(skipped)


@dataclass(frozen=True)
class Unit:
    """A weight layer with the norm, activation and dropout that follow it: what a plain network can go without."""

    name: str
    operations: tuple[int, ...]


def units(graph: SkipGraph) -> list[Unit]:
    """The layers of a network that give what they are given in shape, in order, each with what follows it alone."""
    trace, flow = graph.trace, graph.flow
    found = []
    for operation in trace.operations:
        if weight_layers(operation, trace) != 1 or not _one_signal(trace, operation):
            continue
        chain = [operation]
        while True:
            readers = flow.readers[chain[-1].results[0]]
            following = trace.operations[readers[0]] if len(readers) == 1 else None
            if following is None or not _continues(graph, following):
                break
            chain.append(following)
        entered, left = trace.values[operation.operands[0]], trace.values[chain[-1].results[0]]
        if entered.shape == left.shape and entered.dtype == left.dtype and left.index not in trace.outputs:
            found.append(Unit(str(operation.site), tuple(one.index for one in chain)))
    return found


def _one_signal(trace: Trace, operation: Operation) -> bool:
    signals = [value for value in operation.operands if trace.values[value].signal]
    return len(operation.results) == 1 and signals == list(operation.operands[:1])


def _continues(graph: SkipGraph, operation: Operation) -> bool:
    ways = graph.flow.passages[operation.index]
    shape = graph.trace.values[operation.operands[0]].shape
    kept = len(operation.results) == 1 and graph.trace.values[operation.results[0]].shape == shape
    return kept and _one_signal(graph.trace, operation) and ways[0] in (Passage.NORM, Passage.ACTIVATION, Passage.SAME)


def without_units(chosen: Iterable[Unit]) -> Change:
    """Leave out layers: each gives what it was given."""
    chosen = list(chosen)
    bypassed = {unit.operations[-1]: unit.operations[0] for unit in chosen}
    inner = {operation for unit in chosen for operation in unit.operations[:-1]}
    return Change(skipped=frozenset(inner), bypassed=bypassed)


@dataclass(frozen=True)
class Block:
    """A stretch of the network from the source of a skip to what comes after its merge; `kind` is equal for blocks that
    can stand in for one another, and `tensors` are the names of the parameters and buffers that make one of them up."""

    kind: tuple[object, ...]
    tensors: tuple[str, ...]


def blocks(graph: SkipGraph) -> list[Block]:
    """The block of every skip of a network whose skips follow one another, or of a part of it, in order."""
    trace = graph.trace
    skips = sorted(graph.skips, key=lambda skip: skip.merge)
    sources = sorted({skip.source for skip in skips})
    found, tails = [], dict[tuple[object, ...], int]()
    for skip in skips:
        start = trace.values[skip.source].producer
        first = 0 if start is None else start + 1
        later = [
            trace.values[source].producer for source in sources if source > trace.operations[skip.merge].results[0] - 1
        ]
        body = _signature(trace, range(first, skip.merge + 1))
        if later and later[0] is not None:
            tails.setdefault(body, later[0] - skip.merge)
        end = min(skip.merge + 1 + tails.get(body, 0), len(trace.operations))
        inside = range(first, end)
        found.append(Block(_signature(trace, inside), _tensors(trace, inside)))
    return found


def _signature(trace: Trace, inside: range) -> tuple[object, ...]:
    """What operations do, without which tensors they do it to: how they are linked, and the shapes of all."""
    made = {value: place for place, index in enumerate(inside) for value in trace.operations[index].results}

    def told(item: object) -> object:
        if isinstance(item, Ref):
            value = trace.values[item.value]
            return ("made", made[item.value]) if item.value in made else (value.origin, value.shape)
        if isinstance(item, tuple):
            return tuple(told(part) for part in item)
        if isinstance(item, slice):
            return (told(item.start), told(item.stop), told(item.step))
        return tuple((key, told(part)) for key, part in item.items()) if isinstance(item, dict) else item

    return tuple(
        (one.name, one.inplace, told(one.args), told(one.kwargs), tuple(trace.values[v].shape for v in one.results))
        for one in (trace.operations[index] for index in inside)
    )


def _tensors(trace: Trace, inside: range) -> tuple[str, ...]:
    """The parameters and buffers that operations read, in order, one name each time."""
    return tuple(
        trace.values[value].name
        for index in inside for value in trace.operations[index].operands
        if trace.values[value].origin in ("parameter", "buffer")
    )  # fmt: skip


def exchanged(order: Sequence[int], found: Sequence[Block], tensors: dict[str, Tensor]) -> Change:
    """Put block `order[i]` where block i stands, for every i."""
    replaced = {
        here: tensors[there]
        for place, other in enumerate(order) if place != other
        for here, there in zip(found[place].tensors, found[other].tensors, strict=True) if here != there
    }  # fmt: skip
    return Change(tensors=replaced)


def shuffled(found: Sequence[Block], swaps: int, generator: random.Random) -> list[int]:
    """The order after so many random exchanges of two blocks of one kind."""
    order = list(range(len(found)))
    alike: dict[tuple[object, ...], list[int]] = {}
    for place, block in enumerate(found):
        alike.setdefault(block.kind, []).append(place)
    pairs = [(a, b) for places in alike.values() for a in places for b in places if a < b]
    for _ in range(swaps):
        a, b = generator.choice(pairs)
        order[a], order[b] = order[b], order[a]
    return order


def kendall_tau(order: Sequence[int]) -> float:
    """Kendall's rank correlation between an order and the original: 1 - 2 * inversions / (n (n - 1) / 2).

    >>> kendall_tau([0, 1, 2]), kendall_tau([2, 1, 0])
    (1.0, -1.0)
    """
    n = len(order)
    inversions = sum(order[a] > order[b] for a in range(n) for b in range(a + 1, n))
    return 1.0 - 4.0 * inversions / (n * (n - 1)) if n > 1 else 1.0
