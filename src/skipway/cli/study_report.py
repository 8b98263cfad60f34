"""`skipway study report`: the report of a study that lies in a folder, or of two of them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from skipway.errors import SkipwayError, choose

REPORT = (
    "Write the report of a study's folder, or, with --compare, of two: what was declared differently, and what it did."
    "\n\n"
    "The page is made from what the folder holds: nothing is trained, and no data are read. 'html' is a page to look "
    "at, 'print' one for paper and PDF, 'md' Markdown with its pictures beside it."
)


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="A study's folder; two with --compare.")],
    format: Annotated[str, typer.Option(help="html, print or md.")] = "html",
    compare: Annotated[bool, typer.Option("--compare", help="Compare the second study with the first.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="The file to write.", show_default="report.html or the like in the folder")
    ] = None,
) -> None:
    """Write the report of one study, or of two."""
    choose("format", format, ("html", "md", "print"))
    wanted = 2 if compare else 1
    if len(folders) != wanted:
        told = "--compare takes two folders" if compare else "one folder has one report; two are compared by --compare"
        raise SkipwayError(f"{told}, and {len(folders)} were given")
    print("Reading the records ...", file=sys.stderr)
    from skipway.study.running.results import read_results

    found = [read_results(folder) for folder in folders]
    path = found[0].report(out, cast(Any, format), found[1] if compare else None)
    if not compare:
        print(found[0].answer.sentence)
    print(f"Report: {path}")
