"""`capture`: the real tensors, with autograd, that stand at given values of a trace in one forward pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.graph.ir import Operation, Trace
from skipway.graph.state import Inventory
from skipway.probe.batches import Batch
from skipway.probe.follow import Follower, overwritten, run


class Capturer(Follower):
    """A follower that keeps the tensors of some values as they stood, apart from what is later written over them."""

    def __init__(self, inventory: Inventory, followed: Trace, wanted: Iterable[int]):
        super().__init__(inventory, followed)
        self.wanted = frozenset(wanted)
        self.captured: dict[int, Tensor] = {}
        self._fragile = overwritten(followed)

    def read(self, operation: Operation, operands: list[Tensor]) -> list[Tensor]:
        """Keep what no operation made: inputs, parameters, buffers."""
        for value, tensor in zip(operation.operands, operands, strict=True):
            if value in self.wanted and value not in self.captured and self.trace.values[value].producer is None:
                self.captured[value] = tensor.clone() if value in self._fragile else tensor
        return operands

    def apart(self, operation: Operation) -> bool:
        """Whether what the operation writes in place is kept although it will be written over."""
        return any(value in self.wanted and value in self._fragile for value in operation.results)

    def made(self, operation: Operation, results: list[Tensor]) -> list[Tensor]:
        """Keep what the operation made; the model goes on with a copy of what it will write over."""
        if self.wanted.isdisjoint(operation.results):
            return results
        seen = list(results)
        for place, (value, tensor) in enumerate(zip(operation.results, results, strict=False)):
            if value in self.wanted:
                self.captured[value] = tensor
                if value in self._fragile and not operation.inplace:
                    seen[place] = tensor.clone()
        return seen


def capture(
    model: nn.Module, graph: SkipGraph, batch: Batch, values: Iterable[int], gradient: bool = True
) -> tuple[dict[int, Tensor], Any]:
    """Run the model on a batch as it stands; the tensors of these values of its trace, and the model's output.

    With `gradient` the tensors stand in the graph of autograd, so that `torch.autograd.grad(loss, tensor)` is the
    loss's gradient there. In-place operations on a captured tensor change a copy. What the pass leaves on the model is
    up to the caller (`quiet`). Raises SkipwayError for values that the trace lacks, and where the model no longer runs
    as it was traced.

    >>> import torch, skipway as sw
    >>> layer = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True).eval()
    >>> x = torch.ones(1, 3, 8); graph = sw.trace(layer, x)
    >>> tensors, _ = capture(layer, graph, Batch((x,), {}, None, 1), [graph.skips[0].source])
    >>> [tuple(tensor.shape) for tensor in tensors.values()]
    [(1, 3, 8)]
    """
    wanted = set(values)
    unknown = sorted(value for value in wanted if not 0 <= value < len(graph.trace.values))
    if unknown:
        raise SkipwayError(f"the trace has no value {unknown[0]}; its values are 0 to {len(graph.trace.values) - 1}")
    capturer = Capturer(Inventory.of(model), graph.trace, wanted)
    output = run(model, batch, capturer, gradient)
    capturer.restore()
    return capturer.captured, output
