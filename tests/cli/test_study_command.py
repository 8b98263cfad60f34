import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from skipway.study.running.progress import StudyProgress

Command = Callable[..., tuple[int, str, str]]
SMALL = ["--depths", "8", "--seeds", "0", "--epochs", "1", "--width", "4", "--samples", "40", "--workers", "1"]


def test_the_study_prints_its_answer_its_table_and_where_the_report_is(command: Command, tmp_path: Path):
    small = [*SMALL, "--depths", "8,14", "--skips", "none,rezero", "--out", str(tmp_path / "run")]
    code, out, err = command("study", "degradation", *small)
    assert code == 0, err
    assert re.search(r"^(Yes|No|Not clearly|This study cannot answer): ", out, re.MULTILINE)
    assert re.search(r"resnet14 +rezero +\d+\.\d %", out)
    assert (tmp_path / "run" / "report.html").is_file()
    assert str(tmp_path / "run" / "report.html") in out
    assert "[4/4] resnet14 rezero seed 0: train error" in err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["study"]["epochs"] == 1
    assert manifest["study"]["width"] == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["study", "degradation", "--skips", "rezro"], "no skip 'rezro'; did you mean 'rezero'?"),
        (["study", "degradation", "--depths", "20,57"], "57"),
        (["study", "degradation", "--depths", "20;56"], "--depths takes whole numbers with commas between"),
        (["study", "degradation", "--seeds", ","], "--seeds is empty"),
        (["study", "degradation", "--data", "digit"], "no data set 'digit'; did you mean 'digits'?"),
        (["study", "degradation", "--epochs", "0"], "epochs takes whole numbers from 1, not 0"),
        (["study", "degradation", "--workers", "0"], "workers takes whole numbers from 1, not 0"),
        (["study", "degradation", "--out", "/dev/null/x", *SMALL], "is in the way: the results need a folder there"),
    ],
)
def test_slips_are_one_sentence_on_stderr(command: Command, arguments: list[str], sentence: str):
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    (said,) = [line for line in err.splitlines() if line.startswith("skipway: ")]
    assert sentence in said
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["stduy"], "Did you mean 'study'?"),
        (["study", "degredation"], "Did you mean 'degradation'?"),
        (["modles"], "Did you mean 'models'?"),
        (["study", "degradation", "--depht", "20"], "--depths"),
    ],
)
def test_unknown_words_suggest_the_nearest(command: Command, arguments: list[str], suggestion: str):
    code, _, err = command(*arguments)
    assert code == 2
    assert suggestion in err


def test_ctrl_c_says_how_to_go_on(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StudyProgress, "step", interrupt)
    code, _, err = command("study", "degradation", *SMALL, "--out", str(tmp_path))
    assert code == 130
    assert err.splitlines()[-1].startswith("skipway: stopped; 0 of 2 trials are finished and kept in ")
    assert "the same again goes on where this stopped" in err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["study", "--help"], ["study", "degradation", "-h"]])
def test_help_is_there(command: Command, arguments: list[str]):
    code, out, err = command(*arguments)
    assert code == (0 if arguments else 2)
    assert "Usage: skipway" in out + err


def test_lists(command: Command):
    code, out, _ = command("connections")
    assert code == 0
    assert re.search(r"^rezero +y = x \+ a F\(x\)", out, re.MULTILINE)
    assert re.search(r"^concat +y = \[x, F\(x\)\]", out, re.MULTILINE)
    code, out, _ = command("version")
    assert code == 0
    assert re.search(r"^skipway \d+\.\d+\.\d+$", out, re.MULTILINE)
    assert re.search(r"^torch 2\.", out, re.MULTILINE)


def test_models_are_listed_with_what_they_cost(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("skipway.models.names", lambda: ["resnet20", "resnet1202"])
    code, out, _ = command("models")
    assert code == 0
    # 0.27 M parameters and 0.041 G multiply-adds: He 2015, table 6, and the usual count.
    assert re.search(r"^resnet20 +20 +269,722 +0\.041 G +3 x 32 x 32", out, re.MULTILINE)
    assert "Not counted here: resnet1202" in out
