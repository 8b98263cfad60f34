import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipway.errors import SkipwayError
from skipway.report import Cell, Code, Details, Drawing, Facts, Figure, Folded, Line, Page, Panel, Section, Table


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
    table = Table(["a", text], [["1", Cell(text, note=text, link="trials/1.json")]], name=text)
    drawing = Drawing(text, "<svg><path d=''/></svg>", text)
    folded = Folded(text, [Details(text, table, "a b.json")])
    content = [table, _figure(name=text), Facts({text: text}), Code(text, text), drawing, folded]
    return Page(text, text, text, text, [Section(text, text, content)] * 3)


def test_a_page_asks_nothing_of_any_other_place():
    page = Elements(_page().html())
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            assert not re.match(r"(https?:)?//", attributes.get(name) or "")
    policy = next(a["content"] or "" for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy
    assert "url(" not in page.scripts[0]


def test_only_the_pages_own_scripts_may_run():
    html = _page("<script>alert(1)</script>").html()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    allowed = set(re.findall(r"'sha256-([^']+)'", policy[1]))
    assert "unsafe-inline" not in policy[1].split("script-src")[1].split(";")[0]
    code = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    packed = re.search(r"id='plotly'>([^<]*)<", html)
    assert packed is not None
    library = zlib.decompress(base64.b64decode(packed[1])).decode()
    assert "plotly.js v" in library[:500]
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (code[-1], library)}
    assert digests == allowed
    # plotly has a button that sends a chart to a server; the page's script names the buttons it wants.
    assert 'modeBarButtons: [["zoom2d", "pan2d", "resetScale2d"]], plotlyServerURL: ""' in code[-1]


def test_a_page_without_figures_holds_no_library():
    assert len(Page("t", "q", "a", "s", [Section("s", "t", [Table(["a"], [["1"]])])]).html()) < 60_000


@settings(max_examples=30)
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
        assert shown.count(text) >= 21


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


def test_cells_show_shares_bounds_and_links():
    cells = [Cell("half", 0.5, bar=0.5), Cell("all", 1.0, "0.9 to 1.1", 0.9, 1.1, bar=1.7), Cell("–")]
    html = Table(["share"], [[cell] for cell in cells]).html()
    assert re.findall(r"width:([\d.]+)%", html) == ["50.00", "100.00"]
    assert "data-value='1.0' data-low='0.9' data-high='1.1'" in html
    assert html.count("class='number'") == 4
    assert "<small>0.9 to 1.1</small>" in html
    linked = Table(["seeds"], [[Cell("", links=[("0", "a&b.json"), ("1", "c.json")])]]).html()
    assert re.findall(r"<a href='([^']*)'>(\d)</a>", linked) == [("a&amp;b.json", "0"), ("c.json", "1")]


def test_a_figure_says_its_numbers_to_those_who_do_not_see_it():
    told = _figure().sentence()
    assert told == (
        "A figure: error by epoch, 2 lines in one panel. one, shallow, training: 0.5 at 1, 0.25 at 2, lowest 0.25. "
        "one, deep, test: 0.5 at 1, 0.5 at 1, lowest 0.5."
    )
    many = _figure(panels=[Panel(str(n), LINES) for n in range(9)])
    assert "The table under it holds the numbers." in many.sentence()
    rows = [[cell.text for cell in row] for row in many.numbers().cells()]
    assert len(rows) == 18
    assert rows[0] == ["0", "shallow, training", "0.5", "0.25", "0.5", "0.25"]
    points = Line(["a", "b"], [1.0, None], 0, 0, [0.5, None], [2.0, None], points=[[0.5, 2.0], []])
    intervals = _figure(panels=[Panel("", [points])], marks="intervals", weights=("",))
    assert [[cell.text for cell in row] for row in intervals.numbers().cells()] == [
        ["shallow", "a", "1", "0.5", "2"],
        ["shallow", "b", "–", "–", "–"],
    ]
    assert intervals.sentence().endswith("shallow: 1 at a.")
    low, high = intervals.y_range() or (0, 0)
    assert low < 0.5
    assert high > 2
