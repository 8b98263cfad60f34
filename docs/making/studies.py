"""The page of the recorded studies: one entry a folder of `docs/studies`, from what lies in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def recorded(folder: Path) -> list[Path]:
    """The folders of finished studies: those that hold records."""
    return sorted(manifest.parent for manifest in folder.glob("*/manifest.json"))


def make_reports(folder: Path) -> None:
    """Write the report of every recorded study that has none yet, or one older than its records."""
    from skipway.study.running.results import read_results

    for place in recorded(folder):
        report = place / "report.html"
        if not report.exists() or report.stat().st_mtime < (place / "manifest.json").stat().st_mtime:
            # A network of one's own lies beside its study, and is imported from there.
            before = Path.cwd()
            os.chdir(place)
            try:
                read_results(place).report(report)
            finally:
                os.chdir(before)


def index(folder: Path, records: Mapping[str, tuple[str, str]]) -> str:
    """The Markdown of the page; `records` are the results of the benchmarks: file, then title and what was asked."""
    lines = [
        "# Recorded studies",
        "",
        "What these pages claim was measured, and the records lie in the repository. Each study is declared in a file, "
        "ran as `skipway study run` runs it, and answers with its uncertainty.",
        "",
    ]
    found = recorded(folder)
    if found:
        lines += ["## Declared studies", ""]
        for place in found:
            lines += [*_entry(place), ""]
    lines += ["## Benchmarks that train networks", "", "| record | what it asks |", "| --- | --- |"]
    for name, (title, asked) in records.items():
        lines.append(f"| [{title}](../results/{name}) | {asked} |")
    lines += ["", "[What the probes say of four trained networks](../measured/README.md).", ""]
    return "\n".join(lines)


def _entry(place: Path) -> list[str]:
    from skipway.study.running.results import read_results

    name = place.name
    title = name.replace("-", " ").replace("_", " ").capitalize()
    lines = [f"### {title}", ""]
    results = read_results(place)
    lines += [f"**{results.answer.asked.text}** {results.answer.sentence}", ""]
    study = results.study
    seeds = ", ".join(map(str, study.seeds))
    lines += [f"{len(results.records)} trials, seeds {seeds}. {study.about}".strip(), ""]
    links = [f'<a href="{name}/report.html">The report</a>']
    sources = sorted(path for ending in ("toml", "py") for path in place.glob(f"*.{ending}"))
    links += [f'<a href="{name}/{one.name}">{one.name}</a>' for one in sources]
    return [*lines, " · ".join(links)]
