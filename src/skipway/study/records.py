"""What a trial leaves behind: one JSON record, written whole or not at all."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError
from skipway.storing import write_whole
from skipway.study.measures import better

FORMAT = 2
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


class UnreadableRecord(Exception):
    """A file that should hold a record and does not; the message says why."""


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
    format: int = FORMAT

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
    """The record of a trial, None where there is no such file; raises UnreadableRecord for a file of anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise UnreadableRecord("it is not text") from error
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise UnreadableRecord(f"it is not JSON: {error}") from error
    expected = {field.name for field in dataclasses.fields(Record)}
    if not isinstance(content, dict) or set(content) != expected:
        raise UnreadableRecord("its fields are not those of a record")
    if content["id"] != trial_id or content["format"] != FORMAT:
        raise UnreadableRecord("it belongs to another trial or another version")
    lists = [content[name] for name in ("layers", "first_gradients", "last_gradients")]
    curves = content["curves"]
    if not isinstance(curves, dict) or not all(isinstance(values, list) for values in [*lists, *curves.values()]):
        raise UnreadableRecord("its numbers are incomplete")
    if len({len(values) for values in curves.values()}) > 1:
        raise UnreadableRecord("its numbers are incomplete")
    return Record(**content)


def write_record(path: Path, record: Record) -> None:
    """Write a record so that the file holds all of it or does not exist."""
    write_json(path, dataclasses.asdict(record))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically: into a file beside it, flushed to the disk, then moved into place."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: into a file beside it, flushed to the disk, then moved into place."""
    write_whole(path, text.encode("utf-8"))


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be read, keeping it; returns its new name."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.unreadable-{number}")
        if not aside.exists():
            os.replace(path, aside)
            return aside
    raise SkipwayError(f"'{path}' cannot be read, and a thousand like it were set aside before; look into the disk")


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what the operating system says of a folder into one sentence that a person can act on."""
    try:
        yield
    except OSError as error:
        raise SkipwayError(_sentence(error, folder)) from error


def _sentence(error: OSError, folder: Path) -> str:
    if error.errno in _FULL:
        return (
            f"the disk is full: '{folder}' takes no more; make room and run the same again: "
            "every finished trial is kept"
        )
    if error.errno in _FORBIDDEN:
        named = error.filename if error.filename is not None else folder
        return f"no permission to use '{named}'; choose a folder that you may write in, or change its permissions"
    if error.errno in _MISPLACED:
        return f"'{error.filename or folder}' is in the way: the results need a folder there; choose another place"
    return f"cannot write in '{folder}': {error.strerror or error}"
