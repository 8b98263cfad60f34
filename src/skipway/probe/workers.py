"""Measuring points in several processes of this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from skipway.errors import SkipwayError
from skipway.processes import next_event, running

if TYPE_CHECKING:
    from skipway.probe.points import Task, Values

# A few points at a time: a point may take less than sending word of it.
_PORTIONS = 16


def spread(task: Task, pending: list[int], workers: int) -> Generator[tuple[int, Values], None, None]:
    """Measure the points in that many processes, in whatever order they are done; on any way out, none is left.

    Each process computes with its share of the threads. Raises what a process raised, and SkipwayError where the task
    cannot be sent to another process or one of them died.
    """
    import torch

    try:
        content = pickle.dumps(task)
    except Exception as error:
        raise SkipwayError(
            f"this cannot be sent to other processes ({type(error).__name__}: {error}); use workers=1, or a model, a "
            "loss and data that can be pickled (functions with a name, in a module)"
        ) from error
    context = multiprocessing.get_context("spawn")
    waiting: Any = context.SimpleQueue()
    events: Any = context.Queue()
    size = max(1, len(pending) // (workers * _PORTIONS))
    portions = [pending[start : start + size] for start in range(0, len(pending), size)]
    threads = max(1, torch.get_num_threads() // workers)
    processes = [
        context.Process(target=_work, args=(content, waiting, events, threads, os.getpid()), daemon=True)
        for _ in range(workers)
    ]
    with running(processes, events):
        # A pipe takes only so much before somebody reads, so the processes are there first.
        for portion in [*portions, *[None] * workers]:
            waiting.put(portion)
        for _ in pending:
            yield next_event(events, processes, "points in a folder are kept")


def _work(content: bytes, waiting: Any, events: Any, threads: int, parent: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        try:
            import torch

            torch.set_num_threads(threads)
            measure = pickle.loads(content).measure()
            while (portion := waiting.get()) is not None:
                for point in portion:
                    if os.getppid() != parent:
                        os._exit(1)
                    events.put((point, measure(point)))
        except Exception as error:
            events.put(error if isinstance(error, SkipwayError) else RuntimeError(traceback.format_exc()))
