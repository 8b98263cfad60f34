"""The inputs of a model on the command line: those written with --input, and guesses where none are."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph.inputs import Example, made

_INPUT = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<shape>\d+(?:[x,×]\d+)*)(?::(?P<dtype>\w+))?")
_DTYPES = {
    "float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16,
    "int64": torch.int64, "int32": torch.int32, "uint8": torch.uint8, "bool": torch.bool, "complex64": torch.complex64,
}  # fmt: skip


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
