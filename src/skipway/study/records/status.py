"""How far a trial is that is being trained, in a small file that any process on any machine can read."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skipway.study.records.measures import written
from skipway.torchrun import writes


@dataclass(frozen=True)
class Status:
    """A trial in `round`, counted from 1, of `rounds`, with a `share` of it done, and what the last round measured.

    It is `seconds` since it was begun, or gone on with at `first_share`; `time` is when this was written.
    """

    round: int
    rounds: int | None
    share: float
    measured: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    first_share: float = 0.0
    time: float = 0.0

    @property
    def told(self) -> str:
        """What was measured, in words."""
        return told(self.measured)


def told(measured: Mapping[str, float]) -> str:
    """Numbers in words.

    >>> told({"train_error": 0.25, "loss": 1.5})
    'train error 25.0 %, loss 1.5'
    """
    return ", ".join(f"{name.replace('_', ' ')} {written(name, value)}" for name, value in measured.items())


def status_path(folder: Path, trial_id: str) -> Path:
    """Where a study keeps how far a trial is."""
    return folder / "unfinished" / f"{trial_id}.status"


def write_status(path: Path, status: Status) -> None:
    """Write a status so that a reader sees all of it; of its loss in a crash nothing depends, nor on a full disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(dataclasses.asdict(dataclasses.replace(status, time=time.time()))))
        os.replace(temporary, path)


def read_status(path: Path) -> Status | None:
    """The status of a trial, None where there is none to be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Status(**content)
    except (OSError, ValueError, TypeError):
        return None


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Tell that a trial has begun; behind it, however it ended, no status is left."""
    if not writes():
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_status(path, Status(1, None, 0.0))
    try:
        yield
    finally:
        for leftover in (path, *path.parent.glob(f".{path.name}.*.tmp")):
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
