"""The engine of many machines: jobs as tasks of a Ray cluster, which is there already or is started here."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from skipway.engines.remote import Mailbox, do_job
from skipway.engines.work import TRIES, Failed, Handle, Note, OutOfMemory, Told, Work, too_often
from skipway.errors import SkipwayError, missing_extra

# How often is looked for news, and for how long a cluster may be silent before it is given up: Ray itself would end
# this process, without a word of ours, after a minute.
_LOOK, _SILENCE = 0.25, 15.0
_GIB = 2**30


@dataclass(frozen=True)
class Needs:
    """What a job occupies while it runs: processor cores, accelerators, and memory in GiB.

    A job computes with as many threads as it has cores.
    """

    cpus: float = 1
    gpus: float = 0
    memory: float = 0

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "memory"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise SkipwayError(f"needs of {name}={value!r}; it takes a number from 0")


@dataclass(frozen=True)
class Ray:
    """Work on a Ray cluster: the one at `address`, or one that is started here and ended behind the work.

    Each job is a Ray task that occupies what it `needs`; Ray decides where it runs. What all jobs share is put into the
    object store once. Where a worker is lost, its job is begun again. `options` go to `ray.init`, as in
    {"runtime_env": {"working_dir": "."}} for a cluster that cannot import what this process can.
    """

    address: str | None = None
    needs: Needs = Needs()
    options: Mapping[str, Any] = field(default_factory=dict)

    def run(self, work: Work, jobs: Sequence[Any], handle: Handle, workers: int | None = None) -> None:
        if not jobs:
            return
        try:
            import ray
        except ModuleNotFoundError:
            raise missing_extra("ray", "ray", "engine='ray'") from None
        with _cluster(ray, self) as ours:
            if ours:
                _check_room(ray, self.needs)
            _Tasks(ray, work, jobs, handle, workers or len(jobs), self.needs).run()


@contextlib.contextmanager
def _cluster(ray: Any, engine: Ray) -> Iterator[bool]:
    """Be connected to a cluster, one of our own where it yields true; it is ended, and another one is left."""
    if ray.is_initialized():
        # Whoever connected this process goes on with it.
        yield False
        return
    address = engine.address or os.environ.get("RAY_ADDRESS") or None
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    # A cluster that is joined has its own size; one that is started here is looked at by nobody.
    place = {"address": address} if address else {"address": "local", "include_dashboard": False}
    try:
        ray.init(**{**quiet, **place, **engine.options})
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        where = (
            f"the Ray cluster at '{address}' cannot be joined" if address else "a Ray cluster cannot be started here"
        )
        raise SkipwayError(f"{where}: {first}") from error
    try:
        yield not address
    finally:
        ray.shutdown()


def _check_room(ray: Any, needs: Needs) -> None:
    """Raise SkipwayError where no job would ever begin; a cluster started here does not grow."""
    there = ray.cluster_resources()
    wanted = {"CPU": needs.cpus, "GPU": needs.gpus, "memory": needs.memory * _GIB}
    for name, amount in wanted.items():
        if amount > there.get(name, 0):
            unit = _GIB if name == "memory" else 1
            raise SkipwayError(
                f"a job needs {amount / unit:g} {'GiB of memory' if unit > 1 else name}, and this machine has "
                f"{there.get(name, 0) / unit:.3g}; ask for less, or join a larger cluster by its address"
            )


class _Tasks:
    """The jobs as tasks: at most so many at once, each begun again where its worker was lost."""

    def __init__(self, ray: Any, work: Work, jobs: Sequence[Any], handle: Handle, at_once: int, needs: Needs) -> None:
        self._ray, self._jobs, self._handle, self._at_once = ray, jobs, handle, at_once
        self._waiting = deque(range(len(jobs)))
        self._tries = [0] * len(jobs)
        self._running: dict[Any, int] = {}
        try:
            self._work = ray.put(work)
        except Exception as error:
            raise SkipwayError(
                f"this cannot be sent to other machines ({type(error).__name__}: "
                f"{(str(error).splitlines() or [''])[0]}); use engine='local', or what can be pickled"
            ) from error
        # Ray would begin a lost task again without a word; here a person is told.
        self._task = ray.remote(do_job).options(
            num_cpus=needs.cpus, num_gpus=needs.gpus, memory=int(needs.memory * _GIB) or None, max_retries=0
        )
        self._share = (max(1, int(needs.cpus)), needs.gpus > 0)
        self._mailbox = ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1).remote()
        self._asked: Any = None
        self._pulse = _Pulse(ray)

    def run(self) -> None:
        ray = self._ray
        try:
            while self._waiting or self._running:
                while self._waiting and len(self._running) < self._at_once:
                    self._begin(self._waiting.popleft())
                done, _ = ray.wait(list(self._running), timeout=_LOOK)
                self._pulse.check()
                self._read_mail()
                for reference in done:
                    self._end(reference)
        finally:
            self._pulse.stop()
            self._tidy()

    def _begin(self, number: int) -> None:
        self._tries[number] += 1
        # In a list, the work is not unpacked for every task, but once a worker.
        reference = self._task.remote(
            [self._work], number, self._jobs[number], self._mailbox, self._share, list(sys.path)
        )
        self._running[reference] = number

    def _end(self, reference: Any) -> None:
        number = self._running.pop(reference)
        errors = self._ray.exceptions
        try:
            event = self._ray.get(reference)
        except errors.RayTaskError as error:
            # What is unpacked and sent by Ray itself is no code of the job's.
            raise SkipwayError(f"a task cannot run on the cluster: {_last_line(error)}") from error
        except errors.RayError as error:
            self._lost(number, error)
            return
        if isinstance(event, Exception):
            raise event
        self._handle(event)

    def _lost(self, number: int, error: Exception) -> None:
        short = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        reason = "its machine had no memory left" if short else _reason(error)
        if self._tries[number] < TRIES:
            self._waiting.append(number)
            self._handle(Note(number, f"the worker that did it is lost: {reason}; it is begun again"))
        else:
            lost = too_often(reason)
            self._handle(Failed(number, OutOfMemory(str(lost)) if short else lost))

    def _read_mail(self) -> None:
        """What is told on the way; where the mailbox is lost, so is that, and no more."""
        ray = self._ray
        if self._asked is None:
            self._asked = self._mailbox.take.remote()
        ready, _ = ray.wait([self._asked], timeout=0)
        if not ready:
            return
        mail: dict[int, Any] = {}
        with contextlib.suppress(ray.exceptions.RayError):
            mail = ray.get(self._asked)
        self._asked = None
        running = set(self._running.values())
        for number, what in mail.items():
            if number in running:
                self._handle(Told(number, what))

    def _tidy(self) -> None:
        """End what still runs, wherever it stands, and see that it has ended."""
        ray = self._ray
        with contextlib.suppress(Exception):
            if self._pulse.beats:
                for reference in self._running:
                    ray.cancel(reference, force=True)
                if self._running:
                    ray.wait(list(self._running), num_returns=len(self._running), timeout=_SILENCE)
                ray.kill(self._mailbox)


class _Pulse:
    """Whether the head of the cluster still answers: asked in a thread, for a question to a dead one never ends."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._heard = time.monotonic()
        self._stopped = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def beats(self) -> bool:
        return time.monotonic() - self._heard < _SILENCE

    def check(self) -> None:
        if not self.beats:
            raise SkipwayError(
                f"the head of the Ray cluster has not answered for {_SILENCE:.0f} s: it is gone, or cannot be reached; "
                "what is finished is kept: run the same again"
            )

    def stop(self) -> None:
        self._stopped.set()

    def _listen(self) -> None:
        while not self._stopped.wait(1.0):
            with contextlib.suppress(Exception):
                if any(node["Alive"] for node in self._ray.nodes()):
                    self._heard = time.monotonic()


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _reason(error: Exception) -> str:
    """The kind of loss in Ray's words, without its pages of advice."""
    first = (str(error).strip().splitlines() or [""])[0].split(". ")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
