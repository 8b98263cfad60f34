"""The engine of one machine: this process for one worker, or several processes that share its threads."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnContext
from typing import Any

from skipway.engines.work import (
    TRIES,
    Done,
    Failed,
    Handle,
    Note,
    Told,
    Work,
    attempt,
    now_and_then,
    sendable,
    too_often,
)
from skipway.errors import SkipwayError


@dataclass(frozen=True)
class Local:
    """Work on this machine: one job after another for one worker, else in as many processes.

    Each process computes with its share of this one's threads. Where one is killed, its job is begun again in a new
    one. (A script that asks for several needs `if __name__ == "__main__":`, as with all processes that Python starts.)
    """

    def run(self, work: Work, jobs: Sequence[Any], handle: Handle, workers: int | None = None) -> None:
        workers = min(workers or 1, len(jobs))
        if workers > 1:
            _Processes(work, jobs, handle, workers).run()
        elif jobs:
            _run_here(work, jobs, handle)


class _Refused(BaseException):
    """What the handler of events raised inside a job, which is no failure of that job."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _run_here(work: Work, jobs: Sequence[Any], handle: Handle) -> None:
    do = work.prepare()
    for number, job in enumerate(jobs):

        def tell(what: Any, number: int = number) -> None:
            try:
                handle(Told(number, what))
            except Exception as error:
                raise _Refused(error) from error

        try:
            event = attempt(do, number, job, tell)
        except _Refused as refused:
            raise refused.error from None
        handle(event)


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: connection.Connection
    ready: bool = False
    job: int | None = None


class _Processes:
    """Worker processes, each with a pipe of its own: one that is killed takes no lock with it that others wait for."""

    def __init__(self, work: Work, jobs: Sequence[Any], handle: Handle, workers: int) -> None:
        import torch

        try:
            self._content = pickle.dumps((work, list(jobs)))
        except Exception as error:
            raise SkipwayError(
                f"this cannot be sent to other processes ({type(error).__name__}: {error}); use workers=1, or a model, "
                "a loss and data that can be pickled (functions with a name, in a module)"
            ) from error
        self._context: SpawnContext = multiprocessing.get_context("spawn")
        self._handle = handle
        self._count = workers
        self._threads = max(1, torch.get_num_threads() // workers)
        self._waiting = deque(range(len(jobs)))
        self._tries = [0] * len(jobs)
        self._left = len(jobs)
        self._stillborn = 0
        self._workers: list[_Worker] = []

    def run(self) -> None:
        try:
            while self._left:
                while self._waiting and len(self._workers) < min(self._count, self._left):
                    self._start()
                for worker in [worker for worker in self._workers if worker.job is None]:
                    self._assign(worker)
                heard = connection.wait([part for one in self._workers for part in (one.pipe, one.process.sentinel)])
                for worker in list(self._workers):
                    if worker.pipe in heard:
                        self._listen(worker)
                    elif worker.process.sentinel in heard and not worker.pipe.poll():
                        self._lose(worker)
        finally:
            # Not asked but ended: Lightning puts off a request to the end of a step. What is written is written whole
            # or not at all.
            for worker in self._workers:
                worker.process.kill()
            for worker in self._workers:
                self._bury(worker)

    def _start(self) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._content, self._threads), daemon=True)
        with _without_ctrl_c():
            process.start()
        # The worker alone may hold its end, or its death would not show.
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _assign(self, worker: _Worker) -> None:
        if self._waiting and worker.job is None:
            number = self._waiting.popleft()
            worker.job = number
            self._tries[number] += 1
            # A worker that is dead by now is found out when it is listened to.
            with contextlib.suppress(OSError):
                worker.pipe.send(number)

    def _listen(self, worker: _Worker) -> None:
        try:
            event = worker.pipe.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            # The last word of a process that is killed may be half a word.
            self._lose(worker)
            return
        if isinstance(event, BaseException):
            raise event
        if event is None:
            worker.ready, self._stillborn = True, 0
            return
        if isinstance(event, (Done, Failed)):
            worker.job = None
            self._left -= 1
            self._assign(worker)
        self._handle(event)

    def _lose(self, worker: _Worker) -> None:
        worker.process.join()
        code = worker.process.exitcode
        reason = f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        if code == -getattr(signal, "SIGKILL", 9):
            reason += ", perhaps for want of memory"
        self._workers.remove(worker)
        self._bury(worker)
        number = worker.job
        if not worker.ready:
            self._stillborn += 1
            if self._stillborn >= TRIES:
                raise SkipwayError(
                    f"worker processes do not start: {reason}; use workers=1, or fewer workers, and in a script "
                    'start the work under `if __name__ == "__main__":`'
                )
        if number is None:
            return
        if self._tries[number] < TRIES:
            self._waiting.appendleft(number)
            self._handle(Note(number, f"the process that did it is lost: {reason}; it is begun again"))
        else:
            self._left -= 1
            self._handle(Failed(number, too_often(reason)))

    def _bury(self, worker: _Worker) -> None:
        worker.process.join()
        worker.process.close()
        worker.pipe.close()


def _serve(pipe: connection.Connection, content: bytes, threads: int) -> None:
    """What a worker process does: prepare, and then job after job."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with contextlib.suppress(BrokenPipeError, EOFError):
        try:
            import torch

            torch.set_num_threads(threads)
            work, jobs = pickle.loads(content)
            do = work.prepare()
            pipe.send(None)
            while True:
                number = pipe.recv()
                tell = now_and_then(lambda what, number=number: pipe.send(Told(number, what)))
                outcome = attempt(do, number, jobs[number], tell)
                try:
                    pipe.send(sendable(outcome) if isinstance(outcome, Failed) else outcome)
                except (pickle.PicklingError, TypeError, AttributeError) as error:
                    reason = SkipwayError(f"its result cannot be sent to another process: {error}")
                    pipe.send(Failed(number, reason))
        except (BrokenPipeError, EOFError):
            raise
        except Exception as error:
            pipe.send(error if isinstance(error, SkipwayError) else RuntimeError(traceback.format_exc()))


def _end_with_parent() -> None:
    """Nobody is left to hear of anything, nor to tidy up for, where the process that started this one is gone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def _without_ctrl_c() -> Iterator[None]:
    """Processes started inside never see Ctrl-C, which reaches every process of a terminal: the parent answers it."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Python's tracker of resources, which the first process brings up, would let the signal through again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
