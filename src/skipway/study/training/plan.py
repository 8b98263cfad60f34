"""`Plan`: how a network is trained for a task and for how long, where a user chose, and where the task knows best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from skipway.errors import SkipwayError
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.problems import Problem
from skipway.study.tasks.task import Task
from skipway.study.training.determinism import small_batch
from skipway.study.training.order import Order
from skipway.study.training.recipe import Recipe
from skipway.torchrun import processes

# What the user may choose of a recipe that the task has a default for.
CHOICES = (
    "batch_size", "learning_rate", "optimizer", "schedule", "warm_up", "momentum", "weight_decay", "clip",
    "channels_last",
)  # fmt: skip
_RATES = {"sgd": 0.1, "adamw": 1e-3}


@dataclass(frozen=True)
class Plan:
    """A recipe, and how many epochs or steps it is followed for; a round is `every` steps, or else an epoch."""

    recipe: Recipe
    epochs: int | None
    steps: int | None
    every: int | None


def make_plan(
    problem: Problem,
    chosen: Mapping[str, Any],
    epochs: int | None = None,
    steps: int | None = None,
    every: int | None = None,
    **fixed: Any,
) -> Plan:
    """The plan of a training: what is `chosen` and not None, and the task's own way in everything else.

    `fixed` are the fields of the recipe that no task has an opinion on: accumulate, precision, compile.
    """
    defaults = problem.defaults
    values = {name: value for name, value in defaults.items() if name in CHOICES}
    values |= {name: value for name, value in chosen.items() if value is not None}
    values.setdefault("learning_rate", _RATES.get(values["optimizer"], 0.1))
    recipe = Recipe(**values, **fixed)
    if epochs is None and steps is None:
        epochs, steps = defaults.get("epochs"), defaults.get("steps")
    every = defaults.get("every") if every is None else every
    if chosen.get("warm_up") is None and recipe.warm_up:
        total = steps or (epochs or 1) * make_order(problem.task, recipe, 0).steps
        recipe = dataclasses.replace(recipe, warm_up=min(recipe.warm_up, max(1, total // 10)))
    return Plan(recipe, epochs, steps, every)


def make_order(task: Task, recipe: Recipe, seed: int) -> Order:
    """The order of the examples for as many processes as train; raises SkipwayError where there are too few."""
    pieces = recipe.accumulate * processes()
    if task.count < pieces:
        raise SkipwayError(
            f"{task.count} training examples do not divide among {recipe.accumulate} batches of {processes()} processes"
        )
    return Order(task.count, recipe.batch_size, pieces, seed, task.lengths)


def one_thread(task: Task, recipe: Recipe) -> bool:
    """Whether a batch is so small that one thread is best."""
    return isinstance(task, Classification) and small_batch(recipe.batch_size, task.images.size)


def check_fit(network: nn.Module, model: str, task: Task) -> None:
    """Pass examples through a network; raises SkipwayError where it does not take them, or gives what does not fit."""
    try:
        with torch.no_grad():
            task.check(network.eval())
    except SkipwayError as error:
        raise SkipwayError(f"{model} does not fit: {error}") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise SkipwayError(f"{model} does not take these data: {type(error).__name__}: {first}") from error
    finally:
        network.train()
