"""A study in a process of its own that something is done to, and what it left: for faults.py, and for the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Stochastic depth draws random numbers in every step: nothing else shows so well whether they are the same ones.
SMALL: dict[str, Any] = {
    "depth": [8], "skip": ["stochastic-depth"], "seeds": [0, 1, 2, 3], "epochs": 12, "width": 4, "batch_size": 16,
    "limit": 64,
}  # fmt: skip
# A cluster of this machine; the sockets of one lie in its folder, and their paths may be 107 letters long.
RAY = "Ray(options={'num_cpus': 2, 'object_store_memory': 100 * 2**20, '_temp_dir': '/tmp/skipway-ray'})"


def begin(folder: Path, options: str = "quiet=True", values: dict[str, Any] = SMALL, **more: Any) -> Any:
    """A study in a process and a group of its own; what it raises is its last line."""
    code = (
        "import sys\nfrom skipway.engines import Ray\nfrom skipway.study import Study\n"
        f"try: results = Study(**{values!r}).run({str(folder)!r}, {options})\n"
        "except (ValueError, KeyboardInterrupt) as error: sys.exit(f'{type(error).__name__}: {error}')\n"
        "print(len(results.records), 'records', len(results.failed), 'failed', *results.failed, file=sys.stderr)\n"
    )
    # Ray's workers give way to everything else on a machine, which on a busy one they wait for for minutes.
    environment = {**os.environ, "RAY_worker_niceness": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment, **more
    )


def end(process: Any) -> str:
    """Wait for a process; what it said."""
    return process.communicate(timeout=600)[1].strip()


def until(happened: Callable[[], Any], process: Any = None) -> Any:
    """Wait for something to happen, five minutes at most, while a process runs; what it was."""
    deadline = time.monotonic() + 300
    while not (value := happened()):
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"a study ended before the fault: {end(process)}")
        if time.monotonic() > deadline:
            raise RuntimeError("waited for five minutes in vain")
        time.sleep(0.005)
    return value


def running(pattern: str, parent: int | None = None) -> list[int]:
    """The living processes whose command line holds a pattern, the children of one or all."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            state, above = (entry / "stat").read_text().rsplit(")", 1)[1].split()[:2]
        except (OSError, ValueError):
            continue
        if re.search(pattern, command) and state != "Z" and parent in (None, int(above)):
            found.append(int(entry.name))
    return found


def ray_workers(driver: int) -> list[int]:
    """The workers that do a job on the cluster that a process started, and on no other of this machine."""
    return [worker for node in running("raylet/raylet", driver) for worker in running("^ray::do_job", node)]


def records(folder: Path) -> dict[str, bytes]:
    """The records of a folder as they lie there."""
    return {path.name: path.read_bytes() for path in folder.glob("trials/*.json")}


def numbers(folder: Path) -> dict[str, Any]:
    """All records of a folder, without what a clock says and the digest that holds it."""
    found = {name: json.loads(content) for name, content in records(folder).items()}
    for content in found.values():
        del content["digest"]
        content["measures"] |= {"seconds": None, "step_seconds": None}
    return found


def half_done(folder: Path) -> bool:
    """Whether one trial is done and another is begun."""
    return bool(records(folder)) and any(folder.glob("unfinished/*.ckpt"))


def flip_digit(path: Path) -> None:
    """Change one digit of a number of a record, which stays good JSON with all its fields."""
    text = path.read_text()
    place = re.compile(r'"test_error": \[\s*\d\.\d*\d').search(text)
    assert place is not None
    last = place.end() - 1
    path.write_text(f"{text[:last]}{(int(text[last]) + 1) % 10}{text[last + 1 :]}")
