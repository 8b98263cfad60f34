"""What a step of a training costs: memory for its backward pass, and multiply-adds."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from skipway.study.tasks.task import Task
from skipway.study.training.order import Order


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
