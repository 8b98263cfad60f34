"""The pages that are made when the site is built: connections, records, gallery, commands, and what checks it."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from docs.making import checking, commands, connections, equations, gallery, measured, numbers, studies
from tests.docs.blocks import DOCS, pages

import skipway as sw

RESULTS = DOCS.parent / "benchmarks" / "results"


@pytest.fixture(scope="module")
def results() -> Any:
    return json.loads((RESULTS / "connections.json").read_text(encoding="utf-8"))["results"]


@pytest.mark.parametrize("module", [equations, measured], ids=lambda module: module.__name__)
def test_what_makes_the_pages_does_what_it_says(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", sw.connect.names())
def test_every_connection_has_a_whole_page(name: str, results: Any, no_shape_checks: None) -> None:
    text = connections.page(name, results)
    said = connections.described(name)
    assert said.equations[0].startswith("y = ")
    assert said.html in text
    assert "arXiv" not in said.words
    assert text.count("<svg") == 2, "a drawing, and the seeds"
    assert "| ResNet-20" in text or "| U-Net" in text
    assert all(f"]({other}.md)" in text for other in connections.related(name))
    for lines in (connections.usage(name), connections.own_branch(name)):
        assert len(lines.splitlines()) == 3


@pytest.mark.parametrize("name", sw.connect.names())
def test_what_a_page_shows_of_its_use_runs(name: str, no_shape_checks: None) -> None:
    names: dict[str, Any] = {}
    exec(connections.usage(name), names)
    exec(connections.own_branch(name), names)
    assert isinstance(names["model"], torch.nn.Module)


def test_every_field_that_a_connection_sets_is_told() -> None:
    assert set(connections.fields("deepnorm")) == {"shortcut_scale", "placement"}
    assert connections.fields("residual") == {}
    assert sum(map(len, connections.grouped().values())) == len(sw.connect.names())


def test_equations_are_set_as_mathematics() -> None:
    found = equations.read("y = [a x, F(x)], a = sigmoid(psi(x)) a position. Oktay 2018, arXiv:1804.03999.")
    assert found.equations == ("y = [a x, F(x)]", "a = sigmoid(psi(x)) a position")
    assert found.html == (
        "<i>y</i> = [<i>a</i> <i>x</i>, <i>F</i>(<i>x</i>)],&emsp;<i>a</i> = sigmoid(ψ(<i>x</i>)) a position"
    )
    assert equations.set_equation("v_0 < v_k^(1/2)") == "<i>v</i><sub>0</sub> &lt; <i>v</i><sub>k</sub><sup>1/2</sup>"


def test_recorded_numbers_come_from_the_records(results: Any) -> None:
    one = measured.networks(results)["resnet20", "residual"]["measures"]["test_error"]
    told = numbers.filled("It was {{resnet20.residual.test_error}}.", RESULTS)
    assert told == f"It was {measured.shown('test_error', one)}."
    assert f"{100 * sum(one) / len(one):.1f} %" in told
    with pytest.raises(KeyError):
        numbers.filled("{{resnet20.nothing.test_error}}", RESULTS)


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_number_that_a_page_asks_for_is_recorded(page: Path) -> None:
    assert "{{" not in numbers.filled(page.read_text(encoding="utf-8"), RESULTS)


def test_a_difference_is_told_only_where_seeds_show_it() -> None:
    known = {"difference": -0.02, "low": -0.03, "high": -0.01, "verdict": "better"}
    assert measured.difference("test_error", known) == "better (−3.0 to −1.0 points)"
    few = {"difference": -0.02, "low": -0.03, "high": -0.01, "verdict": "too few seeds"}
    assert measured.difference("test_error", few) == "not enough seeds to say"
    assert measured.shown("test_error", [None, None]) == "diverged"


def test_every_picture_of_the_gallery_is_there_with_its_lines() -> None:
    text = gallery.page()
    drawn = [name for _, _, name, _, _ in gallery.shown()]
    assert len(drawn) > 10
    for name in drawn:
        assert list((DOCS / "gallery").glob(f"{name}.*")), f"python docs/gallery.py {name} makes it"
    assert "sw.probe.side_by_side" in text
    assert sum(path.stat().st_size for path in (DOCS / "gallery").iterdir()) < 3e6


def test_every_command_is_on_the_page_of_the_command_line() -> None:
    text = commands.page()
    assert all(f"## {name}\n" in text for name, _ in commands.commands())
    assert "## skipway study run\n" in text
    assert "`--epochs` VALUE" in text


def test_a_recorded_study_tells_its_question_and_its_answer(tmp_path: Path, no_shape_checks: None) -> None:
    study = sw.Study(model="resnet8", width=4, skip=["none", "residual"], seeds=[0], steps=2, batch_size=16)
    results = study.run(tmp_path / "first-steps", quiet=True)
    assert studies.recorded(tmp_path) == [tmp_path / "first-steps"]
    studies.make_reports(tmp_path)
    assert (tmp_path / "first-steps" / "report.html").is_file()
    text = studies.index(tmp_path, numbers.TRAINED)
    assert "### First steps" in text
    assert results.answer.sentence in text
    assert 'href="first-steps/report.html"' in text


def test_what_is_broken_in_a_site_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top">A</h1><a href="b.html#here">b</a><a href="#top">up</a><a href="https://example.org">away</a>'
    )
    (tmp_path / "b.html").write_text('<p id="here"></p><img src="picture.png"><a href="a.html">a</a>')
    (tmp_path / "picture.png").write_bytes(b"")
    assert list(checking.faults(tmp_path)) == []
    (tmp_path / "b.html").write_text('<p id="there"></p><script src="https://cdn.example/x.js"></script>')
    (tmp_path / "a.css").write_text("body { background: url(https://example.org/x.png) }")
    (tmp_path / "c.html").write_text('<a href="gone.html">gone</a>')
    assert sorted(checking.faults(tmp_path)) == [
        "a.css fetches from elsewhere",
        "a.html links to b.html#here, an anchor that is not there",
        "b.html fetches https://cdn.example/x.js",
        "c.html links to gone.html, which is not there",
    ]


def test_doctests_become_blocks() -> None:
    pytest.importorskip("griffe", reason="needs what the documentation is built with: pip install -e '.[docs]'")
    from docs.making import docstrings

    assert doctest.testmod(docstrings).failed == 0
