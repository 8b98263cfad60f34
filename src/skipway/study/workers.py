"""Training trials in several processes of this machine: nets too small to use two cores use one each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError
from skipway.processes import PATIENCE, next_event, running
from skipway.study.declaration import Study
from skipway.study.plan import one_thread
from skipway.study.problems import Problems
from skipway.study.variants import Trial

Job = tuple[Trial, str]


def suitable_workers(study: Study, problems: Problems, jobs: int) -> int:
    """As many processes as there are cores where a trial is best trained on one core, else one.

    Never depends on anything that would change a trial's numbers: those are the same for any number of workers.
    """
    import torch

    if torch.cuda.is_available():
        return 1
    for variant in study.variants():
        problem = problems.of(study.choice(variant))
        if not one_thread(problem.task, study.plan(variant, problem).recipe):
            return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, jobs))


def train_in_processes(
    study: Study, jobs: list[Job], folder: Path, workers: int
) -> Generator[tuple[int, int | None, float | None], None, None]:
    """Train the jobs, yielding (job, epoch, share) on the way and (job, None, None) when a job's record is written.

    Raises what a worker raised, and SkipwayError where one died. Behind the last event, and on any way out, no worker
    is left: each is ended wherever it stands, which loses no more than the epoch it was in.
    """
    context = multiprocessing.get_context("spawn")
    waiting: Any = context.SimpleQueue()
    events: Any = context.Queue()
    for number in [*range(len(jobs)), *[None] * workers]:
        waiting.put(number)
    processes = [
        context.Process(target=_work, args=(study, jobs, folder, waiting, events, os.getpid()), daemon=True)
        for _ in range(workers)
    ]
    with running(processes, events):
        left = len(jobs)
        while left:
            event = next_event(events, processes, "every finished trial is kept")
            left -= event[1] is None
            yield event


def _work(study: Study, jobs: list[Job], folder: Path, waiting: Any, events: Any, parent: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        try:
            from skipway.study.running import train_and_keep

            problems = Problems()
            while (number := waiting.get()) is not None:
                trial, trial_id = jobs[number]
                problem = problems.of(study.choice(trial.variant))
                train_and_keep(study, trial, trial_id, problem, folder, _teller(events, number, parent))
                events.put((number, None, None))
        except Exception as error:
            events.put(error if isinstance(error, SkipwayError) else RuntimeError(traceback.format_exc()))


def _teller(events: Any, number: int, parent: int) -> Any:
    told = 0.0

    def tell(epoch: int, share: float) -> None:
        nonlocal told
        if os.getppid() != parent:
            # Nobody is left to hear of anything, nor to tidy up for.
            os._exit(1)
        # Steps can be much shorter than anybody looks at a bar.
        if time.monotonic() - told > PATIENCE / 2:
            told = time.monotonic()
            events.put((number, epoch, share))

    return tell
