"""The training loop: Lightning's, over batches that are functions of a seed, with a checkpoint after every round.

This module imports lightning, which takes seconds: it is imported where a network is trained, and nowhere else.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from skipway.study.tasks.task import Batch, Batches, Task
from skipway.study.training import distributed
from skipway.study.training.determinism import LAYERS, derive
from skipway.study.training.order import Order
from skipway.study.training.recipe import Recipe, make_optimizer, make_schedule
from skipway.study.training.shared_norms import shared_norms


class Diverged(Exception):
    """The training loss stopped being finite."""


class Round:
    """The training batches of a round, as one process sees them, each with the weight of its loss.

    `workers` processes make them ahead of time; they are the same for any number of these.
    """

    def __init__(self, loop: Loop, workers: int = 0) -> None:
        self.loop, self.workers = loop, workers

    def __len__(self) -> int:
        loop = self.loop
        first = loop.current_epoch * loop.every
        return loop.recipe.accumulate * max(1, min(loop.every, loop.steps - first))

    def __iter__(self) -> Iterator[tuple[Batch, float]]:
        if not self.workers:
            return map(self.__getitem__, range(len(self)))
        loader = DataLoader(
            self,  # pyright: ignore[reportArgumentType]
            batch_size=None,
            sampler=range(len(self)),
            num_workers=self.workers,
            collate_fn=_as_it_is,
            # What is trained need not be picklable.
            multiprocessing_context="fork",
            # Of its own, or it would draw from the numbers that the layers draw from.
            generator=torch.Generator(),
        )
        return iter(loader)

    def __getitem__(self, number: int) -> tuple[Batch, float]:
        task, trainer = self.loop.task, self.loop.trainer
        step, piece = divmod(number, self.loop.recipe.accumulate)
        pieces, seeds = self.loop.order.step(self.loop.current_epoch * self.loop.every + step)
        units = [task.units(one) for one in pieces]
        mine = piece * trainer.world_size + trainer.global_rank
        # The mean of the pieces' losses, so weighted, is the loss of the whole step.
        return task.batch(pieces[mine], seeds[mine]), units[mine] * len(pieces) / sum(units)


class Share:
    """The batches of a part that one process measures, each with whether it counts.

    A process to which none falls measures one that does not count, so that all have the same sums to add up.
    """

    def __init__(self, loop: Loop, batches: Batches) -> None:
        self.loop, self.batches = loop, batches

    def __len__(self) -> int:
        return max(1, len(self._numbers))

    def __iter__(self) -> Iterator[tuple[Batch, bool]]:
        if not self._numbers:
            yield self.batches[0], False
        for number in self._numbers:
            yield self.batches[number], True

    @property
    def _numbers(self) -> range:
        return range(self.loop.trainer.global_rank, len(self.batches), self.loop.trainer.world_size)


class Loop(LightningModule):
    """A network in training for a task, for so many epochs or steps, measured after every round of `every` steps.

    An epoch is a whole pass over the training set, and a round is one where `every` does not say otherwise.
    `curves` holds the training loss of the steps, mean over a round, as "loss", the learning rate of the round's last
    step, and each metric of each part of the task as "part_metric".
    """

    def __init__(
        self,
        network: nn.Module,
        task: Task,
        recipe: Recipe,
        order: Order,
        epochs: int | None = None,
        steps: int | None = None,
        every: int | None = None,
    ) -> None:
        super().__init__()
        if recipe.channels_last:
            network = network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network, self.task, self.recipe, self.order = network, task, recipe, order
        self.steps = steps if steps is not None else (epochs or 1) * self.order.steps
        self.every = min(every or self.order.steps, self.steps)
        self.curves: dict[str, list[float]] = {}
        self.seconds = 0.0
        self._resumed_at = time.perf_counter()
        self.place = "cpu"
        self._losses: list[Tensor] = []
        self._rate = 0.0
        self.measured: dict[str, Batches] = task.parts()
        self._sums: dict[str, dict[str, Tensor]] = {}

    @property
    def rounds(self) -> int:
        return math.ceil(self.steps / self.every)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        if self.recipe.channels_last:
            inputs = tuple(_channels_last(value) for value in inputs)
        return self.network(*inputs, **named)

    def configure_model(self) -> None:
        if self.device_mesh is not None and not distributed.is_sharded(self.network):
            distributed.shard(self.network, self.device_mesh["data_parallel"], self._look)

    def configure_optimizers(self) -> Any:
        optimizer = make_optimizer(self.network, self.recipe)
        schedule = make_schedule(optimizer, self.recipe, self.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        self.place = str(self.device)

    def on_train_epoch_start(self) -> None:
        self._losses = []
        # What layers draw must differ between processes, which see different examples.
        process = (self.global_rank,) if self.global_rank else ()
        torch.manual_seed(derive(self.order.seed, self.current_epoch, LAYERS, *process))

    def training_step(self, weighted: tuple[Batch, float], index: int) -> Float[Tensor, ""]:
        batch, weight = weighted
        self._rate = float(self.trainer.optimizers[0].param_groups[0]["lr"])
        loss = self.task.loss(self, batch)
        # All processes end together, or those that are left would wait for the others.
        if not torch.isfinite(self._over_processes(loss.detach().clone(), "sum")):
            raise Diverged
        self._losses.append(weight * loss.detach())
        return loss if weight == 1 else weight * loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if distributed.is_sharded(self.network):
            distributed.mean_numbers(self.network)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        # Lightning refuses fused optimizers in mixed precision, whose gradients it takes for scaled ones.
        if gradient_clip_val is not None and distributed.is_sharded(self.network):
            distributed.clip(self.network, gradient_clip_val)
        elif gradient_clip_val is not None:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), gradient_clip_val)

    def on_validation_epoch_start(self) -> None:
        if distributed.is_sharded(self.network):
            distributed.share_buffers(self.network)
        self._sums = {part: {} for part in self.measured}

    def validation_step(self, counted: tuple[Batch, bool], index: int, dataloader_idx: int = 0) -> None:
        batch, counts = counted
        sums = self._sums[list(self.measured)[dataloader_idx]]
        for name, value in self.task.sums(self, batch).items():
            value = value if counts else torch.zeros_like(value)
            sums[name] = sums[name] + value if name in sums else value

    def on_validation_epoch_end(self) -> None:
        measured = {"loss": float(self._over_processes(torch.stack(self._losses).mean(), "mean"))}
        measured["learning_rate"] = self._rate
        for part, sums in self._sums.items():
            whole = {name: self._over_processes(value, "sum") for name, value in sums.items()}
            measured |= {f"{part}_{name}": value for name, value in self.task.metrics(whole).items()}
        for name, value in measured.items():
            self.curves.setdefault(name, []).append(value)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.seconds += now - self._resumed_at
        self._resumed_at = now
        checkpoint["curves"] = {"curves": self.curves, "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = checkpoint["curves"]
        self.curves, self.seconds = kept["curves"], kept["seconds"]
        self._resumed_at = time.perf_counter()

    def _look(self) -> None:
        training = self.network.training
        try:
            with torch.no_grad():
                self.task.check(self.network.eval())
        finally:
            self.network.train(training)

    def _over_processes(self, value: Tensor, how: str) -> Tensor:
        return self.trainer.strategy.reduce(value, reduce_op=how)  # pyright: ignore[reportReturnType]


class RoundEnd(Callback):
    """Keeps a checkpoint of the last whole round, and tells how far the training is."""

    def __init__(self, checkpoint: Path, steps: int, tell: Callable[[int, float], None]) -> None:
        self.checkpoint, self.steps, self.tell = checkpoint, steps, tell
        self.interrupted = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.interrupted = isinstance(exception, KeyboardInterrupt)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tell(trainer.current_epoch, trainer.global_step / self.steps)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        fresh = self.checkpoint.with_suffix(".new")
        try:
            trainer.save_checkpoint(fresh)
            if trainer.is_global_zero:
                os.replace(fresh, self.checkpoint)
        finally:
            if trainer.is_global_zero:
                fresh.unlink(missing_ok=True)


def fit(
    loop: Loop,
    checkpoint: Path,
    tell: Callable[[int, float], None],
    *callbacks: Callback,
    workers: int = 0,
    **options: Any,
) -> None:
    """Train a network to the end, from its checkpoint where there is one that can be read.

    `tell` is called at every step with the round and the share of the training that is done; `workers` processes make
    batches ahead of time; `options` go to Lightning's Trainer. Raises Diverged where the loss stops being finite;
    Ctrl-C comes out as KeyboardInterrupt, and the checkpoint of the last whole round stays.
    """
    on_interrupt = signal.getsignal(signal.SIGINT)
    round_end = RoundEnd(checkpoint, loop.steps, tell)
    # Those of the caller see a round before it is kept, so that what they hold of it is kept too.
    norms = contextlib.nullcontext() if loop.recipe.compile else shared_norms(loop.network)
    with _quiet_libraries(), norms:
        trainer = Trainer(
            # The callbacks log by themselves; Lightning would warn of rounds that are shorter than its own 50 steps.
            **{"devices": 1, "logger": False, "log_every_n_steps": 1, **options},
            max_epochs=loop.rounds,
            callbacks=[*callbacks, round_end],
            accumulate_grad_batches=loop.recipe.accumulate,
            gradient_clip_val=loop.recipe.clip,
            precision="bf16-mixed" if loop.recipe.precision == "bf16" else "32-true",
            # A last round may be shorter.
            reload_dataloaders_every_n_epochs=int(loop.steps % loop.every > 0),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            default_root_dir=checkpoint.parent,
        )
        try:
            trainer.fit(
                loop,
                train_dataloaders=Round(loop, workers),
                val_dataloaders=[Share(loop, batches) for batches in loop.measured.values()],
                ckpt_path=str(checkpoint) if readable(checkpoint) else None,
            )
        except SystemExit:
            # Lightning answers Ctrl-C by leaving the process, deaf to any further one: others have to tidy up first.
            if not round_end.interrupted:
                raise
            signal.signal(signal.SIGINT, on_interrupt)
            raise KeyboardInterrupt from None


def readable(checkpoint: Path) -> bool:
    """Whether a file is a checkpoint of this loop, every byte as it was written.

    A checkpoint is an interim state: one that cannot be read costs the rounds it stood for, and nothing finished.
    """
    try:
        with zipfile.ZipFile(checkpoint) as archive:
            # torch writes the sums that would tell a damaged number, and does not look at them when it reads.
            if archive.testzip() is not None:
                return False
        return "curves" in torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception:
        # What damage does to a pickle can be any error at all.
        return False


def _as_it_is(batch: Any) -> Any:
    return batch


def _channels_last(value: Any) -> Any:
    if isinstance(value, Tensor) and value.ndim in (4, 5) and value.is_floating_point():
        form = torch.channels_last if value.ndim == 4 else torch.channels_last_3d
        return value.contiguous(memory_format=form)
    return value


@contextlib.contextmanager
def _quiet_libraries() -> Iterator[None]:
    # What Lightning tells of its set-up at the start of every fit would stand between the lines of a study, and so
    # would what the compiler tells of a branch that is drawn to run or not, which it cuts the network in two at.
    wanted = {"lightning.pytorch": logging.WARNING, "lightning.fabric": logging.WARNING, "torch._dynamo": logging.ERROR}
    loggers = [logging.getLogger(name) for name in wanted]
    levels = [logger.level for logger in loggers]
    for logger, level in zip(loggers, wanted.values(), strict=True):
        logger.setLevel(level)
    try:
        with warnings.catch_warnings():
            # Lightning 2.6 makes its tree leaves the way of older torch; nothing here can change that.
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
