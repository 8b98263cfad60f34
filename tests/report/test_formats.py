import base64
import io
import re
from pathlib import Path
from xml.etree import ElementTree

import plotly.graph_objects as go
from matplotlib.figure import Figure as Canvas
from PIL import Image

from skipway.report import Cell, Code, Details, Drawing, Facts, Figure, Folded, Line, Page, Panel, Plot, Section, Table
from skipway.report.markdown import markdown
from skipway.report.pictures import picture, png, svg
from skipway.report.printed import printed

CURVES = Figure(
    "Error by epoch",
    [Panel(str(n), [Line([1, 2], [9.0 + n, None], 0, 0, [8.0, None], [10.0, None]), Line([1], [5.0], 1, 1)])
     for n in range(5)],
    "epoch", "error, %", ["8 layers", "20 layers"], ("training", "held out"), palette="ordered",
)  # fmt: skip
DOTS = Figure(
    "Error by skip",
    [Panel("", [Line(["a_b", "c"], [1.0, None], 0, 0, [0.5, None], [2.0, None], points=[[0.5, 2.0], []])])],
    "skip", "error", [""], ("",), marks="intervals", across=True,
)  # fmt: skip


def _plot() -> Plot:
    def draw() -> object:
        axes = Canvas().add_subplot()
        axes.plot([1, 2])
        return axes

    return Plot("Bars", go.Figure(go.Bar(x=[1], y=[2])), "The caption.", "Told.", draw)


def _page() -> Page:
    table = Table(
        ["a|b", "seeds"], [[Cell("1 %", 0.01, "0 to 2"), Cell("", links=[("0", "trials/x%20y.json")])]], "Numbers"
    )
    content = [
        table, CURVES, DOTS, _plot(), Drawing("resnet8", "<svg/>", "3 skips."), Facts({"rate": "0.1"}),
        Code("a = 1", "c"), Folded("all", [Details("resnet8", table, "probes/x.npz")]),
    ]  # fmt: skip
    return Page("Study: s", "Why <b>*this*</b>?", "Because.\nTwice.", "Data.", [Section("First", "Text_a.", content)])


def test_markdown_holds_everything_and_names_every_picture():
    text, pictures = markdown(_page(), "report-pictures")
    assert text.startswith("# Why \\<b\\>\\*this\\*\\</b\\>?\n\n*Study: s*\n\nBecause.\n\nTwice.\n\nData.\n\n## First")
    assert "| a\\|b | seeds |\n| --- | --- |\n| 1 % (0 to 2) | [0](trials/x%20y.json) |" in text
    assert "- rate: 0.1" in text
    assert "```\na = 1\n```" in text
    assert "[resnet8](probes/x.npz)" in text
    shown = re.findall(r"!\[[^\]]*\]\(report-pictures/([^)]+)\)", text)
    assert shown == list(pictures)
    assert [name.rsplit(".", 1)[1] for name in shown] == ["png", "png", "png", "svg"]
    for name, content in pictures.items():
        if name.endswith(".png"):
            with Image.open(io.BytesIO(content)) as image:
                assert image.width > 300


def test_the_page_for_paper_holds_every_picture_and_nothing_that_moves():
    html = printed(_page())
    assert "<script" not in html
    assert "<details" not in html
    assert "script-src" not in html
    sources = re.findall(r"<img src='data:image/([a-z+]+);base64,([^']+)' alt='([^']+)'", html)
    assert [kind for kind, _, _ in sources] == ["svg+xml", "svg+xml", "png"]
    for kind, content, told in sources:
        assert told
        if kind == "svg+xml":
            assert ElementTree.fromstring(base64.b64decode(content)).tag.endswith("svg")
    assert "<svg/>" in html
    assert "probes/x.npz" in html


def test_a_picture_has_the_panels_the_lines_and_the_scale_of_its_figure():
    drawn = picture(CURVES)
    assert drawn is not None
    panels = [axes for axes in drawn.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in panels] == [panel.title for panel in CURVES.panels]
    assert {axes.get_ylim() for axes in panels} == {CURVES.y_range()}
    assert len(panels[0].lines) == 2
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [*CURVES.colours, *CURVES.weights]
    dots = picture(DOTS)
    assert dots is not None
    assert [label.get_text() for label in dots.axes[0].get_yticklabels()] == ["a_b", "c"]
    assert picture(Plot("nothing", go.Figure())) is None


def test_the_same_figure_is_the_same_file():
    for write in (svg, png):
        one, other = picture(DOTS), picture(DOTS)
        assert one is not None
        assert other is not None
        assert write(one) == write(other)


def test_pictures_lie_beside_no_global_figure(tmp_path: Path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    markdown(_page(), "p")
    assert plt.get_fignums() == before
