"""Trials that failed by themselves: why, and what to do about it, kept beside the records until they succeed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from skipway.engines import Failed, lacks_memory
from skipway.errors import SkipwayError
from skipway.study.declaring.variants import Trial
from skipway.study.records.writing import write_json

FAILED = "failed"
_MEMORY = "make batch_size smaller, use precision='bf16', or fewer workers"


def failure_path(folder: Path, trial_id: str) -> Path:
    """Where a study keeps why a trial failed."""
    return folder / FAILED / f"{trial_id}.json"


def why_failed(failed: Failed) -> str:
    """Why a trial failed and what to do, in one sentence."""
    error = failed.error
    lines = str(error).strip().splitlines() or [""]
    if lacks_memory(error):
        return f"out of memory ({_short(lines[0])}); {_MEMORY}"
    if isinstance(error, SkipwayError):
        text = str(error)
        return f"{text}; {_MEMORY}" if "want of memory" in text else text
    return f"{type(error).__name__}: {_short(lines[0])}" if lines[0] else type(error).__name__


def keep_failure(folder: Path, trial: Trial, trial_id: str, failed: Failed) -> str:
    """Write down why a trial failed, and return it."""
    why, path = why_failed(failed), failure_path(folder, trial_id)
    path.parent.mkdir(exist_ok=True)
    content = {
        "id": trial_id,
        "title": trial.title,
        "labels": dict(trial.variant.labels),
        "seed": trial.seed,
        "error": why,
        "trace": failed.trace,
    }
    write_json(path, content)
    return why


def read_failure(folder: Path, trial_id: str) -> str | None:
    """Why a trial failed, None where it did not or the file cannot be read."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(failure_path(folder, trial_id).read_text(encoding="utf-8"))["error"])
    return None


def forget_failure(folder: Path, trial_id: str) -> None:
    """Remove what was kept of a failure, for its trial has succeeded."""
    with contextlib.suppress(FileNotFoundError):
        failure_path(folder, trial_id).unlink()
    with contextlib.suppress(OSError):
        (folder / FAILED).rmdir()


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:197]}..."
