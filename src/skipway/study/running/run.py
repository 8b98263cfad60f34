"""Running a study: every trial that has no record yet."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from skipway.engines import Engine, Event, Failed, Local, Note, Ray, Told, find_engine
from skipway.errors import SkipwayError
from skipway.study.answering.answer import ask
from skipway.study.declaring.declaration import Study
from skipway.study.declaring.variants import Trial
from skipway.study.records.record import Record, read_record
from skipway.study.records.sealed import Unreadable
from skipway.study.records.status import read_status, status_path
from skipway.study.records.writing import set_aside, storage
from skipway.study.running.failures import forget_failure, keep_failure
from skipway.study.running.lock import locked
from skipway.study.running.manifest import known_ids, write_manifest
from skipway.study.running.progress import StudyProgress
from skipway.study.running.results import Results
from skipway.study.running.work import UNFINISHED, Job, Outcome, TrialWork, keep_files, record_path
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.problems import Problems
from skipway.study.training.distributed import agree
from skipway.study.training.plan import one_thread
from skipway.torchrun import processes, writes


def run_study(
    study: Study,
    folder: Path,
    workers: int | None,
    quiet: bool,
    engine: str | Engine = "local",
    wait: bool = False,
) -> Results:
    """Do what `folder` has no record of, and return the results of all trials.

    `workers` processes of this machine share the trials, None for as many as suit it; on a cluster, more than one are
    the most that run at once, and else as many as it has room for. A trial that fails by itself is kept as such, and is
    begun again by the next run. Raises SkipwayError where another process works in the folder, unless told to `wait`.
    """
    folder = folder.expanduser()
    chosen = find_engine(engine)
    if processes() > 1:
        workers = _alone(workers, chosen)
    with storage(folder):
        for name in ("trials", UNFINISHED):
            (folder / name).mkdir(parents=True, exist_ok=True)
    say = lambda sentence: None if quiet else print(sentence, file=sys.stderr)  # noqa: E731
    with contextlib.ExitStack() as stack:
        token = ""
        if writes():
            with storage(folder):
                token = stack.enter_context(locked(folder, wait, say))
        return _run(study, folder, token, workers, quiet, chosen)


def _run(study: Study, folder: Path, token: str, workers: int | None, quiet: bool, engine: Engine) -> Results:
    problems = Problems()
    trials = study.trials()
    ids = known_ids(folder, study) if processes() == 1 else None
    if ids is None:
        ids = [study.identify(trial, problems.of(study.choice(trial.variant))) for trial in trials]
    jobs = list(zip(trials, ids, strict=True))
    if writes():
        with storage(folder):
            _sweep(folder)
            write_manifest(folder, study, jobs)
    records: dict[int, Record] = {}
    failed: dict[int, str] = {}
    status = lambda number: read_status(status_path(folder, jobs[number][1]))  # noqa: E731
    with StudyProgress(trials, quiet or not writes(), status) as progress:
        try:
            # Those of torchrun must see the same trials before them: the first looks for all.
            found = [_kept(folder, trial_id, progress) for trial_id in ids] if writes() else []
            for number, record in enumerate(agree(found)):
                if record is not None:
                    records[number] = record
                    progress.end(number, record, kept=True)
            pending = [number for number in range(len(jobs)) if number not in records]
            _check_fit(study, problems, [trials[number] for number in pending])
            if pending:
                todo = [jobs[number] for number in pending]
                work = TrialWork(study, folder.absolute(), token, problems, isinstance(engine, Ray))
                handle = _handler(study, folder, jobs, pending, progress, records, failed)
                engine.run(work, todo, handle, _workers(workers, engine, study, problems, len(pending)))
        except KeyboardInterrupt:
            # A worker may have finished a trial that nobody has heard of yet.
            finished = sum(record_path(folder, trial_id).exists() for _, trial_id in jobs)
            if writes():
                with contextlib.suppress(OSError):
                    _sweep(folder)
            raise KeyboardInterrupt(
                f"stopped; {finished} of {len(jobs)} trials are finished and kept in '{folder}'; "
                "the same again goes on where this stopped"
            ) from None
    # What other studies left unfinished in the same folder stays.
    if writes():
        with contextlib.suppress(OSError):
            (folder / UNFINISHED).rmdir()
    done = tuple(records[number] for number in sorted(records))
    return Results(study, folder, done, tuple((trials[number].title, failed[number]) for number in sorted(failed)))


def _handler(
    study: Study,
    folder: Path,
    jobs: list[Job],
    pending: list[int],
    progress: StudyProgress,
    records: dict[int, Record],
    failed: dict[int, str],
) -> Callable[[Event], None]:
    """What is done with what an engine tells: shown, and kept."""

    def handle(event: Event) -> None:
        number = None if event.job is None else pending[event.job]
        if isinstance(event, Note):
            title = "" if number is None else f"{jobs[number][0].title}: "
            progress.note(f"{title}{event.sentence}")
        elif number is None:
            return
        elif isinstance(event, Told):
            progress.step(number, *event.what)
        elif isinstance(event, Failed):
            with storage(folder):
                failed[number] = keep_failure(folder, *jobs[number], event)
                status_path(folder, jobs[number][1]).unlink(missing_ok=True)
            progress.fail(number, failed[number])
        else:
            outcome: Outcome = event.result
            if writes():
                with storage(folder):
                    keep_files(folder, outcome)
                    forget_failure(folder, jobs[number][1])
            for note in outcome.notes:
                progress.note(note)
            if not records:
                try:
                    ask(study, [outcome.record])
                except SkipwayError as slip:
                    # Said now, not after hours. Other trials may have it, and none depends on the question.
                    progress.note(f"the question asks for what this trial does not have: {slip}")
            records[number] = outcome.record
            progress.end(number, outcome.record, kept=False)

    return handle


def _workers(workers: int | None, engine: Engine, study: Study, problems: Problems, jobs: int) -> int | None:
    if not isinstance(engine, Local):
        return None if workers == 1 else workers
    return suitable_workers(study, problems, jobs) if workers is None else workers


def suitable_workers(study: Study, problems: Problems, jobs: int) -> int:
    """As many processes as there are cores where a trial is best trained on one core, else one.

    Never depends on anything that would change a trial's numbers: those are the same for any number of workers.
    """
    if torch.cuda.is_available():
        return 1
    for variant in study.variants():
        problem = problems.of(study.choice(variant))
        if not one_thread(problem.task, study.plan(variant, problem).recipe):
            return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, jobs))


def _sweep(folder: Path) -> None:
    """Remove what processes left behind that were ended while they wrote, and what they told of how far they were."""
    for leftover in (*folder.glob("*/.*.tmp"), *folder.glob(f"{UNFINISHED}/*.status")):
        leftover.unlink(missing_ok=True)


def _alone(workers: int | None, engine: Engine) -> int:
    """Under torchrun all processes train each trial together: none is left for others beside it."""
    if workers not in (None, 1) or not isinstance(engine, Local):
        raise SkipwayError(
            f"under torchrun {processes()} processes train each trial together, one trial after another: "
            "leave workers and engine out, or start without torchrun"
        )
    return 1


def _kept(folder: Path, trial_id: str, progress: StudyProgress) -> Record | None:
    path = record_path(folder, trial_id)
    with storage(folder):
        try:
            return read_record(path, trial_id)
        except Unreadable as error:
            aside = set_aside(path)
            progress.note(f"'{path}' cannot be read: {error}; it is kept as '{aside.name}', and its trial runs again")
            return None


def _check_fit(study: Study, problems: Problems, trials: list[Trial]) -> None:
    """Pass two images through every network of ours, so that what does not fit shows before anything is trained."""
    for variant in {repr(trial.variant): trial.variant for trial in trials}.values():
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
