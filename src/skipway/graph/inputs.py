"""Inputs that suit the first layer of a model, where none are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError

Example = tuple[tuple[Any, ...], dict[str, Any]]

_WIDEST = 224


def made(shape: Sequence[int], device: str, dtype: torch.dtype = torch.float32, below: int = 2) -> Tensor:
    """A tensor to run a model on: normal numbers, integers from 0 to `below` - 1, or True; always the same."""
    if device == "meta":
        return torch.empty(tuple(shape), dtype=dtype, device="meta")
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        return torch.ones(tuple(shape), dtype=dtype, device=device)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(tuple(shape), generator=generator).to(device=device, dtype=dtype)
    return torch.randint(below, tuple(shape), generator=generator, dtype=torch.int64).to(device=device, dtype=dtype)


def guesses(model: nn.Module, device: str) -> list[Example]:
    """Inputs that suit the first layer of a model that says nothing of its inputs, the likeliest first.

    `example_input_array`, as Lightning modules have it, is taken as it is.
    """
    given = getattr(model, "example_input_array", None)
    if isinstance(given, Tensor):
        return [((given.to(device),), {})]
    if isinstance(given, (tuple, list)):
        return [(tuple(part.to(device) if isinstance(part, Tensor) else part for part in given), {})]
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            n = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}[
                next(t for t in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, t))
            ]
            sides = {1: (1024,), 2: (_WIDEST, 32, 28), 3: (32,)}[n]
            return [((made((1, module.in_channels, *[side] * n), device),), {}) for side in sides]
        if isinstance(module, nn.Embedding):
            return [((made((1, 16), device, torch.int64, module.num_embeddings),), {})]
        if isinstance(module, nn.Linear):
            shapes = ((1, module.in_features), (1, 16, module.in_features))
            return [((made(shape, device),), {}) for shape in shapes]
        if isinstance(module, (nn.RNN, nn.LSTM, nn.GRU)):
            return [((made((1, 16, module.input_size), device),), {})]
    return []


def example(model: nn.Module) -> Example:
    """The first guess on which the model runs, in the precision and on the device of its parameters.

    Raises SkipwayError where none of them suits.
    """
    first = next(model.parameters(), None)
    device = "cpu" if first is None else str(first.device)
    training = [(module, module.training) for module in model.modules()]
    for args, kwargs in guesses(model, device):
        if first is not None and first.dtype.is_floating_point:
            args = tuple(item.to(first.dtype) if torch.is_floating_point(item) else item for item in args)
        try:
            model.eval()
            with torch.no_grad():
                model(*args, **kwargs)
        except Exception:
            continue
        finally:
            for module, mode in training:
                module.training = mode
        return args, kwargs
    raise SkipwayError(
        f"no inputs were given, and none could be guessed that this {type(model).__name__} runs on: give an example"
    )
