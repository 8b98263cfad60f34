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

FORMAT = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


class UnreadableRecord(Exception):
    """A file that should hold a record and does not; the message says why."""


@dataclass(frozen=True)
class Record:
    """One finished trial: what was trained, on what, how, and every number that came out.

    Errors are fractions of images told wrong, losses are mean cross-entropies, both in evaluation mode at the end of
    every epoch. Gradient norms are those of each weight layer, in the order in which layers run, of the training loss
    at the first and at the last step. A number that was not finite is None. `diverged` holds the epoch and step at
    which the loss stopped being finite, None for a trial that ran to its end.
    """

    id: str
    model: str
    depth: int
    skip: str
    connection: str
    seed: int
    diverged: dict[str, int] | None
    train_error: list[float | None]
    train_loss: list[float | None]
    test_error: list[float | None]
    test_loss: list[float | None]
    layers: list[str]
    first_gradients: list[float | None]
    last_gradients: list[float | None]
    parameters: int
    seconds: float
    recipe: dict[str, Any]
    data: dict[str, Any]
    versions: dict[str, str]
    format: int = FORMAT

    @property
    def plain(self) -> bool:
        """Whether the network had no skips."""
        return self.connection.startswith("Plain(")

    @property
    def final_train_error(self) -> float:
        """Training error after the last epoch; a diverged network tells every image wrong."""
        return _final(self.train_error, self.diverged)

    @property
    def final_test_error(self) -> float:
        """Test error after the last epoch; a diverged network tells every image wrong."""
        return _final(self.test_error, self.diverged)


def _final(errors: list[float | None], diverged: dict[str, int] | None) -> float:
    last = errors[-1] if errors and diverged is None else None
    return 1.0 if last is None else last


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
    lists = [content[name] for name in ("train_error", "test_error", "train_loss", "test_loss")]
    gradients = [content[name] for name in ("layers", "first_gradients", "last_gradients")]
    if not all(isinstance(values, list) for values in lists + gradients) or len({len(v) for v in lists}) != 1:
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
