"""What a training writes down after every round, on the one process that writes.

This module imports lightning, which takes seconds: it is imported where a network is trained, and nowhere else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from skipway.study.records.status import Status, write_status
from skipway.study.training.distributed import whole_state
from skipway.study.training.loop import Loop
from skipway.study.training.progress import TrainingProgress
from skipway.study.training.run_folder import RunFolder
from skipway.study.training.train import best_of

_LOGGED_STEPS = 10
_PATIENCE = 20.0
# Seconds between two tellings of how far a training is, within a round and at the ends of rounds.
_BETWEEN, _BETWEEN_ROUNDS = 2.0, 0.2


class Tracker(Callback):
    """Tells a logger of Lightning's what is trained, and its curves; of the training loss every tenth step, too."""

    def __init__(self, loop: Loop, facts: Mapping[str, Any]) -> None:
        self.loop, self.facts = loop, facts

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.logger is not None:
            trainer.logger.log_hyperparams(dict(self.facts))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.logger is not None and batch_idx % _LOGGED_STEPS == 0:
            trainer.logger.log_metrics({"step_loss": float(outputs["loss"])}, trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.logger is not None:
            measured = {name: values[-1] for name, values in self.loop.curves.items()}
            trainer.logger.log_metrics(measured, trainer.global_step)


class Reporter(Callback):
    """Writes down how far a training is, for whoever watches it from another process."""

    def __init__(self, loop: Loop, path: Path, judge: str) -> None:
        self.loop, self.path, self.judge = loop, path, judge
        self.began = self.told = time.monotonic()
        self.first_share = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began, self.first_share = time.monotonic(), trainer.global_step / self.loop.steps
        self._tell(trainer, 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tell(trainer, _BETWEEN)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, _BETWEEN_ROUNDS)

    def _tell(self, trainer: Trainer, patience: float) -> None:
        now = time.monotonic()
        if not trainer.is_global_zero or now - self.told < patience:
            return
        self.told = now
        curves, loop = self.loop.curves, self.loop
        measured = {name: curves[name][-1] for name in ("train_error", self.judge) if name in curves}
        share = trainer.global_step / loop.steps
        current = min(trainer.current_epoch + 1, loop.rounds)
        status = Status(current, loop.rounds, share, measured, now - self.began, self.first_share)
        write_status(self.path, status)


class Keeper(Callback):
    """Keeps the best weights, the history and the curve of a training, and tells of each round."""

    def __init__(self, run: RunFolder, loop: Loop, progress: TrainingProgress, title: str) -> None:
        self.run, self.loop, self.progress, self.title = run, loop, progress, title
        self._drawn = time.monotonic()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        curves, (judge, end) = self.loop.curves, self.loop.task.judge
        rounds = len(curves["loss"])
        best = best_of(curves[judge], end) == rounds
        # All processes give their share, and one writes.
        weights = whole_state(self.loop.network) if best else {}
        if not trainer.is_global_zero:
            return
        if best:
            self.run.write_weights(self.run.best, weights)
        self.run.write_history(curves)
        # Drawing takes longer than a round of a small training, and its last curve is drawn at the end.
        if time.monotonic() - self._drawn > _PATIENCE:
            self.run.draw(curves, judge, self.title)
            self._drawn = time.monotonic()
        measured = {name: values[-1] for name, values in curves.items()}
        shown = {name: value for name, value in measured.items() if name in ("loss", judge, "validation_loss")}
        self.progress.end(rounds, shown, best)
