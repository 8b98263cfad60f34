"""The fenced blocks of a page, and what it takes to run them as a reader would: in order, in one session."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[2] / "docs"
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pages() -> list[Path]:
    """Every page that is written by hand."""
    return sorted(path for path in DOCS.rglob("*.md") if "studies" not in path.relative_to(DOCS).parts)


def blocks(page: Path, *languages: str) -> Iterator[tuple[str, str]]:
    """Language and text of the blocks of a page that are in one of the languages."""
    for found in _FENCE.finditer(page.read_text(encoding="utf-8")):
        if found[1] in languages:
            yield found[1], found[2]


def run(page: Path) -> None:
    """Run the Python of a page; what is shown with its output has to give that output."""
    names: dict[str, Any] = {}
    for number, (language, text) in enumerate(blocks(page, "python", "pycon")):
        title = f"{page.name}, block {number + 1}"
        if language == "python":
            exec(compile(text, title, "exec"), names)
        else:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            test = doctest.DocTestParser().get_doctest(text, names, title, str(page), 0)
            runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
            told: list[str] = []
            failed = runner.run(test, out=told.append, clear_globs=False).failed
            names.update(test.globs)
            assert not failed, "".join(told)
