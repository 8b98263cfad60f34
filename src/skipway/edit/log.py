"""The changes made to a model: applied together, kept with it, and undone from the last."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

from torch import nn

from skipway.connect import Connection
from skipway.edit.wiring import Wiring, unwire
from skipway.edit.wrappers import Wrapper
from skipway.errors import SkipwayError, choose
from skipway.graph.ir import Trace
from skipway.graph.sites import tensors_in

Parameters = Literal["copy", "share"]
_NAME = "_skipway_log"


@runtime_checkable
class Change(Protocol):
    """One edit of one place: `verb` and `where` say what it is, `detail` how.

    `connection` is the path of the module that it brought, or nothing.
    """

    @property
    def verb(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def detail(self) -> str: ...
    @property
    def connection(self) -> str: ...
    @property
    def trace(self) -> Trace | None: ...
    def replaces(self, other: Change) -> bool: ...
    def wire(self, wiring: Wiring, layer: int) -> None: ...


class Log:
    """What was done to a model, in order, a list of changes for each call of an edit; and the wrappers that do it."""

    def __init__(self) -> None:
        self.steps: list[tuple[Change, ...]] = []
        self.wrappers: list[Wrapper] = []

    def layers(self) -> Iterator[list[Change]]:
        """The changes by the trace that they were planned on, in the order in which the traces came."""
        layers: list[tuple[object, list[Change]]] = []
        for change in (change for step in self.steps for change in step):
            trace = change.trace
            known = next((changes for key, changes in layers if trace is not None and key == trace), None)
            if known is None:
                layers.append((trace, [change]))
            else:
                known[:] = [*(other for other in known if not change.replaces(other)), change]
        return (changes for _, changes in layers)

    def rewire(self, root: nn.Module) -> None:
        """Take the wrappers off and set those of the changes as they are now."""
        unwire(root, self.wrappers)
        wiring = Wiring(root)
        try:
            for layer, changes in enumerate(self.layers()):
                for change in changes:
                    change.wire(wiring, layer)
        except BaseException:
            self.wrappers = wiring.wrappers
            raise
        self.wrappers = wiring.finish()


def log_of(model: nn.Module) -> Log | None:
    """The record of a model's changes, if it was ever edited."""
    return model.__dict__.get(_NAME)


def apply(
    model: nn.Module,
    changes: Sequence[Change],
    connections: Sequence[tuple[str, str, Connection]],
    inplace: bool,
    parameters: Parameters,
) -> nn.Module:
    """Make these changes to a model or to a copy of it, as one step; `connections` are modules to register.

    On failure the model is left as it was.
    """
    target = model if inplace else duplicate(model, parameters)
    log = target.__dict__.setdefault(_NAME, Log())
    for home, name, connection in connections:
        target.get_submodule(home).add_module(name, connection.train(target.training))
    log.steps.append(tuple(changes))
    try:
        log.rewire(target)
    except BaseException:
        _take_back(target, log, 1)
        raise
    return target


def undo(
    model: nn.Module, steps: int | None = 1, *, inplace: bool = False, parameters: Parameters = "copy"
) -> nn.Module:
    """The model before its last edits: one `steps`, several, or None for all of them.

    The parameters that those edits brought are gone; all others are as they are now. Raises SkipwayError where fewer
    edits were made.

    >>> import torch, skipway as sw
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> [change.verb for change in history(undo(sw.edit.graft(net, "0")))]
    []
    """
    log = log_of(model)
    done = 0 if log is None else len(log.steps)
    wanted = done if steps is None else steps
    if not 0 <= wanted <= done:
        raise SkipwayError(f"there are {done} edits to undo in this {type(model).__name__}, not {wanted}")
    target = model if inplace else duplicate(model, parameters)
    log = log_of(target)
    if log is not None:
        _take_back(target, log, wanted)
    return target


def history(model: nn.Module) -> tuple[Change, ...]:
    """The edits that a model has seen and that were not undone, oldest first.

    >>> import torch, skipway as sw
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4))
    >>> [(change.verb, change.where) for change in history(sw.edit.graft(net, "0"))]
    [('graft', '0')]
    """
    log = log_of(model)
    return () if log is None else tuple(change for step in log.steps for change in step)


def _take_back(target: nn.Module, log: Log, steps: int) -> None:
    kept = len(log.steps) - steps
    gone = [change.connection for step in log.steps[kept:] for change in step]
    del log.steps[kept:]
    for path in dict.fromkeys(path for path in gone if path):
        home, _, name = path.rpartition(".")
        target.get_submodule(home)._modules.pop(name, None)
    log.rewire(target)
    if not log.steps:
        target.__dict__.pop(_NAME, None)


def duplicate(model: nn.Module, parameters: Parameters) -> nn.Module:
    """A copy of a model with parameters and buffers of its own ("copy") or the same ones ("share")."""
    choose("way to treat parameters", parameters, ("copy", "share"))
    memo: dict[int, Any] = {}
    if parameters == "share":
        memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    # What a module has computed and kept would not let itself be copied with the history of its gradient.
    for module in model.modules():
        for item in vars(module).values():
            for tensor in tensors_in(item):
                if tensor.grad_fn is not None:
                    memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise SkipwayError(
            f"this {type(model).__name__} cannot be copied ({type(error).__name__}: {error}): edit it in place with "
            "inplace=True"
        ) from error
