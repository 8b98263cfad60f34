"""A page as Markdown, with its pictures as files beside it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import quote

from skipway.report.figures import Figure
from skipway.report.page import Code, Content, Details, Facts, Folded, Page
from skipway.report.pictures import picture, png
from skipway.report.plots import Drawing, Plot
from skipway.report.tables import Cell, Table

# What Markdown would take for marks; the rest is shown as it is.
_MARKS = re.compile(r"([\\`*_\[\]<>|#])")


def markdown(page: Page, folder: str) -> tuple[str, dict[str, bytes]]:
    """The text, and the pictures that it shows by the names that they bear in `folder`, which lies beside it."""
    pictures: dict[str, bytes] = {}
    parts = [
        f"# {_escape(page.question)}", f"*{_escape(page.title)}*", *map(_escape, page.answer.split("\n")),
        *map(_escape, page.subject.split("\n")),
    ]  # fmt: skip
    for section in page.sections:
        parts += [f"## {_escape(section.title)}", *([_escape(section.text)] if section.text else [])]
        for item in section.content:
            parts += _shown(item, section.title, folder, pictures)
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _shown(item: Content, section: str, folder: str, pictures: dict[str, bytes]) -> Iterator[str]:
    if isinstance(item, Table):
        yield _table(item)
    elif isinstance(item, (Figure, Plot)):
        title = item.name if isinstance(item, Figure) else item.title
        told = item.sentence() if isinstance(item, Figure) else item.told or item.title
        if (drawn := picture(item)) is not None:
            yield _picture(f"{section} {title}", "png", told, png(drawn), folder, pictures)
        yield _escape(item.note if isinstance(item, Figure) else item.caption)
    elif isinstance(item, Drawing):
        yield _picture(f"{section} {item.title}", "svg", item.title, item.svg.encode("utf-8"), folder, pictures)
        yield _escape(item.caption)
    elif isinstance(item, Facts):
        yield "\n".join(f"- {_escape(name)}: {_escape(text)}" for name, text in item.values.items())
    elif isinstance(item, Code):
        fence = "```" if "```" not in item.text else "~~~~"
        yield f"{fence}\n{item.text}\n{fence}"
    else:
        details = item.content if isinstance(item, Folded) else [item]
        links = [f"[{_escape(one.title)}]({one.link})" for one in details if isinstance(one, Details) and one.link]
        yield f"Numbers: {', '.join(links)}" if links else ""


def _picture(name: str, kind: str, told: str, content: bytes, folder: str, pictures: dict[str, bytes]) -> str:
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "picture"
    file = f"{len(pictures) + 1:02d}-{readable}.{kind}"
    pictures[file] = content
    return f"![{_escape(told)}]({quote(folder)}/{file})"


def _table(table: Table) -> str:
    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    heads = [_escape(column) for column in table.columns]
    return "\n".join([line(heads), line(["---"] * len(heads)), *(line(list(map(_cell, row))) for row in table.cells())])


def _cell(cell: Cell) -> str:
    text = _escape(cell.text)
    if cell.links:
        text = " ".join(f"[{_escape(one)}]({address})" for one, address in cell.links)
    elif cell.link:
        text = f"[{text}]({cell.link})"
    return f"{text} ({_escape(cell.note)})" if cell.note else text


def _escape(text: str) -> str:
    return _MARKS.sub(r"\\\1", text).replace("\n", " ")
