"""Editing the skips that a trace found: `cut`, `lesion` and `swap`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from skipway.connect import Connection, Kind, resolve
from skipway.connect.connection import PlacedConnection
from skipway.connect.residual import ResidualConnection
from skipway.edit.graft import built
from skipway.edit.homes import home_for
from skipway.edit.layout import channel_axis, site_for
from skipway.edit.leaving_out import Always, Drawn, Reader, Reading, Starting, Stub
from skipway.edit.log import Change, Parameters, apply
from skipway.edit.merges import SUMS, Dropping, EditState, Entering, Junction, Writing, junctions
from skipway.edit.places import place_of, turn
from skipway.edit.region import needless, outermost, region
from skipway.edit.selection import Which, select
from skipway.edit.stale import check
from skipway.edit.wiring import Wiring
from skipway.errors import SkipwayError
from skipway.graph.ir import Ref, Trace
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import Skip


@dataclass(frozen=True)
class SkipChange:
    """One skip cut, lesioned or swapped."""

    verb: str
    skip: Skip
    connection: str = ""
    detail: str = ""

    @property
    def where(self) -> str:
        return str(self.skip.site)

    @property
    def trace(self) -> Trace:
        return self.skip.trace

    def replaces(self, other: Change) -> bool:
        """A later edit of the same skip takes the place of an earlier one."""
        mine = (self.skip.merge, self.skip.carried)
        return isinstance(other, SkipChange) and (other.skip.merge, other.skip.carried) == mine

    def wire(self, wiring: Wiring, layer: int) -> None:
        state = EditState()
        joined = junctions(self.skip)
        if self.verb == "swap":
            connection = wiring.module(self.connection)
            assert isinstance(connection, PlacedConnection)
            state.connection = connection
        for junction in joined:
            patch = _patch(self.verb, junction, junction is joined[-1], state)
            if patch is not None:
                wiring.meet(layer, place_of(self.trace, junction.operation), patch)
        merges = {junction.operation.index for junction in joined}
        skip, chance = self.skip, isinstance(state.connection, ResidualConnection) and state.connection.drop is not None
        if self.verb == "cut" and skip.shortcut_operations:
            leave_out(wiring, layer, self.trace, skip.shortcut_operations, merges, [skip.carried], Always(state))
        elif self.verb == "lesion" or chance:
            decision = Drawn(state) if chance else Always(state)
            brought = [value for junction in joined for value in junction.brought]
            leave_out(wiring, layer, self.trace, skip.branch_operations, merges, brought, decision)
        if isinstance(state.connection, PlacedConnection) and state.connection.placement.before:
            _read(wiring, layer, self.skip, state)


def _patch(verb: str, junction: Junction, last: bool, state: EditState) -> Any:
    name = junction.operation.name
    if verb == "swap":
        if last:
            return Writing(name, junction, state)
        return None if junction.shortcut is None else Entering(name, junction, state)
    if verb == "lesion":
        return Dropping(name, set(junction.branches))
    return None if junction.shortcut is None else Dropping(name, {junction.shortcut})


def leave_out(
    wiring: Wiring,
    layer: int,
    trace: Trace,
    way: Iterable[int],
    merges: set[int],
    values: Iterable[int],
    decision: Always | Drawn,
) -> None:
    """Let a way to the merges not run, in the passes that the decision says: `values` are what it brings them.

    What is needed otherwise runs all the same, and what it brings is not used.
    """
    unneeded = needless(trace, merges, values)
    found = region(trace, unneeded.intersection(way), unneeded, merges)
    if found is None:
        wiring.decide(trace, trace.calls[trace.operations[min(merges)].call], set(), decision)
        return
    inside = {index for call in found.calls for index in range(call.start, call.stop)}
    inside |= {operation.index for operation in found.operations}
    made = {value for index in inside for value in trace.operations[index].results}
    starts = {
        index for index in inside
        if any(trace.values[value].fed and value not in made for value in trace.operations[index].operands)
    }  # fmt: skip
    entries: dict[str, set[int]] = {}
    for call in found.calls:
        numbers = entries.setdefault(call.module, set())
        if any(index in starts for index in range(call.start, call.stop)):
            numbers.add(turn(trace, found.scope, call).number)
    for path, numbers in entries.items():
        wiring.add(Stub(wiring.module(path), path, numbers, decision.state))
    for operation in found.operations:
        if operation.index in starts:
            wiring.meet(layer, place_of(trace, operation), Starting(decision.state))
    wiring.decide(trace, found.scope, unneeded, decision)


def _read(wiring: Wiring, layer: int, skip: Skip, state: EditState) -> None:
    """Let the branch read the stream through the connection's `read`."""
    trace = skip.trace
    inside = set(skip.branch_operations)
    entered: dict[int, set[int]] = {}
    for index in skip.branch_operations:
        operation = trace.operations[index]
        if skip.source not in operation.operands:
            continue
        call = outermost(trace, index, inside)
        if call is not None and skip.source in call.given:
            entered.setdefault(call.index, set()).update(
                position for position, value in enumerate(call.given) if value == skip.source
            )
        elif call is None:
            paths = [(position,) for position, item in enumerate(operation.args) if item == Ref(skip.source)]
            wiring.meet(layer, place_of(trace, operation), Reading(state, tuple(paths)))
        else:
            raise SkipwayError(f"the branch at {skip.site} does not get the stream as an argument, so it cannot read a "
                               "normalised one: choose a connection without a norm before the branch")  # fmt: skip
    for index, positions in entered.items():
        call = trace.calls[index]
        wiring.add(Reader(wiring.module(call.module), positions, state, wiring.turns(trace, [call])))


def cut(
    model: nn.Module,
    which: Which,
    *,
    graph: SkipGraph | None = None,
    inplace: bool = False,
    parameters: Parameters = "copy",
) -> nn.Module:
    """The model without these skips: y = F(x). What only the shortcut needed is not computed any more.

    A skip that concatenates leaves zeros where the shortcut was, for what follows needs its channels.

    Args:
        model: any module; it stays as it is unless `inplace`.
        which: skips of a graph of this model; with `graph`, also numbers, patterns of sites, kinds or a function.
        graph: what `which` chooses from, where it is not skips themselves.
        inplace: change `model` itself and return it.
        parameters: of the copy: its own ("copy"), or the very ones of `model` ("share"), buffers included.

    Raises SkipwayError where the graph is of another model, or the shapes would not fit without the shortcut.

    >>> import torch, skipway as sw
    >>> net, x = sw.models.create("resnet20").eval(), torch.ones(1, 3, 8, 8)
    >>> plain = cut(net, sw.trace(net, x).skips)
    >>> len(sw.trace(plain, x).skips)
    0
    """
    skips = select(model, which, graph)
    check(model, skips[0].trace)
    for skip in skips:
        alone(skip, "cut")
    return apply(model, [SkipChange("cut", skip) for skip in skips], [], inplace, parameters)


def lesion(
    model: nn.Module,
    which: Which,
    *,
    graph: SkipGraph | None = None,
    inplace: bool = False,
    parameters: Parameters = "copy",
) -> nn.Module:
    """The model without these branches: y = shortcut(x). What only the branch needed is not computed any more.

    A skip that concatenates leaves zeros where the branch was. The lesions of Veit et al. 2016 (arXiv:1605.06431).
    Arguments as for `cut`.

    Raises SkipwayError where the graph is of another model, or the shapes would not fit without the branch.

    >>> import torch, skipway as sw
    >>> net, x = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.ones(1, 3, 8)
    >>> graph = sw.trace(net, x)
    >>> torch.equal(lesion(net, graph)(x), net.norm2(net.norm1(x)))
    True
    """
    skips = select(model, which, graph)
    check(model, skips[0].trace)
    for skip in skips:
        alone(skip, "lesion")
    return apply(model, [SkipChange("lesion", skip) for skip in skips], [], inplace, parameters)


def alone(skip: Skip, verb: str) -> None:
    """Raise where what a cut or a lesion leaves of a merge has not the shape that the merge had."""
    what = "branch" if verb == "cut" else "shortcut"
    shape = skip.branch_shape if verb == "cut" else skip.trace.values[skip.carried].shape
    if skip.kind != "concat" and shape != skip.shape:
        raise SkipwayError(
            f"cannot {verb} the skip at {skip.site}: the {what} alone is {shape} where the merge gave {skip.shape}, so "
            "what follows would not fit"
        )


def swap(
    model: nn.Module,
    which: Which,
    skip: str | Kind,
    *,
    graph: SkipGraph | None = None,
    inplace: bool = False,
    parameters: Parameters = "copy",
) -> nn.Module:
    """The model with another connection in the place of these merges, each with new parameters of its own.

    The connection writes what the branch put out to what the shortcut carried: y = write(shortcut(x), F(read(x))). So
    a projection of the model's own stays, and stochastic depth leaves the branch uncomputed. Choices that follow depth
    see the skips given here, in their order. The other arguments are those of `cut`.

    Raises SkipwayError where the graph is of another model, or the connection cannot stand there.

    >>> import torch, skipway as sw
    >>> net, x = sw.models.create("resnet20").eval(), torch.ones(1, 3, 8, 8)
    >>> gated = swap(net, sw.trace(net, x), sw.Residual(scale=sw.ReZero(initial=1.0)))
    >>> torch.equal(gated(x), net(x)), gated.layer1[0].connection.connection.scale.scale.shape
    (True, torch.Size([]))
    """
    skips = select(model, which, graph)
    kind = resolve(skip)
    check(model, skips[0].trace)
    changes, connections, taken = [], [], set[str]()
    for index, one in enumerate(skips):
        connection = _connection(one, kind, index, len(skips))
        home, name = home_for(model, one.site.module, taken)
        path = f"{home}.{name}" if home else name
        connections.append((home, name, connection))
        changes.append(SkipChange("swap", one, path, skip if isinstance(skip, str) else repr(kind)))
    return apply(model, changes, connections, inplace, parameters)


def _connection(skip: Skip, kind: Kind, index: int, depth: int) -> Connection:
    trace, what = skip.trace, f"cannot swap the skip at {skip.site}"
    last = junctions(skip)[-1]
    name = last.operation.name
    if skip.kind == "gate":
        raise SkipwayError(f"{what}: it is a gate, which has multiplied branch and shortcut before they meet; cut or "
                           "lesion it, or give skip= to the model that builds it")  # fmt: skip
    stream, value = trace.values[skip.carried].shape, skip.branch_shape
    axis = channel_axis(trace, skip.branch_operations)
    if name == "cat":
        operands = 2 if last.shortcut in ((0, 0), (0, 1)) and len(last.branches) == 1 and not last.others else 0
        if operands != 2:
            raise SkipwayError(f"{what}: it concatenates more than one branch with the shortcut; only two tensors can "
                               "be swapped")  # fmt: skip
        given = last.operation.argument("dim", 0)
        if given % len(skip.shape) != (1 if axis is None else axis) % len(skip.shape):
            axis = {1: 1, len(skip.shape) - 1: -1}.get(given % len(skip.shape))
        stream_space, value_space = list(stream), list(value)
        site = site_for(what, stream_space, value_space, axis, index, depth)
    else:
        if name not in (*SUMS, "addcmul"):
            raise SkipwayError(f"{what}: it is merged by {name!r}, and a connection replaces sums and concatenations")
        site = site_for(what, stream, value, axis, index, depth)
    connection = built(kind, site, what, skip.shape[site.channel_axis])
    before = connection.placement.before
    if before and skip.source_shape[site.channel_axis] != stream[site.channel_axis]:
        raise SkipwayError(
            f"{what}: the branch reads {skip.source_shape} and the shortcut carries {stream}, and a connection with "
            f"{' and '.join(before)} before the branch needs the same channels in both: leave this skip out, or choose "
            "one without"
        )
    dtype = trace.values[skip.branches[0]].dtype
    return connection.to(dtype) if dtype.is_floating_point else connection
