"""JSON that notices damage: a digest of all that a file says is written with it, and checked when it is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skipway.study.records.writing import write_json

# Of records and manifests: to be raised when what they hold, or how, is no longer what it was.
FORMAT = 3


class Unreadable(Exception):
    """A file that does not hold what was written into it, or was never ours; the message says why."""


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Content as a file has it: as JSON gives it back, with its format and its digest.

    >>> seal({"seed": 0})["digest"] == seal({"seed": 1})["digest"]
    False
    """
    plain = {**json.loads(json.dumps(content, allow_nan=False)), "format": FORMAT}
    return {**plain, "digest": _digest(plain)}


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """Write content sealed, so that the file holds all of it or does not exist."""
    write_json(path, seal(content))


def read_sealed(path: Path) -> dict[str, Any]:
    """What `write_sealed` was given; raises Unreadable for a file of anything else, and OSError as opening one does."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise Unreadable("it is not text") from error
    except json.JSONDecodeError as error:
        raise Unreadable(f"it is not JSON: {error}") from error
    if not isinstance(content, dict) or "format" not in content:
        raise Unreadable("it is of another program")
    if content["format"] != FORMAT:
        raise Unreadable(f"it is of format {content['format']!r}, and this version of skipway has format {FORMAT}")
    if content.pop("digest", None) != _digest(content):
        raise Unreadable("it is damaged: its digest is not that of what it says")
    del content["format"]
    return content


def _digest(content: Mapping[str, Any]) -> str:
    # Neither the order nor the white space matters, and every letter of a name and digit of a number does.
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
