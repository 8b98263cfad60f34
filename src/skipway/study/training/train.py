"""`train`: one network, trained on whatever the data are, in a folder that keeps everything."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import multiprocessing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from skipway.connect import Kind
from skipway.errors import SkipwayError, check_whole, choose
from skipway.study.records.writing import storage, write_json
from skipway.study.tasks.problems import DataChoice, Problem, open_problem
from skipway.study.training.building import build_network, read_skip, tells_hidden, written_skip
from skipway.study.training.determinism import WEIGHTS, derive, isolated, versions
from skipway.study.training.distributed import STRATEGIES, check_strategy, trainer_options, whole_state
from skipway.study.training.plan import check_fit, make_order, make_plan, one_thread
from skipway.study.training.progress import TrainingProgress
from skipway.study.training.recipe import Recipe
from skipway.study.training.run_folder import FORMAT, RunFolder
from skipway.study.training.tracking import LOGGERS, LoggerName, Track, tracking
from skipway.torchrun import processes, writes

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Trained:
    """What a training gave: its curves by round, its best round counted from 1, and what it wrote at the end."""

    folder: Path
    kind: str
    judge: str
    best_round: int
    curves: Mapping[str, Sequence[float]]
    samples: Sequence[str]
    parameters: int
    seconds: float

    @property
    def best(self) -> dict[str, float]:
        """Every metric after the best round, whose weights are in best.pt."""
        return {name: values[self.best_round - 1] for name, values in self.curves.items()}

    @property
    def last(self) -> dict[str, float]:
        """Every metric after the last round, whose weights are in last.pt."""
        return {name: values[-1] for name, values in self.curves.items()}

    def table(self) -> pandas.DataFrame:
        """A row a round."""
        import pandas

        rounds = pandas.RangeIndex(1, len(next(iter(self.curves.values()))) + 1, name="round")
        return pandas.DataFrame(dict(self.curves), index=rounds)

    def network(self, which: Literal["best", "last"] = "best") -> nn.Module:
        """The trained network, in evaluation mode."""
        return load_network(RunFolder(self.folder), which)


def train(
    model: str,
    data: str | Path = "digits",
    *,
    skip: str | Kind | Sequence[str | Kind] | None = None,
    options: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    steps: int | None = None,
    every: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    learning_rate: float | None = None,
    optimizer: Literal["sgd", "adamw"] | None = None,
    schedule: Literal["one-cycle", "cosine", "inverse-root", "constant"] | None = None,
    warm_up: int | None = None,
    weight_decay: float | None = None,
    clip: float | None = None,
    precision: Literal["32", "bf16"] = "32",
    channels_last: bool | None = None,
    compile: bool = False,
    seed: int = 0,
    augment: Literal["none", "standard"] = "none",
    limit: int | None = None,
    held_out: float | int | None = None,
    image_size: int | None = None,
    crop: int | None = None,
    loss: Literal["cross-entropy", "dice", "both"] | None = None,
    length: int | None = None,
    languages: tuple[str, str] | None = None,
    folder: str | Path = "runs/train",
    logger: LoggerName = "csv",
    workers: int = 0,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    quiet: bool = False,
) -> Trained:
    """Train a network on data, which tell what there is to do, and keep everything in `folder`.

    `model` is a name (`models.names()`), or a model from outside: `hf:NAME`, `timm:NAME`, `torchvision:NAME` or
    `package.module:factory` (see `build_network`). `data` is a set of labelled images (see
    `load_images`), a folder of images/ and masks/, a text file, or the start of the names of line-aligned files, such
    as multi30k of multi30k.train.en. What is None is as the task needs it. A round is `every` steps, an epoch where
    that is None; after each, what is held out is measured and everything is kept, and the same call again goes on
    behind the last whole round with the numbers of a training that was never stopped. Under torchrun, where
    `batch_size` is each process's, "ddp" gives every process the whole network, and "fsdp" a share of its parameters,
    gradients and optimizer state. `logger` tells a tracker of the curves, beside the history that is always written.
    Raises SkipwayError for what cannot be trained and for a loss that stops being finite, and KeyboardInterrupt, saying
    how to go on, on Ctrl-C.
    """
    choose("logger", logger, LOGGERS)
    choose("strategy", strategy, STRATEGIES)
    if epochs is not None and steps is not None:
        raise SkipwayError("epochs and steps say the same thing twice: give one of them")
    for name, value in (("epochs", epochs), ("steps", steps), ("every", every)):
        if value is not None:
            check_whole(name, value, 1)
    check_whole("seed", seed, 0)
    check_whole("workers", workers, 0)
    if workers and "fork" not in multiprocessing.get_all_start_methods():
        raise SkipwayError("workers are copies of this process, which this system does not make; leave workers out")
    options = dict(options or {})
    for name, value in options.items():
        if not _plain(value):
            raise SkipwayError(
                f"option {name} is a {type(value).__name__}; a training keeps numbers, words and lists of them"
            )
    # These are the data's as much as the network's, which is built as they turn out.
    length = options.pop("length", None) if length is None else length
    vocabulary = options.pop("vocabulary", None)
    hides = tells_hidden(model, options)
    choice = DataChoice(
        str(data), limit, held_out, image_size, augment, crop, loss, length, languages, vocabulary, hides
    )
    problem = open_problem(choice)
    chosen: dict[str, Any] = {
        "batch_size": batch_size, "learning_rate": learning_rate, "optimizer": optimizer, "schedule": schedule,
        "warm_up": warm_up, "weight_decay": weight_decay, "clip": clip, "channels_last": channels_last,
    }  # fmt: skip
    fixed = {"accumulate": accumulate, "precision": precision, "compile": compile}
    plan = make_plan(problem, chosen, epochs, steps, every, **fixed)
    declaration = {
        "model": model,
        "skip": written_skip(skip),
        "options": options,
        "task": problem.task.kind,
        "data": {**dataclasses.asdict(choice), "fingerprint": problem.facts["fingerprint"]},
        "recipe": dataclasses.asdict(plan.recipe),
        "epochs": plan.epochs,
        "steps": plan.steps,
        "every": plan.every,
        "seed": seed,
    }
    run = RunFolder(Path(folder).expanduser())
    with storage(run.path):
        return _train(
            run, declaration, problem, {"logger": logger, "workers": workers, "quiet": quiet, "strategy": strategy}
        )


def load_network(run: RunFolder, which: Literal["best", "last"] = "best") -> nn.Module:
    """The network of a run, with the weights of its best or its last round, in evaluation mode."""
    content = run.read()
    path = run.best if choose("weights", which, ("best", "last")) == "best" else run.last
    if not path.exists():
        raise SkipwayError(f"'{run.path}' has no {path.name} yet: its training has not come so far")
    network = _build(content["training"], content["offered"])
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval()


def _train(run: RunFolder, declaration: dict[str, Any], problem: Problem, options: dict[str, Any]) -> Trained:
    task, writing = problem.task, writes()
    recipe = Recipe(**declaration["recipe"])
    with isolated(one_thread(task, recipe)):
        torch.manual_seed(derive(declaration["seed"], 0, WEIGHTS))
        network = _build(declaration, problem.offered)
        check_fit(network, declaration["model"], task)
        check_strategy(options["strategy"], network, recipe.compile)
        if writing:
            run.claim(declaration, problem.offered, problem.facts, problem.files)
        if run.record.exists():
            return _finished(run)
        # Lightning takes seconds to import.
        from skipway.study.training.keeping import Keeper, Tracker
        from skipway.study.training.loop import Diverged, Loop, fit

        order = make_order(task, recipe, declaration["seed"])
        if recipe.compile:
            network.compile()
        loop = Loop(network, task, recipe, order, *(declaration[name] for name in ("epochs", "steps", "every")))
        title = f"{declaration['model']}: {declaration['data']['data']}"
        with TrainingProgress(loop.rounds, options["quiet"] or not writing) as progress:
            try:
                keeper, tracker = Keeper(run, loop, progress, title), Tracker(loop, _tracked(declaration))
                strategy = trainer_options(options["strategy"], network)
                with tracking(options["logger"], _track(run, title)) as logger:
                    fit(
                        loop, run.checkpoint, progress.step, keeper, tracker,
                        workers=options["workers"], logger=logger, **strategy,
                    )  # fmt: skip
            except Diverged:
                raise SkipwayError(
                    f"the loss stopped being finite in round {loop.current_epoch + 1}, step {loop.global_step + 1}: "
                    f"lower the learning rate ({recipe.learning_rate:g}), clip gradients (--clip 1), or choose a skip "
                    f"with a norm or a scale; what was trained before is kept in '{run.path}'"
                ) from None
            except KeyboardInterrupt:
                done = len(loop.curves.get("loss", []))
                raise KeyboardInterrupt(
                    f"stopped; {done} of {loop.rounds} rounds are kept in '{run.path}'; "
                    "the same again goes on where the last of them ended"
                ) from None
        best_round = best_of(loop.curves[task.judge[0]], task.judge[1])
        parameters = sum(parameter.numel() for parameter in network.parameters())
        weights = whole_state(network)
        if not writing:
            return Trained(run.path, task.kind, task.judge[0], best_round, loop.curves, [], parameters, loop.seconds)
        run.write_weights(run.last, weights)
        run.draw(loop.curves, task.judge[0], title)
        # Not the network that was trained, of which this process may hold a share only.
        network = load_network(run).to(loop.device)
        samples = task.samples(network, loop.device)
        if (figure := task.draw(network, loop.device)) is not None:
            run.write_figure(run.path / "examples.png", figure)
        write_json(
            run.record,
            {
                "format": FORMAT,
                "training": declaration,
                "data": problem.facts,
                "parameters": parameters,
                "depth": getattr(network, "depth", None),
                "steps": loop.steps,
                "rounds": loop.rounds,
                "processes": processes(),
                "judge": task.judge[0],
                "best_round": best_round,
                "curves": {name: [_finite(value) for value in values] for name, values in loop.curves.items()},
                "samples": samples,
                "seconds": round(loop.seconds, 3),
                "versions": versions(loop.place),
            },
        )
        return _finished(run)


def best_of(values: Sequence[float], end: str) -> int:
    """The first round, counted from 1, that is at the good end: "lowest" or "highest".

    >>> best_of([0.5, 0.25, 0.25], "lowest")
    2
    """
    good = [value if math.isfinite(value) else math.inf for value in (v if end == "lowest" else -v for v in values)]
    return good.index(min(good)) + 1


def _build(declaration: Mapping[str, Any], offered: Mapping[str, Any]) -> nn.Module:
    skip = read_skip(declaration["skip"])
    return build_network(declaration["model"], declaration["task"], offered, skip, declaration["options"])


def _tracked(declaration: Mapping[str, Any]) -> dict[str, Any]:
    """What a tracker shows of a training: its settings, each under a name of its own."""
    flat = {**declaration, **declaration["data"], **declaration["recipe"]}
    return {name: value if _scalar(value) else repr(value) for name, value in flat.items() if name != "recipe"}


def _track(run: RunFolder, title: str) -> Track:
    """A training is known by its folder."""
    place = hashlib.sha256(str(run.path.absolute()).encode()).hexdigest()[:12]
    return Track(run.path, "skipway", title, place)


def _finished(run: RunFolder) -> Trained:
    try:
        kept = json.loads(run.record.read_text(encoding="utf-8"))
        return Trained(
            run.path,
            kept["training"]["task"],
            kept["judge"],
            kept["best_round"],
            {name: [math.nan if v is None else v for v in values] for name, values in kept["curves"].items()},
            kept["samples"],
            kept["parameters"],
            kept["seconds"],
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise SkipwayError(
            f"'{run.record}' cannot be read: {error}; remove it, and the same again writes it"
        ) from error


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(one) for one in value)
    return value is None or isinstance(value, (bool, int, float, str))


def _scalar(value: Any) -> bool:
    return isinstance(value, (bool, int, float, str))


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
