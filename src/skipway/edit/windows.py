"""The stretch of a host's own code in which an operation is met and replaced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeAlias, no_type_check, runtime_checkable

import torch
from torch.overrides import TorchFunctionMode

from skipway.edit import checkpoints
from skipway.edit.merges import put
from skipway.edit.meta import same_each_time
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


@dataclass(eq=False)
class Window:
    """From the end of one call in a host to the start of the next: the operations to be met there.

    `targets` are by the name of the operation and the number of those of its name that come before it in the window.
    What was planned on a trace of the edited model stands in a later `layer`.
    """

    layer: int
    targets: dict[tuple[str, int], Target] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)

    def add(self, target: Target) -> None:
        """Meet one more operation."""
        self.targets[target.place.operation, target.place.step] = target
        self.names.add(target.place.operation)


# Made anew in every call, also where torch.compile writes it down, which sees through no run-time type checks there.
@no_type_check
class Meeting(TorchFunctionMode):
    """The mode that is on while a window is open, in one passage through a host."""

    def __init__(self, window: Window, passage: Passage) -> None:
        self.window, self.passage = window, passage
        self.counts: dict[str, int] = {}
        self.seen: list[Any] = []
        self.waiting = len(window.targets)
        self.busy = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.waiting:
            return func(*args, **kwargs)
        passage, window = self.passage, self.window
        gradient = passage.gradient
        eager = gradient is not None
        name, written, writes, position = _known(func) if eager else _facts(func)
        if kwargs or position is not None:
            writes = _writes(args, kwargs, writes, position)
        if writes:
            name = written
        target = None
        if name in window.names:
            step = self.counts.get(name, 0)
            self.counts[name] = step + 1
            target = window.targets.get((name, step))
        if target is None:
            if eager:
                self.seen.append(func)
            return func(*args, **kwargs)
        if gradient is not None:
            checkpoints.check(target.place, gradient)
            if target.place.passed:
                self.check(target.place)
            self.seen.append(func)
        self.waiting -= 1
        passage.unmet -= 1
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
        if self.waiting:
            missing = (key for key in self.window.targets if self.counts.get(key[0], 0) <= key[1])
            raise _missed(self.window.targets[next(missing)], self.seen)


def _missed(target: Target, seen: list[Any]) -> SkipwayError:
    ran = ", ".join(name for name in map(_name, seen) if name) or "nothing"
    return SkipwayError(
        f"the model no longer runs as it was traced: expected {target.place}, and it ran {ran}: trace it "
        "again, in the mode (training or evaluation) and with the kind of inputs that it is used with"
    )


def _writes(args: Any, kwargs: dict[str, Any], inplace: bool, position: int | None) -> bool:
    """Whether a call writes to its first argument, as `graph.sites` tells it."""
    if position is not None and len(args) > position:
        return args[position] is True
    out = kwargs.get("out")
    return inplace or kwargs.get("inplace") is True or (out is not None and any(item is out for item in args))


# torch.compile cannot trace through the naming of functions, and need not: it is the same each time.
@same_each_time
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


@no_type_check
class Passage:
    """One call of a host that runs: how often its modules have run in it, and the windows that stand open.

    `unmet` is how many operations are still to be met; `gradient` says whether gradients were recorded at its start,
    and is None while a compiler writes the model down.
    """

    __slots__ = ("gradient", "open", "turns", "unmet")

    def __init__(self, unmet: int) -> None:
        self.unmet = unmet
        self.gradient = None if torch.compiler.is_compiling() else torch.is_grad_enabled()
        self.turns: dict[str, int] = {}
        self.open: list[Meeting] = []

    def enter(self, window: Window) -> None:
        """Open a window."""
        meeting = Meeting(window, self)
        if not self.open:
            torch._C._push_on_torch_function_stack(meeting)
            self.open.append(meeting)
            return
        # What was planned on the model as edited before stands beneath, where it meets what those edits run. A mode
        # that runs its patch is off the stack, and comes back on top of it.
        layer = window.layer
        above = [other for other in self.open if other.window.layer < layer]
        standing = [other for other in above if not other.busy]
        for _ in standing:
            torch._C._pop_torch_function_stack()
        for mode in (meeting, *standing):
            torch._C._push_on_torch_function_stack(mode)
        self.open = [*(other for other in self.open if other.window.layer >= layer), meeting, *above]

    def leave(self, window: Window) -> None:
        """Close a window; raises SkipwayError if an operation in it was not met."""
        for meeting in self.open:
            if meeting.window is window:
                meeting.close()
                self.drop(meeting)
                return
        raise _missed(next(iter(window.targets.values())), [])

    def drop(self, meeting: Meeting) -> None:
        """Take a mode off the stack."""
        if len(self.open) == 1:
            torch._C._pop_torch_function_stack()
            self.open.clear()
            return
        above = []
        while True:
            mode = torch._C._pop_torch_function_stack()
            if mode is meeting:
                break
            above.append(mode)
        for mode in reversed(above):
            torch._C._push_on_torch_function_stack(mode)
        self.open = [other for other in self.open if other is not meeting]


@dataclass
class HostState:
    """One host: its windows by call, and where it stands in the call that runs.

    `wanted` is how many operations are to be met in each call. `decisions` say at the start of a call whether a way of
    a skip is left out in it; `unread` are the places in its result of tensors that nothing reads when a way is left
    out. Between calls there is no `passage`.
    """

    path: str
    calls: int
    run: RunState
    opening: dict[tuple[int, str, int], list[Window]] = field(default_factory=dict)
    closing: dict[tuple[int, str, int], list[Window]] = field(default_factory=dict)
    wanted: dict[int, int] = field(default_factory=dict)
    decisions: dict[int, list[Decision]] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    number: int = 0
    passage: Passage | None = None

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

    def finish(self, passage: Passage) -> None:
        """Raise for what was not met in a call that has ended well."""
        for meeting in passage.open:
            meeting.close()
        for (call, path, number), windows in self.opening.items():
            if call == self.number and path and passage.turns.get(path, 0) <= number:
                raise _missed(next(iter(windows[0].targets.values())), [])

    def end(self, passage: Passage) -> None:
        """A call of the host has ended, well or not."""
        while passage.open:
            passage.drop(passage.open[-1])
        if self.decisions:
            for decision in self.decisions.get(self.number, ()):
                decision.forget()
        self.passage = None
        if self.calls > 1:
            self.number += 1


@dataclass
class Turns:
    """Some of the calls of a module below a host: (call of the host, number of the call in it)."""

    host: HostState
    path: str
    numbers: set[tuple[int, int]] = field(default_factory=set)

    def now(self) -> bool:
        """Whether the call that runs is one of them."""
        passage = self.host.passage
        return passage is not None and (self.host.number, passage.turns.get(self.path, 1) - 1) in self.numbers
