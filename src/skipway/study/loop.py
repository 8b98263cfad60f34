"""The training loop of one trial: Lightning's, over tensors held whole, with a checkpoint at every epoch's end.

This module imports lightning, which takes seconds: it is imported where a trial is trained, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from skipway.study.data import Images
from skipway.study.declaration import Study, Trial
from skipway.study.determinism import derive, isolated, small_batch, versions
from skipway.study.records import Record

# Random streams of a trial: its weights, the order of its data, and what its layers draw while training.
_WEIGHTS, _ORDER, _LAYERS = range(3)
_EVALUATION_BATCH = 512


class Diverged(Exception):
    """The training loss stopped being finite."""


class Batches:
    """Batches of images and labels, in an order made anew whenever the iteration begins.

    A last batch of a single image is left out: there may be nothing to normalise over in it.
    """

    def __init__(
        self, images: UInt8[Tensor, "n c h w"], labels: Int64[Tensor, " n"], size: int, order: Callable[[], Tensor]
    ) -> None:
        self.images, self.labels, self.size, self.order = images, labels, size, order

    def __len__(self) -> int:
        count = len(self.labels)
        return max(1, math.ceil(count / self.size) - (count % self.size == 1))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        pieces = self.order().split(self.size)
        for indices in pieces[: len(self)]:
            yield self.images[indices], self.labels[indices]


class TrialModule(LightningModule):
    """A network in training, and what its record will hold."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, images: Images, study: Study, seed: int) -> None:
        super().__init__()
        # Convolutions on a CPU are 1.1 to 1.3 times as fast with the channels last (measured: 8 x 8 and 32 x 32).
        self.network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.study, self.seed = study, seed
        mean, deviation = images.statistics
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("deviation", deviation, persistent=False)
        self.layers = weight_layers(network, images.train_images[:2])
        self.curves: dict[str, list[float]] = {
            name: [] for name in ("train_error", "train_loss", "test_error", "test_loss")
        }
        self.gradients: dict[str, list[float]] = {"first": [], "last": []}
        self.seconds = 0.0
        self._resumed_at = time.perf_counter()
        self._sums = torch.zeros(2, 2)
        count = len(images.train_labels)
        generator = torch.Generator()
        self.train_batches = Batches(
            images.train_images,
            images.train_labels,
            study.batch_size,
            lambda: torch.randperm(count, generator=generator.manual_seed(derive(seed, self.current_epoch, _ORDER))),
        )
        self.evaluation_batches = [
            Batches(pixels, labels, _EVALUATION_BATCH, partial(torch.arange, len(labels)))
            for pixels, labels in (
                (images.train_images, images.train_labels),
                (images.test_images, images.test_labels),
            )
        ]

    def forward(self, pixels: UInt8[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        normalised = (pixels.float() - self.mean) / self.deviation
        return self.network(normalised.contiguous(memory_format=torch.channels_last))

    def configure_optimizers(self) -> Any:
        study = self.study
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=study.learning_rate,
            momentum=study.momentum,
            weight_decay=study.weight_decay,
            # Not fused: that fails where a branch left out of the first steps has no momentum yet (torch 2.13).
            foreach=True,
        )
        # The momentum stays as declared: it is not cycled against the learning rate.
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=study.learning_rate, total_steps=self.total_steps, cycle_momentum=False
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @property
    def total_steps(self) -> int:
        return self.study.epochs * len(self.train_batches)

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(derive(self.seed, self.current_epoch, _LAYERS))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Float[Tensor, ""]:
        pixels, labels = batch
        loss = F.cross_entropy(self(pixels), labels)
        if not torch.isfinite(loss):
            raise Diverged
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step == 0:
            self.gradients["first"] = self._gradient_norms()
        if self.global_step == self.total_steps - 1:
            self.gradients["last"] = self._gradient_norms()

    def on_validation_epoch_start(self) -> None:
        self._sums = torch.zeros(2, 2, device=self.device)

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int, dataloader_idx: int = 0) -> None:
        pixels, labels = batch
        logits = self(pixels)
        wrong = (logits.argmax(dim=1) != labels).sum()
        self._sums[dataloader_idx] += torch.stack((wrong, F.cross_entropy(logits, labels, reduction="sum")))

    def on_validation_epoch_end(self) -> None:
        for part, sums, batches in zip(("train", "test"), self._sums.tolist(), self.evaluation_batches, strict=True):
            count = len(batches.labels)
            self.curves[f"{part}_error"].append(sums[0] / count)
            self.curves[f"{part}_loss"].append(sums[1] / count)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.seconds += now - self._resumed_at
        self._resumed_at = now
        checkpoint["trial"] = {"curves": self.curves, "gradients": self.gradients, "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["trial"]
        self.curves, self.gradients, self.seconds = kept["curves"], kept["gradients"], kept["seconds"]
        self._resumed_at = time.perf_counter()

    def _gradient_norms(self) -> list[float]:
        weights = [layer.weight for layer in self.layers.values()]
        # A branch that stochastic depth left out of this step has no gradient: its share of the loss is none.
        return [0.0 if weight.grad is None else float(weight.grad.norm()) for weight in weights]


class EpochEnd(Callback):
    """Keeps a checkpoint of the last whole epoch, and tells how far the trial is."""

    def __init__(self, checkpoint: Path, total_steps: int, tell: Callable[[int, float], None]) -> None:
        self.checkpoint, self.total_steps, self.tell = checkpoint, total_steps, tell
        self.interrupted = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tell(trainer.current_epoch, trainer.global_step / self.total_steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fresh = self.checkpoint.with_suffix(".new")
        try:
            trainer.save_checkpoint(fresh)
            os.replace(fresh, self.checkpoint)
        finally:
            fresh.unlink(missing_ok=True)


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
    with isolated(small_batch(study.batch_size, images.size)), _quiet_lightning():
        torch.manual_seed(derive(trial.seed, 0, _WEIGHTS))
        network = study.build(trial.variant, len(images.classes), images.channels)
        module = TrialModule(network, images, study, trial.seed)
        epoch_end = EpochEnd(checkpoint, module.total_steps, tell)
        trainer = Trainer(
            max_epochs=study.epochs,
            devices=1,
            logger=False,
            callbacks=[epoch_end],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=checkpoint.parent,
        )
        diverged = None
        try:
            _fit(trainer, module, epoch_end)
        except Diverged:
            diverged = {"epoch": module.current_epoch + 1, "step": module.global_step + 1}
        return Record(
            id=trial_id,
            model=trial.variant.model,
            depth=trial.variant.depth,
            skip=trial.variant.label,
            connection=repr(trial.variant.connection),
            seed=trial.seed,
            diverged=diverged,
            train_error=_finite(module.curves["train_error"]),
            train_loss=_finite(module.curves["train_loss"]),
            test_error=_finite(module.curves["test_error"]),
            test_loss=_finite(module.curves["test_loss"]),
            layers=list(module.layers),
            first_gradients=_finite(module.gradients["first"]),
            last_gradients=_finite(module.gradients["last"]),
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            seconds=round(module.seconds, 3),
            recipe=study.recipe(),
            data=images.facts(),
            versions=versions(str(trainer.strategy.root_device)),
        )


def _fit(trainer: Trainer, module: TrialModule, epoch_end: EpochEnd) -> None:
    on_interrupt = signal.getsignal(signal.SIGINT)
    checkpoint = epoch_end.checkpoint
    try:
        trainer.fit(
            module,
            train_dataloaders=module.train_batches,
            val_dataloaders=module.evaluation_batches,
            ckpt_path=str(checkpoint) if _readable(checkpoint) else None,
        )
    except SystemExit:
        # Lightning answers Ctrl-C by leaving the process, deaf to any further one: here others have to tidy up first.
        if not epoch_end.interrupted:
            raise
        signal.signal(signal.SIGINT, on_interrupt)
        raise KeyboardInterrupt from None


def _finite(values: list[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _readable(checkpoint: Path) -> bool:
    # A checkpoint is an interim state: one that cannot be read costs the epochs it stood for, and nothing finished.
    try:
        return "trial" in torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError):
        return False


@contextlib.contextmanager
def _quiet_lightning() -> Iterator[None]:
    # What Lightning tells of its set-up at the start of every fit would stand between the lines of a study.
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 makes its tree leaves the way of older torch; nothing here can change that.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
