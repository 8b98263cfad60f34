"""Splitting the gradient at every skip, while it flows: what came through the shortcut, and what through the branch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from skipway.graph import SkipGraph
from skipway.graph.ir import Operation, Trace
from skipway.graph.state import Inventory
from skipway.probe.edges import Edge, Way, ways_out
from skipway.probe.follow import Follower

Sums = list[Tensor | float]
WAYS: tuple[Way, ...] = ("shortcut", "branch", "elsewhere")


@dataclass(frozen=True)
class Split:
    """The skips of one source, and for each operand that reads it the way that it is on as each skip sees it."""

    skips: tuple[int, ...]
    groups: dict[Edge, tuple[Way, ...]]


def splits(graph: SkipGraph) -> dict[int, Split]:
    """The sources of a graph's skips, each with how its readers split."""
    by_source: dict[int, list[int]] = {}
    for skip in graph.skips:
        by_source.setdefault(skip.source, []).append(skip.index)
    found = {}
    for value, skips in by_source.items():
        ways = [ways_out(graph, graph.skips[index]) for index in skips]
        found[value] = Split(tuple(skips), {edge: tuple(way[edge] for way in ways) for edge in ways[0]})
    return found


def empty_sums(graph: SkipGraph) -> list[Sums]:
    """What a `Splitter` gathers into, one row a skip."""
    return [[0.0] * 5 for _ in graph.skips]


@dataclass
class _Source:
    """The aliases of one source in a pass, and the gradients that came back so far."""

    split: Split
    root: Tensor | None = None
    aliases: dict[tuple[Way, ...], Tensor] = field(default_factory=dict)
    arrived: dict[tuple[Way, ...], Tensor] = field(default_factory=dict)


class Splitter(Follower):
    """A follower that lets every reader of a skip's source read it through an alias of its own way.

    An alias costs no memory and no arithmetic; its gradient is what came back that way, and all of them together are
    the gradient at the source. `squares[skip]` (five zeros at first) gathers the squared norms of what came through the
    shortcut, the branch and elsewhere, of their sum, and the inner product of the first two; `leaves` are tensors that
    `torch.autograd.grad` must be asked for, so that the gradient is computed even where no parameter needs it.
    """

    def __init__(self, inventory: Inventory, followed: Trace, plan: dict[int, Split], squares: list[Sums]):
        super().__init__(inventory, followed)
        self.leaves: list[Tensor] = []
        self.squares = squares
        self._sources = {value: _Source(split) for value, split in plan.items()}
        self._readers: dict[int, set[int]] = {}
        for value, split in plan.items():
            for operation, _ in split.groups:
                self._readers.setdefault(operation, set()).add(value)

    def read(self, operation: Operation, operands: list[Tensor]) -> list[Tensor]:
        """Read sources by the alias of the way that the operation is on."""
        if operation.index not in self._readers or not torch.is_grad_enabled():
            return operands
        given = list(operands)
        for position, (value, tensor) in enumerate(zip(operation.operands, operands, strict=True)):
            if value in self._readers[operation.index] and tensor.is_floating_point():
                source = self._sources[value]
                given[position] = self._alias(source, source.split.groups[operation.index, position], tensor)
        return given

    def _alias(self, source: _Source, group: tuple[Way, ...], tensor: Tensor) -> Tensor:
        if source.root is None:
            if not tensor.requires_grad:
                tensor = tensor.detach().requires_grad_()
                self.leaves.append(tensor)
            source.root = tensor.view_as(tensor)
            source.root.register_hook(lambda whole: self._settle(source))
        if group not in source.aliases:
            alias = source.aliases[group] = source.root.view_as(source.root)

            def arrive(gradient: Tensor) -> None:
                source.arrived[group] = gradient
                # As soon as all have come, so that autograd, which adds them up next, may write over the first.
                if len(source.arrived) == len(source.aliases):
                    self._settle(source)

            alias.register_hook(arrive)
        return source.aliases[group]

    def _settle(self, source: _Source) -> None:
        """All ways have come back: add up what each of the skips asks for, and let the gradients go."""
        arrived, source.arrived = source.arrived, {}
        if not arrived:
            return
        with torch.no_grad():
            # Every gradient is read once for its own norm and once for each other one: sums follow from products.
            groups = list(arrived)
            products = {
                (i, j): _product(arrived[groups[i]], arrived[groups[j]])
                for i in range(len(groups)) for j in range(i, len(groups))
            }  # fmt: skip
            for place, skip in enumerate(source.split.skips):
                members = [[i for i, group in enumerate(groups) if group[place] == way] for way in WAYS]
                sums = self.squares[skip]
                for position, part in enumerate((*members, range(len(groups)))):
                    sums[position] = sums[position] + _between(products, part, part)
                sums[4] = sums[4] + _between(products, members[0], members[1])

    def release(self) -> None:
        """The backward pass is over: let go of the graph of autograd, and put back what the model wrote."""
        for source in self._sources.values():
            source.root = None
            source.aliases.clear()
            source.arrived.clear()
        self.leaves.clear()
        self.restore()


def _between(products: dict[tuple[int, int], Tensor], ones: Iterable[int], others: Iterable[int]) -> Tensor | float:
    """The inner product of two sums of gradients."""
    return sum((products[min(i, j), max(i, j)] for i in ones for j in others), 0.0)


def _product(a: Tensor, b: Tensor) -> Tensor:
    if a.dtype in (torch.float16, torch.bfloat16):
        a, b = a.float(), b.float()
    if a is b:
        product = torch.linalg.vector_norm(a)
        return (product.double() if product.device.type != "mps" else product) ** 2
    product = torch.dot(a.reshape(-1), b.reshape(-1))
    return product.double() if product.device.type != "mps" else product
