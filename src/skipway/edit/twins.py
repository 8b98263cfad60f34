"""`plain_twin` and `residual_twin`: the same model without its skips, or with skips where it had none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from skipway.connect import Kind, resolve
from skipway.connect.connection import PlacedConnection
from skipway.connect.residual import ResidualConnection
from skipway.edit.blocks import Block, blocks
from skipway.edit.graft import built, like
from skipway.edit.homes import home_for
from skipway.edit.layout import channel_axis, site_for
from skipway.edit.leaving_out import Drawn, Reader
from skipway.edit.log import Change, Parameters, apply
from skipway.edit.merges import EditState, apart
from skipway.edit.places import place_of
from skipway.edit.skips import SkipChange, alone, leave_out
from skipway.edit.wiring import Wiring
from skipway.errors import SkipwayError
from skipway.graph.inputs import example
from skipway.graph.ir import Trace
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.tracing import trace


@dataclass(frozen=True)
class BlockChange:
    """A skip past a block of a traced model: from what the block takes to its last operation but for an activation."""

    block: Block
    trace: Trace
    connection: str
    detail: str
    verb: str = "graft"

    @property
    def where(self) -> str:
        return self.block.path

    def replaces(self, other: Change) -> bool:
        return False

    def wire(self, wiring: Wiring, layer: int) -> None:
        connection = wiring.module(self.connection)
        assert isinstance(connection, PlacedConnection)
        state = EditState(connection)
        joint = self.trace.operations[self.block.joint]
        wiring.meet(layer, place_of(self.trace, joint), Joining(state, self.block.after))
        if isinstance(connection, ResidualConnection) and connection.drop is not None:
            values = joint.operands if self.block.after else (joint.operands[0],)
            way = [index for index in self.block.operations if index != joint.index]
            leave_out(wiring, layer, self.trace, way, {joint.index}, values, Drawn(state))
        # Around what leaves the block out, for it must see the stream also then.
        entry = self.trace.calls[self.block.entry]
        positions = {place for place, value in enumerate(entry.given) if value == self.block.source}
        wiring.add(Reader(wiring.module(entry.module), positions, state, wiring.turns(self.trace, [entry])))


@dataclass
class Joining:
    """On the operation where a block's branch ends: its result, or what it is about to take, goes to the stream."""

    state: EditState
    after: bool

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.after:
            return self._write(function(*args, **kwargs))
        return function(self._write(args[0]), *args[1:], **kwargs)

    def _write(self, value: Any) -> Any:
        state = self.state
        assert state.connection is not None
        if state.source is None:
            raise SkipwayError("a grafted skip met the end of its branch before its start: trace the model again")
        source, read, left_out = state.source, state.read, state.left_out
        state.reset()
        if left_out:
            return apart(state.connection.without(source), source)
        return state.connection.write(source, value, read)


def plain_twin(
    model: nn.Module, *args: Any, graph: SkipGraph | None = None, parameters: Parameters = "copy", **kwargs: Any
) -> nn.Module:
    """The model with every short skip cut: what it would be without them, with the same weights.

    Skips that sum are cut; those that concatenate and those from encoder to decoder stay. The model is traced on the
    inputs `args` and `kwargs`; without any, on ones that suit its first layer, or on `graph` if that is given.

    Raises SkipwayError where there is nothing to cut, or a skip cannot be cut (a shortcut that changes shapes).

    >>> import torch, skipway as sw
    >>> net = sw.models.create("resnet20")
    >>> len(sw.trace(plain_twin(net), torch.ones(1, 3, 32, 32)).skips)
    0
    """
    graph = _graph(model, graph, args, kwargs)
    skips = [skip for skip in graph.skips if not skip.long and skip.kind != "concat"]
    if not skips:
        raise SkipwayError(f"this {type(model).__name__} has no short skip to cut: it is its own plain twin")
    for skip in skips:
        alone(skip, "cut")
    return apply(model, [SkipChange("cut", skip) for skip in skips], [], False, parameters)


def residual_twin(
    model: nn.Module,
    *args: Any,
    skip: str | Kind = "residual",
    graph: SkipGraph | None = None,
    parameters: Parameters = "copy",
    **kwargs: Any,
) -> nn.Module:
    """The model with a skip past every block that can carry one, and has none yet.

    A block is a module of a kind that occurs several times and holds two weight layers or more; where a model is one
    flat sequence of layers, two of them in a row, as in He et al. 2015 (arXiv:1512.03385). The skip joins before the
    activation that ends the block. Inputs, `graph` and `parameters` are as for `plain_twin`, the new parameters come
    from `skip`.

    Raises SkipwayError where no block can carry a skip.

    >>> import torch, skipway as sw
    >>> plain = sw.models.create("resnet20", skip="none")
    >>> len(sw.trace(residual_twin(plain), torch.ones(1, 3, 32, 32)).skips)
    9
    """
    kind = resolve(skip)
    graph = _graph(model, graph, args, kwargs)
    found = blocks(graph)
    fitting = []
    for block in found:
        axis = channel_axis(graph.trace, block.operations)
        try:
            fitting.append((block, site_for(block.path, block.taken, block.given, axis, 0, 1)))
        except SkipwayError:
            continue
    if not fitting:
        raise SkipwayError(f"no block of this {type(model).__name__} can carry a skip that it does not have already: "
                           "graft one where you want it, with skipway.edit.graft(model, 'path.of.module')")  # fmt: skip
    changes, connections, taken = [], [], set[str]()
    for index, (block, _) in enumerate(fitting):
        axis = channel_axis(graph.trace, block.operations)
        site = site_for(block.path, block.taken, block.given, axis, index, len(fitting))
        connection = built(kind, site, f"cannot graft around {block.path}")
        home, name = home_for(model, block.path, taken)
        path = f"{home}.{name}" if home else name
        connections.append((home, name, like(connection, model, [block.path])))
        changes.append(BlockChange(block, graph.trace, path, skip if isinstance(skip, str) else repr(kind)))
    return apply(model, changes, connections, False, parameters)


def _graph(model: nn.Module, graph: SkipGraph | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> SkipGraph:
    if graph is not None:
        return graph
    if not args and not kwargs:
        args, kwargs = example(model)
    return trace(model, *args, **kwargs)
