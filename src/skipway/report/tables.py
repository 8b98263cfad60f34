"""Tables that a reader sorts, filters and takes away, as HTML that stands without the page's script too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from skipway.errors import SkipwayError


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and beside it the number that it stands for: sorting and CSV take `value`, not the text.

    `note` stands under the text in small. `low` and `high` bound the value and become columns of the CSV. `link` is the
    address that the text leads to; `links` are several texts with an address each, shown in its place. `bar` is a share
    from 0 to 1, shown as a bar under it.
    """

    text: str
    value: int | float | None = None
    note: str = ""
    low: int | float | None = None
    high: int | float | None = None
    link: str = ""
    links: Sequence[tuple[str, str]] = ()
    bar: int | float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells under column heads; a cell that is only text is that text.

    `name` is what it is called to those who do not see it, and the name of its CSV file. On a narrow screen each row
    becomes a card, or, in a `compact` table, stays a row in small type.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    name: str = "table"
    compact: bool = False

    def __post_init__(self) -> None:
        if wrong := [row for row in self.rows if len(row) != len(self.columns)]:
            raise SkipwayError(f"a table of {len(self.columns)} columns has a row of {len(wrong[0])} cells")

    def cells(self) -> list[list[Cell]]:
        """The rows with every cell as a `Cell`."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    def html(self) -> str:
        rows = self.cells()
        numeric = [
            any(row[place].value is not None for row in rows)
            and all(row[place].value is not None or row[place].text in _NOTHING for row in rows)
            for place in range(len(self.columns))
        ]
        # Cards are no table to a browser any more: the roles say to a screen reader that they still are.
        role = (lambda name: "") if self.compact else (lambda name: f" role='{name}'")
        heads = "".join(
            f"<th{role('columnheader')} scope='col'{_class(number)}>{escape(column)}</th>"
            for column, number in zip(self.columns, numeric, strict=True)
        )
        starts = [
            f"<td{_class(number)}" if self.compact
            else f"<td role='cell'{_class(number)} data-label='{escape(column, quote=True)}'"
            for column, number in zip(self.columns, numeric, strict=True)
        ]  # fmt: skip
        body = "".join(f"<tr{role('row')}>{''.join(map(_cell, starts, row))}</tr>" for row in rows)
        name = escape(self.name, quote=True)
        kind = ("compact" if self.compact else "cards") + (" wide" if len(self.columns) > _FITTING else "")
        return (
            f"<div class='table' data-name='{name}'><div class='scroll' role='region' aria-label='{name}' "
            f"tabindex='0'><table{role('table')} class='{kind}'>"
            f"<caption class='unseen'>{name}</caption>"
            f"<thead{role('rowgroup')}><tr{role('row')}>{heads}</tr></thead>"
            f"<tbody{role('rowgroup')}>{body}</tbody></table></div></div>"
        )


# More columns than this need small type on paper.
_FITTING = 8
# What stands in a column of numbers where there is none.
_NOTHING = ("", "–")


def number(value: int | float | None, text: str | None = None) -> Cell:
    """A cell of one number, as short as four digits tell it; a dash where there is none.

    >>> number(0.123456).text, number(1234567).text, number(None).text
    ('0.1235', '1,234,567', '–')
    """
    if value is None or not math.isfinite(value):
        return Cell("–")
    if text is None:
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return Cell(text, value)


def _class(number: bool) -> str:
    return " class='number'" if number else ""


def _cell(start: str, cell: Cell) -> str:
    content = escape(cell.text)
    if cell.links:
        content = " ".join(f"<a href='{escape(to, quote=True)}'>{escape(text)}</a>" for text, to in cell.links)
    elif cell.link:
        content = f"<a href='{escape(cell.link, quote=True)}'>{content}</a>"
    if cell.note:
        content += f"<small>{escape(cell.note)}</small>"
    if cell.bar is not None:
        width = 100 * min(max(cell.bar, 0.0), 1.0)
        content += f"<i class='bar'><b style='width:{width:.2f}%'></b></i>"
    # A card puts the column's name on the left of whatever the cell holds, as one piece.
    if cell.note or cell.links or cell.bar is not None:
        content = f"<span>{content}</span>"
    known = "".join(
        f" data-{name}='{value!r}'"
        for name, value in (("value", cell.value), ("low", cell.low), ("high", cell.high))
        if value is not None
    )
    return f"{start}{known}>{content}</td>"
