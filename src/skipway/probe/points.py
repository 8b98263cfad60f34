"""Measuring the points of a grid: in one process or several, one shard of it or all, going on where a run stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from skipway.engines import Done, Engine, Event, Failed, Local, Note, Tell, find_engine
from skipway.errors import SkipwayError
from skipway.probe.journal import Journal
from skipway.probe.progress import progress

Values = tuple[float, ...]


@runtime_checkable
class Task(Protocol):
    """Something to measure at every point of a grid; it is sent to other processes as it is."""

    def measure(self) -> Callable[[int], Values]:
        """Prepare the measurement: a function from the number of a point to its values."""
        ...


# Portions for each worker: a point may take less than sending word of it.
_PORTIONS = 16


@dataclass(frozen=True)
class _Portions:
    """Points as work for an engine: a job is a few points, its result their values."""

    task: Task

    def prepare(self) -> Callable[[list[int], Tell], list[Values]]:
        measure = self.task.measure()

        def values(portion: list[int], tell: Tell) -> list[Values]:
            found: list[Values] = []
            for point in portion:
                if found:
                    tell(list(found))
                found.append(measure(point))
            return found

        return values


def check_sharing(
    workers: int | None, shard: tuple[int, int] | None, folder: str | Path | None, engine: str | Engine = "local"
) -> None:
    """Raise SkipwayError if the work cannot be shared out like this."""
    if workers is not None and (not isinstance(workers, int) or workers < 1):
        raise SkipwayError(f"workers={workers}: at least 1 process is needed")
    find_engine(engine)
    if shard is None:
        return
    number, count = shard
    if not 0 <= number < count:
        raise SkipwayError(f"shard={shard}: the first number counts from 0 to {count - 1}, as (0, {count})")
    if folder is None:
        raise SkipwayError("a shard needs a folder, in which its points are kept and from which they are merged")


def measure_points(
    task: Task,
    points: int,
    columns: int,
    *,
    title: str,
    manifest: Mapping[str, Any],
    folder: str | Path | None = None,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    engine: str | Engine = "local",
) -> tuple[np.ndarray, np.ndarray]:
    """The values of all points, (points, columns), and which were measured: all, but for those of other shards."""
    check_sharing(workers, shard, folder, engine)
    journal = None if folder is None else Journal(folder, manifest, columns)
    if journal is None:
        values, measured = np.full((points, columns), np.nan), np.zeros(points, dtype=bool)
    else:
        values, measured = journal.read(points)
    number, count = shard or (0, 1)
    pending = [point for point in range(number, points, count) if not measured[point]]
    done = len(range(number, points, count)) - len(pending)
    portions = _portions(pending, workers, find_engine(engine))
    try:
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.callback(journal.close)
            advance = stack.enter_context(progress(title, done + len(pending), done))

            def keep(event: Event) -> None:
                if isinstance(event, Failed):
                    raise event.error from (RuntimeError(event.trace) if event.trace else None)
                if isinstance(event, Note):
                    return
                found = event.result if isinstance(event, Done) else event.what
                for point, those in zip(portions[event.job], found, strict=False):
                    if not measured[point]:
                        values[point] = those
                        measured[point] = True
                        if journal is not None:
                            journal.add(point, those)
                        advance(1)

            find_engine(engine).run(_Portions(task), portions, keep, workers)
    except KeyboardInterrupt:
        kept = f"are kept in '{folder}'; the same again goes on where this stopped"
        if folder is None:
            kept = "were measured and are lost; with folder='...' they would have been kept"
        raise KeyboardInterrupt(f"stopped; {int(measured.sum())} of {points} points {kept}") from None
    return values, measured


def _portions(pending: list[int], workers: int | None, engine: Engine) -> list[list[int]]:
    alone = isinstance(engine, Local) and (workers or 1) == 1
    size = 1 if alone else max(1, len(pending) // ((workers or _PORTIONS) * _PORTIONS))
    return [pending[start : start + size] for start in range(0, len(pending), size)]


def grid(coordinates: Iterable[np.ndarray]) -> np.ndarray:
    """The points of a grid, (points, axes), the last axis changing fastest.

    >>> grid([np.array([0.0, 1.0]), np.array([5.0, 6.0, 7.0])])[:4].tolist()
    [[0.0, 5.0], [0.0, 6.0], [0.0, 7.0], [1.0, 5.0]]
    """
    return np.stack([axis.ravel() for axis in np.meshgrid(*coordinates, indexing="ij")], axis=-1)
