"""`quiet`: inside, a model may be run in any mode; behind it the model is as it was, whatever happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.state import Inventory, Keeper, unchanged


@contextmanager
def quiet(model: nn.Module, training: bool | None = False, seed: int | None = None) -> Iterator[Inventory]:
    """Leave no trace on `model`: not when it is run, trained for a step, edited in place, nor when it is interrupted.

    Put back are the mode of every module, every attribute, hook, parameter and buffer with its content,
    `requires_grad`, `.grad`, and the random generators. Inside, the model is in training mode if `training` is true,
    in evaluation mode if it is false, as it was if it is None; `.grad` is None; and torch's generators are seeded if
    `seed` is given. What is written into parameters is put back where the network itself does so (embeddings with
    max_norm); a probe that writes into others copies the model first.

    Raises SkipwayError where `model` is no module.

    >>> model = nn.BatchNorm1d(2)
    >>> with quiet(model, training=True): _ = model(torch.randn(8, 2))
    >>> model.training, int(model.num_batches_tracked)
    (True, 0)
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SkipwayError(f"a probe takes a torch.nn.Module, and this is {given}")
    inventory = Inventory.of(model)
    written = [tensor for _, tensor in inventory.buffers]
    written += [
        module.weight
        for _, module in inventory.modules
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None
    ]
    keeper = Keeper(written)
    for tensor in written:
        keeper.keep(tensor)
    modes = [(module, module.training) for _, module in inventory.modules]
    gradients = [(parameter, parameter.grad) for _, parameter in inventory.parameters if parameter.is_leaf]
    with unchanged(inventory, ()):
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            if training is not None:
                # Not model.train(): a model may override it, and hold some of its layers back.
                for module, _ in modes:
                    module.training = training
            if seed is not None:
                torch.manual_seed(seed)
            yield inventory
        finally:
            keeper.restore()
            for module, mode in modes:
                module.training = mode
            for parameter, gradient in gradients:
                parameter.grad = gradient
