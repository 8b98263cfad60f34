"""What runs on the workers of a Ray cluster: a job, and the mailbox for what jobs tell on their way."""

from __future__ import annotations

import os
import sys
from typing import Any

from skipway.engines.work import Done, Failed, Halt, attempt, now_and_then, sendable

# What a worker has prepared, by the work it was made from: of the last work only, for it may be large.
_prepared: dict[Any, Any] = {}


def do_job(
    work: list[Any], number: int, job: Any, mailbox: Any, share: tuple[int, bool], path: list[str]
) -> Done | Failed | Exception:
    """Do one job with its share of a machine: so many threads, and accelerators or none.

    What ends all work is returned as the error that it is.
    """
    threads, accelerated = share
    if not accelerated:
        # Ray hides those that belong to others; of these a job that asked for none would take the first.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    import ray
    import torch

    # What the process that asks can import, and is here too, this one can import.
    sys.path.extend(place for place in path if place not in sys.path)
    torch.set_num_threads(threads)
    try:
        (reference,) = work
        if reference not in _prepared:
            _prepared.clear()
            unpacked: Any = ray.get(reference)
            _prepared[reference] = unpacked.prepare()
        do = _prepared[reference]
    except Exception as error:
        # Preparing is the same for every job, and so is its failure.
        return sendable(Failed(number, error)).error
    try:
        outcome = attempt(do, number, job, now_and_then(lambda what: mailbox.put.remote(number, what)))
    except Halt as halt:
        return halt
    return sendable(outcome) if isinstance(outcome, Failed) else outcome


class Mailbox:
    """What jobs told last and nobody has read yet."""

    def __init__(self) -> None:
        self._mail: dict[int, Any] = {}

    def put(self, number: int, what: Any) -> None:
        self._mail[number] = what

    def take(self) -> dict[int, Any]:
        mail, self._mail = self._mail, {}
        return mail
