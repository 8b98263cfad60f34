"""Measuring the points of a grid: in one process or several, one shard of it or all, going on where a run stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

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


def check_sharing(workers: int, shard: tuple[int, int] | None, folder: str | Path | None) -> None:
    """Raise SkipwayError if the work cannot be shared out like this."""
    if not isinstance(workers, int) or workers < 1:
        raise SkipwayError(f"workers={workers}: at least 1 process is needed")
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
    workers: int = 1,
    shard: tuple[int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The values of all points, (points, columns), and which were measured: all, but for those of other shards."""
    check_sharing(workers, shard, folder)
    journal = None if folder is None else Journal(folder, manifest, columns)
    if journal is None:
        values, measured = np.full((points, columns), np.nan), np.zeros(points, dtype=bool)
    else:
        values, measured = journal.read(points)
    number, count = shard or (0, 1)
    pending = [point for point in range(number, points, count) if not measured[point]]
    done = len(range(number, points, count)) - len(pending)
    try:
        with contextlib.ExitStack() as stack:
            if journal is not None:
                stack.callback(journal.close)
            advance = stack.enter_context(progress(title, done + len(pending), done))
            for point, found in stack.enter_context(contextlib.closing(_run(task, pending, workers))):
                values[point] = found
                measured[point] = True
                if journal is not None:
                    journal.add(point, found)
                advance(1)
    except KeyboardInterrupt:
        kept = f"are kept in '{folder}'; the same again goes on where this stopped"
        if folder is None:
            kept = "were measured and are lost; with folder='...' they would have been kept"
        raise KeyboardInterrupt(f"stopped; {int(measured.sum())} of {points} points {kept}") from None
    return values, measured


def _run(task: Task, pending: list[int], workers: int) -> Generator[tuple[int, Values], None, None]:
    if not pending:
        return
    if min(workers, len(pending)) > 1:
        from skipway.probe.workers import spread

        yield from spread(task, pending, min(workers, len(pending)))
        return
    measure = task.measure()
    for point in pending:
        yield point, measure(point)


def grid(coordinates: Iterable[np.ndarray]) -> np.ndarray:
    """The points of a grid, (points, axes), the last axis changing fastest.

    >>> grid([np.array([0.0, 1.0]), np.array([5.0, 6.0, 7.0])])[:4].tolist()
    [[0.0, 5.0], [0.0, 6.0], [0.0, 7.0], [1.0, 5.0]]
    """
    return np.stack([axis.ravel() for axis in np.meshgrid(*coordinates, indexing="ij")], axis=-1)
