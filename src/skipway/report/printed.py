"""A page for paper: nothing moves, nothing is folded away, and every picture is in the file."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from itertools import groupby

from skipway.report.figures import Figure
from skipway.report.page import Content, Details, Folded, Page, Section, places
from skipway.report.pictures import picture, png, svg
from skipway.report.plots import Drawing, Plot

# Pictures wider than this have the width of the page to themselves.
_WIDE = 1.6
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'"


def printed(page: Page) -> str:
    """The page as HTML without scripts, in light colours, that any browser prints or makes a PDF of."""
    addresses = places([section.title for section in page.sections])
    sections = "".join(map(_section, page.sections, addresses))
    return (
        f"{page.head(_POLICY, light=True)}<body class='static'><main id='main'>{page.header()}{sections}</main>"
        "</body></html>\n"
    )


def _section(section: Section, place: str) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    shown = []
    for beside, items in groupby(section.content, lambda item: isinstance(item, Plot)):
        content = "".join(map(_shown, items))
        shown.append(f"<div class='pairs'>{content}</div>" if beside else content)
    return f"<section id='{place}'><h2>{escape(section.title)}</h2>{text}{''.join(shown)}</section>"


def _shown(item: Content) -> str:
    if isinstance(item, Figure):
        return _picture(item.name, svg_of(item), item.sentence(), item.note, "svg+xml")
    if isinstance(item, Plot):
        drawn = picture(item)
        if drawn is None:
            return f"<p>{escape(item.title)}: {escape(item.told)}</p>"
        # A surface is thousands of shapes, which as a picture of dots is a hundred times smaller.
        width, height = map(float, drawn.get_size_inches())
        return _picture(item.title, png(drawn), item.told or item.title, item.caption, "png", width > _WIDE * height)
    if isinstance(item, Drawing):
        return f"<figure class='drawing'><h3>{escape(item.title)}</h3><div class='frame'>{item.svg}</div></figure>"
    if isinstance(item, (Details, Folded)):
        return _files(item.content if isinstance(item, Folded) else [item])
    return item.html()


def svg_of(figure: Figure) -> bytes:
    """A figure of lines as an SVG file."""
    drawn = picture(figure)
    assert drawn is not None
    return svg(drawn)


def _picture(title: str, content: bytes, told: str, caption: str, kind: str, wide: bool = True) -> str:
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return (
        f"<figure{' class=wide' if wide else ''}><h3>{escape(title)}</h3>"
        f"<img src='{source}' alt='{escape(told, quote=True)}'><figcaption>{escape(caption)}</figcaption></figure>"
    )


def _files(items: Sequence[Details]) -> str:
    """Long tables are no use on paper: what is said is where the numbers lie."""
    links = [
        f"<a href='{escape(item.link, quote=True)}'>{escape(item.link)}</a>" for item in items if item.link
    ]  # fmt: skip
    return f"<p class='files'>Numbers: {', '.join(links)}</p>" if links else ""
