"""Tensors that do not depend on the inputs, kept as expressions of the model's weights.

A folded weight is not a number but a small computation on the names of the original's parameters, so that it can be
done again for other weights. Equal expressions are one object: so programs of several input shapes share weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from skipway.errors import SkipwayError
from skipway.graph.sites import tensors_in

_SMALL = 1 << 16


class Expression:
    """A constant: a named weight, a fixed tensor, or a function of other constants.

    `learned` says that it depends on the model's parameters or buffers.
    """

    __slots__ = ("args", "function", "kwargs", "learned", "name", "output", "tensor")

    def __init__(
        self,
        name: str,
        tensor: Tensor | None,
        function: Callable[..., Any] | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: int,
    ) -> None:
        self.name, self.tensor, self.function = name, tensor, function
        self.args, self.kwargs, self.output = args, kwargs, output
        self.learned = bool(name) or any(part.learned for part in expressions_in((args, kwargs)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def value(self) -> Tensor:
        """What it is for the weights that were folded."""
        if self.tensor is None:
            self.tensor = self.compute(lambda part: part.value)
        return self.tensor

    def compute(self, value_of: Callable[[Expression], Tensor]) -> Tensor:
        assert self.function is not None
        args, kwargs = replaced(self.args, value_of), replaced(self.kwargs, value_of)
        with torch.no_grad():
            return tensors_in(self.function(*args, **kwargs))[self.output]


class Constants:
    """All constants of one folded model; those that programs read are numbered, in the order of their first use."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = dict(weights)
        self.used: list[Expression] = []
        self.assumed: list[tuple[Expression, Tensor, str]] = []
        self._known: dict[Any, Expression] = {}
        self._numbers: dict[Expression, int] = {}

    def named(self, name: str) -> Expression:
        """A parameter or buffer of the original."""
        return self._keep(("name", name), lambda: Expression(name, self.weights[name], None, (), {}, 0))

    def fixed(self, tensor: Tensor) -> Expression:
        """A tensor that depends on nothing; equal small ones are one."""
        tensor = tensor.detach()
        key: Any = ("object", id(tensor))
        if tensor.numel() <= _SMALL and tensor.device.type == "cpu" and tensor.layout == torch.strided:
            content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            key = ("fixed", tuple(tensor.shape), tensor.dtype, content)
        return self._keep(key, lambda: Expression("", tensor, None, (), {}, 0))

    def number(self, value: float, dtype: torch.dtype, device: torch.device) -> Expression:
        """A Python number as a constant."""
        return self.fixed(torch.tensor(value, dtype=dtype, device=device))

    def make(self, function: Callable[..., Any], *args: Any, output: int = 0, **kwargs: Any) -> Expression:
        """A function of constants and plain values."""
        key = (function, _key(args), _key(kwargs), output)
        return self._keep(key, lambda: Expression("", None, function, args, kwargs, output))

    def _keep(self, key: Any, make: Callable[[], Expression]) -> Expression:
        try:
            found = self._known.get(key)
        except TypeError:
            return make()
        if found is None:
            found = self._known[key] = make()
        return found

    def index(self, expression: Expression) -> int:
        """The number under which programs read a constant."""
        if expression not in self._numbers:
            self._numbers[expression] = len(self.used)
            self.used.append(expression)
        return self._numbers[expression]

    def assume(self, expression: Expression, why: str) -> None:
        """Remember that a fold is right only while a constant that depends on weights is what it is."""
        if expression.learned:
            self.assumed.append((expression, expression.value.detach().clone(), why))

    def mark(self) -> tuple[int, int]:
        """How much is in use now, to be given to `reset`."""
        return len(self.used), len(self.assumed)

    def reset(self, mark: tuple[int, int]) -> None:
        """Take back what came into use since."""
        for expression in self.used[mark[0] :]:
            del self._numbers[expression]
        del self.used[mark[0] :], self.assumed[mark[1] :]

    def forget(self) -> None:
        """Let go of what was only needed on the way to the constants that are used."""
        kept = set(self.used)
        for expression in self._known.values():
            if expression.function is not None and expression not in kept:
                expression.tensor = None

    def compute(self, state: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
        """The numbered constants, for the folded weights or for others by the original's names.

        Names that `state` lacks keep the folded weights. Raises SkipwayError for unknown names, other shapes, and
        weights for which a fold that looked at values would not hold.
        """
        if state is None:
            return tuple(expression.value for expression in self.used)
        for name, tensor in state.items():
            if name in self.weights and tensor.shape != self.weights[name].shape:
                raise SkipwayError(
                    f"{name} has shape {tuple(self.weights[name].shape)} in the folded model, not {tuple(tensor.shape)}"
                )
        unknown = [name for name in state if name not in self.weights]
        if unknown:
            raise SkipwayError(f"the folded model has no {unknown[0]!r}: give a state dict of the original")
        found: dict[Expression, Tensor] = {}

        def value_of(expression: Expression) -> Tensor:
            if expression not in found:
                if expression.name:
                    found[expression] = state.get(expression.name, self.weights[expression.name]).detach()
                elif expression.function is None or not expression.learned:
                    found[expression] = expression.value
                else:
                    found[expression] = expression.compute(value_of)
            return found[expression]

        for expression, expected, why in self.assumed:
            if not torch.equal(value_of(expression), expected):
                raise SkipwayError(f"these weights are not those that were folded where it matters: {why}")
        return tuple(value_of(expression) for expression in self.used)


def replaced(item: Any, value_of: Callable[[Any], Any]) -> Any:
    """Nested arguments with every Expression replaced."""
    if isinstance(item, Expression):
        return value_of(item)
    if type(item) in (tuple, list):
        return type(item)([replaced(part, value_of) for part in item])
    if isinstance(item, dict):
        return {key: replaced(part, value_of) for key, part in item.items()}
    if isinstance(item, slice):
        return slice(*(replaced(part, value_of) for part in (item.start, item.stop, item.step)))
    return item


def expressions_in(item: Any) -> list[Expression]:
    found: list[Expression] = []
    replaced(item, found.append)
    return found


def _key(item: Any) -> Any:
    """Arguments in a form that tells 1 from True and 1.0, and can be looked up."""
    if isinstance(item, (tuple, list)):
        return (type(item).__name__, *(_key(part) for part in item))
    if isinstance(item, dict):
        return tuple((key, _key(part)) for key, part in item.items())
    if isinstance(item, slice):
        return ("slice", item.start, item.stop, item.step)
    return item if isinstance(item, Expression) else (type(item).__name__, item)
