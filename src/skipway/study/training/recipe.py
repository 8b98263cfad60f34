"""`Recipe`: how a network is trained, whatever it is trained for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from skipway.errors import check_number, check_whole, choose

OPTIMIZERS = ("sgd", "adamw")
SCHEDULES = ("one-cycle", "cosine", "inverse-root", "constant")
PRECISIONS = ("32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: optimizer, learning rate over the steps, batches, precision.

    A step sees `batch_size` examples `accumulate` times. The learning rate is `learning_rate` at its highest:
    "one-cycle" rises and falls (Smith & Topin 2017, arXiv:1708.07120), "cosine" falls to zero along half a wave
    (Loshchilov & Hutter 2017, arXiv:1608.03983), "inverse-root" falls as 1 / sqrt(step) (Vaswani et al. 2017,
    arXiv:1706.03762), each of these and "constant" behind a linear rise over `warm_up` steps, which one-cycle has of
    its own. AdamW decays weight matrices and kernels alone, SGD all parameters. Gradients longer than `clip` are
    brought to that length. Raises SkipwayError for what cannot be.

    >>> Recipe(batch_size=32, schedule="cosine").optimizer
    'sgd'
    """

    batch_size: int = 64
    learning_rate: float = 0.1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    schedule: Literal["one-cycle", "cosine", "inverse-root", "constant"] = "one-cycle"
    warm_up: int = 0
    momentum: float = 0.9
    weight_decay: float = 1e-4
    clip: float | None = None
    accumulate: int = 1
    precision: Literal["32", "bf16"] = "32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        choose("optimizer", self.optimizer, OPTIMIZERS)
        choose("schedule", self.schedule, SCHEDULES)
        choose("precision", self.precision, PRECISIONS)
        for name, least in (("batch_size", 1), ("accumulate", 1), ("warm_up", 0)):
            check_whole(name, getattr(self, name), least)
        check_number("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)
        check_number("momentum", self.momentum, "from 0 to below 1", 0 <= self.momentum < 1)
        check_number("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0)
        if self.clip is not None:
            check_number("clip", self.clip, "above 0", self.clip > 0)


def make_optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of a recipe over all parameters of a network."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            network.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            # Not fused: that fails where a branch left out of the first steps has no momentum yet (torch 2.13).
            foreach=True,
        )
    matrices = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    # The second beta of the transformers' recipes: the usual 0.999 forgets the first steps too slowly for short runs.
    return torch.optim.AdamW(
        groups, lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay, fused=True
    )


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """The learning rate of a recipe over so many steps."""
    if recipe.schedule == "one-cycle":
        # The momentum stays as declared: it is not cycled against the learning rate.
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=recipe.learning_rate, total_steps=steps, cycle_momentum=False
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: height(recipe, step, steps))


def height(recipe: Recipe, step: int, steps: int) -> float:
    """The share of the highest learning rate at a step counted from 0, for schedules other than one-cycle.

    >>> [height(Recipe(schedule="constant", warm_up=4), step, 10) for step in (0, 3, 9)]
    [0.25, 1.0, 1.0]
    """
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    if recipe.schedule == "cosine":
        done = (step - recipe.warm_up) / max(1, steps - recipe.warm_up)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    if recipe.schedule == "inverse-root":
        return math.sqrt(max(1, recipe.warm_up) / max(1, step + 1))
    return 1.0
