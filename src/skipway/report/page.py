"""A self-contained HTML page: a question, its answer, and sections of tables, figures and facts."""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from itertools import groupby

from skipway.report.figures import Figure
from skipway.report.plots import Drawing, Plot, script
from skipway.report.tables import Table

_SCRIPTS = ("base.js", "tables.js", "figures.js", "plots.js", "start.js")


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    values: Mapping[str, str]

    def html(self) -> str:
        items = [f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in self.values.items()]
        return f"<dl>{''.join(items)}</dl>"


@dataclass(frozen=True)
class Code:
    """Text of a file, letter by letter."""

    text: str
    name: str

    def html(self) -> str:
        name = escape(self.name, quote=True)
        return f"<pre role='region' aria-label='{name}' tabindex='0'><code>{escape(self.text)}</code></pre>"


@dataclass(frozen=True)
class Details:
    """A table that is folded away until it is asked for, and the address of the file that holds it whole."""

    title: str
    table: Table
    link: str = ""

    def html(self) -> str:
        link = f"<p><a href='{escape(self.link, quote=True)}'>{escape(self.link)}</a></p>" if self.link else ""
        return f"<details><summary>{escape(self.title)}</summary>{self.table.html()}{link}</details>"


@dataclass(frozen=True)
class Folded:
    """What few readers want, folded away together."""

    title: str
    content: Sequence[Details]

    def html(self) -> str:
        inside = "".join(item.html() for item in self.content)
        return f"<details class='folded'><summary>{escape(self.title)}</summary>{inside}</details>"


Content = Table | Figure | Facts | Plot | Details | Folded | Drawing | Code


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and what stands under them."""

    title: str
    text: str
    content: Sequence[Content] = ()

    def html(self, place: str = "") -> str:
        heading = f"<h2 id='{place}-title'>{escape(self.title)}</h2>"
        parts = [f"<section id='{place}' aria-labelledby='{place}-title'>{heading}"]
        if self.text:
            parts.append(f"<p>{escape(self.text)}</p>")
        for beside, items in groupby(self.content, lambda item: isinstance(item, Plot)):
            all_of_them = [_figure(item) if isinstance(item, Figure) else item.html() for item in items]
            kind = "plots three" if len(all_of_them) > 2 else "plots"
            shown = "".join(all_of_them)
            parts.append(f"<div class='{kind}'>{shown}</div>" if beside else shown)
        return "".join([*parts, "</section>"])


@dataclass(frozen=True)
class Page:
    """A report that needs nothing beside it: styles, script and plotly.js are inside."""

    title: str
    question: str
    answer: str
    subject: str
    sections: Sequence[Section]

    def html(self) -> str:
        """The whole page, which draws its figures itself.

        >>> "<h1>Why?</h1>" in Page("t", "Why?", "Because.", "about", []).html()
        True
        """
        code = "\n".join(map(resource, _SCRIPTS))
        drawn = any(isinstance(item, Figure | Plot) for section in self.sections for item in section.content)
        library, packed = _plotly() if drawn else ("", "")
        # The browser itself sees to it that the page fetches nothing, and runs no script but these two.
        hashes = " ".join(f"'sha256-{_digest(text)}'" for text in (code, library) if text)
        policy = (
            f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}; img-src data: blob:; "
            "form-action 'none'; base-uri 'none'"
        )
        return (
            f"{self.head(policy)}<body><a class='jump' href='#main'>To the answer</a>"
            f"<main id='main'>{self.body()}</main>\n"
            f"<script type='application/octet-stream' id='plotly'>{packed}</script>\n"
            f"<script>{code}</script></body></html>\n"
        )

    def head(self, policy: str, light: bool = False) -> str:
        """The beginning of the file, up to its body; `light` is for pages that have no dark side."""
        scheme, mark = ("light", " data-light") if light else ("light dark", "")
        return (
            f"<!doctype html>\n<html lang='en'{mark}><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            f"<meta name='color-scheme' content='{scheme}'>"
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            f"<title>{escape(self.title)}: {escape(self.question)}</title>"
            f"<style>{resource('page.css')}</style></head>\n"
        )

    def body(self) -> str:
        """What is read, from the question to the last section."""
        addresses = places([section.title for section in self.sections])
        listed = "".join(
            f"<li><a href='#{place}'>{escape(section.title)}</a></li>"
            for place, section in zip(addresses, self.sections, strict=True)
        )
        contents = f"<nav aria-label='Sections'><ul>{listed}</ul></nav>" if len(self.sections) > 2 else ""
        sections = "".join(section.html(place) for place, section in zip(addresses, self.sections, strict=True))
        return f"{self.header()}{contents}{sections}"

    def header(self) -> str:
        """The question and its answer."""
        return (
            f"<header><p class='kind'>{escape(self.title)}</p><h1>{escape(self.question)}</h1>"
            f"<p class='answer'>{escape(self.answer)}</p><p class='subject'>{escape(self.subject)}</p></header>"
        )


def _figure(figure: Figure) -> str:
    name, told = escape(figure.name, quote=True), escape(figure.sentence(), quote=True)
    note = f"<figcaption>{escape(figure.note)}</figcaption>" if figure.note else ""
    numbers = Details("Numbers", figure.numbers()).html() if figure.y_range() else ""
    return (
        f"<figure class='figure' data-name='{name}' aria-label='{name}'>"
        f"<div class='drawn' role='group' aria-label='{told}'>{script(figure.data())}</div>{note}{numbers}</figure>"
    )


def places(titles: Sequence[str]) -> list[str]:
    """An address within the page for each title."""
    found: list[str] = []
    for title in titles:
        place = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
        found.append(place if place not in found and place != "main" else f"{place}-{len(found)}")
    return found


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode()


@cache
def resource(name: str) -> str:
    """The text of a file beside this one."""
    return files("skipway.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> tuple[str, str]:
    """plotly.js as it is, and packed to a third of that, as the page holds it."""
    from plotly.offline import get_plotlyjs

    text = get_plotlyjs()
    return text, base64.b64encode(zlib.compress(text.encode("utf-8"), 9)).decode()
