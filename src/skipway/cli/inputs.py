"""The inputs of a model on the command line: those written with --input, and guesses where none are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose

Example = tuple[tuple[Any, ...], dict[str, Any]]

_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:[x,×]\d+)*)(?::(?P<dtype>\w+))?")
_DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "bool": torch.bool, "complex64": torch.complex64,
}  # fmt: skip
_WIDEST = 224


def made(shape: Sequence[int], device: str, dtype: torch.dtype = torch.float32, below: int = 2) -> Tensor:
    """A tensor to run a model on: normal numbers, integers from 0 to `below` - 1, or True; always the same."""
    if device == "meta":
        return torch.empty(tuple(shape), dtype=dtype, device="meta")
    generator = torch.Generator().manual_seed(0)
    if dtype == torch.bool:
        return torch.ones(tuple(shape), dtype=dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(tuple(shape), generator=generator).to(dtype)
    return torch.randint(below, tuple(shape), generator=generator, dtype=torch.int64).to(dtype)


def parse(texts: Sequence[str], model: nn.Module, device: str) -> Example:
    """What the --input options say: positional tensors and named ones.

    Raises SkipwayError for what cannot be read and for a name that the model's forward does not take.
    """
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    for text in texts:
        match = _INPUT.fullmatch(text.strip())
        if match is None:
            raise SkipwayError(
                f"--input {text!r} is no shape: write 1x3x224x224, or with a name and a type ids=1x128:int64"
            )
        dtype = _DTYPES[choose("type of input", match["dtype"] or "float32", _DTYPES)]
        shape = [int(extent) for extent in re.split("[x,×]", match["shape"])]
        tensor = made(shape, device, dtype, max(2, min(tables, default=2)))
        if match["name"] is None:
            args.append(tensor)
            continue
        parameters = inspect.signature(model.forward).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            choose(f"input of {type(model).__name__}", match["name"], parameters)
        kwargs[match["name"]] = tensor
    return tuple(args), kwargs


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


def told(example: Example) -> str:
    """An example in the words of --input.

    >>> told(((torch.zeros(1, 3),), {"mask": torch.zeros(1, 4, dtype=torch.int64)}))
    '1x3 mask=1x4:int64'
    """
    args, kwargs = example
    words = []
    for name, value in (*[("", value) for value in args], *kwargs.items()):
        for tensor in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(tensor, Tensor):
                dtype = "" if tensor.dtype == torch.float32 else f":{str(tensor.dtype).removeprefix('torch.')}"
                words.append((f"{name}=" if name else "") + "x".join(map(str, tensor.shape)) + dtype)
    return " ".join(words)
