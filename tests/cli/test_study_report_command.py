from collections.abc import Callable
from pathlib import Path

import pytest
from tests.study.pages.test_comparison import make_study

Command = Callable[..., tuple[int, str, str]]


def test_reports_are_made_from_what_a_folder_holds(command: Command, tmp_path: Path):
    first, second = make_study(tmp_path / "a", "one", depths=(8,)), make_study(tmp_path / "b", "two", 0.1, (8,))
    code, out, _ = command("study", "report", str(first.folder))
    assert code == 0
    assert out == f"{first.answer.sentence}\nReport: {tmp_path / 'a' / 'report.html'}\n"
    page = tmp_path / "both.md"
    code, out, _ = command(
        "study", "report", "--compare", str(first.folder), str(second.folder), "--format", "md", "--out", str(page)
    )
    assert code == 0
    assert out == f"Report: {page}\n"
    assert page.read_text().startswith("# What is different in 'two', and what does it do to the test error?")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a", "b"], "one folder has one report; two are compared by --compare, and 2 were given"),
        (["a", "--compare"], "--compare takes two folders, and 1 were given"),
        (["a", "--format", "pdf"], "no format 'pdf'; allowed: html, md, print"),
        (["a"], "'a' is no folder of a study: it has no manifest.json; 'skipway study run' writes one"),
    ],
)
def test_slips_are_one_sentence(command: Command, arguments: list[str], said: str):
    code, _, err = command("study", "report", *arguments)
    assert code == 2
    assert err.splitlines()[-1] == f"skipway: {said}"
