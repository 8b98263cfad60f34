"""The numbers that trials are compared by: which end of each is good, how it is written, and what a step costs."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipway.study.order import Order
from skipway.study.tasks.task import Task

_HIGHEST = ("accuracy", "dice", "iou", "bleu", "correlation")


def better(measure: str) -> Literal["lowest", "highest"]:
    """Which end of a measure is the good one.

    >>> better("test_error"), better("validation_dice"), better("seconds")
    ('lowest', 'highest', 'lowest')
    """
    return "highest" if any(word in measure for word in _HIGHEST) else "lowest"


def written(measure: str, value: float | int) -> str:
    """A measure as people write it.

    >>> written("test_error", 0.0512), written("parameters", 272474), written("memory", 3 << 20), written("loss", 1.5)
    ('5.1 %', '272,474', '3.0 MiB', '1.5')
    """
    if measure.endswith("error"):
        return f"{100 * value:.1f} %"
    if measure in ("parameters", "multiply_adds", "width"):
        return f"{round(value):,}"
    if measure == "memory":
        return f"{value / 2**20:.1f} MiB"
    if measure.endswith("seconds"):
        return f"{value:.1f} s" if value >= 1 else f"{1000 * value:.3g} ms"
    return f"{value:.4g}"


def cost_of_a_step(network: nn.Module, task: Task, order: Order) -> dict[str, float]:
    """What the first step of a training costs: bytes held for its backward pass, and multiply-adds of one example.

    Nothing of the network or of the random state is changed by it. The bytes are those of every distinct tensor that
    autograd keeps between the passes, parameters aside.
    """
    indices, seeds = order.step(0)
    held: dict[int, int] = {}
    twin = copy.deepcopy(network).train()
    own = {parameter.untyped_storage().data_ptr() for parameter in twin.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.random.fork_rng(devices=[]):
        batch = task.batch(indices[0], seeds[0])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = task.loss(twin, batch)
        del loss
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            task.loss(twin, batch)
    # The counter gives a multiply-add as two operations.
    return {
        "memory": float(sum(held.values())),
        "multiply_adds": counter.get_total_flops() / 2 / len(batch[0]),
    }
