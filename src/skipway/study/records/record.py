"""What a trial leaves behind: one JSON record, written whole or not at all."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.study.records.measures import better
from skipway.study.records.sealed import Unreadable, read_sealed, write_sealed


@dataclass(frozen=True)
class Record:
    """One finished trial: what was trained, on what, how, and every number that came out.

    `labels` names the values of the axes that vary in the study. `curves` holds a number a round: the training loss of
    the steps as "loss", and what was measured in evaluation mode at the round's end, such as "test_error" (a fraction)
    and "test_loss" (a mean). `measures` holds single numbers: seconds, parameters, multiply_adds of one example,
    memory (bytes that a step holds for its backward pass), and what probes and experiments found. `judge` is the curve
    or the measure that the task is judged by. Gradient norms are those of each weight layer, in the order in which
    layers run, of the training loss at the first and at the last step. A number that was not finite is None. `diverged`
    holds the epoch and step at which the loss stopped being finite, None for a trial that ran to its end.
    """

    id: str
    labels: dict[str, str]
    model: str
    depth: int | None
    skip: str
    connection: str
    plain: bool
    options: dict[str, Any]
    seed: int
    task: str
    judge: str
    diverged: dict[str, int] | None
    curves: dict[str, list[float | None]]
    measures: dict[str, float | None]
    layers: list[str]
    first_gradients: list[float | None]
    last_gradients: list[float | None]
    recipe: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]

    @property
    def title(self) -> str:
        """The network, its connection and the seed."""
        return f"{self.model} {self.skip} seed {self.seed}"

    @property
    def rounds(self) -> int:
        """How many rounds were measured."""
        return max((len(values) for values in self.curves.values()), default=0)

    def value(self, measure: str, at: str = "last", reach: float | None = None) -> float | None:
        """A curve's number after the last round, the best one, or their mean; or a single number of that name.

        With `reach` it is the first round, counted from 1, at which the curve is as good as that, and one more than
        there are rounds where it never is. A diverged network tells everything wrong: its errors are 1; what else is
        not known is None.
        """
        if measure not in self.curves:
            return self.measures.get(measure)
        lowest = better(measure) == "lowest"
        if self.diverged is not None:
            return float(self.rounds + 1) if reach is not None else 1.0 if measure.endswith("error") else None
        known = [value for value in self.curves[measure] if value is not None]
        if not known:
            return None
        if reach is not None:
            hits = (round + 1 for round, value in enumerate(known) if (value <= reach if lowest else value >= reach))
            return float(next(hits, self.rounds + 1))
        if at == "mean":
            return sum(known) / len(known)
        return known[-1] if at == "last" else min(known) if lowest else max(known)


def read_record(path: Path, trial_id: str) -> Record | None:
    """The record of a trial, None where there is no such file; raises Unreadable for a file of anything else."""
    try:
        content = read_sealed(path)
    except FileNotFoundError:
        return None
    if set(content) != {field.name for field in dataclasses.fields(Record)}:
        raise Unreadable("its fields are not those of a record")
    if content["id"] != trial_id:
        raise Unreadable("it belongs to another trial")
    return Record(**content)


def write_record(path: Path, record: Record) -> None:
    """Write a record so that the file holds all of it or does not exist."""
    write_sealed(path, dataclasses.asdict(record))
