"""One trial of a study: trained by the loop, and what its record holds of it.

This module imports lightning, which takes seconds: it is imported where a trial is trained, and nowhere else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from skipway.study.data import Images
from skipway.study.declaration import Study, Trial
from skipway.study.determinism import WEIGHTS, derive, isolated, small_batch, versions
from skipway.study.loop import Diverged, Loop, fit
from skipway.study.order import Order
from skipway.study.recipe import Recipe
from skipway.study.records import Record
from skipway.study.tasks.classification import Classification

_CURVES = ("train_error", "train_loss", "test_error", "test_loss")


class GradientNorms(Callback):
    """The gradient of each weight layer at the first step of a training and at the last."""

    def __init__(self, layers: dict[str, Any], steps: int) -> None:
        self.layers, self.steps = layers, steps
        self.norms: dict[str, list[float]] = {"first": [], "last": []}

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if trainer.global_step == 0:
            self.norms["first"] = self._now()
        if trainer.global_step == self.steps - 1:
            self.norms["last"] = self._now()

    def state_dict(self) -> dict[str, Any]:
        return dict(self.norms)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.norms = dict(state_dict)

    def _now(self) -> list[float]:
        weights = [layer.weight for layer in self.layers.values()]
        # A branch that stochastic depth left out of this step has no gradient: its share of the loss is none.
        return [0.0 if weight.grad is None else float(weight.grad.norm()) for weight in weights]


def weight_layers(network: nn.Module, pixels: UInt8[Tensor, "n c h w"]) -> dict[str, Any]:
    """The layers that carry weight matrices or kernels, by name, in the order in which they first run."""
    names = {
        module: name
        for name, module in network.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter) and weight.ndim > 1
    }
    ran: dict[str, Any] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, _: ran.setdefault(names[module], module) and None)
        for module in names
    ]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(pixels.float())
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return ran


def train_trial(
    study: Study,
    trial: Trial,
    trial_id: str,
    images: Images,
    checkpoint: Path,
    tell: Callable[[int, float], None],
) -> Record:
    """Train one trial, from its checkpoint where there is one that can be read, and return its record.

    `tell` is called at every step with the epoch and the share of the trial that is done. Ctrl-C comes out as
    KeyboardInterrupt, and the checkpoint of the last whole epoch stays.
    """
    recipe = Recipe(
        batch_size=study.batch_size,
        learning_rate=study.learning_rate,
        momentum=study.momentum,
        weight_decay=study.weight_decay,
        # Convolutions on a CPU are 1.1 to 1.3 times as fast with the channels last (measured: 8 x 8 and 32 x 32).
        channels_last=True,
    )
    with isolated(small_batch(study.batch_size, images.size)):
        torch.manual_seed(derive(trial.seed, 0, WEIGHTS))
        network = study.build(trial.variant, len(images.classes), images.channels)
        task = Classification(images, parts={"train": "train", "test": "test"})
        loop = Loop(network, task, recipe, Order(task.count, study.batch_size, 1, trial.seed), epochs=study.epochs)
        gradients = GradientNorms(weight_layers(network, images.train_images[:2]), loop.steps)
        diverged = None
        try:
            fit(loop, checkpoint, tell, gradients)
        except Diverged:
            diverged = {"epoch": loop.current_epoch + 1, "step": loop.global_step + 1}
        curves: dict[str, Any] = {name: _finite(loop.curves.get(name, [])) for name in _CURVES}
        return Record(
            id=trial_id,
            model=trial.variant.model,
            depth=trial.variant.depth,
            skip=trial.variant.label,
            connection=repr(trial.variant.connection),
            seed=trial.seed,
            diverged=diverged,
            **curves,
            layers=list(gradients.layers),
            first_gradients=_finite(gradients.norms["first"]),
            last_gradients=_finite(gradients.norms["last"]),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            seconds=round(loop.seconds, 3),
            recipe=study.recipe(),
            data=images.facts(),
            versions=versions(loop.place),
        )


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]
