"""`Journal`: the points of a grid that are measured, kept in a folder so that a run may be killed and go on."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skipway.errors import SkipwayError
from skipway.storing import write_whole, writing

MANIFEST = "manifest.json"
_LINES = "points-*.jsonl"


class Journal:
    """Measured points in a folder: a manifest that says of what, and a line for each point.

    A line counts if it is whole: whoever is killed while writing loses that point alone. Each process appends to a file
    of its own, so that many, on one machine or several, may share a folder.
    """

    def __init__(self, folder: str | Path, manifest: Mapping[str, Any], columns: int):
        self.folder = Path(folder).expanduser()
        self._columns = columns
        self._file: Any = None
        manifest = json.loads(json.dumps(manifest))
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / MANIFEST
        if path.exists():
            kept = read_manifest(self.folder)
            differing = [name for name in {**kept, **manifest} if kept.get(name) != manifest.get(name)]
            if differing:
                name = differing[0]
                raise SkipwayError(
                    f"'{self.folder}' holds the points of another measurement: its {name} is {_short(kept.get(name))}, "
                    f"this one's is {_short(manifest.get(name))}; choose another folder"
                )
        else:
            with writing(path):
                write_whole(path, (json.dumps(manifest, indent=1) + "\n").encode())

    def read(self, points: int) -> tuple[np.ndarray, np.ndarray]:
        """All kept values, (points, columns), NaN where there are none; and which points are measured."""
        return read_points(self.folder, points, self._columns)

    def add(self, point: int, values: Sequence[float]) -> None:
        """Keep a point, whatever its values are: zero, negative and NaN are values too."""
        with writing(self.folder):
            if self._file is None:
                self._file = self._open()
            self._file.write(json.dumps([point, *map(float, values)]).encode() + b"\n")

    def _open(self) -> Any:
        number = 0
        while True:
            name = f"points-{socket.gethostname()}-{os.getpid()}-{number}.jsonl"
            try:
                # Unbuffered: a line is with the operating system as soon as its point is measured.
                return open(self.folder / name, "xb", buffering=0)
            except FileExistsError:
                number += 1

    def close(self) -> None:
        """Flush what was added to the disk."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def read_manifest(folder: Path) -> dict[str, Any]:
    """What a folder's points were measured on; raises SkipwayError where it holds none."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SkipwayError(f"'{folder}' holds no measured points: there is no {MANIFEST} in it") from None
    except (OSError, ValueError) as error:
        raise SkipwayError(f"'{folder / MANIFEST}' cannot be read ({error}); choose another folder") from None
    if not isinstance(manifest, dict):
        raise SkipwayError(f"'{folder / MANIFEST}' holds no measurement; choose another folder")
    return manifest


def read_points(folder: Path, points: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of all whole lines in a folder, (points, columns), and which points they are of."""
    values = np.full((points, columns), np.nan)
    measured = np.zeros(points, dtype=bool)
    for path in sorted(folder.glob(_LINES)):
        for line in path.read_bytes().split(b"\n")[:-1]:
            try:
                point, *numbers = json.loads(line)
            except (ValueError, TypeError):
                continue
            if isinstance(point, int) and 0 <= point < points and len(numbers) == columns and not measured[point]:
                values[point] = numbers
                measured[point] = True
    return values, measured


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
