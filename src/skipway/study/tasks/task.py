"""`Task`: what a network is trained for, seen by the training loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from skipway.models import family

Batch = tuple[Tensor, ...]
Network = Callable[..., Any]


@runtime_checkable
class Batches(Protocol):
    """Batches that can be counted and made one by one."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> Batch: ...


class Task(ABC):
    """What a network is trained for: how examples become a batch, a batch a loss, and what is measured.

    Everything random in a batch is drawn from the seeds that come with its examples, so that a batch is the same
    whenever and wherever it is made. What is measured is a sum over batches first, and a metric of the sums then: so it
    is exact for any batch size, and can be added up over processes.
    """

    kind: ClassVar[family.Task]
    # The metric that tells the best network, and which end of it is good.
    judge: ClassVar[tuple[str, Literal["lowest", "highest"]]]

    @property
    @abstractmethod
    def count(self) -> int:
        """Training examples in one pass."""

    @property
    def lengths(self) -> Int64[Tensor, " n"] | None:
        """How long each training example is, where that differs and a batch is padded to the longest."""
        return None

    @abstractmethod
    def batch(self, indices: Int64[Tensor, " n"], seeds: Int64[Tensor, " n"]) -> Batch:
        """The training examples of these indices, with each one's own seed for what is random in it."""

    @abstractmethod
    def loss(self, network: Network, batch: Batch) -> Float[Tensor, ""]:
        """The mean loss over the units of a training batch."""

    @abstractmethod
    def sums(self, network: Network, batch: Batch) -> dict[str, Tensor]:
        """What is measured on a batch of `parts`, as numbers that may be added up."""

    @abstractmethod
    def metrics(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """The metrics of sums over a whole part."""

    @abstractmethod
    def check(self, network: Network) -> None:
        """Pass through a network what it will be given; raises SkipwayError where what it gives back does not fit."""

    @abstractmethod
    def parts(self) -> dict[str, Batches]:
        """What is measured after every round, by name."""

    def samples(self, network: Network, device: torch.device) -> list[str]:
        """What a trained network makes of examples held out, in words, where that says more than numbers."""
        return []

    def draw(self, network: Network, device: torch.device) -> Any:
        """The same as a figure of matplotlib's, where pictures say more than words, else None."""
        return None

    def units(self, indices: Int64[Tensor, " n"]) -> int:
        """Over how many units the loss of these examples is a mean."""
        return len(indices)


class InPieces(Sequence[Batch]):
    """Tensors of one length, a few rows at a time."""

    def __init__(self, tensors: Sequence[Tensor], size: int) -> None:
        self.tensors, self.size = tuple(tensors), size

    def __len__(self) -> int:
        return math.ceil(len(self.tensors[0]) / self.size)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        rows = slice(number * self.size, (number + 1) * self.size)
        return tuple(tensor[rows] for tensor in self.tensors)


def bare(network: Network) -> Any:
    """The network itself, where the training loop stands around it."""
    return getattr(network, "network", network)


def shown(shape: Sequence[int]) -> str:
    """A shape as people write it.

    >>> shown((2, 3))
    '2 x 3'
    """
    return " x ".join(map(str, shape))
