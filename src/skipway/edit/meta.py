"""Running on the meta device, where tensors have shapes and types but no content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Spreading(TorchFunctionMode):
    """While it is on, an operation that meets a tensor on the meta device runs there as a whole."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A tensor's attribute is that of the tensor, wherever it is.
        name = getattr(func, "__name__", "")
        given = (args, kwargs)
        if name != "__get__" and holds(given, meta=True):
            moves = name in _MOVES
            if moves or holds(given, meta=False):
                flat, layout = tree_flatten(given)
                args, kwargs = tree_unflatten([_stay(item) if moves else to_meta(item) for item in flat], layout)
            if moves and name != "to":
                return args[0]
        return func(*args, **kwargs)


def holds(item: Any, meta: bool) -> bool:
    """Whether there is a tensor on the meta device in nested lists, tuples and dicts, or one that is elsewhere."""
    if isinstance(item, Tensor):
        return item.is_meta is meta
    if isinstance(item, dict):
        item = item.values()
    elif not isinstance(item, (tuple, list)):
        return False
    return any(holds(part, meta) for part in item)


_MOVES = ("to", "cpu", "cuda")


def _stay(item: Any) -> Any:
    """An argument of a move to a device, as a move to where the tensor is."""
    is_device = isinstance(item, torch.device) or (isinstance(item, str) and item not in ("memory_format",))
    return "meta" if is_device else to_meta(item)


def to_meta(item: Any) -> Any:
    """A tensor's shape and type without its content."""
    if not isinstance(item, Tensor) or item.is_meta:
        return item
    return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")


def unrolled() -> bool:
    """Whether a compiler or an exporter writes the model down, which then leaves out by itself what nothing reads."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def same_each_time(function: _Function) -> _Function:
    """Mark a function whose result a compiler may keep.

    It is `torch.compiler.assume_constant_result` without importing the compiler, which takes as long as torch itself.
    """
    function._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]
    return function
