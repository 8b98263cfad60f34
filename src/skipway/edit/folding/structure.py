"""Taking tensors out of what a model is given and returns, and putting others in their places."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError

_ATOMS = (int, float, bool, str, bytes, complex, type(None), torch.dtype, torch.device, torch.memory_format, type)


@dataclasses.dataclass(frozen=True, slots=True)
class Slot:
    """The place of the n-th tensor."""

    index: int


def signature(item: Any, tensors: list[Tensor], name: str = "inputs") -> Any:
    """What a program depends on besides the tensors' content, fit for a dict's key; the tensors go to `tensors`.

    A tensor that is given twice, as to self-attention, is one; given two, the program is another.

    Raises SkipwayError for objects that might hold tensors out of sight.
    """
    if isinstance(item, Tensor):
        for index, other in enumerate(tensors):
            if other is item:
                return (Tensor, index)
        tensors.append(item)
        return (Tensor, item.shape, item.dtype, item.device, item.stride() if item.layout == torch.strided else None)
    if isinstance(item, _ATOMS):
        return (type(item), item)
    if isinstance(item, (tuple, list)):
        return (type(item), *(signature(part, tensors, f"{name}[{place}]") for place, part in enumerate(item)))
    if isinstance(item, dict):
        return (type(item), *((key, signature(part, tensors, f"{name}[{key!r}]")) for key, part in item.items()))
    raise SkipwayError(
        f"{name} is a {type(item).__name__}; a folded model takes tensors, numbers, strings and None, in lists, "
        "tuples and dicts: pass what it holds in this form"
    )


def template(item: Any, tensors: list[Tensor], seen: dict[int, Any] | None = None) -> Any:
    """A copy of a result with `Slot`s in the places of its tensors, which go to `tensors`."""
    seen = {} if seen is None else seen
    if isinstance(item, Tensor):
        tensors.append(item)
        return Slot(len(tensors) - 1)
    if isinstance(item, (*_ATOMS, nn.Module)) or id(item) in seen:
        return seen.get(id(item), item)
    if isinstance(item, tuple):
        parts = [template(part, tensors, seen) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    if type(item) is list:
        return [template(part, tensors, seen) for part in item]
    if type(item) is dict:
        return {key: template(part, tensors, seen) for key, part in item.items()}
    made = seen[id(item)] = copy.copy(item)
    return _refill(made, lambda part: template(part, tensors, seen))


def filled(item: Any, tensors: list[Tensor]) -> Any:
    """A result made from its template."""
    if isinstance(item, Slot):
        return tensors[item.index]
    if isinstance(item, (*_ATOMS, nn.Module)):
        return item
    if isinstance(item, tuple):
        parts = [filled(part, tensors) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    if type(item) is list:
        return [filled(part, tensors) for part in item]
    if type(item) is dict:
        return {key: filled(part, tensors) for key, part in item.items()}
    return _refill(copy.copy(item), lambda part: filled(part, tensors))


def _refill(item: Any, change: Any) -> Any:
    """Replace what an object holds, as items and as attributes: data classes, mappings, caches of keys and values."""
    changed: dict[int, Any] = {}

    def once(part: Any) -> Any:
        # An entry that is an attribute too, as in the outputs of transformers, is one tensor.
        if id(part) not in changed:
            changed[id(part)] = change(part)
        return changed[id(part)]

    if isinstance(item, dict):
        for key, part in list(item.items()):
            dict.__setitem__(item, key, once(part))
    elif isinstance(item, list):
        item[:] = [once(part) for part in item]
    held = getattr(item, "__dict__", None)
    if held is not None:
        for key, part in list(held.items()):
            held[key] = once(part)
    return item
