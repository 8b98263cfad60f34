"""Which input channels of a weight layer come from which earlier tensor, through concatenations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from skipway.graph import SkipGraph
from skipway.graph.ir import Operation
from skipway.graph.operations import CONVOLUTIONS, Passage


@dataclass(frozen=True)
class Target:
    """A weight layer, the norm that its input passed last if it did, and the tensors that its input channels come from,
    each with their number, in order."""

    operation: Operation
    norm: Operation | None
    slices: tuple[tuple[int, int], ...]


def find_targets(graph: SkipGraph) -> list[Target]:
    """Every convolution and linear layer of a graph."""
    found = []
    for operation in graph.trace.operations:
        if operation.name not in CONVOLUTIONS and operation.name != "linear":
            continue
        if operation.value("weight") is None or not graph.trace.values[operation.operands[0]].signal:
            continue
        axis = 1 if operation.name in CONVOLUTIONS else -1
        value, axis, norm = _before_norm(graph, operation.operands[0], axis)
        found.append(Target(operation, norm, tuple(_slices(graph, value, axis))))
    return found


def groups_of(targets: Sequence[Target]) -> dict[int, int]:
    """The group, numbered from 0, of each target (by its operation) that belongs to one.

    Targets that read a concatenation belong together where they share a source; one that reads a single source belongs
    to the group whose source that is, as the first layer of a dense block does.
    """
    parent: dict[int, int] = {}

    def root(value: int) -> int:
        parent.setdefault(value, value)
        while parent[value] != value:
            value = parent[value]
        return value

    several = [target for target in targets if len(target.slices) > 1]
    for target in several:
        first = root(target.slices[0][0])
        for value, _ in target.slices[1:]:
            parent[root(value)] = first
    roots: dict[int, int] = {}
    for target in several:
        roots.setdefault(root(target.slices[0][0]), len(roots))
    return {
        target.operation.index: roots[root(target.slices[0][0])]
        for target in targets if target.slices[0][0] in parent and root(target.slices[0][0]) in roots
    }  # fmt: skip


def _before_norm(graph: SkipGraph, value: int, axis: int) -> tuple[int, int, Operation | None]:
    """Go back past what keeps channels apart; where to, the channel axis there, and the last norm on the way."""
    trace, norm = graph.trace, None
    axis %= len(trace.values[value].shape)
    while (operation := trace.operation_of(value)) is not None:
        edges = graph.flow.carried(operation)
        if len(edges) != 1 or edges[0][1] not in (Passage.NORM, Passage.ACTIVATION, Passage.SAME, Passage.POOL):
            break
        before = _axis_before(graph, operation, edges[0][0], value, axis)
        if before is None:
            break
        if edges[0][1] == Passage.NORM and norm is None:
            norm = operation
        value, axis = edges[0][0], before
    return value, axis, norm


def _axis_before(graph: SkipGraph, operation: Operation, read: int, made: int, axis: int) -> int | None:
    """Which axis of what an operation read holds the channels, if each of them is kept apart."""
    old, new = graph.trace.values[read].shape, graph.trace.values[made].shape
    if operation.name in ("permute", "transpose", "movedim", "swapaxes", "t", "T", "mT"):
        dims = operation.argument("dims")
        dims = dims if isinstance(dims, tuple) else operation.args[1:]
        whole = operation.name == "permute" and len(dims) == len(old) and all(isinstance(d, int) for d in dims)
        return dims[axis] % len(old) if whole else None
    if len(old) == len(new):
        return axis if old[axis] == new[axis] and old[0] == new[0] else None
    # A mean over positions, or a flattening of channels that stand alone.
    if len(new) == 2 and axis == 1 and len(old) > 2 and old[1] == new[1]:
        return 1
    return None


def _slices(graph: SkipGraph, value: int, axis: int) -> list[tuple[int, int]]:
    """The tensors that were concatenated along an axis to make a value, those of inner concatenations included."""
    shape = graph.trace.values[value].shape
    operation = graph.trace.operation_of(value)
    if operation is not None and operation.name == "cat":
        dim = operation.argument("dim", 0)
        if isinstance(dim, int) and dim % len(shape) == axis:
            return [piece for operand in operation.operands for piece in _slices(graph, operand, axis)]
    if (
        operation is not None
        and len(operation.operands) == 1
        and operation.name in ("contiguous", "dropout", "clone", "to")
    ):
        inner = _slices(graph, operation.operands[0], axis)
        if len(inner) > 1:
            return inner
    return [(value, shape[axis])]
