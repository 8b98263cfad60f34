"""The network cut at its skips: what autograd needs to send many gradients back from cut to cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from skipway.graph import SkipGraph
from skipway.graph.ir import Operation, Trace
from skipway.graph.state import Inventory
from skipway.probe.batches import Batches
from skipway.probe.follow import Follower, differentiating, overwritten, run


@dataclass
class Cuts:
    """A forward pass in pieces.

    Every value at which it was cut has a leaf, from which the network went on, and what was made there, which depends
    on the leaves of earlier values alone; the loss depends on leaves as well. Values are in the order of the pass.
    """

    starts: tuple[int, ...]
    leaves: dict[int, Tensor] = field(default_factory=dict)
    made: dict[int, Tensor] = field(default_factory=dict)
    loss: Tensor | None = None

    def push(self, value: int, gradients: Sequence[Tensor]) -> dict[int, list[Tensor]]:
        """Send gradients back from a value to the leaves that it was made from; each leaf's, in the same order."""
        made = self.made.get(value)
        if made is None or not made.requires_grad or not gradients:
            return {}
        earlier = {index: leaf for index, leaf in self.leaves.items() if index < value}
        first = self._back(made, earlier, gradients[0])
        reached = {index: earlier[index] for index in first}
        found = {index: [gradient] for index, gradient in first.items()}
        if reached:
            for gradient in gradients[1:]:
                for index, part in self._back(made, reached, gradient).items():
                    found[index].append(part)
        return found

    def push_loss(self) -> dict[int, Tensor]:
        """The gradient of the loss at the leaves that it was made from."""
        assert self.loss is not None
        return self._back(self.loss, self.leaves, None) if self.loss.requires_grad else {}

    @staticmethod
    def _back(made: Tensor, leaves: dict[int, Tensor], gradient: Tensor | None) -> dict[int, Tensor]:
        # One gradient after the other: on a processor, several at once are slower, since they leave its cache.
        found = torch.autograd.grad(made, list(leaves.values()), gradient, retain_graph=True, allow_unused=True)
        return {index: part for index, part in zip(leaves, found, strict=True) if part is not None}


@contextmanager
def cut(
    model: nn.Module, graph: SkipGraph, batches: Batches, number: int, inventory: Inventory, at_skips: bool = True
) -> Iterator[Cuts]:
    """Inside, one batch has run, cut where the signal begins and, `at_skips`, at sources and at what branches give."""
    values = {value for skip in graph.skips if at_skips for value in (skip.source, *skip.branches)}
    starts = beginnings(graph.trace)
    cutter = _Cutter(inventory, graph.trace, values | set(starts), Cuts(starts))
    batch = batches.items[number]
    output = run(model, batch, cutter, gradient=True)
    try:
        with torch.enable_grad():
            cutter.cuts.loss = batches.loss(output, batch.targets)
        with differentiating():
            yield cutter.cuts
    finally:
        cutter.restore()


def beginnings(trace: Trace) -> tuple[int, ...]:
    """Where the signal begins: the inputs that are numbers, and what is looked up for those that are not."""
    found = [index for index in trace.inputs if trace.values[index].signal]
    for operation in trace.operations:
        if not any(trace.values[value].signal for value in operation.operands):
            found += [value for value in operation.results if trace.values[value].signal]
    return tuple(found)


class _Cutter(Follower):
    """Lets the network go on from a leaf wherever it is to be cut."""

    def __init__(self, inventory: Inventory, followed: Trace, values: Iterable[int], cuts: Cuts):
        super().__init__(inventory, followed)
        self.cuts = cuts
        self._values = frozenset(values)
        self._fragile = overwritten(followed)

    def read(self, operation: Operation, operands: list[Tensor]) -> list[Tensor]:
        if not any(value in self.cuts.starts for value in operation.operands):
            return operands
        given = list(operands)
        for position, (value, tensor) in enumerate(zip(operation.operands, operands, strict=True)):
            if self.trace.values[value].origin == "input" and value in self.cuts.starts:
                if value not in self.cuts.leaves:
                    self.cuts.leaves[value] = tensor.detach().requires_grad_()
                given[position] = self.cuts.leaves[value]
        return given

    def apart(self, operation: Operation) -> bool:
        return not self._values.isdisjoint(operation.results)

    def made(self, operation: Operation, results: list[Tensor]) -> list[Tensor]:
        if self._values.isdisjoint(operation.results):
            return results
        seen = list(results)
        for place, (value, tensor) in enumerate(zip(operation.results, results, strict=False)):
            if value in self._values and tensor.is_floating_point():
                leaf = tensor.detach().requires_grad_()
                self.cuts.made[value], self.cuts.leaves[value] = tensor, leaf
                # What will be written over in place must not be the leaf itself, nor what autograd keeps.
                seen[place] = leaf.clone() if value in self._fragile and not operation.inplace else leaf
        return seen
