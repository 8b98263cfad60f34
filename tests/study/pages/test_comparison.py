import re
from pathlib import Path
from typing import Any

import pytest
from tests.study.make import make_record

from skipway.errors import SkipwayError
from skipway.study import Record, Results, Study
from skipway.study.pages.comparison import comparison_page
from skipway.study.records.record import write_record
from skipway.study.records.sealed import write_sealed
from skipway.study.records.writing import write_json
from skipway.study.running.results import read_results


def make_study(folder: Path, name: str, shift: float = 0.0, depths: tuple[int, ...] = (8, 14), **study: Any) -> Results:
    """A study's folder of made-up trials, whose test errors are `shift` above what they are elsewhere."""
    records = [
        make_record(depth, skip, seed, train=error, test=error + shift + seed / 1000)
        for seed in (0, 1, 2)
        for depth in depths
        for skip, error in (("none", 0.3), ("residual", 0.1))
    ]
    return keep(folder, records, name=name, depth=list(depths), **study)


def keep(folder: Path, records: list[Record], **study: Any) -> Results:
    """A folder as a run leaves it."""
    (folder / "trials").mkdir(parents=True)
    for record in records:
        write_record(folder / "trials" / f"{record.id}.json", record)
    declared = Study(**{"width": 2, "question": {"measure": "test_error", "rule": "difference"}, **study})
    trials = [{"id": one.id, "title": one.title, "record": f"trials/{one.id}.json"} for one in records]
    write_sealed(folder / "manifest.json", {"study": declared.declaration(), "trials": trials})
    return Results(declared, folder, tuple(records))


def test_what_both_have_is_compared_seed_by_seed(tmp_path: Path):
    first = make_study(tmp_path / "a", "plainly", depths=(8, 14, 20))
    second = make_study(tmp_path / "b", "otherwise", 0.05, learning_rate=0.3)
    page = comparison_page(first, second, tmp_path / "compared.html")
    assert page.answer == "Judged by test error, of 4 variants in 'otherwise' against 'plainly': 4 worse."
    assert page.subject == "4 variants are in both. 'plainly' has 2 more."
    found, declared, answers, *_ = page.sections
    differences = found.content[1]
    rows = [[cell.text for cell in row] for row in differences.cells()]  # pyright: ignore[reportAttributeAccessIssue]
    assert rows[0] == ["8", "none", "otherwise", "35.1 %", "30.1 %", "+5 points", "3", "worse"]
    assert len(rows) == 4
    changed = {row[0].text: [cell.text for cell in row[1:]] for row in declared.content[0].cells()}  # pyright: ignore[reportAttributeAccessIssue]
    assert changed == {"depth": ["[8, 14, 20]", "[8, 14]"], "learning_rate": ["–", "0.3"]}
    told = [row[2].text for row in answers.content[0].cells()]  # pyright: ignore[reportAttributeAccessIssue]
    assert told == [first.answer.sentence, second.answer.sentence]


def test_the_curves_of_both_lie_in_one_panel(tmp_path: Path):
    first, second = make_study(tmp_path / "a", "same"), make_study(tmp_path / "b", "same", 0.1)
    page = comparison_page(first, second, tmp_path / "compared.html")
    # Studies of one name go by their folders.
    curves = next(section for section in page.sections if section.title == "Training curves").content[0]
    assert curves.colours == ["a", "b"]  # pyright: ignore[reportAttributeAccessIssue]
    assert len(curves.panels) == 4  # pyright: ignore[reportAttributeAccessIssue]
    html = first.report(tmp_path / "compared.html", against=second).read_text()
    assert re.search(r"<title>Studies compared: a and b", html)


def test_studies_of_other_networks_do_not_compare(tmp_path: Path):
    first, second = make_study(tmp_path / "a", "a"), make_study(tmp_path / "b", "b", depths=(20,))
    with pytest.raises(SkipwayError, match="have no variant in common"):
        comparison_page(first, second, tmp_path / "compared.html")


@pytest.mark.parametrize(
    ("format", "name"), [("md", "report.md"), ("print", "report-print.html"), ("html", "report.html")]
)
def test_a_report_is_written_in_every_format(tmp_path: Path, format: Any, name: str):
    results = make_study(tmp_path / "run", "study", depths=(8,))
    path = results.report(format=format)
    assert path == tmp_path / "run" / name
    assert results.answer.sentence in path.read_text().replace("&#x27;", "'").replace("\\", "")
    if format == "md":
        pictures = {file.name for file in (tmp_path / "run" / "report-pictures").iterdir()}
        named = set(re.findall(r"\(report-pictures/([^)]+)\)", path.read_text()))
        assert pictures == named != set()


def test_another_format_is_refused(tmp_path: Path, no_shape_checks: None):
    results = make_study(tmp_path / "run", "study", depths=(8,))
    with pytest.raises(SkipwayError, match="no format 'pdf'; .*allowed: html, md, print"):
        results.report(format="pdf")  # pyright: ignore[reportArgumentType]


def test_what_failed_is_read_from_the_folder(tmp_path: Path):
    results = make_study(tmp_path / "run", "study", depths=(8,))
    gone, title = results.records[-1].id, results.records[-1].title
    (results.folder / "trials" / f"{gone}.json").unlink()
    (results.folder / "failed").mkdir()
    write_json(results.folder / "failed" / f"{gone}.json", {"id": gone, "error": "out of memory"})
    found = read_results(results.folder)
    assert found.failed == ((title, "out of memory"),)
    assert "out of memory" in found.report().read_text()
