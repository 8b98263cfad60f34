"""Not running a way of a skip: its modules give back tensors on the meta device, which have a shape and no content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from skipway.edit.merges import EditState
from skipway.edit.meta import Spreading, holds, to_meta, unrolled
from skipway.edit.windows import Turns
from skipway.edit.wrappers import Wrapper
from skipway.errors import SkipwayError

# What is the same for good; what any other argument holds, a cache for one, may change from call to call.
_TOLD = (int, float, str, bool, type(None), torch.dtype, torch.device, torch.memory_format, Enum)


class Always:
    """The decision of a lesion or a cut: the way is never run."""

    def __init__(self, state: EditState) -> None:
        self.state = state

    def __call__(self) -> bool:
        self.state.reset()
        self.state.left_out = True
        return True

    def forget(self) -> None:
        self.state.reset()


class Drawn:
    """The decision of a connection that leaves its branch out by chance."""

    def __init__(self, state: EditState) -> None:
        self.state = state

    def __call__(self) -> bool:
        assert self.state.connection is not None
        self.state.turns = {}
        self.state.left_out = self.state.connection.leaves_out()
        return self.state.left_out

    def forget(self) -> None:
        self.state.reset()


class Stub(Wrapper):
    """On a module of a way: gives back tensors on the meta device while the way is left out.

    Calls that are on the way are known by their input, which is on the meta device itself, but for those at its start:
    `entries` are their numbers among the calls of this module in the scope.
    """

    def __init__(self, module: nn.Module, path: str, entries: set[int], state: EditState) -> None:
        super().__init__(module)
        self.path, self.entries, self.state = path, entries, state
        self.known: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "known": {}}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        state = self.state
        if not state.left_out:
            return self.run(*args, **kwargs)
        if unrolled():
            keeps_statistics = getattr(self.module, "track_running_stats", False)
            return args[0] if keeps_statistics and args else self.run(*args, **kwargs)
        number = state.turns.get(self.path, 0)
        state.turns[self.path] = number + 1
        if number in self.entries or holds((args, kwargs), meta=True):
            return self.stand_ins(args, kwargs)
        return self.run(*args, **kwargs)

    def stand_ins(self, args: Any, kwargs: Any) -> Any:
        """What the module would give back for these arguments, as tensors without content."""
        with torch._C.DisableTorchFunction():
            # One tensor is by far the most common, and needs no taking apart.
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                flat, form = list(args), ""
            else:
                flat, layout = tree_flatten((args, kwargs))
                form = str(layout)
            described = tuple(
                (item.shape, item.dtype, item.stride()) if isinstance(item, Tensor) else item for item in flat
            )
            key = (described, form, self.module.training, torch.is_autocast_enabled())
            told = all(isinstance(item, (tuple, *_TOLD)) for item in described)
        known = self.known.get(key) if told else None
        if known is None:
            known = self._tried(args, kwargs)
            if told:
                self.known[key] = known
        return known.detach() if isinstance(known, Tensor) else tree_map(_again, known)

    def _tried(self, args: Any, kwargs: Any) -> Any:
        """The shapes that the module gives: tried on the meta device, and where it does not run there, on zeros."""
        with torch.no_grad(), _kept(self.module):
            with suppress(Exception), Spreading():
                given, named = tree_map(_content_free, (args, kwargs))
                return tree_map(to_meta, self.run(*given, **named))
            first = next((tensor for tensor in self.module.parameters()), None)
            device = "cpu" if first is None else first.device
            given, named = tree_map(lambda item: _zeros(item, device), (args, kwargs))
            try:
                return tree_map(to_meta, self.run(*given, **named))
            except Exception as error:
                raise SkipwayError(
                    f"{self.path} is in a branch that is not to be run, and the shape of its output could not be found "
                    f"out on zeros ({type(error).__name__}: {error})"
                ) from error


def _again(item: Any) -> Any:
    """A tensor of its own for each call, which may be overwritten."""
    return item.detach() if isinstance(item, Tensor) else item


def _content_free(item: Any) -> Any:
    """Floats lose their content; indices and masks keep it, for shapes may depend on them."""
    return to_meta(item) if isinstance(item, Tensor) and item.is_floating_point() else item


def _zeros(item: Any, device: Any) -> Any:
    return torch.zeros_like(item, device=device) if isinstance(item, Tensor) and item.is_meta else item


@dataclass
class Starting:
    """On an operation at the start of a way, outside of its modules: runs on the meta device while it is left out."""

    state: EditState

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.state.left_out and not unrolled():
            args, kwargs = tree_map(to_meta, (args, kwargs))
        return function(*args, **kwargs)


class Reader(Wrapper):
    """On a module that a branch begins with: it gets what the connection reads of the stream, not the stream itself.

    `positions` says which of the tensors among its arguments are the stream, `turns` which calls begin the branch
    where the module has others too: (call of the host, number of the call in it).
    """

    def __init__(self, module: nn.Module, positions: set[int], state: EditState, turns: Turns | None) -> None:
        super().__init__(module)
        self.positions, self.state, self.turns = positions, state, turns

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.turns is not None and not self.turns.now():
            return self.run(*args, **kwargs)
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return self.run(reading(self.state, args[0]))
        flat, layout = tree_flatten((args, kwargs))
        places = [place for place, item in enumerate(flat) if isinstance(item, Tensor)]
        for position in self.positions:
            flat[places[position]] = reading(self.state, flat[places[position]])
        args, kwargs = tree_unflatten(flat, layout)
        return self.run(*args, **kwargs)


@dataclass
class Reading:
    """On an operation that a branch begins with, outside of its modules: it gets what the connection reads."""

    state: EditState
    paths: tuple[tuple[int], ...]

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        changed = list(args)
        for (position,) in self.paths:
            changed[position] = reading(self.state, changed[position])
        return function(*changed, **kwargs)


def reading(state: EditState, source: Tensor) -> Tensor:
    """What the connection reads of a stream, computed once a pass."""
    assert state.connection is not None
    if state.left_out:
        state.source = source
        return source
    if state.read is None or state.source is not source:
        state.source, state.read = source, state.connection.read(source)
    return state.read


@contextmanager
def _kept(module: nn.Module) -> Iterator[None]:
    """Keep the buffers of a module and the random generator as they are."""
    buffers = [(buffer, buffer.clone(), buffer._version) for buffer in module.buffers()]
    state = torch.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        for buffer, content, version in buffers:
            if buffer._version != version:
                buffer.copy_(content)
