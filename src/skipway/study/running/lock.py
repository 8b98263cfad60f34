"""One process at a time on a study's folder: a lock of the operating system's, free when its holder is gone."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from skipway.errors import SkipwayError

LOCK = ".lock"
_HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK}


@contextlib.contextmanager
def locked(folder: Path, wait: bool, say: Callable[[str], None]) -> Iterator[str]:
    """Hold a folder; yields a token that stands in the lock's file, by which others know that they see this folder.

    A holder that was killed, or whose machine went down, holds nothing. Raises SkipwayError, naming the holder, where
    another process holds the folder, unless told to `wait`; what a person should know goes to `say`.
    """
    path = folder / LOCK
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            _take(file, path, folder, wait, say)
            # Whoever held it may have removed the file that was waited for: that lock guards no name any more.
            if _same(file, path):
                break
        except BaseException:
            file.close()
            raise
        file.close()
    try:
        owner = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": time.time(),
            "token": secrets.token_hex(),
        }
        file.seek(0)
        file.truncate()
        file.write(json.dumps(owner) + "\n")
        file.flush()
        yield owner["token"]
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            file.close()


def sees(folder: Path, token: str) -> bool:
    """Whether a folder of this machine is the one that the process with this token holds."""
    return _owner(folder / LOCK).get("token") == token


def _take(file: TextIO, path: Path, folder: Path, wait: bool, say: Callable[[str], None]) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:
        say(f"this system has no locks of the needed kind: see that no other process works in '{folder}'")
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except OSError as error:
        if error.errno not in _HELD:
            say(f"'{folder}' takes no locks ({error.strerror}): see that no other process works in it")
            return
    holder = _holder(path)
    if not wait:
        raise SkipwayError(
            f"'{folder}' is in use by {holder}; wait until it has ended (wait=True does), or choose another folder"
        )
    say(f"waiting for '{folder}', which is in use by {holder}")
    fcntl.flock(file, fcntl.LOCK_EX)


def _same(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> dict[str, Any]:
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def _holder(path: Path) -> str:
    owner = _owner(path)
    if not {"host", "process", "since"} <= set(owner):
        return "another process"
    since = time.strftime("%H:%M on %d %B", time.localtime(owner["since"]))
    return f"process {owner['process']} on {owner['host']} since {since}"
