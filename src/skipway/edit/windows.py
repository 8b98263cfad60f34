"""The stretch of a host's own code in which an operation is met and replaced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeAlias

import torch
from torch.overrides import TorchFunctionMode

from skipway.edit.places import Place
from skipway.errors import SkipwayError
from skipway.graph.names import named

# Operations by what Python calls the functions behind their operators, and by other names; as in `graph.names`.
_OPERATORS = ("add", "sub", "mul", "div", "truediv", "floordiv", "pow", "mod", "matmul")
_KEYS = {
    **{f"__{name}__": name for name in (*_OPERATORS, "neg", "abs", "and", "or", "xor", "getitem")},
    **{f"__i{name}__": f"{name}_" for name in _OPERATORS},
    **{f"__r{name}__": name if name in ("add", "mul") else f"r{name}" for name in _OPERATORS},
    "__truediv__": "div", "__itruediv__": "div_", "__rtruediv__": "rdiv", "__setitem__": "setitem_",
    "true_divide": "div", "divide": "div", "subtract": "sub", "multiply": "mul", "concat": "cat", "concatenate": "cat",
    "negative": "neg",
}  # fmt: skip


# What is done in the place of one operation: called with the function, its arguments and its keyword arguments.
Patch: TypeAlias = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass
class Target:
    """An operation to be met in a window, and what replaces it."""

    place: Place
    patch: Patch
    met: bool = False


class Window(TorchFunctionMode):
    """A mode that is on from the end of one call in a host to the start of the next, and meets operations there."""

    def __init__(self, targets: Sequence[Target], layer: int) -> None:
        super().__init__()
        self.targets, self.layer = list(targets), layer
        self.names = {target.place.operation for target in targets}
        self.counts: dict[str, int] = {}
        self.seen: list[Any] = []

    def reset(self) -> None:
        """Forget what was met."""
        self.counts, self.seen = {}, []
        for target in self.targets:
            target.met = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        key = _key(func, args, kwargs)
        if key not in self.names:
            if not torch.compiler.is_compiling():
                self.seen.append(func)
            return func(*args, **kwargs)
        step = self.counts.get(key, 0)
        self.counts[key] = step + 1
        for target in self.targets:
            if target.place.step == step and target.place.operation == key:
                if not torch.compiler.is_compiling():
                    self.check(target.place)
                    self.seen.append(func)
                target.met = True
                return target.patch(func, args, kwargs)
        if not torch.compiler.is_compiling():
            self.seen.append(func)
        return func(*args, **kwargs)

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
        for target in self.targets:
            if not target.met:
                ran = ", ".join(name for name in map(_name, self.seen) if name) or "nothing"
                raise SkipwayError(
                    f"the model no longer runs as it was traced: expected {target.place}, and it ran {ran}: trace it "
                    "again, in the mode (training or evaluation) and with the kind of inputs that it is used with"
                )


def _key(function: Any, args: Any, kwargs: dict[str, Any]) -> str:
    # Kept to what torch.compile can trace through.
    name = getattr(function, "__name__", "")
    name = _KEYS.get(name, name.split(".")[0])
    writes = kwargs.get("inplace") is True or (len(args) > 1 and args[1] is True)
    return f"{name}_" if writes and not name.endswith("_") else name


@cache
def _name(function: Any) -> str:
    return named(function).name


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


@dataclass
class HostState:
    """One host: its windows by call, and where it stands in the call that runs.

    `unread` are the places in its result of tensors that nothing reads when a way is left out.
    """

    path: str
    calls: int
    run: RunState
    opening: dict[tuple[int, str, int], list[Window]] = field(default_factory=dict)
    closing: dict[tuple[int, str, int], list[Window]] = field(default_factory=dict)
    number: int = 0
    decisions: dict[int, list[Callable[[], bool]]] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    inside: bool = False
    turns: dict[str, int] = field(default_factory=dict)
    open: list[Window] = field(default_factory=list)

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
        self.inside = True
        self.turns = {}
        self._open(self.opening.get((self.number, "", 0)))

    def enter(self, path: str) -> int:
        """A module that the host calls begins; gives the number of this call."""
        number = self.turns.get(path, 0)
        self.turns[path] = number + 1
        for window in self.closing.get((self.number, path, number), ()):
            window.close()
            self._drop(window)
        return number

    def leave(self, path: str, number: int) -> None:
        """A module that the host calls has ended."""
        self._open(self.opening.get((self.number, path, number)))

    def finish(self) -> None:
        """The host has ended well: everything must have been met."""
        for window in self.open:
            window.close()
        for (call, _, _), windows in self.opening.items():
            for window in windows if call == self.number else ():
                if not all(target.met for target in window.targets):
                    window.close()

    def end(self) -> None:
        """The host has ended, well or not."""
        while self.open:
            self._drop(self.open[-1])
        for windows in self.opening.values():
            for window in windows:
                window.reset()
        self.inside = False
        self.turns = {}
        if self.calls > 1:
            self.number += 1

    def _open(self, windows: Sequence[Window] | None) -> None:
        for window in windows or ():
            window.reset()
            # What was planned on the model as edited before stands beneath, where it meets what those edits run.
            above = [other for other in self.open if other.layer < window.layer]
            for _ in above:
                torch._C._pop_torch_function_stack()
            for mode in (window, *above):
                torch._C._push_on_torch_function_stack(mode)
            self.open = [*(other for other in self.open if other.layer >= window.layer), window, *above]

    def _drop(self, window: Window) -> None:
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
