"""What a study's probes found, from the files in its folder."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from skipway.errors import SkipwayError
from skipway.probe import Result, load
from skipway.report import Section
from skipway.report.probes import Measured, probe_sections
from skipway.study.answering.summary import by_variant
from skipway.study.pages.cells import address
from skipway.study.pages.figures import setting_title
from skipway.study.probing.probes import read_probe

if TYPE_CHECKING:
    from skipway.study.running.results import Results


def probes_sections(results: Results, target: Path) -> list[Section]:
    """A section a probe, of every variant the first trial that was probed."""
    found: list[Measured] = []
    missing: list[str] = []
    for group in by_variant(results.records):
        label = setting_title(group[0], list(group[0].labels)) or group[0].model
        for record in group:
            folder = results.folder / "probes" / record.id
            files = sorted(folder.glob("*.npz"))
            for path in files:
                result = _read(path)
                where = f"probes/{record.id}/{path.name}"
                if result is None:
                    missing.append(f"{path.stem} of {label}: the file cannot be read.")
                else:
                    found.append(Measured(label, path.stem, result, address(results.folder, where, target)))
            missing += [f"{path.stem} of {label}: {_refused(path)}." for path in sorted(folder.glob("*.json"))]
            if files:
                break
    asked = [read_probe(one)[0] for one in results.study.probes]
    found.sort(key=lambda one: asked.index(one.probe) if one.probe in asked else len(asked))
    sections = probe_sections(found)
    if missing:
        sections.append(Section("Not measured", " ".join(missing)))
    return sections


def _read(path: Path) -> Result | None:
    with contextlib.suppress(SkipwayError):
        return load(path)
    return None


def _refused(path: Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text(encoding="utf-8"))["refused"]).rstrip(".")
    return "the file cannot be read"
