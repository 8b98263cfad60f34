"""Training trials in several processes of this machine: nets too small to use two cores use one each."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import time
import traceback
from collections.abc import Generator, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError
from skipway.study.declaration import Study, Trial
from skipway.study.determinism import small_batch

Job = tuple[Trial, str]
_PATIENCE = 0.5


def suitable_workers(study: Study, size: tuple[int, int], jobs: int) -> int:
    """As many processes as there are cores where a trial is best trained on one core, else one.

    Never depends on anything that would change a trial's numbers: those are the same for any number of workers.
    """
    import torch

    if torch.cuda.is_available() or not small_batch(study.batch_size, size):
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
    try:
        with _without_ctrl_c():
            for process in processes:
                process.start()
        left = len(jobs)
        while left:
            event = _next(events, processes)
            if isinstance(event, BaseException):
                raise event
            left -= event[1] is None
            yield event
    finally:
        # Not asked but ended: Lightning puts off a request to the end of a step, and a process that waits for a queue's
        # lock, which another one took with it, would never answer. What is written is written whole or not at all.
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
        events.close()


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which reaches every process of a terminal: the parent answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _next(events: Any, processes: Sequence[BaseProcess]) -> Any:
    while True:
        try:
            return events.get(timeout=_PATIENCE)
        except queue.Empty:
            dead = [process.exitcode for process in processes if process.exitcode not in (None, 0)]
            if dead:
                raise SkipwayError(
                    f"a worker process ended with exit code {dead[0]}, perhaps for want of memory; every finished "
                    "trial is kept: run the same again, with fewer workers"
                ) from None


def _work(study: Study, jobs: list[Job], folder: Path, waiting: Any, events: Any, parent: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        try:
            from skipway.study.data import load_images
            from skipway.study.running import train_and_keep

            images = load_images(study.data, study.samples, study.image_size)
            while (number := waiting.get()) is not None:
                trial, trial_id = jobs[number]
                train_and_keep(study, trial, trial_id, images, folder, _teller(events, number, parent))
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
        if time.monotonic() - told > _PATIENCE / 2:
            told = time.monotonic()
            events.put((number, epoch, share))

    return tell
