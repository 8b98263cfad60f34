"""The widgets of a page in a browser: tables, figures, pictures from plotly, drawings."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from PIL import Image
from tests.report.opened import PHONE, opened, overflow, saved, until

from skipway.report import Cell, Code, Drawing, Facts, Figure, Line, Page, Panel, Plot, Section, Table
from skipway.report.printed import printed

NAMES = ["resnet8", "resnet20", "resnet110", 'ünïcode, "quoted" <b>&amp;</b>', "resnet14", "resnet32", "resnet44", "x"]
ERRORS = [0.5, 0.25, None, 0.125, 0.75, 0.0625, 0.9, 0.3]


def _table(name: str) -> Table:
    rows = [
        [network, "plain" if number % 2 else "residual",
         Cell("–") if error is None else Cell(f"{100 * error:.1f} %", error, "about", error - 0.01, error + 0.01)]
        for number, (network, error) in enumerate(zip(NAMES, ERRORS, strict=True))
    ]  # fmt: skip
    return Table(["network", "skip", "error"], rows, name)


def _lines(shift: float) -> list[Line]:
    return [
        Line([1, 2, 3], [80.0 + shift, 40.0, 20.0], 0, 0, [70.0, 30.0, 10.0], [90.0, 50.0, 30.0]),
        Line([1, 2, 3], [85.0, 45.0, None], 1, 1, labels=["a", "b", "c"]),
    ]


def _page() -> Page:
    curves = Figure(
        "Error by epoch", [Panel("one", _lines(0)), Panel("two", _lines(5))], "epoch", "error, %", ["short", "long"],
        ("training", "held out"), note="A note.",
    )  # fmt: skip
    x = ["a kind with a long name that goes on", *(f"kind {n}" for n in range(7))]
    points = Line(x, [float(n) for n in range(8)], 0, 0, [n - 1.0 for n in range(8)], [n + 1.0 for n in range(8)],
                  points=[[n - 0.5, n + 0.5] for n in range(8)])  # fmt: skip
    across = Figure(
        "Error by kind", [Panel("", [points])], "kind", "error", [""], ("",), marks="intervals", across=True
    )
    surface = go.Figure(go.Surface(z=[[1.0, 2.0, 1.0], [2.0, 0.0, 2.0], [1.0, 2.0, 1.0]]))
    surface.update_layout(scene={"zaxis_title": "loss"}, height=300)
    bars = go.Figure(go.Bar(x=[1, 2, 3], y=[3, 1, 2]))
    svg = "<svg xmlns='http://www.w3.org/2000/svg' width='900' height='1400'><rect width='900' height='1400'/></svg>"
    return Page(
        "Title", "A question?", "An answer.", "A subject.",
        [
            Section("First", "Text.", [_table("mouse"), _table("keys"), _table("filter"), _table("csv")]),
            Section("Second", "Text.", [curves, across]),
            Section("Third", "Text.", [Plot("Surface", surface, "Caption."), Plot("Bars", bars, "Caption.")]),
            Section("Fourth", "", [Drawing("Drawing", svg), Code("a = 1\n" * 3, "code"), Facts({"name": "value"})]),
        ],
    )  # fmt: skip


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page with a space.html"
    path.write_text(_page().html(), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def page(browser: Any, path: Path) -> Iterator[Any]:
    with opened(browser, path) as page:
        yield page


def _column(page: Any, table: str, place: int = 0) -> list[str]:
    return page.eval_on_selector_all(
        f".table[data-name='{table}'] tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{place}].innerText)"
    )


def test_a_table_is_sorted_by_number_and_by_name_with_the_mouse(page: Any):
    heads = page.locator(".table[data-name='mouse'] th button")
    heads.nth(2).click()
    ascending = ["resnet32", NAMES[3], "resnet20", "x", "resnet8", "resnet14", "resnet44", "resnet110"]
    assert _column(page, "mouse") == ascending
    assert page.locator(".table[data-name='mouse'] th").nth(2).get_attribute("aria-sort") == "ascending"
    heads.nth(2).click()
    # What has no number stands last, whichever way round.
    assert _column(page, "mouse") == [*ascending[-2::-1], "resnet110"]
    heads.nth(2).click()
    assert _column(page, "mouse") == NAMES
    assert page.locator(".table[data-name='mouse'] th").nth(2).get_attribute("aria-sort") is None
    heads.nth(0).click()
    # 8 stands before 20 and 20 before 110, as people count.
    assert _column(page, "mouse")[:6] == ["resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet110"]


def test_a_table_is_sorted_with_the_keyboard_alone(page: Any):
    page.locator(".table[data-name='keys'] input").focus()
    # From the filter past the choice of the skip and the button of the CSV to the scrolling frame and its first heads.
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "error":
            break
    assert page.evaluate("document.activeElement.closest('.table').dataset.name") == "keys"
    page.keyboard.press("Enter")
    assert _column(page, "keys")[0] == "resnet32"
    page.keyboard.press("Space")
    assert _column(page, "keys")[0] == "resnet44"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


def test_a_table_is_filtered_by_words_and_by_choice(page: Any):
    table = page.locator(".table[data-name='filter']")
    table.locator("input").fill("RESNET 4")
    assert _column(page, "filter") == ["resnet14", "resnet44"]
    assert table.locator("[role=status]").inner_text() == "2 of 8 rows"
    table.locator("input").fill("")
    table.locator(".tools label select").first.select_option("plain")
    assert _column(page, "filter") == ["resnet20", NAMES[3], "resnet32", "x"]
    table.locator("input").fill("nothing like it")
    assert _column(page, "filter") == []
    assert table.locator("[role=status]").inner_text() == "0 of 8 rows"


def test_the_csv_holds_the_rows_that_are_shown_with_their_numbers_and_bounds(page: Any):
    table = page.locator(".table[data-name='csv']")
    table.locator("th button").nth(2).click()
    table.locator("input").fill("resnet")
    text = saved(page, page.get_by_role("button", name="Download csv as CSV").click).decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["network", "skip", "error", "error, low", "error, high"]
    assert [row[0] for row in rows[1:]] == ["resnet32", "resnet20", "resnet8", "resnet14", "resnet44", "resnet110"]
    assert rows[1][2:] == ["0.0625", "0.0525", "0.0725"]
    assert rows[-1][2:] == ["", "", ""]
    table.locator("input").fill("quoted")
    text = saved(page, page.get_by_role("button", name="Download csv as CSV").click).decode("utf-8-sig")
    assert list(csv.reader(io.StringIO(text)))[1][0] == NAMES[3]


def test_a_legend_hides_a_line_and_shows_it_again(page: Any):
    figure = page.locator(".figure").first
    figure.scroll_into_view_if_needed()
    figure.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for(state="attached")
    count = figure.locator(".js-plotly-plot").first.locator(".scatterlayer .trace")
    assert count.count() == 3
    key = figure.get_by_role("button", name="short")
    key.click()
    assert key.get_attribute("aria-pressed") == "false"
    assert count.count() == 1
    key.focus()
    page.keyboard.press("Enter")
    assert count.count() == 3


def test_the_plot_answers_the_mouse(page: Any):
    plot = page.locator(".figure .js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    plot.locator(".hoverlayer .legend, .hoverlayer .hovertext").first.wait_for(state="attached")
    assert "40" in plot.locator(".hoverlayer").text_content()


@pytest.mark.parametrize("name", ["Error by epoch", "Error by kind", "Bars", "Surface"])
def test_every_figure_can_be_taken_as_png(page: Any, name: str):
    button = page.get_by_role("button", name=f"Download {name} as PNG")
    button.scroll_into_view_if_needed()
    content = saved(page, button.click)
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        assert image.width >= 1000
        assert image.height >= 500
        # Light paper, and something on it.
        assert image.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
        assert len(image.convert("L").resize((200, 120)).getcolors() or ()) > 20


def test_the_numbers_of_a_figure_can_be_taken_as_csv(page: Any):
    button = page.get_by_role("button", name="Download the numbers of Error by epoch as CSV")
    rows = list(csv.reader(io.StringIO(saved(page, button.click).decode("utf-8-sig"))))
    assert rows[0] == ["panel", "line", "epoch", "name", "error, %", "low", "high"]
    assert rows[1] == ["one", "short, training", "1", "", "80", "70", "90"]
    assert rows[6] == ["one", "long, held out", "3", "c", "", "", ""]
    assert len(rows) == 13


def test_surfaces_are_drawn_in_space_and_give_their_place_back(page: Any):
    surface = page.locator(".panel[data-name='Surface']")
    surface.scroll_into_view_if_needed()
    surface.locator(".gl-container canvas").first.wait_for(state="attached")
    page.evaluate("window.scrollTo(0, 0)")
    surface.locator(".gl-container").wait_for(state="detached")


def test_a_reader_finds_the_way_without_seeing(page: Any):
    for button in page.get_by_role("button").all():
        assert (button.get_attribute("aria-label") or button.inner_text()).strip()
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("navigation").count() == 1
    assert page.get_by_role("heading", level=1).count() == 1
    assert page.get_by_role("table", name="mouse").count() == 1
    told = page.get_by_role("group", name="Error by epoch: error, % by epoch").first.get_attribute("aria-label")
    assert "one, short, training: 80 at 1, 20 at 3, lowest 20." in told
    jump = page.locator(".jump")
    jump.focus()
    assert jump.bounding_box()["x"] >= 0
    scrolling = page.eval_on_selector_all(".scroll, .frame, pre", "all => all.map(one => one.tabIndex)")
    assert set(scrolling) == {0}


def test_the_same_page_suits_a_phone_in_the_dark_and_then_paper(browser: Any, path: Path):
    with opened(browser, path, PHONE, color_scheme="dark", has_touch=True, is_mobile=True) as page:
        assert overflow(page) == 0
        page.locator("details.drawing").evaluate("one => one.open = true")
        assert overflow(page) == 0
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
        table = page.locator(".table[data-name='mouse']")
        assert not table.locator("thead").is_visible()
        table.locator(".narrow select").select_option("2 ascending")
        assert _column(page, "mouse")[0] == "resnet32"
        figure = page.locator(".figure").first
        figure.scroll_into_view_if_needed()
        figure.locator(".js-plotly-plot text").first.wait_for(state="attached")
        line = "one => one.querySelector('.ytick text').style.fill"
        dark = figure.locator(".js-plotly-plot").first.evaluate(line)
        page.emulate_media(color_scheme="light")
        until(page, lambda: figure.locator(".js-plotly-plot").first.evaluate(line) != dark)
        page.emulate_media(media="print", color_scheme="dark")
        page.wait_for_selector("html[data-print]", state="attached")
        assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == "#fbfaf7"
        for hidden in (".tools", "nav", ".jump", ".tool"):
            assert not page.locator(hidden).first.is_visible()
        assert page.locator("details:not([open])").count() == 0
        # Everything is drawn, as it would not be on a screen that shows the top.
        assert page.locator(".plot .main-svg").count() >= 3
        assert page.locator("thead").first.is_visible()
        page.emulate_media(media="screen")
        page.wait_for_selector("html:not([data-print])", state="attached")
        assert page.locator("details[open]").count() == 1


def test_what_is_drawn_already_is_as_wide_as_the_paper_when_it_is_printed_and_as_the_screen_again(page: Any):
    page.locator(".figure").first.locator(".js-plotly-plot .main-svg").first.wait_for(state="attached")
    fits = """() => [...document.querySelectorAll(".figure .js-plotly-plot .main-svg:first-child")].every(
        (one) => Math.abs(one.getBoundingClientRect().width - one.closest(".js-plotly-plot").clientWidth) < 2)"""
    width = "document.querySelector('.js-plotly-plot').clientWidth"
    screen = page.evaluate(width)
    assert page.evaluate(fits)
    # At once: what a browser prints is the page as these listeners leave it.
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(width) != screen
    assert page.evaluate(fits)
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(width) == screen
    assert page.evaluate(fits)


def test_a_page_for_paper_runs_no_script_and_is_light(browser: Any, tmp_path: Path):
    path = tmp_path / "print.html"
    path.write_text(printed(_page()), encoding="utf-8")
    page = browser.new_page(color_scheme="dark", viewport={"width": 800, "height": 1000})
    page.goto(path.as_uri())
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(251, 250, 247)"
    assert page.eval_on_selector_all("img", "all => all.every(one => one.complete && one.naturalWidth > 100)")
    assert page.locator("img").count() == 2
    assert overflow(page) == 0
    pdf = page.pdf(format="A4")
    page.close()
    assert pdf.startswith(b"%PDF")
