"""Worker processes on this machine: started beyond the reach of Ctrl-C, listened to, and ended on any way out."""

from __future__ import annotations

import contextlib
import queue
import signal
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

from skipway.errors import SkipwayError

PATIENCE = 0.5


@contextlib.contextmanager
def running(processes: Sequence[BaseProcess], events: Any) -> Iterator[None]:
    """Start processes; on leaving, whatever the reason, none is left."""
    try:
        with _without_ctrl_c():
            for process in processes:
                process.start()
        yield
    finally:
        # Not asked but ended: Lightning puts off a request to the end of a step, and a process that waits for a queue's
        # lock, which another one took with it, would never answer. What is written is written whole or not at all.
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()
        events.close()


def next_event(events: Any, processes: Sequence[BaseProcess], kept: str) -> Any:
    """The next thing that a process tells; what it raised is raised here.

    Raises SkipwayError where a process died, or all have ended without a word; `kept` says what is not lost.
    """
    while True:
        try:
            event = events.get(timeout=PATIENCE)
        except queue.Empty:
            codes = [process.exitcode for process in processes]
            dead = [code for code in codes if code not in (None, 0)]
            if dead or None not in codes:
                ended = f"with exit code {dead[0]}, perhaps for want of memory" if dead else "before its work was done"
                raise SkipwayError(
                    f"a worker process ended {ended}; {kept}: run the same again, with fewer workers"
                ) from None
            continue
        if isinstance(event, BaseException):
            raise event
        return event


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
