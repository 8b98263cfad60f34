"""How the files of trainings and studies are written, whole or not at all, and what is said where they cannot be."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError
from skipway.storing import write_whole

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_MISPLACED = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON atomically: into a file beside it, flushed to the disk, then moved into place."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write text atomically: into a file beside it, flushed to the disk, then moved into place."""
    write_whole(path, text.encode("utf-8"))


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be read, keeping it; returns its new name."""
    for number in range(1, 1000):
        aside = path.with_name(f"{path.name}.unreadable-{number}")
        if not aside.exists():
            os.replace(path, aside)
            return aside
    raise SkipwayError(f"'{path}' cannot be read, and a thousand like it were set aside before; look into the disk")


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[None]:
    """Turn what the operating system says of a folder into one sentence that a person can act on."""
    try:
        yield
    except OSError as error:
        raise SkipwayError(_sentence(error, folder)) from error


def _sentence(error: OSError, folder: Path) -> str:
    if error.errno in _FULL:
        return (
            f"the disk is full: '{folder}' takes no more; make room and run the same again: "
            "every finished trial is kept"
        )
    if error.errno in _FORBIDDEN:
        named = error.filename if error.filename is not None else folder
        return f"no permission to use '{named}'; choose a folder that you may write in, or change its permissions"
    if error.errno in _MISPLACED:
        return f"'{error.filename or folder}' is in the way: the results need a folder there; choose another place"
    return f"cannot write in '{folder}': {error.strerror or error}"
