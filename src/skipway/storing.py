"""Files that hold all of what was written, or do not exist."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from skipway.errors import SkipwayError


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: beside its place, flushed to the disk, then moved into it."""
    # Several processes may write the same file: each has its own one beside it, and the last to finish wins.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a place into one sentence."""
    try:
        yield
    except OSError as error:
        raise SkipwayError(f"cannot write '{error.filename or path}': {error.strerror or error}") from error
