import json
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipway.errors import SkipwayError
from skipway.report import Facts, Figure, Line, Page, Panel, Section, Table


class Elements(HTMLParser):
    """Every element with its attributes, and the text of scripts and styles apart from what is read."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.read: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        last = self.elements[-1][0] if self.elements else ""
        (self.scripts if last in ("script", "style") and self.cdata_elem else self.read).append(data)


LINES = [Line([1, 2], [0.5, 0.25], 0, 0), Line([1, 2], [0.5, None], 1, 1, [0.4, None], [0.6, None])]


def _figure(**changes: object) -> Figure:
    values = {
        "name": "A figure",
        "panels": [Panel("one", LINES)],
        "x_title": "epoch",
        "y_title": "error",
        "colours": ["shallow", "deep"],
        "weights": ("training", "test"),
    }
    return Figure(**{**values, **changes})  # pyright: ignore[reportArgumentType]


def _page(text: str = "text") -> Page:
    table = Table(["a", text], [["1", text]], links=["trials/1.json"])
    return Page(text, text, text, text, [Section(text, text, [table, _figure(name=text), Facts({text: text})])])


def test_a_page_asks_nothing_of_any_other_place():
    page = Elements(_page().html())
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    policy = [a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none';")
    assert "http" not in policy[0]
    assert "url(" not in page.scripts[0]
    # plotly has a button that sends a chart to a server; the page's script names the buttons it wants.
    assert 'modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: ""' in page.scripts[-1]
    assert max(len(script) for script in page.scripts) > 1_000_000


@given(
    st.text(min_size=1, max_size=40)
    | st.sampled_from(["</script><script>alert(1)</script>", "<!--", "<b>&amp;'\"", "]]>"])
)
def test_any_text_is_shown_as_it_is(text: str):
    elements, plain = Elements(_page(text).html()), Elements(_page().html())
    assert [tag for tag, _ in elements.elements] == [tag for tag, _ in plain.elements]
    shown = "".join(elements.read)
    # What HTML itself makes of line ends and of the characters it has no place for.
    if text.isprintable():
        assert shown.count(text) >= 7


def test_a_figure_travels_as_data():
    html = _page("</script>").html()
    data = re.search(r"<script type='application/json'>(.*?)</script>", html, re.DOTALL)
    assert data is not None
    assert json.loads(data[1])["panels"][0]["lines"][1]["low"] == [0.4, None]


def test_panels_share_a_range_that_holds_everything():
    low, high = _figure().y_range() or (0, 0)
    assert low < 0.25
    assert high > 0.6
    logarithmic = _figure(panels=[Panel("p", [Line([1, 2, 3], [100.0, 0.0, 0.01], 0, 0)])], log_y=True).y_range()
    assert logarithmic == pytest.approx((-2.15, 2.15))
    assert _figure(panels=[Panel("p", [Line([], [], 0, 0)])]).y_range() is None
    flat = _figure(panels=[Panel("p", [Line([1], [3.0], 0, 0)])]).y_range()
    assert flat is not None
    assert flat[0] < 3 < flat[1]


def test_wrong_places_in_a_figure_or_a_table_are_named():
    with pytest.raises(SkipwayError, match="panel 'p' has colour 2 and weight 0; there are 2 colours"):
        _figure(panels=[Panel("p", [Line([1], [1.0], 2, 0)])])
    with pytest.raises(SkipwayError, match="a table of 2 columns has a row of 1 cells"):
        Table(["a", "b"], [["1"]])


def test_bars_show_shares():
    html = Table(["a"], [["half"], ["all"]], bar_column=0, bars=[0.5, 1.7]).html()
    assert re.findall(r"width:([\d.]+)%", html) == ["50.00", "100.00"]
