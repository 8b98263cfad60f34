"""`Study`: a declared experiment, checked when it is declared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from skipway import connect, models
from skipway.connect import Kind, Plain
from skipway.errors import SkipwayError
from skipway.study.data import check_source

if TYPE_CHECKING:
    import skipway.study.results

# Part of every trial's identity: to be raised when the training loop changes what comes out of it.
LOOP = 1


@dataclass(frozen=True)
class Variant:
    """One network of a study: a model's name, its depth and its connection, which `label` names for people."""

    model: str
    depth: int
    connection: Kind
    label: str

    @property
    def plain(self) -> bool:
        """Whether the network has no skips."""
        return isinstance(self.connection, Plain)


@dataclass(frozen=True)
class Trial:
    """One training run: a variant and a seed."""

    variant: Variant
    seed: int

    @property
    def title(self) -> str:
        return f"{self.variant.model} {self.variant.label} seed {self.seed}"


@dataclass(frozen=True)
class Study:
    """Models at several depths, with several connections, trained alike from several seeds.

    `model` names a model with "{depth}" in it; `skip` takes names (`skipway.connect.names()`) and values such as
    `Residual(drop=0.5)`, "none" being the plain network. `data` is "digits", a folder, or a Hugging Face name (see
    `load_images`). Every trial is trained by SGD with momentum under a one-cycle learning rate that peaks at
    `learning_rate` (Smith & Topin 2017, arXiv:1708.07120). Raises SkipwayError for what cannot be built or trained.

    >>> study = Study(depth=[8, 14], seeds=[0], epochs=1)
    >>> [trial.title for trial in study.trials()][:2]
    ['resnet8 none seed 0', 'resnet8 residual seed 0']
    """

    model: str = "resnet{depth}"
    depth: Sequence[int] = (20, 56)
    skip: Sequence[str | Kind] = ("none", "residual")
    data: str | Path = "digits"
    seeds: Sequence[int] = (0, 1, 2)
    epochs: int = 10
    width: int | None = 8
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    samples: int | None = None
    image_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("depth", "skip", "seeds"):
            object.__setattr__(self, name, _several(name, getattr(self, name)))
        for name in ("depth", "seeds"):
            for value in getattr(self, name):
                _check_whole(name, value, 0 if name == "seeds" else 1)
        # With a batch of one image, batch normalisation at 1 x 1 pixels has nothing to normalise over.
        smallest = {"epochs": 1, "batch_size": 2, "width": 1, "samples": 2, "image_size": 1}
        for name, least in smallest.items():
            if getattr(self, name) is not None or name in ("epochs", "batch_size"):
                _check_whole(name, getattr(self, name), least)
        _check_number("learning_rate", self.learning_rate, "above 0", self.learning_rate > 0)
        _check_number("momentum", self.momentum, "from 0 to below 1", 0 <= self.momentum < 1)
        _check_number("weight_decay", self.weight_decay, "0 or more", self.weight_decay >= 0)
        if "{depth}" not in self.model:
            shape = re.sub(r"\d+$", "{depth}", self.model)
            raise SkipwayError(f"model '{self.model}' leaves no place for the depth; write '{shape}' with depth=[...]")
        check_source(self.data)
        for variant in self.variants():
            with torch.device("meta"):
                self.build(variant, classes=10, channels=3)

    def variants(self) -> list[Variant]:
        """The networks that are compared, shallow to deep."""
        return [
            Variant(self.model.format(depth=depth), depth, connect.resolve(skip), label(skip))
            for depth in self.depth
            for skip in self.skip
        ]

    def trials(self) -> list[Trial]:
        """Every variant from every seed; a seed's trials stand together, so that what is done can be compared."""
        return [Trial(variant, seed) for seed in self.seeds for variant in self.variants()]

    def build(self, variant: Variant, classes: int, channels: int) -> torch.nn.Module:
        """A variant's network, for as many classes and channels as the data has."""
        options: dict[str, Any] = {} if self.width is None else {"width": self.width}
        return models.create(
            variant.model, skip=variant.connection, num_classes=classes, in_channels=channels, **options
        )

    def recipe(self) -> dict[str, Any]:
        """How every trial is trained: with the model, the connection, the data and the seed, all that decides it."""
        names = ("epochs", "width", "batch_size", "learning_rate", "momentum", "weight_decay")
        return {**{name: getattr(self, name) for name in names}, "loop": LOOP}

    def identify(self, trial: Trial, data_fingerprint: str) -> str:
        """A readable name, and a hash of everything that determines the trial's result."""
        determining = {
            "model": trial.variant.model,
            "connection": repr(trial.variant.connection),
            "seed": trial.seed,
            "data": data_fingerprint,
            "recipe": self.recipe(),
        }
        digest = hashlib.sha256(json.dumps(determining, sort_keys=True).encode()).hexdigest()
        readable = re.sub(r"[^a-z0-9.]+", "-", trial.title.lower()).strip("-")
        return f"{readable[:80]}-{digest[:10]}"

    def declaration(self) -> dict[str, Any]:
        """The study as plain values, connections by what they are."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values.update(data=str(self.data), depth=list(self.depth), seeds=list(self.seeds))
        values["skip"] = {label(skip): repr(connect.resolve(skip)) for skip in self.skip}
        return values

    def run(
        self, folder: str | Path = "runs/study", workers: int | None = 1, quiet: bool = False
    ) -> skipway.study.results.Results:
        """Train what is not yet trained, keeping every finished trial in `folder`, and return all results.

        What a crash or Ctrl-C left is taken up at the trial and the epoch where it stopped. `workers` processes share
        the trials, None for as many as suit this machine; the numbers are the same for any. (A script that asks for
        several needs `if __name__ == "__main__":`, as with all processes that Python starts.) Raises SkipwayError
        where the data or the folder cannot be used, and KeyboardInterrupt, saying how to go on, on Ctrl-C.
        """
        from skipway.study.running import run_study

        if workers is not None:
            _check_whole("workers", workers, 1)
        return run_study(self, Path(folder), workers, quiet)


def label(skip: str | Kind) -> str:
    """What people call a connection: its name, or what is particular about the value.

    >>> label("rezero"), label(connect.Residual(drop=0.5))
    ('rezero', 'Residual(drop=0.5)')
    """
    if isinstance(skip, str):
        return skip
    if not dataclasses.is_dataclass(skip):
        return repr(skip)
    chosen = [
        f"{field.name}={getattr(skip, field.name)!r}"
        for field in dataclasses.fields(skip)
        if getattr(skip, field.name) != field.default
    ]
    return f"{type(skip).__name__}({', '.join(chosen)})"


def _several(name: str, values: Any) -> tuple[Any, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise SkipwayError(f"{name} takes a list, such as [{values!r}], not {values!r}")
    if not values:
        raise SkipwayError(f"{name} is empty; a study needs one value at least")
    shown = [repr(connect.resolve(value)) if name == "skip" else repr(value) for value in values]
    if unstable := [text for text in shown if " at 0x" in text]:
        raise SkipwayError(
            f"{name} {unstable[0]} shows a memory address for itself, which no later run can recognise; "
            "give it a __repr__ of its own, as a dataclass has"
        )
    if twice := [text for text in shown if shown.count(text) > 1]:
        raise SkipwayError(f"{name} names {twice[0]} twice; each value stands once in a study")
    return tuple(values)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SkipwayError(f"{name} takes whole numbers from {least}, not {value!r}")


def _check_number(name: str, value: float, allowed: str, holds: bool) -> None:
    if not holds or not math.isfinite(value):
        raise SkipwayError(f"{name} is {value}; it must be {allowed}")
