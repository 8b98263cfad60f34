"""Experiments whose trials build networks of their own: what a study can do beside training one of its networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from skipway import probe
from skipway.errors import SkipwayError, choose
from skipway.probe import Result
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.problems import Problem

if TYPE_CHECKING:
    from skipway.study.declaring.declaration import Study
    from skipway.study.declaring.variants import Variant


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: numbers by round, numbers at the end, and whole results of probes by name."""

    curves: Mapping[str, Sequence[float]]
    measures: Mapping[str, float]
    results: Mapping[str, Result] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An experiment by what it does to one variant from one seed, its axes, its further options, and its judge.

    `judge` is the measure that it is about.
    """

    run: Callable[[Variant, int, Problem], Outcome]
    axes: tuple[str, ...]
    options: tuple[str, ...]
    judge: str

    def check(self, study: Study) -> None:
        """Raise SkipwayError for an axis or an option that the experiment has no use for."""
        for name in study.options:
            choose(f"option of the experiment '{study.experiment}'", name, self.options)
        for name, values in study.axes().items():
            if len(values) > 1 or name in study.model_fields_set:
                choose(f"axis of the experiment '{study.experiment}'", name, (*self.axes, *study.options))


def _identity(variant: Variant, seed: int, problem: Problem) -> Outcome:
    """A stack of as many layers as `depth` says, trained to give back what it is given."""
    chosen = _chosen(variant, steps="steps", learning_rate="rate", weight_decay="weight_decay", batch_size="batch_size")
    features, _ = _features(problem, variant.settings.get("width"))
    depth = variant.depth or 2
    skip = "residual" if variant.skip is None else variant.skip
    found = probe.identity(features, skips=(skip,), depths=(depth,), seeds=(seed,), **chosen)
    measures = {
        "identity_error": found.errors, "jacobian_distance": found.distances, "moved": found.moved,
        "norm_ratio": found.norms,
    }  # fmt: skip
    return Outcome(
        {"loss": found.curves.ravel().tolist()},
        {name: float(values.item()) for name, values in measures.items()},
        {"identity": found},
    )


def _construction(variant: Variant, seed: int, problem: Problem) -> Outcome:
    """A net made deeper by layers that are the identity, against ones as deep that are trained from scratch."""
    chosen = _chosen(
        variant, depth="depth", deeper="deeper", width="width", steps="steps", learning_rate="rate",
        batch_size="batch_size",
    )  # fmt: skip
    found = probe.construction(*_features(problem, None), seeds=(seed,), **chosen)
    losses = {f"{name}_loss": row[0].tolist() for name, row in zip(found.nets, found.losses, strict=True)}
    ends = {name: values[-1] for name, values in losses.items()}
    errors = {f"{name}_error": float(row[0]) for name, row in zip(found.nets, found.errors, strict=True)}
    return Outcome(
        losses,
        {
            "plain_over_built": ends["plain_loss"] / ends["built_loss"],
            "residual_over_built": ends["residual_loss"] / ends["built_loss"],
            "difference_of_outputs": float(found.equality[0]),
            **{f"final_{name}": value for name, value in ends.items()},
            **errors,
        },
        {"construction": found},
    )


EXPERIMENTS: dict[str, Experiment] = {
    "identity": Experiment(
        _identity,
        ("data", "limit", "image_size", "depth", "width", "skip", "steps", "learning_rate", "weight_decay",
         "batch_size"),
        (),
        "identity_error",
    ),
    "construction": Experiment(
        _construction,
        ("data", "limit", "image_size", "depth", "width", "steps", "learning_rate", "batch_size"),
        ("deeper",),
        "plain_over_built",
    ),
}  # fmt: skip


def _chosen(variant: Variant, **names: str) -> dict[str, Any]:
    """What a variant settles, under the names that an experiment has for it."""
    given = {**variant.settings, **variant.options}
    return {other: given[name] for name, other in names.items() if given.get(name) is not None}


def _features(problem: Problem, width: int | None) -> tuple[Float[Tensor, "n width"], Int64[Tensor, " n"]]:
    """The training images as rows of numbers, their first `width` principal components where one is given."""
    task = problem.task
    if not isinstance(task, Classification):
        raise SkipwayError(f"experiments take images in classes, and these data are for {task.kind}")
    rows = task.normalise(task.images.train_images).flatten(1)
    if width is not None:
        if width > min(rows.shape):
            raise SkipwayError(
                f"width {width} is more than {len(rows)} images of {rows.shape[1]} pixels have principal components"
            )
        rows = rows - rows.mean(dim=0)
        _, vectors = torch.linalg.eigh((rows.T @ rows).double())
        rows = rows @ vectors[:, -width:].flip(1).float()
    return rows, task.images.train_labels
