"""The page of a study in a browser: what is hardest to show, and what there is least of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.report.opened import DESKTOP, PHONE, opened, overflow
from tests.study.make import make_record
from tests.study.pages.test_comparison import keep

from skipway.study import Record
from skipway.study.declaring.files import read_study


def _hard(folder: Path) -> Path:
    """Forty variants of one seed with long names; some diverge at once, some know no number of a measure."""
    skips = [f"Residual(shortcut=Projection(kernel={n}), norm='after', drop=0.{n})" for n in range(39)] + ["none"]
    nothing = {"loss": [2.3], "train_error": [None], "train_loss": [None], "test_error": [None], "test_loss": [None]}
    records: list[Record] = []
    for number, skip in enumerate(skips):
        changes: dict[str, Any] = {"labels": {"skip": skip}, "id": f"trial {number}"}
        if number % 9 == 3:
            changes |= {"diverged": {"epoch": 2, "step": 9}, "curves": nothing, "last_gradients": []}
        if number % 9 == 5:
            changes["measures"] = {"parameters": None, "seconds": None}
        records.append(make_record(20, skip, 0, train=0.01 * number, test=0.02 * number, **changes))
    question = {"compare": "skip", "baseline": "none", "rule": "difference", "measure": "test_error"}
    return keep(folder, records, depth=20, skip=["residual", "none"], seeds=[0], question=question).report()


def test_forty_variants_of_long_names_fit_a_screen_a_phone_and_the_dark(browser: Any, tmp_path: Path):
    with opened(browser, _hard(tmp_path / "hard"), DESKTOP) as page:
        assert overflow(page) == 0
        answer = page.locator(".figure").first
        answer.locator(".main-svg").first.wait_for(state="attached")
        ticks = answer.locator(".ytick text").all_text_contents()
        assert len(ticks) == len(set(ticks)) == 40
        table = page.locator(".table[data-name='Variants']")
        table.locator("th button", has_text="test error").click()
        assert table.locator("tbody tr").first.locator("td").nth(3).inner_text().startswith("0.0 %")
        table.locator("input").fill("diverged")
        assert table.locator("tbody tr:not([hidden])").count() == 5
        curves = page.locator("#training-curves .panel")
        assert curves.locator("h3", has_text="(diverged)").count() == 10
        # What is below the screen is not drawn before it is looked at.
        assert page.locator("#gradient-norm-by-layer .main-svg").count() == 0
        page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
        assert overflow(page) == 0
        page.emulate_media(color_scheme="dark")
        assert page.evaluate("getComputedStyle(document.body).color") == "rgb(230, 232, 235)"


def test_a_single_trial_makes_a_page(browser: Any, tmp_path: Path):
    record = make_record(8, "residual", 0, labels={}, first_gradients=[], last_gradients=[], layers=[])
    path = keep(tmp_path / "one", [record], depth=8, skip="residual", seeds=[0]).report()
    with opened(browser, path, PHONE) as page:
        assert overflow(page) == 0
        assert "There is nothing to compare" in page.locator(".answer").inner_text()
        page.locator(".figure .main-svg").first.wait_for(state="attached")
        drawing = page.locator("details.drawing")
        drawing.locator("summary").click()
        assert drawing.locator("svg path").count() > 10
        assert overflow(page) == 0
        assert page.get_by_role("link", name="finished").get_attribute("href") == "trials/8-residual-0.json"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("degradation", {"depth": [8, 14], "epochs": 1, "width": 2, "limit": 60, "probes": ["gradients"]}),
        pytest.param("norm-placement", {"depth": [2], "epochs": 1}, marks=pytest.mark.slow),
        pytest.param("identity", {"depth": [1, 2]}, marks=pytest.mark.slow),
    ],
)
def test_a_built_in_study_ends_in_a_page_that_works(browser: Any, tmp_path: Path, name: str, changes: dict[str, Any]):
    path = read_study(name, {"seeds": [0], **changes}).run(tmp_path / "run", quiet=True).report()
    with opened(browser, path) as page:
        assert overflow(page) == 0
        assert page.locator(".answer").inner_text()
        for plot in page.locator(".plot, .plotly").all():
            plot.scroll_into_view_if_needed()
            plot.locator(".main-svg, canvas").first.wait_for(state="attached")
        assert page.locator(".plot, .plotly").count() >= 2
        records = page.get_by_role("link", name="finished").all()
        assert len(records) >= 2
        assert all((path.parent / (record.get_attribute("href") or "")).is_file() for record in records)
