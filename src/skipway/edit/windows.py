"""The stretch of a host's own code in which an operation is met and replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch.overrides import TorchFunctionMode

from skipway.edit.checkpoints import Standing
from skipway.edit.merges import put
from skipway.edit.places import Place
from skipway.errors import SkipwayError
from skipway.graph.names import named

# What is done in the place of one operation: called with the function, its arguments and its keyword arguments.
Patch: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class Target:
    """An operation to be met in a window, and what replaces it."""

    place: Place
    patch: Patch


class Window(TorchFunctionMode):
    """A mode that is on from the end of one call in a host to the start of the next, and meets operations there.

    `targets` are by the name of the operation and the number of those of its name that come before it in the window;
    `waiting` is how many of them are still to come.
    """

    def __init__(self, host: HostState, layer: int) -> None:
        super().__init__()
        self.host, self.layer = host, layer
        self.targets: dict[tuple[str, int], Target] = {}
        self.names: set[str] = set()
        self.counts: dict[str, int] = {}
        self.seen: list[Any] = []
        self.busy = False
        self.waiting = 0

    def add(self, target: Target) -> None:
        """Meet one more operation."""
        place = target.place
        self.targets[place.operation, place.step] = target
        self.names.add(place.operation)
        self.waiting += 1
        self.host.wanted[place.call] = self.host.wanted.get(place.call, 0) + 1

    def reset(self) -> None:
        """Forget what was met."""
        self.counts, self.seen = {}, []
        self.waiting = len(self.targets)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.waiting:
            return func(*args, **kwargs)
        host = self.host
        key = _key(func, args, kwargs)
        target = None
        if key in self.names:
            step = self.counts.get(key, 0)
            self.counts[key] = step + 1
            target = self.targets.get((key, step))
        if target is None:
            if not host.compiling:
                self.seen.append(func)
            return func(*args, **kwargs)
        if not host.compiling:
            host.standing.check(target.place)
            if target.place.passed:
                self.check(target.place)
            self.seen.append(func)
        self.waiting -= 1
        host.unmet -= 1
        out = kwargs.pop("out", None) if kwargs else None
        self.busy = True
        try:
            result = target.patch(func, args, kwargs)
        finally:
            self.busy = False
        return result if out is None else put(out, result)

    def check(self, place: Place) -> None:
        """Raise unless the operations that the trace has before this one were met in their order."""
        ran = [_name(func) for func in self.seen]
        waiting = iter(ran)
        for expected in place.passed:
            if expected.rstrip("_") not in waiting:
                raise SkipwayError(
                    f"the model no longer runs as it was traced: {place.host or 'the model'} should run {expected!r} "
                    f"before {place}, and ran {', '.join(name for name in ran if name) or 'nothing'}: trace it again"
                )

    def close(self) -> None:
        """Raise if an operation was not met."""
        if not self.waiting:
            return
        missing = next(
            target for (name, step), target in self.targets.items() if self.counts.get(name, 0) <= step
        )  # fmt: skip
        ran = ", ".join(name for name in map(_name, self.seen) if name) or "nothing"
        raise SkipwayError(
            f"the model no longer runs as it was traced: expected {missing.place}, and it ran {ran}: trace it "
            "again, in the mode (training or evaluation) and with the kind of inputs that it is used with"
        )


def _key(function: Any, args: Any, kwargs: dict[str, Any]) -> str:
    """The operation of a site, as `graph.sites` names it."""
    fresh, written, writes, position = _facts(function)
    if kwargs:
        out = kwargs.get("out")
        writes = writes or kwargs.get("inplace") is True or (out is not None and any(item is out for item in args))
    if position is not None and len(args) > position:
        writes = args[position] is True
    return written if writes else fresh


# torch.compile cannot trace through the naming of functions, and need not: it is the same each time.
@torch.compiler.assume_constant_result
def _facts(function: Any) -> tuple[str, str, bool, int | None]:
    return _known(function)


@cache
def _known(function: Any) -> tuple[str, str, bool, int | None]:
    """What a function's operation is called where it makes a new tensor, and where it writes to its first argument."""
    known = named(function)
    return known.name, known.name and f"{known.name}_", known.inplace, known.inplace_position


def _name(function: Any) -> str:
    return _known(function)[0]


@dataclass
class RunState:
    """Which calls of hosts lie behind in this run of the model; between runs, none."""

    hosts: list[HostState] = field(default_factory=list)
    inside: bool = False

    def begin(self) -> None:
        self.inside = True

    def end(self) -> None:
        self.inside = False
        for host in self.hosts:
            host.number = 0


@runtime_checkable
class Decision(Protocol):
    """Whether a way is left out in the call that begins; forgotten when it ends."""

    def __call__(self) -> bool: ...
    def forget(self) -> None: ...


@dataclass
class HostState:
    """One host: its windows by call, and where it stands in the call that runs.

    `wanted` is how many operations are to be met in each call, `unmet` how many of them are still to come. `decisions`
    say at the start of a call whether a way of a skip is left out in it; `unread` are the places in its result of
    tensors that nothing reads when a way is left out.
    """

    path: str
    calls: int
    run: RunState
    opening: dict[tuple[int, str, int], list[Window]] = field(default_factory=dict)
    closing: dict[tuple[int, str, int], list[Window]] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)
    number: int = 0
    decisions: dict[int, list[Decision]] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    inside: bool = False
    compiling: bool = False
    unmet: int = 0
    turns: dict[str, int] = field(default_factory=dict)
    open: list[Window] = field(default_factory=list)
    opened: list[Window] = field(default_factory=list)
    standing: Standing = field(default_factory=Standing)

    def decide(self) -> bool:
        """Whether a way of a skip is left out in the call that begins."""
        left_out = False
        for decision in self.decisions.get(self.number, ()):
            left_out = decision() or left_out
        return left_out

    def check_run(self) -> None:
        """Raise where it cannot be known which call of the host this is."""
        if self.calls > 1 and not self.run.inside:
            raise SkipwayError(
                f"{self.path} runs {self.calls} times in a pass and its calls are edited one by one: it cannot run on "
                "its own, nor be run again by gradient checkpointing"
            )

    def begin(self) -> None:
        """A call of the host begins."""
        self.inside, self.turns = True, {}
        self.unmet = self.wanted.get(self.number, 0)
        self.compiling = torch.compiler.is_compiling()
        if not self.compiling:
            self.standing.begin()
        for window in self.opening.get((self.number, "", 0), ()):
            self.enter(window)

    def finish(self) -> None:
        """The host has ended well: everything must have been met."""
        if self.unmet:
            for window in self.open:
                window.close()
            for (call, _, _), windows in self.opening.items():
                for window in windows if call == self.number else ():
                    window.close()

    def end(self) -> None:
        """The host has ended, well or not."""
        while self.open:
            self.leave(self.open[-1])
        for window in self.opened:
            window.reset()
        if self.decisions:
            for decision in self.decisions.get(self.number, ()):
                decision.forget()
        self.inside, self.compiling, self.turns, self.opened = False, False, {}, []
        if self.calls > 1:
            self.number += 1

    def enter(self, window: Window) -> None:
        """Set a window on the stack of modes."""
        self.opened.append(window)
        if not self.open:
            torch._C._push_on_torch_function_stack(window)
            self.open = [window]
            return
        # What was planned on the model as edited before stands beneath, where it meets what those edits run. A window
        # that runs its patch is off the stack, and comes back on top of it.
        above = [other for other in self.open if other.layer < window.layer]
        standing = [other for other in above if not other.busy]
        for _ in standing:
            torch._C._pop_torch_function_stack()
        for mode in (window, *standing):
            torch._C._push_on_torch_function_stack(mode)
        self.open = [*(other for other in self.open if other.layer >= window.layer), window, *above]

    def leave(self, window: Window) -> None:
        """Take a window off the stack of modes."""
        if len(self.open) == 1:
            torch._C._pop_torch_function_stack()
            self.open = []
            return
        above = []
        while True:
            mode = torch._C._pop_torch_function_stack()
            if mode is window:
                break
            above.append(mode)
        for mode in reversed(above):
            torch._C._push_on_torch_function_stack(mode)
        self.open = [other for other in self.open if other is not window]


@dataclass
class Turns:
    """Some of the calls of a module below a host: (call of the host, number of the call in it)."""

    host: HostState
    path: str
    numbers: set[tuple[int, int]] = field(default_factory=set)

    def now(self) -> bool:
        """Whether the call that runs is one of them."""
        return self.host.inside and (self.host.number, self.host.turns.get(self.path, 1) - 1) in self.numbers
