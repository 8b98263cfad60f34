import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tests.study.make import make_record

from skipway.cli.app import main
from skipway.errors import SkipwayError
from skipway.study import Study
from skipway.study.records.record import write_record
from skipway.study.records.sealed import write_sealed
from skipway.study.records.status import Status, read_status, reporting, status_path, write_status
from skipway.study.running.watching import Watch
from skipway.study.training.loop import Loop


def _study_folder(folder: Path) -> Path:
    trials = [
        {"id": f"{depth}-none-0", "title": f"resnet{depth} none seed 0", "labels": {"depth": str(depth)}, "seed": 0}
        for depth in (8, 14, 20, 26)
    ]
    for name in ("trials", "unfinished", "failed"):
        (folder / name).mkdir(parents=True)
    write_sealed(folder / "manifest.json", {"study": {"name": "depths"}, "trials": trials})
    return folder


def test_the_folder_says_how_far_a_study_is(tmp_path: Path):
    folder = _study_folder(tmp_path / "study")
    watch = Watch(folder)
    assert watch.look() == []
    assert watch.board.line() == "0 of 4 done, 4 waiting"
    path = status_path(folder, "14-none-0")
    write_status(path, Status(3, 10, 0.25, {"test_error": 0.5}, seconds=5.0))
    write_record(folder / "trials" / "8-none-0.json", make_record(8, train=0.01, test=0.05))
    (folder / "failed" / "20-none-0.json").write_text(json.dumps({"error": "out of memory"}))
    (folder / "unfinished" / "26-none-0.ckpt").touch()
    assert [row.title for row in watch.look()] == ["resnet8 none seed 0", "resnet20 none seed 0"]
    done, running, failed, begun = watch.board.rows
    assert (done.state, done.told, done.seconds) == ("done", "train error 1.0 %, test error 5.0 %", 1.5)
    assert (running.state, running.round, running.rounds, running.told) == ("running", 3, 10, "test error 50.0 %")
    assert (failed.state, failed.told) == ("failed", "out of memory")
    assert (begun.state, begun.told) == ("waiting", "begun")
    assert not watch.complete
    # It was begun again, and diverges; the others end too.
    write_status(status_path(folder, "20-none-0"), Status(1, 10, 0.0))
    assert watch.look() == []
    assert failed.state == "running"
    status_path(folder, "20-none-0").unlink()
    write_record(folder / "trials" / "20-none-0.json", make_record(20, diverged={"epoch": 2, "step": 3}))
    path.unlink()
    for depth in (14, 26):
        write_record(folder / "trials" / f"{depth}-none-0.json", make_record(depth))
    assert [row.state for row in watch.look()] == ["done", "diverged", "done"]
    assert watch.complete
    assert watch.board.line() == "3 of 4 done, 1 diverged"


def test_a_trial_that_says_nothing_any_more_is_told_of(tmp_path: Path):
    folder = _study_folder(tmp_path / "study")
    path = status_path(folder, "8-none-0")
    write_status(path, Status(1, 3, 0.1))
    silent = json.loads(path.read_text())
    path.write_text(json.dumps({**silent, "time": time.time() - 600}))
    watch = Watch(folder)
    watch.look()
    assert watch.board.rows[0].told == "no word for 10:00"
    write_status(path, Status(2, 3, 0.5, {"test_error": 0.1}))
    watch.look()
    assert watch.board.rows[0].told == "test error 10.0 %"


def test_damaged_files_are_as_good_as_none(tmp_path: Path):
    folder = _study_folder(tmp_path / "study")
    (folder / "trials" / "8-none-0.json").write_text("{")
    status_path(folder, "14-none-0").write_text("[1]")
    (folder / "failed" / "20-none-0.json").write_text("")
    watch = Watch(folder)
    watch.look()
    assert watch.board.counts() == {"waiting": 4}


def test_a_status_is_gone_behind_its_trial(tmp_path: Path):
    path = status_path(tmp_path, "x")
    with pytest.raises(KeyboardInterrupt), reporting(path):
        status = read_status(path)
        assert status is not None
        assert status.round == 1
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_a_study_that_runs_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = Study(depth=[8], seeds=[0], width=4, limit=64, epochs=3, batch_size=16)
    seen: list[tuple[str, int, int | None, str]] = []
    step = Loop.training_step

    def watched(self: Loop, *arguments: Any) -> Any:
        watch = Watch(tmp_path)
        watch.look()
        seen.extend((row.state, row.round, row.rounds, row.told) for row in watch.board.rows[:1])
        return step(self, *arguments)

    monkeypatch.setattr(Loop, "training_step", watched)
    monkeypatch.setattr("skipway.study.training.keeping._BETWEEN_ROUNDS", 0.0)
    study.run(tmp_path, quiet=True)
    assert ("running", 1, 3, "") in seen
    told = [what for state, round, _, what in seen if state == "running" and round > 1]
    assert any("test error" in what for what in told)
    watch = Watch(tmp_path)
    watch.look()
    assert watch.complete
    assert not list((tmp_path).glob("unfinished/*"))


def _command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["skipway", "study", "watch", *arguments])
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def test_watch_prints_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = _study_folder(tmp_path / "study")
    write_record(folder / "trials" / "8-none-0.json", make_record(8, train=0.01, test=0.05))
    assert _command(monkeypatch, str(folder), "--once") == 0
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == "resnet8 none seed 0 done train error 1.0 %, test error 5.0 % 0:02"
    assert lines[-1].startswith("depths: 1 of 4 done, 3 waiting, about 0:11 left")


def test_watch_ends_with_the_study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    folder = _study_folder(tmp_path / "study")
    monkeypatch.setattr("skipway.cli.study_watch._EVERY", 0.05)

    def end() -> None:
        for depth in (8, 14, 20, 26):
            time.sleep(0.1)
            write_record(folder / "trials" / f"{depth}-none-0.json", make_record(depth))

    thread = threading.Thread(target=end)
    thread.start()
    assert _command(monkeypatch, str(folder)) == 0
    thread.join()
    assert "resnet26 none seed 0: done: train error" in capsys.readouterr().out


def test_what_is_no_study_is_not_watched(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert _command(monkeypatch, str(tmp_path)) == 2
    assert "is no folder of a study: it has no manifest.json" in capsys.readouterr().err
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SkipwayError, match="cannot be read: it is of another program"):
        Watch(tmp_path)
