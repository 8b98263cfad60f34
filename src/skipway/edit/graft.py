"""`graft`: a skip around modules that had none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from skipway.connect import Connection, Kind, Site, resolve
from skipway.connect.connection import PlacedConnection
from skipway.edit.homes import home_for
from skipway.edit.layout import channel_axis, site_for
from skipway.edit.leaving_out import Stub
from skipway.edit.log import Change, Parameters, apply
from skipway.edit.merges import EditState, apart
from skipway.edit.meta import unrolled
from skipway.edit.shapes import static_site
from skipway.edit.stale import check
from skipway.edit.wiring import Wiring
from skipway.errors import SkipwayError, choose
from skipway.graph.ir import Trace
from skipway.graph.skipgraph import SkipGraph


@dataclass(frozen=True)
class GraftChange:
    """A skip around a run of modules: from what the first takes to what the last gives."""

    modules: tuple[str, ...]
    connection: str
    detail: str
    trace: Trace | None = None
    verb: str = "graft"

    @property
    def where(self) -> str:
        return " ... ".join(dict.fromkeys((self.modules[0], self.modules[-1])))

    def replaces(self, other: Change) -> bool:
        return False

    def wire(self, wiring: Wiring, layer: int) -> None:
        connection = wiring.module(self.connection)
        assert isinstance(connection, PlacedConnection)
        state = EditState(connection)
        first, last = self.modules[0], self.modules[-1]
        for path in self.modules[1:-1]:
            wiring.add(Stub(wiring.module(path), path, set(), state))
        if len(self.modules) > 1:
            wiring.add(Closing(wiring.module(last), last, state))
        wiring.add(Opening(wiring.module(first), first, state, closes=len(self.modules) == 1))


class Closing(Stub):
    """On the last module of a run: what it gives is written to the stream that the first one took."""

    def __init__(self, module: nn.Module, path: str, state: EditState) -> None:
        super().__init__(module, path, set(), state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.stream is None:
            raise SkipwayError(
                f"{self.path} ran without the first module of the run that a skip was grafted around before it: the "
                "modules of a run run together, and gradient checkpointing must take them together"
            )
        return self.close(self.stand_ins(args, kwargs) if self.leaves_out else self.run(*args, **kwargs))

    @property
    def leaves_out(self) -> bool:
        return self.state.left_out and not unrolled()

    def close(self, result: Any) -> Any:
        """The result with its first tensor written to the stream."""
        state = self.state
        assert state.connection is not None
        assert state.stream is not None
        flat, layout = tree_flatten(result)
        place = _first_tensor(flat)
        if place is None:
            raise SkipwayError(f"{self.path} gives no tensor that a skip could be added to")
        if state.left_out:
            flat[place] = apart(state.connection.without(state.stream), state.stream)
        else:
            flat[place] = state.connection.write(state.stream, flat[place], state.read)
        state.reset()
        return tree_unflatten(flat, layout)


class Opening(Closing):
    """On the first module of a run: what it takes is the stream."""

    def __init__(self, module: nn.Module, path: str, state: EditState, closes: bool) -> None:
        super().__init__(module, path, state)
        self.closes = closes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = self.state
        connection = state.connection
        assert connection is not None
        flat, layout = tree_flatten((args, kwargs))
        place = _first_tensor(flat)
        if place is None:
            raise SkipwayError(f"{self.path} takes no tensor that a skip could carry")
        state.reset()
        state.stream = flat[place]
        state.left_out = connection.leaves_out()
        try:
            if self.leaves_out:
                result = self.stand_ins(args, kwargs)
            else:
                state.read = flat[place] = connection.read(flat[place])
                args, kwargs = tree_unflatten(flat, layout)
                result = self.run(*args, **kwargs)
        except BaseException:
            state.reset()
            raise
        return self.close(result) if self.closes else result


def _first_tensor(flat: list[Any]) -> int | None:
    return next((place for place, item in enumerate(flat) if isinstance(item, Tensor)), None)


def graft(
    model: nn.Module,
    where: str | tuple[str, str] | Iterable[str | tuple[str, str]],
    skip: str | Kind = "residual",
    *,
    graph: SkipGraph | None = None,
    inplace: bool = False,
    parameters: Parameters = "copy",
) -> nn.Module:
    """The model with a skip around modules that had none: y = write(x, F(read(x))), projected where shapes change.

    Args:
        model: any module; it stays as it is unless `inplace`.
        where: the path of a module ("layers.2"), a pattern for several ("layers.*"), or a pair ("layers.2",
            "layers.4") for one skip around a run of modules that follow each other; or a list of these, each of which
            gets a skip of its own. Choices that follow depth (stochastic depth) see them in this order.
        skip: a name or a connection.
        graph: tells the shapes; without it they are told from the layers' own channels and strides.
        inplace, parameters: as for `cut`.

    The stream is the first tensor among a module's arguments, and the first that it returns is written to it.
    Raises SkipwayError for unknown modules, and where the shapes cannot be known or joined.

    >>> import torch, skipway as sw
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    >>> x = torch.ones(2, 4)
    >>> torch.allclose(graft(net, "1")(x), net(x) + net[0](x))
    True
    """
    if not isinstance(model, nn.Module):
        raise SkipwayError(f"an edit takes a torch.nn.Module, not {type(model).__name__}")
    kind = resolve(skip)
    runs = _runs(model, where)
    trace = None if graph is None else graph.trace
    if trace is not None:
        check(model, trace)
    changes, connections, taken = [], [], set[str]()
    for index, run in enumerate(runs):
        site = _site(model, run, trace, index, len(runs))
        connection = built(kind, site, f"cannot graft around {run[0]}")
        home, name = home_for(model, run[0], taken)
        path = f"{home}.{name}" if home else name
        connections.append((home, name, like(connection, model, run)))
        changes.append(GraftChange(run, path, skip if isinstance(skip, str) else repr(kind), trace))
    return apply(model, changes, connections, inplace, parameters)


def built(kind: Kind, site: Site, what: str, expected: int | None = None) -> PlacedConnection:
    """The connection of a kind whose stream is one tensor; it must give the channels that what follows takes."""
    connection = kind.build(site)
    if not isinstance(connection, PlacedConnection):
        raise SkipwayError(f"{what}: {type(kind).__name__} keeps a stream of its own from branch to branch, and this "
                           "model's stream is one tensor; build the model with it instead")  # fmt: skip
    expected = site.out_channels if expected is None else expected
    if connection.out_channels != expected:
        merge = "concat" if expected > site.out_channels else "add"
        raise SkipwayError(f"{what}: what follows takes {expected} channels, and this connection gives "
                           f"{connection.out_channels}: use one with merge='{merge}'")  # fmt: skip
    return connection


def like(connection: Connection, model: nn.Module, run: Sequence[str]) -> Connection:
    """The connection on the device and in the precision of the modules that it goes around."""
    tensors = (
        tensor for path in run for tensor in model.get_submodule(path).parameters() if tensor.dtype.is_floating_point
    )
    first: Tensor | None = next(tensors, None)
    return connection if first is None else connection.to(device=first.device, dtype=first.dtype)


def _runs(model: nn.Module, where: Any) -> list[tuple[str, ...]]:
    names = [name for name, _ in model.named_modules() if name]
    if isinstance(where, str):
        if any(sign in where for sign in "*?["):
            depth = where.count(".")
            found = [name for name in names if fnmatchcase(name, where) and name.count(".") == depth]
            if not found:
                raise SkipwayError(f"no module matches {where!r}; modules here are {', '.join(names[:8])}, ...")
            return [(name,) for name in found]
        return [(choose("module", where, names),)]
    if isinstance(where, tuple):
        if len(where) != 2 or not all(isinstance(end, str) for end in where):
            raise SkipwayError("a run of modules is given by its first and last: ('layers.2', 'layers.4')")
        return [_run(model, names, *where)]
    if isinstance(where, Iterable):
        runs = [run for part in where for run in _runs(model, part)]
        if runs:
            return runs
    raise SkipwayError(f"modules are given by path, pattern, pair or a list of these, not by {where!r}")


def _run(model: nn.Module, names: list[str], first: str, last: str) -> tuple[str, ...]:
    """The modules from the first to the last, which must be children of one module."""
    for end in (first, last):
        choose("module", end, names)
    around = first.rpartition(".")[0]
    if last.rpartition(".")[0] != around:
        raise SkipwayError(f"{first!r} and {last!r} are not children of one module, so there is no run between them")
    children = [f"{around}.{name}" if around else name for name, _ in model.get_submodule(around).named_children()]
    start, stop = children.index(first), children.index(last)
    if start > stop:
        raise SkipwayError(f"{last!r} comes before {first!r}: give the first module of the run first")
    return tuple(children[start : stop + 1])


def _site(model: nn.Module, run: tuple[str, ...], trace: Trace | None, index: int, depth: int) -> Site:
    what = f"cannot graft around {run[0]}"
    if trace is None:
        return static_site(what, [model.get_submodule(path) for path in run], index, depth)
    calls = {call.module: call for call in trace.calls}
    for path in (run[0], run[-1]):
        if path not in calls:
            raise SkipwayError(f"{what}: {path} did not run when the model was traced")
    first, last = calls[run[0]], calls[run[-1]]
    taken = next((trace.values[value].shape for value in first.given if value >= 0), None)
    given = next((trace.values[value].shape for value in last.returned if value >= 0), None)
    if taken is None or given is None:
        raise SkipwayError(f"{what}: no tensor that a gradient can pass goes in and comes out")
    axis = channel_axis(trace, range(first.start, last.stop))
    return site_for(what, taken, given, axis, index, depth)
