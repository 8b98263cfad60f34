import io
import re
import sys

import pytest
from tests.study.make import make_record

from skipway.study import Study
from skipway.study.records.status import Status
from skipway.study.running.progress import StudyProgress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _trials():
    return Study(depth=[8, 14], seeds=[0]).trials()


def test_where_there_is_no_terminal_each_trial_is_a_line(capsys: pytest.CaptureFixture[str]):
    with StudyProgress(_trials(), quiet=False) as progress:
        progress.step(0, 0, 0.0)
        progress.step(0, 3, 0.5)
        progress.end(0, make_record(8, train=0.01, test=0.05), kept=False)
        progress.end(1, make_record(8, "residual", diverged={"epoch": 2, "step": 9}), kept=True)
        progress.fail(2, "out of memory; make batch_size smaller")
        progress.note("something else")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "[1/4] resnet8 none seed 0: train error 1.0 %, test error 5.0 %, 1.5 s",
        "[2/4] resnet8 residual seed 0: diverged in round 2, finished before",
        "[3/4] resnet14 none seed 0: failed: out of memory; make batch_size smaller",
        "something else",
    ]


def test_a_quiet_study_says_nothing(capsys: pytest.CaptureFixture[str]):
    with StudyProgress(_trials(), quiet=True) as progress:
        progress.step(0, 0, 0.0)
        progress.fail(0, "why")
        progress.note("something")
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_table(monkeypatch: pytest.MonkeyPatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    told = {1: Status(4, 10, 0.35, {"test_error": 0.25})}
    with StudyProgress(_trials(), False, told.get) as progress:
        progress.end(0, make_record(8, train=0.01, test=0.05), kept=False)
        progress.step(1, 3, 0.3)
        progress.fail(2, "out of memory")
        assert progress._live is not None
        progress._live.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"resnet8 residual seed 0 +running +4 of 10 +test error 25.0 %", shown)
    assert re.search(r"resnet8 none seed 0 +done +train error 1.0 %, test error 5.0 %", shown)
    # What went wrong stays readable, what is done does not stand there twice.
    assert "[2/4] resnet14 none seed 0: failed: out of memory" in shown
    assert "[1/4]" not in shown
    assert shown.rstrip().splitlines()[-1].startswith("1 of 4 done, 1 running, 1 failed, 1 waiting")
