import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from tests.study.make import make_record

from skipway.study import Record, Results, Study
from skipway.study.records.record import write_record


def _results(folder: Path, records: list[Record], **study: Any) -> Results:
    (folder / "trials").mkdir(parents=True)
    for record in records:
        write_record(folder / "trials" / f"{record.id}.json", record)
    values = {"depth": [20, 56], "skip": ["none", "rezero"], "width": 2, **study}
    return Results(Study(**values), folder, tuple(records))


@pytest.fixture(autouse=True)
def one_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """To trace all networks takes longer than everything else here."""
    monkeypatch.setattr("skipway.study.pages.networks._DRAWN", 1)


@pytest.fixture
def records() -> list[Record]:
    return [
        make_record(depth, skip, seed, train=error + seed / 100)
        for seed in (0, 1)
        for depth, skip, error in ((20, "none", 0.1), (56, "none", 0.6), (20, "rezero", 0.02), (56, "rezero", 0.03))
    ]


def _figures(html: str) -> dict[str, dict[str, Any]]:
    texts = re.findall(r"<script type='application/json'>(.*?)</script>", html, re.DOTALL)
    return {figure["name"]: figure for figure in map(json.loads, texts) if "name" in figure}


def _without_scripts(html: str) -> str:
    return re.sub(r"(?s)<(script|style)[ >].*?</\1>", "", html)


def _read(html: str) -> str:
    """What a person reads of a page: no scripts, styles or tags."""
    return re.sub(r"<[^>]+>", " ", _without_scripts(html)).replace("&#x27;", "'")


def test_the_page_holds_the_answer_the_tables_the_figures_and_the_recipe(tmp_path: Path, records: list[Record]):
    results = _results(tmp_path / "run", records)
    path = results.report()
    assert path == tmp_path / "run" / "report.html"
    html = path.read_text()
    shown = _read(html)
    assert results.answer.sentence in shown
    assert results.answer.rule in shown
    for record in records:
        assert f"{100 * (record.value('train_error') or 0):.1f} %" in shown
    for fact in ("learning rate", "weight decay", "2.13.0", "f" * 16, "digits: 64 training examples and 64 test"):
        assert fact in shown
    assert "depth = [20, 56]" in shown.replace("&quot;", '"')
    figures = _figures(html)
    assert list(figures) == ["Train error by depth", "Error by epoch", "Loss by epoch", "Gradient norm by layer"]
    curves, gradients = figures["Error by epoch"], figures["Gradient norm by layer"]
    assert [panel["title"] for panel in curves["panels"]] == ["plain (no skips)", "rezero"]
    assert curves["colours"] == ["20 layers", "56 layers"]
    assert curves["weights"] == ["training", "held out"]
    assert curves["palette"] == "ordered"
    deep_plain = next(line for line in curves["panels"][0]["lines"] if (line["colour"], line["weight"]) == (1, 0))
    assert deep_plain["y"] == pytest.approx([90.0, 60.5])
    assert (deep_plain["low"][1], deep_plain["high"][1]) == pytest.approx((60.0, 61.0))
    assert curves["range"][0] < 0 < 90 < curves["range"][1]
    assert gradients["logY"]
    assert [panel["title"] for panel in gradients["panels"]] == ["20 layers", "56 layers"]
    assert gradients["colours"] == ["none", "rezero"]
    assert gradients["weights"] == ["first step", "last step"]
    assert gradients["panels"][0]["lines"][0]["labels"] == ["conv1", "fc"]
    assert gradients["panels"][0]["lines"][0]["y"] == pytest.approx([10.0, 1.0])


def test_the_answer_is_drawn_with_every_seed_and_bounded_only_where_there_are_enough(
    tmp_path: Path, records: list[Record]
):
    two = _figures(_results(tmp_path / "two", records).report().read_text())["Train error by depth"]
    assert two["marks"] == "intervals"
    assert two["colours"] == ["none", "rezero"]
    plain = two["panels"][0]["lines"][0]
    assert plain["x"] == [20, 56]
    assert plain["y"] == pytest.approx([10.5, 60.5])
    assert plain["points"] == [pytest.approx([10.0, 11.0]), pytest.approx([60.0, 61.0])]
    assert plain["low"] is None
    third = [make_record(20, "none", 2, train=0.15), make_record(56, "none", 2, train=0.9)]
    bounded = _figures(_results(tmp_path / "three", [*records, *third]).report().read_text())["Train error by depth"]
    line = bounded["panels"][0]["lines"][0]
    assert line["low"][1] < line["y"][1] < line["high"][1]


@pytest.mark.parametrize("place", ["run/report.html", "report.html", "pages and more/deep/report.html"])
def test_links_lead_to_the_records_from_wherever_the_page_lies(tmp_path: Path, records: list[Record], place: str):
    results = _results(tmp_path / "run", records)
    path = results.report(tmp_path / place)
    links = re.findall(r"<a href='([^'#]+)'>", _without_scripts(path.read_text()))
    # Once beside its variant, once in the row of its own.
    assert len(links) == 2 * len(records)
    found = [
        json.loads(Path(os.path.normpath(path.parent / unquote(link))).read_text())["id"] for link in links
    ]  # fmt: skip
    assert set(found) == {record.id for record in records}


def test_diverged_and_failed_trials_are_shown_as_such(tmp_path: Path):
    ended: dict[str, Any] = {"diverged": {"epoch": 2, "step": 9}, "last_gradients": []}
    curves = {"loss": [2.3], "train_error": [0.9], "train_loss": [2.3], "test_error": [0.9], "test_loss": [2.3]}
    results = _results(
        tmp_path,
        [
            make_record(20, "none", 0, train=0.1),
            make_record(56, "none", 0, curves=curves, **ended),
            make_record(56, "none", 1, train=0.3),
        ],
        seeds=[0, 1],
        skip=["none"],
        question={"compare": "skip", "along": "depth", "rule": "degradation"},
    )
    results = Results(results.study, results.folder, results.records, (("resnet20 none seed 1", "out of memory"),))
    html = results.report().read_text()
    shown = _read(html)
    assert "diverged in round 2" in shown
    assert "0 (diverged)" in shown
    assert "1 of 2 seeds diverged" in shown
    assert "out of memory" in shown
    assert "3 trials finished, 1 of them diverged, 1 failed." in shown
    figures = _figures(html)
    deep = next(
        line for line in figures["Error by epoch"]["panels"][0]["lines"] if (line["colour"], line["weight"]) == (1, 0)
    )
    assert deep["y"] == pytest.approx([90.0, 30.0])
    gradients = figures["Gradient norm by layer"]["panels"]
    assert gradients[1]["lines"][1]["y"] == pytest.approx([0.1, 0.01])


def test_a_study_in_which_everything_diverged_at_once_still_has_a_page(tmp_path: Path):
    ended: dict[str, Any] = {
        "curves": {}, "last_gradients": [], "first_gradients": [None, None], "diverged": {"epoch": 1, "step": 1},
        "measures": {"seconds": None},
    }  # fmt: skip
    results = _results(
        tmp_path, [make_record(depth, "none", 0, **ended) for depth in (20, 56)], skip=["none"],
        question={"measure": "seconds"},
    )  # fmt: skip
    figures = _figures(results.report().read_text())
    assert list(figures) == ["Gradient norm by layer"]
    assert figures["Gradient norm by layer"]["panels"][0]["lines"][0]["y"] == [None, None]


def test_versions_that_differ_are_all_named(tmp_path: Path):
    versions = {"skipway": "0.1.0", "torch": "2.14.0", "device": "cpu", "threads": "1"}
    results = _results(tmp_path, [make_record(20), make_record(56, versions=versions)], skip=["none"])
    assert "2.13.0, 2.14.0" in _read(results.report().read_text())


def test_many_alternatives_are_laid_out_in_panels_and_rows_of_their_own(tmp_path: Path):
    skips = [f"kind-{number}-of-a-skip-with-a-long-name" for number in range(9)]
    records = [
        make_record(20, skip, seed, test=0.1 + number / 100, labels={"skip": skip})
        for seed in (0, 1, 2)
        for number, skip in enumerate(skips)
    ]
    study = {"depth": 20, "skip": ["residual"], "question": {"measure": "test_error", "rule": "difference"}}
    figures = _figures(_results(tmp_path, records, **study).report().read_text())
    answer = figures["Test error by skip"]
    assert answer["across"]
    assert answer["panels"][0]["lines"][0]["x"] == skips
    assert [panel["title"] for panel in figures["Error by epoch"]["panels"]] == skips
    assert figures["Error by epoch"]["colours"] == [""]
