"""Work for the tests of engines; it is imported by name in other processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipway.engines import Halt, Tell
from skipway.errors import SkipwayError


@dataclass(frozen=True)
class Squares:
    """Squares numbers, and tells half of each on the way; what is no number says what is to happen instead."""

    folder: Path | None = None

    def prepare(self) -> Callable[[Any, Tell], Any]:
        return self._do

    def _do(self, job: Any, tell: Tell) -> Any:
        if isinstance(job, int):
            tell(job / 2)
            return job**2
        name, *rest = job.split()
        if name == "until":
            return self.until(rest[0], tell)
        return getattr(self, name)(*rest)

    def process(self, _: str = "") -> int:
        """Which process does the job, after all have had the time to take one."""
        time.sleep(0.5)
        return os.getpid()

    def threads(self) -> int:
        return torch.get_num_threads()

    def visible(self) -> str | None:
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def wrong(self) -> None:
        raise SkipwayError("that job is wrong")

    def odd(self) -> None:
        raise Odd("left", "right")

    def broken(self) -> None:
        raise ZeroDivisionError("by zero")

    def halt(self) -> None:
        raise Halt("the disk is full")

    def unsendable(self) -> Any:
        return lambda: None

    def large(self) -> torch.Tensor:
        """More than there is address space for."""
        return torch.empty(2**60, dtype=torch.uint8)

    def array(self) -> Any:
        return bytearray(2**62)

    def die(self, name: str, times: str) -> str:
        """End this process as the system does, so many times; each is counted in a file."""
        assert self.folder is not None
        with open(self.folder / name, "a") as file:
            file.write("x")
        if (self.folder / name).stat().st_size <= int(times):
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"

    def until(self, name: str, tell: Tell) -> bool:
        """Tell of waiting, and wait for a file, which whoever heard of it makes."""
        assert self.folder is not None
        for _ in range(1200):
            tell("waiting")
            if (self.folder / name).exists():
                return True
            time.sleep(0.1)
        return False

    def sleep(self, name: str) -> None:
        assert self.folder is not None
        (self.folder / name).write_text(str(os.getpid()))
        time.sleep(600)


class Odd(Exception):
    """An error that cannot be read back by another process."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


@dataclass(frozen=True)
class Unprepared:
    """Work that cannot begin: it says so, or its process ends."""

    kill: bool = False

    def prepare(self) -> Callable[[Any, Tell], Any]:
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise SkipwayError("there are no data")


def gone(pid: int) -> bool:
    """Whether a process has ended, waiting a little for it."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False
