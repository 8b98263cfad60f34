"""Experiments whose trials build networks of their own: what a study can do beside training one of its networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skipway.errors import SkipwayError, choose
from skipway.probe import Result
from skipway.study.problems import Problem
from skipway.study.variants import Variant

if TYPE_CHECKING:
    from skipway.study.declaration import Study


@dataclass(frozen=True)
class Outcome:
    """What a trial gave: numbers by round, numbers at the end, and whole results of probes by name."""

    curves: Mapping[str, Sequence[float]]
    measures: Mapping[str, float]
    results: Mapping[str, Result] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """An experiment by what it does to one variant from one seed; `options` are its settings beside depth and skip.

    `judge` is the measure that it is about, and `lowest` says whether less of it is better.
    """

    run: Callable[[Variant, int, Problem], Outcome]
    options: tuple[str, ...]
    judge: str
    axes: tuple[str, ...] = ("data", "limit", "image_size", "depth", "width", "skip")

    def check(self, study: Study) -> None:
        """Raise SkipwayError for an axis or an option that the experiment has no use for."""
        for name in study.options:
            choose(f"option of the experiment '{study.experiment}'", name, self.options)
        for name, values in study.axes().items():
            if name not in (*self.axes, *study.options, "model") and len(values) > 1:
                raise SkipwayError(
                    f"the experiment '{study.experiment}' has no axis {name}; it has {', '.join(self.axes)} and options"
                )


EXPERIMENTS: dict[str, Experiment] = {}
