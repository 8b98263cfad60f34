"""Which engine a name stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from skipway.engines.cluster import Ray
from skipway.engines.local import Local
from skipway.engines.work import Handle, Work
from skipway.errors import SkipwayError, choose


@runtime_checkable
class Engine(Protocol):
    """Where and how work is done."""

    def run(self, work: Work, jobs: Sequence[Any], handle: Handle, workers: int | None) -> None:
        """Do all jobs, `workers` at a time, and call `handle` in this process with what happens.

        It returns when each job is done or has failed; behind it, and on any way out, nothing of the work is left
        running. Raises what preparing the work raised, `Halt`, and SkipwayError where the engine itself cannot go on.
        """
        ...


def find_engine(engine: str | Engine) -> Engine:
    """The engine of a name: "local"; "ray", on a cluster started here; "ray:ADDRESS", on one that is there.

    "ray" joins the cluster that the variable RAY_ADDRESS names, where there is one. An engine is itself.

    >>> find_engine("local"), find_engine("ray:10.0.0.1:6379").address
    (Local(), '10.0.0.1:6379')
    """
    if not isinstance(engine, str):
        if not isinstance(engine, Engine):
            raise SkipwayError(f"engine={engine!r} is none; give 'local', 'ray', 'ray:ADDRESS', Local() or Ray(...)")
        return engine
    kind, _, address = engine.partition(":")
    if kind == "ray":
        # Ray's own clients are at addresses that begin like this one.
        return Ray(f"ray:{address}" if address.startswith("//") else address or None)
    choose("engine", engine, ("local", "ray", "ray:ADDRESS"))
    return Local()
