"""What a model family says of itself, so that its models can be created, described and trained by name."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Task = Literal["classification", "segmentation", "language", "hidden language", "translation"]


@dataclass(frozen=True)
class Input:
    """One argument of a model: the shape of one example without its batch axis, and for tokens their vocabulary.

    >>> Input((3, 32, 32)).make(2).shape, Input((16,), below=65).make().dtype
    (torch.Size([2, 3, 32, 32]), torch.int64)
    """

    shape: tuple[int, ...]
    below: int | None = None

    def make(self, n: int = 1, device: str = "cpu") -> Tensor:
        """A batch of n to run a model on: normal numbers, or integers from 0 to below - 1; always the same."""
        dtype = torch.float32 if self.below is None else torch.int64
        if device == "meta":
            return torch.empty((n, *self.shape), dtype=dtype, device=device)
        generator = torch.Generator().manual_seed(0)
        if self.below is None:
            return torch.randn((n, *self.shape), generator=generator).to(device)
        return torch.randint(self.below, (n, *self.shape), generator=generator).to(device)


@dataclass(frozen=True)
class Family:
    """Models of one builder: their names, what a name settles, the published connection, and what they take in.

    `sizes` holds for every published name the arguments of `build` that it stands for. `pattern` opens the family to
    other sizes: a regular expression that a whole name matches, whose named groups are whole numbers for `build`.
    `skip` is the connection of the paper, `inputs` tells what a model takes, and `task` what it is trained for. Every
    model has `depth`: the weight layers on its longest path.
    """

    build: Callable[..., nn.Module]
    sizes: Mapping[str, Mapping[str, Any]]
    inputs: Callable[[Any], tuple[Input, ...]]
    skip: Any = "residual"
    task: Task = "classification"
    pattern: str | None = None

    def options(self, settled: Mapping[str, Any]) -> list[str]:
        """What may be chosen beside the name, which has settled some arguments."""
        bound = self.build.keywords if isinstance(self.build, functools.partial) else {}
        names = inspect.signature(self.build).parameters
        return [name for name in names if name not in ("skip", *settled, *bound)]
