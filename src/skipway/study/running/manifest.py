"""A study's manifest: what was declared, which trials that makes, and by what they are known again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import skipway
from skipway.errors import SkipwayError
from skipway.study.declaring.declaration import LOOP, Study
from skipway.study.declaring.variants import Trial
from skipway.study.records.sealed import FORMAT, Unreadable, read_sealed, seal, write_sealed
from skipway.study.training.determinism import versions

MANIFEST = "manifest.json"


def write_manifest(folder: Path, study: Study, jobs: list[tuple[Trial, str]]) -> None:
    """Write down what is about to be run, where that is not what stands there."""
    content = {
        "stamp": _stamp(study),
        "study": study.declaration(),
        "trials": [
            {
                "id": trial_id,
                "title": trial.title,
                "labels": dict(trial.variant.labels),
                "seed": trial.seed,
                "record": os.path.join("trials", f"{trial_id}.json"),
            }
            for trial, trial_id in jobs
        ],
        "versions": versions("not chosen yet"),
    }
    # What is as it was keeps its time, by which a report is known to be of it.
    with contextlib.suppress(OSError, ValueError):
        if json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == seal(content):
            return
    write_sealed(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """What `write_manifest` wrote; raises SkipwayError for a folder of anything else."""
    try:
        return read_sealed(folder / MANIFEST)
    except FileNotFoundError:
        raise SkipwayError(
            f"'{folder}' is no folder of a study: it has no {MANIFEST}; 'skipway study run' writes one"
        ) from None
    except (OSError, Unreadable) as error:
        raise SkipwayError(f"'{folder / MANIFEST}' cannot be read: {error}; run the study again") from error


def is_reported(folder: Path, report: Path) -> bool:
    """Whether a report is younger than all that a study's folder tells."""
    try:
        written = report.stat().st_mtime_ns
        told = [folder / MANIFEST, *(folder / "trials").glob("*.json"), *(folder / "failed").glob("*.json")]
        return all(path.stat().st_mtime_ns < written for path in told)
    except OSError:
        return False


def known_ids(folder: Path, study: Study) -> list[str] | None:
    """The ids of a study's trials where its folder tells them and no data need be read for it, else None.

    That is where the same study was run there by the same version, and the files that it reads are the same by their
    names, sizes and times.
    """
    try:
        content = read_sealed(folder / MANIFEST)
    except (OSError, Unreadable):
        return None
    known = content["stamp"] is not None and content["stamp"] == _stamp(study)
    return [trial["id"] for trial in content["trials"]] if known else None


def _stamp(study: Study) -> str | None:
    """Of everything that determines the ids of trials, without reading data or code; None where that has to be read."""
    sources = [_source(str(data)) for data in study.values("data")]
    if None in sources or any(":" in str(model) for model in study.values("model")):
        return None
    determining = [skipway.__version__, FORMAT, LOOP, study.declaration(), sources]
    return hashlib.sha256(json.dumps(determining, sort_keys=True, default=repr).encode()).hexdigest()


def _source(data: str) -> list[Any] | None:
    if data == "digits":
        return [version("scikit-learn")]
    path = Path(data).expanduser()
    if not path.exists():
        return None
    files = [path] if path.is_file() else sorted(part for part in path.rglob("*") if part.is_file())
    return [[str(part), (facts := part.stat()).st_size, facts.st_mtime_ns] for part in files]
