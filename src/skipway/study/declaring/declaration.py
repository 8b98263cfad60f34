"""`Study`: a declared experiment, checked when it is declared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from skipway.engines import Engine
from skipway.errors import SkipwayError, check_whole, choose
from skipway.models.registry import find
from skipway.outside import fingerprint
from skipway.study.declaring.equal import check_equal, equal_width
from skipway.study.declaring.keys import AXES, DATA, RECIPE, choose_free, plain_values, read, sentence
from skipway.study.declaring.question import Question, compared_axis
from skipway.study.declaring.variants import Trial, Variant, connection, make_variants, plain_value
from skipway.study.probing.probes import check_probes, probes_of
from skipway.study.tasks.problems import DataChoice, Problem, check_data
from skipway.study.training.building import build_network, tells_hidden
from skipway.study.training.determinism import Undrawn
from skipway.study.training.distributed import check_processes
from skipway.study.training.plan import Plan, make_plan
from skipway.study.training.tracking import LoggerName, check_logger

if TYPE_CHECKING:
    import skipway.study.running.results

# Part of every trial's identity: to be raised when the training loop changes what comes out of it.
LOOP = 2
# What data of each kind offer to a network, where a study is checked before its data are read.
_OFFERED: dict[str, dict[str, Any]] = {
    "classification": {"num_classes": 10, "in_channels": 3, "image_size": 32},
    "segmentation": {"num_classes": 1, "in_channels": 1},
    "language": {"vocabulary": 65, "length": 128},
    "hidden language": {"vocabulary": 66, "length": 128},
    "translation": {"vocabulary": 100, "target_vocabulary": 100, "length": 65},
}


class Study(BaseModel):
    """Networks that differ along declared axes, trained alike from several seeds, and what is asked of them.

    An axis takes one value or a list of them: the data, the network (`model`, `depth`, `width`, `skip`, and the values
    of `options`), and how it is trained. `model` is a name of `skipway.models`, in which axes in braces are filled in,
    or `package.module:factory`, or `hf:NAME`; of these "none" is the plain twin, made by `skipway.edit`. A skip is a
    name (`skipway.connect.names()`), a value, or one such as "Residual(drop=0.5)" in quotes; None is the model's own.
    Without one, `optimizer`, `learning_rate` and the like are as the data's task needs them; `epochs`, `steps` or
    `seconds` say for how long. `equal` chooses widths so that the compared networks have as many parameters or
    multiply-adds as the first. `probes` are run on the networks that the first seed trained: names of
    `skipway.probe`, or {"name": "landscape", "steps": 21}, with "seeds": "all" on those of every seed. `experiment`
    says what a trial is: "train", or an experiment of `skipway.probe` that builds its own networks. `logger` tells a
    tracker of every trial ("tensorboard", "mlflow" or "wandb"), and under torchrun each trial is trained by all
    processes, by `strategy` "ddp" or "fsdp": neither makes another study. Raises SkipwayError for what cannot be built
    or trained.

    >>> study = Study(depth=[8, 14], seeds=[0], epochs=1)
    >>> [trial.title for trial in study.trials()][:2]
    ['resnet8 none seed 0', 'resnet8 residual seed 0']
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    name: str = "study"
    about: str = ""
    question: Question = Question()
    experiment: str = "train"
    model: str | Sequence[str] = "resnet{depth}"
    depth: int | Sequence[int] | None = (20, 56)
    width: int | Sequence[int] | None = None
    skip: Any = ("none", "residual")
    options: Mapping[str, Any] = {}
    seeds: Sequence[int] = (0, 1, 2)
    equal: Literal["parameters", "multiply-adds"] | None = None
    probes: Sequence[Any] = ()
    logger: LoggerName = "csv"
    strategy: Literal["ddp", "fsdp"] = "ddp"

    data: Any = "digits"
    limit: int | Sequence[int] | None = None
    image_size: int | Sequence[int] | None = None
    augment: str | Sequence[str] = "none"
    crop: int | Sequence[int] | None = None
    length: int | Sequence[int] | None = None
    held_out: float | int | None = None
    loss: str | None = None
    languages: Sequence[str] | None = None
    vocabulary: int | None = None

    epochs: int | Sequence[int] | None = None
    steps: int | Sequence[int] | None = None
    seconds: float | Sequence[float] | None = None
    every: int | None = None
    batch_size: int | Sequence[int] | None = None
    optimizer: str | Sequence[str] | None = None
    learning_rate: float | Sequence[float] | None = None
    schedule: str | Sequence[str] | None = None
    warm_up: int | Sequence[int] | None = None
    momentum: float | Sequence[float] | None = None
    weight_decay: float | Sequence[float] | None = None
    clip: float | Sequence[float] | None = None
    precision: str | Sequence[str] = "32"

    def __init__(self, **values: Any) -> None:
        unknown = [key for key in values if key not in type(self).model_fields]
        for key in unknown:
            choose("key of a study", key, type(self).model_fields)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SkipwayError(sentence(error)) from None
        self._check()

    def __eq__(self, other: object) -> bool:
        # Whether a value was written or is the one that would be taken makes no other study.
        return isinstance(other, Study) and self._whole() == other._whole()

    def __hash__(self) -> int:
        return hash(self.name)

    def _whole(self) -> dict[str, Any]:
        return {name: value for name, value in self if name not in AXES} | {"axes": self.axes()}

    @field_validator(*AXES, "seeds", "probes", mode="before")
    @classmethod
    def _several(cls, value: Any, info: Any) -> Any:
        name = str(info.field_name)
        if value is None or (isinstance(value, (list, tuple)) and not value and name == "probes"):
            return () if name == "probes" else value
        if name in ("seeds", "probes") and not isinstance(value, (list, tuple)):
            raise SkipwayError(f"{name} takes a list, such as [{value!r}], not {value!r}")
        values = tuple(value) if isinstance(value, (list, tuple)) else (value,)
        if not values:
            raise SkipwayError(f"{name} is empty; a study needs one value at least")
        values = tuple(read(name, one) for one in values)
        shown = [connection(one) if name == "skip" else repr(one) for one in values]
        if unstable := [text for text in shown if " at 0x" in text]:
            raise SkipwayError(
                f"{name} {unstable[0]} shows a memory address for itself, which no later run can recognise; "
                "give it a __repr__ of its own, as a dataclass has"
            )
        if twice := [text for text in shown if shown.count(text) > 1]:
            raise SkipwayError(f"{name} names {twice[0]} twice; each value stands once in a study")
        return values

    @field_validator("question", mode="before")
    @classmethod
    def _question(cls, value: Any) -> Any:
        if not isinstance(value, (str, Mapping, Question)):
            raise SkipwayError(f'question takes a sentence, or a table such as {{text = "Why?"}}, not {value!r}')
        return Question(text=value) if isinstance(value, str) else value

    @field_validator("languages", mode="before")
    @classmethod
    def _languages(cls, value: Any) -> Any:
        pair = isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(one, str) for one in value)
        if value is not None and (not pair or value[0] == value[1]):
            raise SkipwayError(f'languages takes two, from and to, such as ["en", "de"], not {value!r}')
        return value

    def _check(self) -> None:
        from skipway.study.probing.experiments import EXPERIMENTS

        if len(given := [name for name in ("epochs", "steps", "seconds") if getattr(self, name) is not None]) > 1:
            raise SkipwayError(f"{' and '.join(given)} say the same thing twice: give one of them")
        for name, value in self.options.items():
            choose_free(name)
            if isinstance(value, (list, tuple)) and not value:
                raise SkipwayError(f"options.{name} is empty; a study needs one value at least")
        if self.every is not None:
            check_whole("every", self.every, 1)
        for source in self.values("data"):
            # Whether a folder is there is asked where it is read: results are looked at without their data, too.
            if "/" not in str(source):
                check_data(source)
        choose("experiment", self.experiment, ("train", *EXPERIMENTS))
        self._check_depths()
        self._check_question()
        if self.experiment == "train":
            check_probes(self.probes)
            for variant in self.variants():
                if self.equal is not None:
                    check_equal(self.equal, variant.model)
                self._try(variant)
        else:
            EXPERIMENTS[self.experiment].check(self)

    def _check_depths(self) -> None:
        if self.experiment != "train" or "depth" not in self.model_fields_set or not self.values("depth"):
            return
        for pattern in self.values("model"):
            if "{depth}" in pattern or ":" in pattern:
                continue
            family, settled = find(pattern)
            if "depth" not in family.options(settled):
                shape = re.sub(r"\d+", "{depth}", pattern, count=1)
                raise SkipwayError(
                    f"model '{pattern}' leaves no place for the depth; write '{shape}' with depth=[...], or leave "
                    "depth out"
                )

    def _check_question(self) -> None:
        axes, asked = self.axes(), self.question
        for role in ("compare", "along"):
            if (name := getattr(asked, role)) is not None:
                choose(f"axis to {role}" if role == "compare" else "axis to go along", name, axes)
        if asked.compare is not None and asked.compare == asked.along:
            raise SkipwayError(f"the question compares {asked.compare} along itself; name another axis for `along`")
        if asked.baseline is not None:
            compared = compared_axis(asked, axes)
            known = [connection(v) if compared == "skip" else repr(v) for v in axes.get(compared, ())]
            value = read("skip", asked.baseline) if compared == "skip" else asked.baseline
            if (connection(value) if compared == "skip" else repr(value)) not in known:
                raise SkipwayError(f"the baseline {asked.baseline!r} is not among the values of {compared}")

    def _try(self, variant: Variant) -> None:
        """Build our own networks without memory; what a user's own code builds is built when it is trained."""
        if ":" in variant.model:
            return
        kind = find(variant.model)[0].task
        with torch.device("meta"), Undrawn():
            build_network(variant.model, kind, _OFFERED[kind], variant.skip, variant.options)

    def values(self, axis: str) -> tuple[Any, ...]:
        """The values of an axis; none where the task is to choose."""
        value = self.options[axis] if axis in self.options else getattr(self, axis)
        if axis == "model" and self.experiment != "train":
            return (self.experiment,)
        if axis == "depth" and "depth" not in self.model_fields_set:
            # The depths of the classic question are for models that have a place for one.
            value = value if any("{depth}" in str(pattern) for pattern in self.values("model")) else None
        if axis == "skip" and "skip" not in self.model_fields_set and self.experiment != "train":
            from skipway.study.probing.experiments import EXPERIMENTS

            value = value if "skip" in EXPERIMENTS[self.experiment].axes else None
        if value is None:
            return (None,) if axis == "skip" else ()
        return tuple(value) if isinstance(value, (list, tuple)) else (value,)

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """The axes that have values, in the order in which they vary; the last varies fastest."""
        names = [*AXES[:-3], *self.options, *AXES[-3:]]
        return {name: values for name in names if (values := self.values(name))}

    def variants(self) -> list[Variant]:
        """The networks and trainings that are compared."""
        return list(make_variants(self.axes(), list(self.options)))

    def trials(self) -> list[Trial]:
        """Every variant from every seed; a seed's trials stand together, so that what is done can be compared."""
        return [Trial(variant, seed) for seed in self.seeds for variant in self.variants()]

    def choice(self, variant: Variant) -> DataChoice:
        """Which data a variant is trained on."""
        hides = self.experiment == "train" and tells_hidden(variant.model, variant.options)
        chosen = {name: variant.settings[name] for name in DATA if name in variant.settings}
        languages = None if self.languages is None else (str(self.languages[0]), str(self.languages[1]))
        return DataChoice(
            str(variant.settings["data"]),
            held_out=self.held_out, loss=self.loss, languages=languages, vocabulary=self.vocabulary, hides=hides,
            **chosen,
        )  # fmt: skip

    def build(self, variant: Variant, problem: Problem) -> torch.nn.Module:
        """A variant's network, for what its data settle."""
        return build_network(
            variant.model, problem.task.kind, problem.offered, variant.skip, self.sized(variant, problem)
        )

    def sized(self, variant: Variant, problem: Problem) -> dict[str, Any]:
        """A variant's options, with the width that makes it as large as the one that it is compared with."""
        if self.equal is None:
            return dict(variant.options)
        return {**variant.options, "width": equal_width(self, variant, problem)}

    def plan(self, variant: Variant, problem: Problem) -> Plan:
        """How a variant is trained; where `seconds` are given, for how many steps is found when it is."""
        chosen = {name: variant.settings[name] for name in RECIPE if name in variant.settings}
        duration = {name: variant.settings[name] for name in ("epochs", "steps") if name in variant.settings}
        return make_plan(problem, chosen, every=self.every, **duration, precision=variant.settings["precision"])

    def recipe(self, variant: Variant, problem: Problem) -> dict[str, Any]:
        """The plan of a variant as plain values: with the network, the data and the seed, all that decides it."""
        plan, seconds = self.plan(variant, problem), variant.settings.get("seconds")
        duration = {"epochs": plan.epochs, "steps": plan.steps} if seconds is None else {"seconds": seconds}
        return {**dataclasses.asdict(plan.recipe), **duration, "every": plan.every, "loop": LOOP}

    def identify(self, trial: Trial, problem: Problem) -> str:
        """A readable name, and a hash of everything that determines the trial's result."""
        choice = vars(self.choice(trial.variant))
        determining = {
            "experiment": self.experiment,
            "model": trial.variant.model,
            "connection": connection(trial.variant.skip),
            "options": self.sized(trial.variant, problem),
            "seed": trial.seed,
            # Where the data lie does not matter, nor how many were asked for: what they are does.
            "data": {name: choice[name] for name in ("augment", "crop", "loss", "length", "hides")},
            "fingerprint": problem.facts["fingerprint"],
            "recipe": self.recipe(trial.variant, problem),
        }
        # What probes found stands in the record, so a study that asks for others needs another one.
        if probes := probes_of(self.probes, trial.seed == self.seeds[0]):
            determining["probes"] = probes
        if (written := fingerprint(trial.variant.model)) is not None:
            determining["source"] = written
        digest = hashlib.sha256(json.dumps(determining, sort_keys=True, default=repr).encode()).hexdigest()
        readable = re.sub(r"[^a-z0-9.]+", "-", trial.title.lower()).strip("-")
        return f"{readable[:80]}-{digest[:10]}"

    def declaration(self) -> dict[str, Any]:
        """The study as plain values, from which `Study(**values)` makes it again; what was not chosen is left out."""
        values: dict[str, Any] = {}
        # An experiment builds its own networks, and may have no model, depth or skip to choose.
        always = ("model", "depth", "skip", "seeds", "data") if self.experiment == "train" else ("seeds", "data")
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name not in self.model_fields_set and name not in always:
                continue
            if name == "question":
                asked = value.model_dump(exclude_defaults=True)
                value = {key: plain_value(one) for key, one in asked.items()}
            elif name == "options":
                value = {key: plain_values(one) for key, one in value.items()}
            elif name == "depth" and "depth" not in self.model_fields_set:
                value = list(self.values("depth")) or None
            elif isinstance(value, tuple) and name in AXES and len(value) == 1 and not isinstance(value[0], tuple):
                value = str(value[0]) if isinstance(value[0], Path) else plain_value(value[0])
            elif isinstance(value, tuple):
                value = [str(one) if isinstance(one, Path) else plain_values(one) for one in value]
            if value is not None:
                values[name] = value
        return values

    def changed(self, **changes: Any) -> Study:
        """The same study with other values.

        Raises SkipwayError as a new study does.

        >>> Study(depth=[8, 14], seeds=[0, 1, 2]).changed(seeds=[0]).values("depth")
        (8, 14)
        """
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return Study(**{**kept, **changes})

    def run(
        self,
        folder: str | Path = "runs/study",
        workers: int | None = 1,
        quiet: bool = False,
        engine: str | Engine = "local",
        wait: bool = False,
    ) -> skipway.study.running.results.Results:
        """Train what is not yet trained, keeping every finished trial in `folder`, and return all results.

        What a crash or Ctrl-C left is taken up at the trial and the epoch where it stopped. `workers` processes share
        the trials, None for as many as suit this machine; the numbers are the same for any. (A script that asks for
        several needs `if __name__ == "__main__":`, as with all processes that Python starts.) `engine="ray"` gives the
        trials to a Ray cluster that is started here, "ray:ADDRESS" to one that is there, and
        `skipway.engines.Ray(needs=Needs(gpus=1))` says what each occupies; more than one of `workers` are then the most
        that run at once. A trial that fails by itself, as for want of memory, is kept as such and begun again by the
        next run. Where another process works in the folder, this one is refused, unless told to `wait`. Raises
        SkipwayError where the data or the folder cannot be used, and KeyboardInterrupt, saying how to go on, on Ctrl-C.
        """
        from skipway.study.running.run import run_study

        if workers is not None:
            check_whole("workers", workers, 1)
        # Else every trial would fail by itself, for the same reason.
        check_logger(self.logger)
        check_processes(self.strategy)
        return run_study(self, Path(folder), workers, quiet, engine, wait)
