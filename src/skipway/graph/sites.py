"""Where in a running model one stands: the module call, and the name and ordinal of the operation about to run."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skipway.graph.ir import Call, Site
from skipway.graph.names import Named, named
from skipway.graph.state import Inventory

_GRADIENT_HOOKS = ("retain_grad", "register_hook", "register_post_accumulate_grad_hook")


class _Frame:
    """One module call that is still running: which, and how often each operation ran in it."""

    __slots__ = (
        "call", "counts", "given", "kind", "latest", "module", "ordinal", "parent", "path", "returned", "since",
        "start", "stop", "training",
    )  # fmt: skip

    def __init__(self, module: nn.Module | None, path: str, ordinal: int, call: int, parent: int, start: int):
        self.module = module
        self.path = path
        self.ordinal = ordinal
        self.call = call
        self.parent = parent
        self.start = self.stop = start
        self.kind = getattr(module, "original_name", None) or type(module).__name__
        self.training = module is not None and module.training
        self.counts: dict[str, int] = {}
        self.latest: int | None = None
        self.since: dict[str, int] = {}
        self.given: tuple[int, ...] = ()
        self.returned: tuple[int, ...] = ()

    def as_call(self) -> Call:
        parent = self.parent if self.parent >= 0 else None
        return Call(
            self.call, self.path, self.kind, self.ordinal, parent, self.training, self.start, self.stop,
            self.given, self.returned,
        )  # fmt: skip


class SiteMode(TorchFunctionMode):
    """A mode that knows the site of every operation of a model: the base of what records or replaces operations.

    A subclass defines `__torch_function__`; there `called(func, args, kwargs)` says what the call is named and whether
    it is in place, and `site(name, inplace)` counts it and gives its site. Only calls that make tensors are counted.
    `enter_module` and `leave_module` are to be registered as torch's global module hooks while the mode is on.

    Without `gradient`, what a subclass runs by `compute` runs without autograd while the model's code still finds
    gradients switched on or off as it set them itself: it takes the same way with a gradient and without.
    """

    gradient = True

    def __init__(self, inventory: Inventory):
        super().__init__()
        self._names: dict[Any, Named] = {}
        self._paths: dict[int, str] = {}
        self._times: dict[int, int] = {}
        self._frames: list[_Frame] = [_Frame(None, "", 0, -1, -1, 0)]
        self._finished: list[_Frame] = []
        self.adopt(inventory, "")

    def adopt(self, inventory: Inventory, prefix: str) -> None:
        """Learn the paths of the modules of an inventory, below `prefix`."""
        dot = f"{prefix}." if prefix else ""
        for name, child in inventory.modules:
            self._paths.setdefault(id(child), f"{dot}{name}" if name else prefix)

    def adopt_stranger(self, module: nn.Module, path: str) -> None:
        """Called for a module that runs in the model without being registered in it."""
        self.adopt(Inventory.of(module), path)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls of modules, in the order in which they began."""
        return tuple(frame.as_call() for frame in self._finished)

    @property
    def position(self) -> int:
        """How many operations came before: what the bounds of calls count."""
        return 0

    def opaque(self, what: str, read: tuple[Tensor, ...], results: list[Tensor]) -> None:
        """Called where `what` computed the results from what it read without any operation being seen."""

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """A global forward pre-hook: a call of `module` begins."""
        key = id(module)
        around = self._frames[-1]
        if key not in self._paths:
            self.adopt_stranger(module, f"{around.path}.<{type(module).__name__}>".lstrip("."))
        ordinal = self._times.get(key, 0)
        self._times[key] = ordinal + 1
        frame = _Frame(module, self._paths[key], ordinal, len(self._finished), around.call, self.position)
        self._finished.append(frame)
        self._frames.append(frame)

    def leave_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """A global forward hook, with keyword arguments and always called: the call of `module` ends."""
        if self._frames[-1].module is not module and all(frame.module is not module for frame in self._frames):
            return
        while True:
            frame = self._frames.pop()
            frame.stop = self.position
            if frame.module is module:
                around = self._frames[-1]
                around.latest, around.since = frame.call, {}
                return

    def called(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Named, bool]:
        """What a function is named, and whether this call of it writes to its first argument."""
        try:
            known = self._names[func]
        except KeyError:
            known = self._names[func] = named(func)
        except TypeError:
            known = named(func)
        inplace = known.inplace or kwargs.get("inplace") is True
        if known.inplace_position is not None and len(args) > known.inplace_position:
            inplace = args[known.inplace_position] is True
        return known, inplace

    def compute(self, known: Named, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """What a function gives; without `gradient` no autograd sees it, and hooks on gradients are not set."""
        if self.gradient or known.name == "_set_grad_enabled":
            return func(*args, **kwargs)
        if known.name in _GRADIENT_HOOKS:
            return None if known.name == "retain_grad" else torch.utils.hooks.RemovableHandle(OrderedDict())
        before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            return func(*args, **kwargs)
        finally:
            torch._C._set_grad_enabled(before)

    def site(self, name: str, inplace: bool) -> Site:
        """The site of an operation of this name that now runs, which is counted with this."""
        frame = self._frames[-1]
        operation = f"{name}_" if inplace else name
        ordinal = frame.counts.get(operation, 0)
        frame.counts[operation] = ordinal + 1
        frame.since[operation] = frame.since.get(operation, 0) + 1
        return Site(frame.path, operation, ordinal, frame.ordinal)


def tensors_in(item: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts, in order."""
    if isinstance(item, Tensor):
        return [item]
    if isinstance(item, (tuple, list)):
        return [tensor for part in item for tensor in tensors_in(part)]
    if isinstance(item, dict):
        return [tensor for part in item.values() for tensor in tensors_in(part)]
    return []
