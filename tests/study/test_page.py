import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from tests.study.make import make_record

from skipway.study import Record, Results, Study
from skipway.study.records import write_record


def _results(folder: Path, records: list[Record]) -> Results:
    (folder / "trials").mkdir(parents=True)
    for record in records:
        write_record(folder / "trials" / f"{record.id}.json", record)
    return Results(Study(), folder, tuple(records))


@pytest.fixture
def records() -> list[Record]:
    return [
        make_record(depth, skip, seed, train=error + seed / 100)
        for seed in (0, 1)
        for depth, skip, error in ((20, "none", 0.1), (56, "none", 0.6), (20, "rezero", 0.02), (56, "rezero", 0.03))
    ]


def _figures(html: str) -> list[dict]:
    return [json.loads(text) for text in re.findall(r"<script type='application/json'>(.*?)</script>", html, re.DOTALL)]


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
    for summary in results.summaries:
        assert summary.train_error.percent() in shown
        assert f"{summary.parameters:,}" in shown
    for record in records:
        assert f"{100 * record.final_train_error:.1f} %" in shown
    for fact in ("highest learning rate", "weight decay", "2.13.0", "f" * 16, "digits: 64 training and 64 test images"):
        assert fact in shown
    curves, gradients = _figures(html)
    assert [panel["title"] for panel in curves["panels"]] == ["plain (no skips)", "rezero"]
    assert curves["colours"] == ["20 layers", "56 layers"]
    assert curves["weights"] == ["training", "test"]
    deep_plain = next(line for line in curves["panels"][0]["lines"] if (line["colour"], line["weight"]) == (1, 0))
    assert deep_plain["y"] == pytest.approx([90.0, 60.5])
    assert (deep_plain["low"][1], deep_plain["high"][1]) == pytest.approx((60.0, 61.0))
    assert curves["range"][0] < 0 < 90 < curves["range"][1]
    assert gradients["logY"]
    assert [panel["title"] for panel in gradients["panels"]] == ["resnet20", "resnet56"]
    assert gradients["colours"] == ["plain (no skips)", "rezero"]
    assert gradients["weights"] == ["first step", "last step"]
    assert gradients["panels"][0]["lines"][0]["labels"] == ["conv1", "fc"]
    assert gradients["panels"][0]["lines"][0]["y"] == pytest.approx([10.0, 1.0])


@pytest.mark.parametrize("place", ["run/report.html", "report.html", "pages and more/deep/report.html"])
def test_links_lead_to_the_records_from_wherever_the_page_lies(tmp_path: Path, records: list[Record], place: str):
    results = _results(tmp_path / "run", records)
    path = results.report(tmp_path / place)
    links = re.findall(r"<a href='([^']+)'>", _without_scripts(path.read_text()))
    assert len(links) == len(records)
    for link, record in zip(links, records, strict=True):
        target = Path(os.path.normpath(path.parent / unquote(link)))
        assert json.loads(target.read_text())["id"] == record.id


def test_diverged_trials_are_shown_as_such(tmp_path: Path):
    ended: dict = {"diverged": {"epoch": 2, "step": 9}, "train_error": [0.9], "test_error": [0.9]}
    short: dict = {"train_loss": [2.3], "test_loss": [2.3], "last_gradients": []}
    results = _results(
        tmp_path,
        [
            make_record(20, "none", 0, train=0.1),
            make_record(56, "none", 0, **ended, **short),
            make_record(56, "none", 1, train=0.3),
        ],
    )
    html = results.report().read_text()
    shown = _read(html)
    assert "diverged in epoch 2" in shown
    assert "2 (1 diverged)" in shown
    assert "1 of 2 seeds diverged" in shown
    curves, gradients = _figures(html)
    deep = next(line for line in curves["panels"][0]["lines"] if (line["colour"], line["weight"]) == (1, 0))
    assert deep["y"] == pytest.approx([90.0, 30.0])
    assert gradients["panels"][1]["lines"][1]["y"] == pytest.approx([0.1, 0.01])


def test_a_study_in_which_everything_diverged_at_once_still_has_a_page(tmp_path: Path):
    nothing: dict = {name: [] for name in ("train_error", "train_loss", "test_error", "test_loss", "last_gradients")}
    ended = {**nothing, "first_gradients": [None, None], "diverged": {"epoch": 1, "step": 1}}
    results = _results(tmp_path, [make_record(depth, "none", 0, **ended) for depth in (20, 56)])
    curves, gradients = _figures(results.report().read_text())
    assert curves["range"] is None
    assert gradients["panels"][0]["lines"][0]["y"] == [None, None]


def test_versions_that_differ_are_all_named(tmp_path: Path):
    versions = {"skipway": "0.1.0", "torch": "2.14.0", "device": "cpu", "threads": "1"}
    results = _results(tmp_path, [make_record(20), make_record(56, versions=versions)])
    assert "2.13.0, 2.14.0" in _read(results.report().read_text())
