"""Running a study: every trial that has no record yet."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Generator
from pathlib import Path

import torch

from skipway.errors import SkipwayError
from skipway.study.declaration import Study
from skipway.study.determinism import versions
from skipway.study.problems import Problem, Problems
from skipway.study.progress import StudyProgress
from skipway.study.records import (
    FORMAT,
    Record,
    UnreadableRecord,
    read_record,
    set_aside,
    storage,
    write_json,
    write_record,
)
from skipway.study.results import Results
from skipway.study.tasks.classification import Classification
from skipway.study.variants import Trial
from skipway.study.workers import Job, suitable_workers, train_in_processes

UNFINISHED = "unfinished"


def run_study(study: Study, folder: Path, workers: int | None, quiet: bool, engine: str = "local") -> Results:
    """Train what `folder` has no record of, and return the results of all trials."""
    folder = folder.expanduser()
    with storage(folder):
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        (folder / UNFINISHED).mkdir(exist_ok=True)
    problems = Problems()
    _check_fit(study, problems)
    trials = study.trials()
    jobs = [(trial, study.identify(trial, problems.of(study.choice(trial.variant)))) for trial in trials]
    with storage(folder):
        write_json(folder / "manifest.json", _manifest(study, jobs))
    records: dict[int, Record] = {}
    with StudyProgress(trials, quiet) as progress:
        try:
            for number, (_, trial_id) in enumerate(jobs):
                if (record := _kept(folder, trial_id, progress)) is not None:
                    records[number] = record
                    progress.end(number, record, kept=True)
            pending = [number for number in range(len(jobs)) if number not in records]
            # Closed at once, whatever happens here: workers must not go on behind a study that has ended.
            with contextlib.closing(_train(study, jobs, pending, problems, folder, workers, progress)) as outcomes:
                for number, record in outcomes:
                    records[number] = record
                    progress.end(number, record, kept=False)
        except KeyboardInterrupt:
            # A worker may have finished a trial that nobody has heard of yet.
            finished = sum(_record_path(folder, trial_id).exists() for _, trial_id in jobs)
            raise KeyboardInterrupt(
                f"stopped; {finished} of {len(jobs)} trials are finished and kept in '{folder}'; "
                "the same again goes on where this stopped"
            ) from None
    # What other studies left unfinished in the same folder stays.
    with contextlib.suppress(OSError):
        (folder / UNFINISHED).rmdir()
    return Results(study, folder, tuple(records[number] for number in range(len(jobs))))


def train_and_keep(
    study: Study, trial: Trial, trial_id: str, problem: Problem, folder: Path, tell: Callable[[int, float], None]
) -> Record:
    """Train one trial, write its record, and remove the checkpoint that it no longer needs."""
    from skipway.study.trial import run_trial

    checkpoint = folder / UNFINISHED / f"{trial_id}.ckpt"
    with storage(folder):
        record = run_trial(study, trial, trial_id, problem, folder, tell)
        write_record(_record_path(folder, trial_id), record)
        # A process that was ended while it wrote one may have left the other behind.
        for leftover in (checkpoint, checkpoint.with_suffix(".new"), checkpoint.with_suffix(".steps")):
            leftover.unlink(missing_ok=True)
    return record


def _train(
    study: Study,
    jobs: list[Job],
    pending: list[int],
    problems: Problems,
    folder: Path,
    workers: int | None,
    progress: StudyProgress,
) -> Generator[tuple[int, Record], None, None]:
    if workers is None:
        workers = suitable_workers(study, problems, len(pending))
    workers = min(workers, len(pending))
    if workers <= 1:
        for number in pending:
            trial, trial_id = jobs[number]
            progress.step(number, 0, 0.0)
            tell = lambda epoch, share, number=number: progress.step(number, epoch, share)  # noqa: E731
            problem = problems.of(study.choice(trial.variant))
            yield number, train_and_keep(study, trial, trial_id, problem, folder, tell)
        return
    todo = [jobs[number] for number in pending]
    with contextlib.closing(train_in_processes(study, todo, folder, workers)) as events:
        for index, epoch, share in events:
            number = pending[index]
            if epoch is not None and share is not None:
                progress.step(number, epoch, share)
            elif (record := _kept(folder, jobs[number][1], progress)) is not None:
                yield number, record
            else:
                title = jobs[number][0].title
                raise SkipwayError(f"the record of {title} vanished from '{folder}'; run the same again")


def _record_path(folder: Path, trial_id: str) -> Path:
    return folder / "trials" / f"{trial_id}.json"


def _kept(folder: Path, trial_id: str, progress: StudyProgress) -> Record | None:
    path = _record_path(folder, trial_id)
    with storage(folder):
        try:
            return read_record(path, trial_id)
        except UnreadableRecord as error:
            aside = set_aside(path)
            progress.note(f"'{path}' cannot be read: {error}; it is kept as '{aside.name}', and its trial runs again")
            return None


def _check_fit(study: Study, problems: Problems) -> None:
    """Pass two images through every network of ours, so that what does not fit shows before anything is trained."""
    for variant in study.variants():
        problem = problems.of(study.choice(variant))
        if ":" in variant.model or study.experiment != "train" or not isinstance(problem.task, Classification):
            continue
        images = problem.task.images
        with torch.device("meta"), torch.no_grad():
            network = study.build(variant, problem).eval()
            try:
                network(torch.empty(2, images.channels, *images.size))
            except SkipwayError:
                raise
            except RuntimeError as error:
                height, width = images.size
                raise SkipwayError(
                    f"{variant.model} with skip {variant.label} does not take images of {height} x {width}: {error}"
                ) from error


def _manifest(study: Study, jobs: list[Job]) -> dict[str, object]:
    return {
        "format": FORMAT,
        "study": study.declaration(),
        "trials": [
            {
                "id": trial_id,
                "title": trial.title,
                "labels": dict(trial.variant.labels),
                "seed": trial.seed,
                "record": os.path.join("trials", f"{trial_id}.json"),
            }
            for trial, trial_id in jobs
        ],
        "versions": versions("not chosen yet"),
    }
