"""The order in which a training sees its examples, as a function of a seed."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from skipway.study.training.determinism import EXAMPLES, ORDER, derive

# How many steps' examples are sorted by length together.
_STRETCH = 50


class Order:
    """Which examples each step sees: whole passes over the training set, each in an order of its own.

    A step's examples are cut into `pieces`, one for each process and each batch that is accumulated. What is left at a
    pass's end is a step too, unless a piece of it would be a single example: there may be nothing to normalise over in
    one. Where examples have `lengths`, those of a step are of like length, so that little of it is padding.
    """

    def __init__(
        self, count: int, size: int, pieces: int, seed: int, lengths: Int64[Tensor, " n"] | None = None
    ) -> None:
        whole, rest = divmod(count, size * pieces)
        self.count, self.step_size, self.pieces, self.seed = count, size * pieces, pieces, seed
        self.lengths = lengths
        self.steps = max(1, whole + (rest >= 2 * pieces))
        self._pass = -1
        self._order = self._seeds = torch.empty(0, dtype=torch.int64)

    def step(self, number: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The examples of a step, counted from the start of the training, and their seeds, in pieces."""
        which, step = divmod(number, self.steps)
        if which != self._pass:
            self._order = self._shuffled(self._generator(which, ORDER))
            self._seeds = torch.randint(2**62, (self.count,), generator=self._generator(which, EXAMPLES))
            self._pass = which
        rows = slice(step * self.step_size, (step + 1) * self.step_size)
        return self._order[rows].tensor_split(self.pieces), self._seeds[rows].tensor_split(self.pieces)

    def _shuffled(self, generator: torch.Generator) -> Tensor:
        order = torch.randperm(self.count, generator=generator)
        if self.lengths is None:
            return order
        # Sorted in stretches, not as a whole: a step's examples then differ from pass to pass.
        stretches = order.split(_STRETCH * self.step_size)
        order = torch.cat([part[self.lengths[part].argsort(stable=True)] for part in stretches])
        whole = self.count // self.step_size
        steps = order[: whole * self.step_size].view(whole, self.step_size)
        shuffled = steps[torch.randperm(whole, generator=generator)].flatten()
        return torch.cat([shuffled, order[whole * self.step_size :]])

    def _generator(self, which: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(derive(self.seed, which, stream))
