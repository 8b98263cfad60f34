"""Trials as work for an engine: each is trained wherever there is room, and kept in the study's folder."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from skipway.engines import Halt, Tell, lacks_memory
from skipway.errors import SkipwayError
from skipway.storing import write_whole
from skipway.study.declaring.declaration import Study
from skipway.study.declaring.variants import Trial
from skipway.study.records.record import Record, read_record, write_record
from skipway.study.records.sealed import Unreadable
from skipway.study.records.writing import set_aside, storage
from skipway.study.running.lock import sees
from skipway.study.tasks.problems import Problem, Problems
from skipway.study.training.tracking import check_far
from skipway.torchrun import processes, writes

UNFINISHED = "unfinished"
Job = tuple[Trial, str]


@dataclass(frozen=True)
class Outcome:
    """What became of a trial: its record, what a person should know, and its files where the folder is out of sight."""

    record: Record
    notes: tuple[str, ...] = ()
    files: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class TrialWork:
    """A study's trials: a job is a trial and its id, what it tells is its round and the share that is done.

    `token` is that of the folder's lock: a machine that does not see it trains in a place of its own, and sends what
    is to be kept. `shared` says that the data are sent along, for machines that cannot read them.
    """

    study: Study
    folder: Path
    token: str
    problems: Problems
    shared: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """On this machine, each process reads the data for itself."""
        return {**vars(self), "problems": self.problems if self.shared else Problems()}

    def prepare(self) -> Callable[[Job, Tell], Outcome]:
        # It takes seconds, once a process; what is missing is found out here.
        import skipway.study.running.trial  # noqa: F401

        return self._do

    def _do(self, job: Job, tell: Tell) -> Outcome:
        trial, trial_id = job
        try:
            problem = self.problems.of(self.study.choice(trial.variant))
            if sees(self.folder, self.token) or not writes():
                return train_and_keep(self.study, trial, trial_id, problem, self.folder, tell)
            check_far(self.study.logger)
            with tempfile.TemporaryDirectory(prefix="skipway-") as place:
                folder = Path(place)
                for name in ("trials", UNFINISHED):
                    (folder / name).mkdir()
                outcome = train_and_keep(self.study, trial, trial_id, problem, folder, tell)
                return replace(outcome, files=_files(folder))
        except Halt:
            raise
        except SkipwayError as error:
            if lacks_memory(error.__cause__ or error):
                raise MemoryError(str(error.__cause__ or error)) from error
            if processes() > 1 or isinstance(error.__cause__, OSError):
                raise Halt(str(error)) from error
            raise
        except Exception as error:
            if processes() > 1:
                # The others wait for this one in the middle of a step.
                raise Halt(f"{trial.title} failed: {type(error).__name__}: {error}") from error
            raise


def train_and_keep(study: Study, trial: Trial, trial_id: str, problem: Problem, folder: Path, tell: Tell) -> Outcome:
    """Train one trial, write its record, and remove the checkpoint that it no longer needs."""
    from skipway.study.running.trial import run_trial

    notes: list[str] = []
    with storage(folder):
        # A process that was lost may have come to the end before.
        with contextlib.suppress(Unreadable):
            if processes() == 1 and (record := read_record(record_path(folder, trial_id), trial_id)) is not None:
                return Outcome(record)
        checkpoint = folder / UNFINISHED / f"{trial_id}.ckpt"
        if writes():
            notes += _check(checkpoint)
        tell((0, 0.0))
        record = run_trial(study, trial, trial_id, problem, folder, lambda round, share: tell((round, share)))
        if writes():
            write_record(record_path(folder, trial_id), record)
            # A process that was ended while it wrote one may have left the other behind.
            for leftover in (checkpoint, checkpoint.with_suffix(".new"), checkpoint.with_suffix(".steps")):
                leftover.unlink(missing_ok=True)
    return Outcome(record, tuple(notes))


def keep_files(folder: Path, outcome: Outcome) -> None:
    """Write what a machine sent that does not see the folder; the record last, for it says that all is there."""
    for name, content in sorted(outcome.files.items(), key=lambda item: item[0].startswith("trials")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)


def record_path(folder: Path, trial_id: str) -> Path:
    """Where a study keeps the record of a trial."""
    return folder / "trials" / f"{trial_id}.json"


def _check(checkpoint: Path) -> list[str]:
    """Set aside a checkpoint that cannot be read; it costs the rounds that it stood for."""
    from skipway.study.training.loop import readable

    if not checkpoint.exists() or readable(checkpoint):
        return []
    aside = set_aside(checkpoint)
    return [f"'{checkpoint}' cannot be read: it is kept as '{aside.name}', and its trial begins anew"]


def _files(folder: Path) -> dict[str, bytes]:
    kept = [path for path in folder.rglob("*") if path.is_file() and path.parts[-2] != UNFINISHED]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in kept}
