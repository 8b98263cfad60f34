"""What a torch function is called in a trace, and what it changes in place."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

from torch._ops import OpOverload, OpOverloadPacket

# Reading one of these attributes of a tensor gives another tensor with the same or rearranged content.
_TENSOR_ATTRIBUTES = {"data", "T", "mT", "H", "mH", "real", "imag"}

_DUNDERS = {
    "__setitem__": ("setitem", True),
    "__getitem__": ("getitem", False),
    "__rsub__": ("rsub", False),
    "__rpow__": ("rpow", False),
    "__rdiv__": ("rdiv", False),
    "__rtruediv__": ("rdiv", False),
    "__rmatmul__": ("rmatmul", False),
    "__truediv__": ("div", False),
}


class Named(NamedTuple):
    """A function's canonical name; whether it writes to its first argument; where its `inplace` argument stands."""

    name: str
    inplace: bool
    inplace_position: int | None
    mutates: bool


def named(function: Any) -> Named:
    """The canonical name of a function that a TorchFunctionMode was handed.

    Aliases by operator, method, function and aten overload fall together: `a + b`, `operator.add(a, b)`, `a.add(b)`,
    `torch.add(a, b)` and `torch.ops.aten.add.Tensor(a, b)` are all "add". An empty name means that nothing is computed.

    >>> import torch
    >>> named(torch.Tensor.add_)[:2], named(torch.Tensor.__iadd__)[:2], named(torch.ops.aten.add.Tensor)[:2]
    (('add', True), ('add', True), ('add', False))
    """
    if isinstance(function, OpOverload):
        base = function._schema.name.split("::")[-1]
        return _plain(base, mutates=function._schema.is_mutable)
    if isinstance(function, OpOverloadPacket):
        return _plain(function.__name__)
    name = getattr(function, "__name__", None) or type(function).__name__
    if getattr(function, "__module__", None) == "_operator":
        # What a compiler puts in the place of the method: `operator.iadd(a, b)` for `a += b`.
        name = f"__{name}__"
    if name in ("__get__", "__set__"):
        attribute = getattr(getattr(function, "__self__", None), "__name__", "")
        if attribute not in _TENSOR_ATTRIBUTES:
            return Named("", False, None, False)
        return (
            Named(attribute, False, None, False) if name == "__get__" else Named(f"set_{attribute}", True, None, True)
        )
    if name in _DUNDERS:
        known, inplace = _DUNDERS[name]
        return Named(known, inplace, None, inplace)
    if name.startswith("__") and name.endswith("__"):
        inner = name[2:-2]
        if inner.startswith("i") and inner[1:] in ("add", "sub", "mul", "div", "truediv", "pow", "floordiv", "mod"):
            return Named({"truediv": "div"}.get(inner[1:], inner[1:]), True, None, True)
        if inner.startswith("r") and inner[1:] in ("add", "mul"):
            inner = inner[1:]
        return Named(inner, False, None, False)
    position = None
    if inspect.isfunction(function):
        parameters = function.__code__.co_varnames[: function.__code__.co_argcount]
        position = parameters.index("inplace") if "inplace" in parameters else None
    return _plain(name, position=position)


def _plain(name: str, position: int | None = None, mutates: bool = False) -> Named:
    inplace = name.endswith("_") and not name.startswith("_set_")
    name = name.rstrip("_") if inplace else name
    name = {"true_divide": "div", "divide": "div", "subtract": "sub", "multiply": "mul", "concat": "cat",
            "concatenate": "cat", "negative": "neg"}.get(name, name)  # fmt: skip
    return Named(name, inplace, position, inplace or mutates or name in ("batch_norm", "instance_norm"))
