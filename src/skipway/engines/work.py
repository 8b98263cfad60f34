"""What is to be done, and what is told of it while it is done."""

from __future__ import annotations

import pickle
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from skipway.errors import SkipwayError

# A job is begun so often where the process that does it is lost.
TRIES = 3
# Steps can be much shorter than anybody looks, and than it takes to send word of them.
_BETWEEN = 0.25
Tell: TypeAlias = Callable[[Any], None]
_NO_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory")


@runtime_checkable
class Work(Protocol):
    """Something to be done to many jobs; it is sent to other processes, so it can be pickled."""

    def prepare(self) -> Callable[[Any, Tell], Any]:
        """Make, once a process, what does a job: a function of the job and of a way to tell how far it is.

        What it returns is the job's result. An exception is the failure of that job alone, but for `Halt`. What it
        tells stands for all that it told before, for between processes only some of it is passed on. A job may be begun
        again, where its process was lost.
        """
        ...


@dataclass(frozen=True)
class Told:
    """What job number `job` tells of itself on its way; where its process was lost, it may tell the same again."""

    job: int
    what: Any


@dataclass(frozen=True)
class Done:
    """Job number `job` is done."""

    job: int
    result: Any


@dataclass(frozen=True)
class Failed:
    """Job number `job` failed, and the others go on; `trace` says where in the code, as far as that is known."""

    job: int
    error: Exception
    trace: str = ""


@dataclass(frozen=True)
class Note:
    """Something that a person should know, such as that job number `job` is begun again."""

    job: int | None
    sentence: str


Event: TypeAlias = Told | Done | Failed | Note
Handle: TypeAlias = Callable[[Event], None]


class Halt(SkipwayError):
    """What ends not a job but all of them, such as a full disk."""


class Lost(SkipwayError):
    """The process that did a job is gone, as often as it was begun."""


class OutOfMemory(SkipwayError):
    """A process was ended because its machine had no memory left."""


def lacks_memory(error: BaseException) -> bool:
    """Whether a failure is for want of memory, on a processor or an accelerator.

    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"))
    (True, True)
    """
    if isinstance(error, (MemoryError, OutOfMemory)):
        return True
    if isinstance(error, (RuntimeError, OSError)):
        return any(words in str(error).lower() for words in _NO_MEMORY)
    return False


def attempt(do: Callable[[Any, Tell], Any], number: int, job: Any, tell: Tell) -> Done | Failed:
    """Do a job; what it raises is its failure, but for `Halt` and what ends a process."""
    try:
        return Done(number, do(job, tell))
    except Halt:
        raise
    except Exception as error:
        trace = traceback.format_exc()
        if lacks_memory(error):
            # What its frames hold may be all the memory there is.
            error.__traceback__ = None
        return Failed(number, error, trace)


def now_and_then(tell: Tell) -> Tell:
    """The same, for what is told too often to be sent each time."""
    told = float("-inf")

    def sometimes(what: Any) -> None:
        nonlocal told
        if time.monotonic() - told > _BETWEEN:
            told = time.monotonic()
            tell(what)

    return sometimes


def sendable(failed: Failed) -> Failed:
    """The same failure with an error that another process can read."""
    try:
        pickle.loads(pickle.dumps(failed.error))
    except Exception:
        return Failed(failed.job, RuntimeError(f"{type(failed.error).__name__}: {failed.error}"), failed.trace)
    return failed


def too_often(reason: str) -> Lost:
    """The failure of a job whose process was lost every time."""
    return Lost(f"the process that did it was lost {TRIES} times; the last time {reason}")
