"""What lies between the source of a skip and its merge: layers, modules, scales, changes of resolution."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from skipway.graph.flow import Flow
from skipway.graph.ir import Operation, Trace
from skipway.graph.operations import (
    CONVOLUTIONS,
    RESAMPLERS,
    UPSAMPLERS,
    Passage,
    constant_factor,
    scaling,
    weight_layers,
)


@dataclass(frozen=True)
class Found:
    """A skip as the search leaves it: the operation where it merges, the values that meet there, and how directly.

    `level` is 0 where the shortcut passes arithmetic alone, 1 past a gate that did work, 2 past a norm, a learned scale
    or a pool, 3 past one linear weight layer, 4 past one weight layer with activations. `blend` is "gate" or "scale"
    where the branch takes back as much of the shortcut as it adds: y = s + t * (v - s).
    """

    merge: int
    source: int
    carried: int
    branches: tuple[int, ...]
    level: int
    blend: str = ""


@dataclass(frozen=True)
class Region:
    """The operations and modules of a skip's branches and of its shortcut, and the weight layers on the branches."""

    branch: tuple[int, ...]
    branch_modules: tuple[str, ...]
    shortcut: tuple[int, ...]
    shortcut_modules: tuple[str, ...]
    fewest: int
    most: int
    resampled: bool


def regions(trace: Trace, flow: Flow, found: Iterable[Found]) -> list[Region]:
    """The region of each found skip; the ways out of one source are followed once for all its skips."""
    weights = [weight_layers(operation, trace) for operation in trace.operations]
    starts = [call.start for call in trace.calls]
    found = list(found)
    furthest: dict[int, int] = {}
    for one in found:
        furthest[one.source] = max(furthest.get(one.source, 0), one.merge)
    ways = {source: _ways(trace, flow, weights, source, last) for source, last in furthest.items()}
    made = []
    for one in found:
        fewest, most = ways[one.source]
        reaching = 0
        for branch in one.branches:
            reaching |= flow.reach[branch].all
        branch = sorted({
            producer for value in fewest
            if reaching >> value & 1 and value != one.source
            and (producer := trace.values[value].producer) is not None and producer < one.merge
        })  # fmt: skip
        shortcut = _shortcut(trace, flow, one)
        source = trace.values[one.source].producer
        bounds = (-1 if source is None else source, one.merge)
        own = weights[one.merge] if trace.operations[one.merge].name != "add" else 0
        made.append(
            Region(
                branch=tuple(branch),
                branch_modules=_modules(trace, starts, branch, bounds),
                shortcut=shortcut,
                shortcut_modules=_modules(trace, starts, shortcut, bounds),
                fewest=min(fewest.get(value, 0) for value in one.branches) + own,
                most=max(most.get(value, 0) for value in one.branches) + own,
                resampled=_resampled(trace, branch),
            )
        )
    return made


def _ways(
    trace: Trace, flow: Flow, weights: list[int], source: int, last: int
) -> tuple[dict[int, int], dict[int, int]]:
    """The fewest and the most weight layers from a value to each later one that its content reaches.

    Layers that only compute weights (gates, queries, keys) count where nothing else leads on.
    """
    fewest, most = {source: 0}, {source: 0}
    producer = trace.values[source].producer
    for index in range(0 if producer is None else producer + 1, last):
        operation = trace.operations[index]
        from_here = [value for value in flow.content(operation) if value in fewest]
        from_here = from_here or [value for value, _ in flow.carried(operation) if value in fewest]
        if from_here:
            low = min(fewest[value] for value in from_here) + weights[index]
            high = max(most[value] for value in from_here) + weights[index]
            for result in operation.results:
                fewest[result], most[result] = low, high
    return fewest, most


def _shortcut(trace: Trace, flow: Flow, found: Found) -> tuple[int, ...]:
    """The operations from the source to the operand that is the shortcut, along its direct way."""
    on_way: set[int] = set()
    waiting, seen = [found.carried], {found.source}
    while waiting:
        value = waiting.pop()
        operation = trace.operation_of(value)
        if value in seen or operation is None:
            continue
        seen.add(value)
        for operand, _ in flow.carried(operation):
            reach = flow.reach[operand]
            direct = (
                reach.bare, reach.gated, reach.dressed, reach.projected | reach.linear, reach.lateral | reach.plain
            )[found.level]  # fmt: skip
            if direct >> found.source & 1:
                on_way.add(operation.index)
                waiting.append(operand)
    return tuple(sorted(on_way))


def _modules(trace: Trace, starts: list[int], inside: Iterable[int], bounds: tuple[int, int]) -> tuple[str, ...]:
    """The outermost modules called between the bounds that run at least one of the operations."""
    low, high = bounds
    ordered = sorted(inside)
    names: dict[str, None] = {}
    skip_to = low + 1
    for index in range(bisect_left(starts, low + 1), len(starts)):
        call = trace.calls[index]
        if call.start >= high:
            break
        if call.start < skip_to or call.stop > high or call.stop == call.start:
            continue
        position = bisect_left(ordered, call.start)
        if position < len(ordered) and ordered[position] < call.stop:
            names[call.module] = None
            skip_to = call.stop
    return tuple(names)


def shortcut_name(trace: Trace, flow: Flow, route: Iterable[int], level: int) -> str:
    """What the operations of a shortcut do to what it carries, the heaviest first."""
    operations = [trace.operations[index] for index in route]
    ways = {how for operation in operations for _, how in flow.carried(operation)}
    if Passage.WEIGHT in ways:
        return "projection"
    scaled = _scaled(trace, flow, operations)
    if Passage.POOL in ways:
        return "upsample" if any(operation.name in UPSAMPLERS for operation in operations) else "pool"
    if Passage.PAD in ways:
        return "scaled" if scaled else "padding"
    if Passage.NORM in ways:
        return "norm"
    if any(_strides(operation) for operation in operations):
        return "pool"
    if Passage.ACTIVATION in ways and level != 1:
        return "activation"
    if level == 1 or Passage.GATE in ways or scaled:
        return "scaled"
    return "identity"


def _strides(operation: Operation) -> bool:
    index = operation.argument("index") if operation.name == "getitem" else None
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, slice) and isinstance(part.step, int) and part.step > 1 for part in parts)


def is_scaled(trace: Trace, flow: Flow, merge: Operation, region: Region, branches: tuple[int, ...]) -> bool:
    """Whether a sum multiplies a branch by a number other than one, or by a fixed or learned scale."""
    if merge.kwargs.get("alpha", 1) != 1:
        return True
    inside = set(region.branch)
    return any(_scaled(trace, flow, _tail(trace, flow, value, inside)) for value in branches)


def _tail(trace: Trace, flow: Flow, value: int, inside: set[int]) -> list[Operation]:
    """The views, dropouts and scales that a branch ends with."""
    tail = []
    while (made := trace.operation_of(value)) is not None and made.index in inside:
        edges = flow.carried(made)
        if len(edges) != 1 or edges[0][1] not in (Passage.SAME, Passage.PAD, Passage.SCALE):
            break
        tail.append(made)
        value = edges[0][0]
    return tail


def _scaled(trace: Trace, flow: Flow, operations: list[Operation]) -> bool:
    kinds = [
        (operation, scaling(operation, trace)) for operation in operations if operation.name in ("mul", "div", "neg")
    ]
    # Stochastic depth multiplies by noise and makes up for it with a number: that is a dropout, not a scale.
    dropped = any(kind == "noise" for _, kind in kinds)
    for operation, kind in kinds:
        if kind == "number" and not dropped and constant_factor(operation) != 1.0:
            return True
        if kind in ("learned", "fixed") and not _ends_norm(trace, flow, operation):
            return True
    return any(operation.name == "einsum" for operation in operations)


def _ends_norm(trace: Trace, flow: Flow, operation: Operation) -> bool:
    """Whether a scale is the last step of a norm written out: it multiplies x / deviation(x)."""
    made: Operation | None = operation
    while made is not None:
        edges = flow.carried(made)
        if len(edges) == 2 and all(how == Passage.GATE for _, how in edges):
            (first, _), (second, _) = edges
            return bool(flow.reach[first].light & flow.reach[second].light & ~(1 << first) & ~(1 << second)) or bool(
                flow.reach[second].light >> first & 1 or flow.reach[first].light >> second & 1
            )
        made = (
            trace.operation_of(edges[0][0])
            if len(edges) == 1 and edges[0][1] in (Passage.SAME, Passage.SCALE)
            else None
        )
    return False


_RESIZERS = RESAMPLERS | UPSAMPLERS | CONVOLUTIONS | {"pixel_shuffle", "pixel_unshuffle"}


def _resampled(trace: Trace, branch: Iterable[int]) -> bool:
    """Whether the operations go down in resolution and come up again."""
    down = False
    for index in branch:
        operation = trace.operations[index]
        if operation.name in _RESIZERS:
            before = prod(trace.values[operation.operands[0]].shape[2:])
            after = prod(trace.values[operation.results[0]].shape[2:])
            if after < before:
                down = True
            elif after > before and down:
                return True
    return False
