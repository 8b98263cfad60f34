"""One trial of a study: trained by the loop, and what its record holds of it.

This module imports lightning, which takes seconds: it is imported where a trial is trained, and nowhere else.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from skipway.errors import SkipwayError
from skipway.study.declaring.declaration import Study
from skipway.study.declaring.variants import Trial, connection
from skipway.study.probing.experiments import EXPERIMENTS, Outcome
from skipway.study.probing.probes import probe_path, probes_of, read_probe, run_probe, sums
from skipway.study.records.record import Record
from skipway.study.records.status import reporting, status_path
from skipway.study.records.writing import write_json
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.problems import Problem
from skipway.study.tasks.task import Task
from skipway.study.training import distributed
from skipway.study.training.cost import cost_of_a_step
from skipway.study.training.determinism import WEIGHTS, derive, isolated, versions
from skipway.study.training.keeping import Reporter, Tracker
from skipway.study.training.loop import Diverged, Loop, fit
from skipway.study.training.order import Order
from skipway.study.training.plan import check_fit, make_order, one_thread
from skipway.study.training.tracking import Track, tracking
from skipway.torchrun import writes

Tell = Callable[[int, float], None]
# Steps that are timed, at most, before a training that is to take so many seconds.
_TIMED = 20


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
        return [0.0 if weight.grad is None else distributed.length(weight.grad) for weight in weights]


def weight_layers(network: nn.Module, task: Task) -> dict[str, Any]:
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
            task.check(network.eval())
    finally:
        network.train(training)
        for hook in hooks:
            hook.remove()
    return ran


def study_task(task: Task) -> Task:
    """The task as a study trains for it: images in classes are measured on what is trained on, too."""
    if isinstance(task, Classification):
        return Classification(task.images, parts={"train": "train", "test": "test"}, augment=task.augment)
    return task


def run_trial(study: Study, trial: Trial, trial_id: str, problem: Problem, folder: Path, tell: Tell) -> Record:
    """Do one trial, from its checkpoint where there is one that can be read, and return its record.

    `tell` is called at every step with the round and the share of the trial that is done. What probes find is kept in
    the study's folder. Ctrl-C comes out as KeyboardInterrupt, and the checkpoint of the last whole round stays.
    """
    with reporting(status_path(folder, trial_id)):
        if study.experiment != "train":
            return _experiment(study, trial, trial_id, problem, folder)
        return _train(study, trial, trial_id, problem, folder, tell)


def _train(study: Study, trial: Trial, trial_id: str, problem: Problem, folder: Path, tell: Tell) -> Record:
    variant, plan = trial.variant, study.plan(trial.variant, problem)
    # A study declares what a step sees, whatever number of processes share it.
    recipe = dataclasses.replace(plan.recipe, batch_size=distributed.share_of(plan.recipe.batch_size))
    task = study_task(problem.task)
    judge = "test_error" if isinstance(task, Classification) else task.judge[0]
    checkpoint = folder / "unfinished" / f"{trial_id}.ckpt"
    with isolated(one_thread(task, recipe)):
        torch.manual_seed(derive(trial.seed, 0, WEIGHTS))
        network = study.build(variant, problem)
        check_fit(network, variant.model, task)
        distributed.check_strategy(study.strategy, network, recipe.compile)
        order = make_order(task, recipe, trial.seed)
        cost = cost_of_a_step(network, task, order)
        seconds = variant.settings.get("seconds")
        epochs, steps = plan.epochs, plan.steps
        if seconds is not None:
            every = plan.every or order.steps
            options = distributed.trainer_options(study.strategy, network)
            kept = checkpoint.with_suffix(".steps")
            epochs, steps = None, _steps_for(seconds, network, task, recipe, order, every, kept, options)
        loop = Loop(network, task, recipe, order, epochs, steps, plan.every)
        gradients = GradientNorms(weight_layers(network, task), loop.steps)
        facts = {"model": variant.model, "skip": variant.label, **variant.labels, "seed": trial.seed}
        watchers = [gradients, Reporter(loop, status_path(folder, trial_id), judge), Tracker(loop, facts)]
        track = Track(folder, study.name, trial.title, trial_id, part=trial_id)
        strategy = distributed.trainer_options(study.strategy, network)
        diverged = None
        with tracking(study.logger, track) as logger:
            try:
                fit(loop, checkpoint, tell, *watchers, logger=logger, **strategy)
            except Diverged:
                diverged = {"epoch": loop.current_epoch + 1, "step": loop.global_step + 1}
        if distributed.is_sharded(network):
            weights = distributed.whole_state(network)
            network = study.build(variant, problem)
            if writes():
                network.load_state_dict(weights)
        network.eval().to("cpu")
        found = _probe(study, trial, trial_id, network, task, folder) if diverged is None else {}
        return Record(
            diverged=diverged,
            depth=getattr(network, "depth", variant.depth),
            task=task.kind,
            judge=judge,
            curves={name: _finite(loop.curves.get(name, [])) for name in loop.curves or _curve_names(loop)},
            measures={
                "seconds": round(loop.seconds, 3),
                "steps": float(loop.steps),
                "step_seconds": round(loop.seconds / max(1, loop.global_step), 6),
                "parameters": float(sum(parameter.numel() for parameter in network.parameters())),
                **cost,
                **found,
            },
            layers=list(gradients.layers),
            first_gradients=_finite(gradients.norms["first"]),
            last_gradients=_finite(gradients.norms["last"]),
            versions=versions(loop.place),
            **_identity(study, trial, trial_id, problem),
        )


def _curve_names(loop: Loop) -> list[str]:
    """What would have been measured of a training that ended in its first round."""
    names = ["loss", "learning_rate"]
    with torch.no_grad():
        for part, batches in loop.measured.items():
            sums = loop.task.sums(loop.network, batches[0])
            names += [f"{part}_{name}" for name in loop.task.metrics(sums)]
    return names


def _identity(study: Study, trial: Trial, trial_id: str, problem: Problem) -> dict[str, Any]:
    variant = trial.variant
    return {
        "id": trial_id,
        "labels": dict(variant.labels),
        "model": variant.model,
        "skip": variant.label,
        "connection": connection(variant.skip),
        "plain": variant.plain,
        "options": json.loads(json.dumps(study.sized(variant, problem), default=repr)),
        "seed": trial.seed,
        "recipe": study.recipe(variant, problem),
        "data": {name: problem.facts[name] for name in problem.facts if name not in ("class_names",)},
    }


def _experiment(study: Study, trial: Trial, trial_id: str, problem: Problem, folder: Path) -> Record:
    experiment = EXPERIMENTS[study.experiment]
    begin = time.perf_counter()
    with isolated(True):
        torch.manual_seed(derive(trial.seed, 0, WEIGHTS))
        outcome: Outcome = experiment.run(trial.variant, trial.seed, problem)
    for name, result in outcome.results.items() if writes() else ():
        path = probe_path(folder, trial_id, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)
    seconds = round(time.perf_counter() - begin, 3)
    return Record(
        diverged=None,
        depth=trial.variant.depth,
        task=study.experiment,
        judge=experiment.judge,
        curves={name: _finite(values) for name, values in outcome.curves.items()},
        measures={"seconds": seconds, **_finite_values(outcome.measures)},
        layers=[],
        first_gradients=[],
        last_gradients=[],
        versions=versions("cpu"),
        **_identity(study, trial, trial_id, problem),
    )


def _probe(
    study: Study, trial: Trial, trial_id: str, network: nn.Module, task: Task, folder: Path
) -> dict[str, float | None]:
    """What the study's probes find in a trained network, as far as they are for those of its seed."""
    found: dict[str, float] = {}
    if not writes():
        return {}
    for asked in probes_of(study.probes, trial.seed == study.seeds[0]):
        name, settings = read_probe(asked)
        path = probe_path(folder, trial_id, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            result = run_probe(name, settings, network, task)
        except SkipwayError as error:
            # A network without skips has no paths to measure: that is an answer, and no reason to lose the trial.
            write_json(path.with_suffix(".json"), {"probe": name, "refused": str(error)})
            continue
        result.save(path)
        found |= sums(result)
    return _finite_values(found)


def _steps_for(
    seconds: float,
    network: nn.Module,
    task: Task,
    recipe: Any,
    order: Order,
    every: int,
    kept: Path,
    options: Mapping[str, Any],
) -> int:
    """As many steps as take so long on this machine, as they were when the trial was first begun.

    Two short rounds are trained on a copy; the second is timed, with all that the loop does beside the steps.
    """
    known = None
    if writes() and kept.exists():
        # A file that was cut short is as good as none: it is found anew.
        with contextlib.suppress(ValueError, KeyError):
            known = json.loads(kept.read_text(encoding="utf-8"))["steps"]
    if (known := distributed.agree(known)) is not None:
        return int(known)
    timed, marks = min(every, _TIMED), {}
    loop = Loop(copy.deepcopy(network), task, recipe, order, None, 2 * timed, timed)
    place = kept.with_suffix(".timing")
    fit(loop, place, lambda number, share: marks.update({number: time.perf_counter()}), **options)
    measuring = _seconds_of_measuring(copy.deepcopy(network), task)
    a_step = max(marks[1] - marks[0] - measuring, 1e-6) / timed + measuring / every
    steps = distributed.agree(max(1, round(seconds / a_step)))
    if writes():
        place.unlink(missing_ok=True)
        # What was trained for another number of steps cannot be gone on with.
        kept.with_suffix(".ckpt").unlink(missing_ok=True)
        write_json(kept, {"steps": steps})
    return steps


def _seconds_of_measuring(network: nn.Module, task: Task) -> float:
    begin = time.perf_counter()
    network.eval()
    with torch.no_grad():
        for batches in task.parts().values():
            for number in range(len(batches)):
                task.sums(network, batches[number])
    return time.perf_counter() - begin


def _finite(values: Sequence[float]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in values]


def _finite_values(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
