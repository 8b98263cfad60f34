"""A self-contained HTML page: a question, its answer, and sections of tables, figures and facts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from skipway.errors import SkipwayError
from skipway.report.figures import Figure

# The browser itself sees to it that the page fetches nothing from anywhere.
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; "
    "form-action 'none'; base-uri 'none'"
)


@dataclass(frozen=True)
class Table:
    """Rows of text under column heads; `links` gives a row's last cell an address, `bars` a row's share from 0 to 1.

    `bar_column` is the column whose cells show the share as a bar. On a narrow screen each row becomes a card, or,
    in a `compact` table, stays a row in small type.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    links: Sequence[str] | None = None
    bar_column: int | None = None
    bars: Sequence[float] | None = None
    compact: bool = False

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise SkipwayError(f"a table of {len(self.columns)} columns has a row of {len(wrong[0])} cells")

    def html(self) -> str:
        heads = "".join(f"<th scope='col'>{escape(column)}</th>" for column in self.columns)
        body = "".join(f"<tr>{self._row(number)}</tr>" for number in range(len(self.rows)))
        kind = "compact" if self.compact else "cards"
        return (
            f"<div class='scroll'><table class='{kind}'><thead><tr>{heads}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def _row(self, number: int) -> str:
        cells = []
        for place, (column, text) in enumerate(zip(self.columns, self.rows[number], strict=True)):
            content = escape(text)
            if self.links is not None and place == len(self.columns) - 1:
                content = f"<a href='{escape(self.links[number], quote=True)}'>{content}</a>"
            if self.bars is not None and place == self.bar_column:
                width = 100 * min(max(self.bars[number], 0.0), 1.0)
                content = f"<span>{content}<i class='bar'><b style='width:{width:.2f}%'></b></i></span>"
            cells.append(f"<td data-label='{escape(column, quote=True)}'>{content}</td>")
        return "".join(cells)


@dataclass(frozen=True)
class Facts:
    """Names and their values."""

    values: Mapping[str, str]

    def html(self) -> str:
        items = [f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in self.values.items()]
        return f"<dl>{''.join(items)}</dl>"


@dataclass(frozen=True)
class Plot:
    """A plotly figure as it is, in a panel with its title and its caption; panels in a row stand side by side."""

    title: str
    figure: Any
    caption: str = ""

    def html(self) -> str:
        content = json.loads(self.figure.to_json())
        content["layout"].pop("template", None)
        # The caption that a figure bears under its axes stands under the panel.
        notes = content["layout"].get("annotations", [])
        content["layout"]["annotations"] = [
            note for note in notes if note.get("yref") != "paper" or note.get("y", 0) >= 0
        ]
        return (
            f"<figure class='panel'><h3>{escape(self.title)}</h3>"
            f"<div class='plotly' role='img' aria-label='{escape(self.title, quote=True)}'>{_script(content)}</div>"
            f"<figcaption>{escape(self.caption)}</figcaption></figure>"
        )


@dataclass(frozen=True)
class Details:
    """A table that is folded away until it is asked for, and the address of the file that holds it whole."""

    title: str
    table: Table
    link: str

    def html(self) -> str:
        address = escape(self.link, quote=True)
        return (
            f"<details><summary>{escape(self.title)}</summary>{self.table.html()}"
            f"<p><a href='{address}'>{escape(self.link)}</a></p></details>"
        )


@dataclass(frozen=True)
class Section:
    """A heading, a paragraph, and what stands under them."""

    title: str
    text: str
    content: Sequence[Table | Figure | Facts | Plot | Details] = ()

    def html(self) -> str:
        parts = [f"<section><h2>{escape(self.title)}</h2>"]
        if self.text:
            parts.append(f"<p>{escape(self.text)}</p>")
        for beside, items in groupby(self.content, lambda item: isinstance(item, Plot)):
            shown = "".join(_figure(item) if isinstance(item, Figure) else item.html() for item in items)
            parts.append(f"<div class='plots'>{shown}</div>" if beside else shown)
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
        """The whole page.

        >>> "<h1>Why?</h1>" in Page("t", "Why?", "Because.", "about", []).html()
        True
        """
        body = "".join(section.html() for section in self.sections)
        return (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width, initial-scale=1'>"
            "<meta name='color-scheme' content='light dark'>"
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
            f"<title>{escape(self.title)}</title><style>{_resource('page.css')}</style></head>\n<body><main>"
            f"<header><p class='kind'>{escape(self.title)}</p><h1>{escape(self.question)}</h1>"
            f"<p class='answer'>{escape(self.answer)}</p><p class='subject'>{escape(self.subject)}</p></header>"
            f"{body}</main>\n<script>{_plotly()}</script>\n<script>{_resource('page.js')}</script></body></html>\n"
        )


def _figure(figure: Figure) -> str:
    name = escape(figure.name, quote=True)
    return f"<div class='figure' role='figure' aria-label='{name}'>{_script(figure.data())}</div>"


def _script(content: Any) -> str:
    # Inside a script element only "</" and "<!--" mean anything to a browser; both begin with "<".
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    return f"<script type='application/json'>{data}</script>"


@cache
def _resource(name: str) -> str:
    return files("skipway.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()
