"""What torchrun tells the processes that it starts of one another."""

from __future__ import annotations

import os


def processes() -> int:
    """How many processes work together: 1 where torchrun did not start this one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def on_this_machine() -> int | None:
    """How many of them run on this machine, None where torchrun did not start this one."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return int(local) if local is not None and "WORLD_SIZE" in os.environ else None


def writes() -> bool:
    """Whether this is the process that speaks, and keeps what comes out."""
    return os.environ.get("RANK", "0") == "0"
