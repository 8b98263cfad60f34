import contextlib
import dataclasses
import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks.disturbing import flip_digit, numbers

from skipway.errors import SkipwayError
from skipway.study import Record, Study
from skipway.study.records.record import write_record
from skipway.study.records.writing import write_json
from skipway.study.running.manifest import read_manifest
from skipway.study.running.progress import StudyProgress
from skipway.study.running.results import read_results
from skipway.study.running.work import UNFINISHED

SMALL: dict[str, Any] = {"depth": [8], "seeds": [0, 1], "epochs": 3, "width": 4, "batch_size": 16, "limit": 64}


@pytest.fixture(scope="module")
def study() -> Study:
    # Stochastic depth draws random numbers in every step: nothing else shows so well whether they are the same ones.
    return Study(skip=["none", "stochastic-depth"], **SMALL)


@pytest.fixture(scope="module")
def finished(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    study.run(folder, quiet=True)
    return folder


@pytest.fixture
def never_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a finished trial is trained again")

    monkeypatch.setattr("skipway.study.running.trial.run_trial", refuse)


def _interrupt(monkeypatch: pytest.MonkeyPatch, number: int, epoch: int, share: float) -> None:
    step = StudyProgress.step

    def interrupting(self: StudyProgress, now: int, now_epoch: int, now_share: float) -> None:
        step(self, now, now_epoch, now_share)
        if (now, now_epoch) == (number, epoch) and now_share >= share:
            raise KeyboardInterrupt

    monkeypatch.setattr(StudyProgress, "step", interrupting)


def test_a_study_leaves_records_a_manifest_and_nothing_else(study: Study, finished: Path):
    assert sorted(path.name for path in finished.iterdir()) == ["manifest.json", "trials"]
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["study"]["skip"] == ["none", "stochastic-depth"]
    assert Study(**manifest["study"]) == study
    assert [(finished / trial["record"]).is_file() for trial in manifest["trials"]] == [True] * 4
    assert len(list((finished / "trials").iterdir())) == 4


@pytest.mark.usefixtures("never_trains")
def test_a_finished_study_is_not_trained_again(study: Study, finished: Path):
    results = study.run(finished, quiet=True)
    assert [(r.skip, r.seed) for r in results.records] == [
        (skip, seed) for seed in (0, 1) for skip in ("none", "stochastic-depth")
    ]


def test_a_larger_study_trains_only_what_is_new(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(finished, tmp_path / "f")
    trained: list[str] = []
    monkeypatch.setattr(StudyProgress, "end", lambda self, number, record, kept: kept or trained.append(record.id))
    larger = Study(skip=["none", "stochastic-depth"], **{**SMALL, "seeds": [0, 1, 2]})
    results = larger.run(tmp_path / "f", quiet=True)
    assert len(results.records) == 6
    assert len(trained) == 2
    assert all("seed-2" in name for name in trained)


@pytest.mark.parametrize(("epoch", "share"), [(0, 0.1), (1, 0.5), (2, 0.99)])
def test_an_interrupted_study_goes_on_in_the_middle_of_a_trial(
    study: Study, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, share: float
):
    on_interrupt = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patch:
        _interrupt(patch, number=1, epoch=epoch, share=share)
        with pytest.raises(KeyboardInterrupt, match="1 of 4 trials are finished and kept in .* goes on where"):
            study.run(tmp_path, quiet=True)
    assert signal.getsignal(signal.SIGINT) is on_interrupt
    assert len(list((tmp_path / UNFINISHED).iterdir())) == (epoch > 0)
    epochs: list[tuple[int, int]] = []
    step = StudyProgress.step

    def watching(self: StudyProgress, number: int, now_epoch: int, now_share: float) -> None:
        if now_share:
            epochs.append((number, now_epoch))
        step(self, number, now_epoch, now_share)

    monkeypatch.setattr(StudyProgress, "step", watching)
    study.run(tmp_path, quiet=True)
    assert min(e for n, e in epochs if n == 1) == epoch
    assert min(n for n, _ in epochs) == 1
    assert numbers(tmp_path) == numbers(finished)
    assert not (tmp_path / UNFINISHED).exists()


def test_ctrl_c_among_workers_keeps_what_is_done(tmp_path: Path):
    """Real processes, a real signal: some trials finish, Ctrl-C comes, the same again goes on without workers.

    What the workers left, and what was made of it, is what one process makes from the start.
    """
    script = tmp_path / "run.py"
    values = {**SMALL, "skip": ["stochastic-depth"], "seeds": list(range(6)), "epochs": 20}
    script.write_text(
        "import sys\nfrom skipway.study import Study\n"
        f"if __name__ == '__main__':\n    Study(**{values!r}).run(sys.argv[1], workers=2, quiet=True)\n"
    )
    folder = tmp_path / "out"
    command = [sys.executable, str(script), str(folder)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("trials/*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    kept = {path: path.read_bytes() for path in folder.glob("trials/*.json")}
    assert 1 <= len(kept) < 6, said
    assert f"{len(kept)} of 6 trials are finished and kept" in said
    assert len(Study(**values).run(folder, quiet=True).records) == 6
    assert {path: path.read_bytes() for path in kept} == kept
    Study(**values).run(tmp_path / "alone", quiet=True)
    assert numbers(folder) == numbers(tmp_path / "alone")


def _cut(path: Path) -> None:
    path.write_text(path.read_text()[:100])


def _older(path: Path) -> None:
    """As versions before digests wrote it."""
    content = json.loads(path.read_text())
    del content["digest"]
    write_json(path, {**content, "format": 2})


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_cut, "it is not JSON"),
        (flip_digit, "it is damaged: its digest is not that of what it says"),
        (_older, "it is of format 2, and this version of skipway has format 3"),
    ],
)
def test_a_damaged_record_is_set_aside_named_and_done_again(
    study: Study,
    finished: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    why: str,
):
    folder = tmp_path / "f"
    shutil.copytree(finished, folder)
    damaged = sorted((folder / "trials").iterdir())[1]
    damage(damaged)
    content = damaged.read_bytes()
    # A report that is made now says what is missing.
    ((title, told),) = read_results(folder).failed
    assert title in ("resnet8 none seed 1", "resnet8 stochastic-depth seed 0")
    assert told.startswith(f"its record cannot be read: {why}")
    study.run(folder)
    said = capsys.readouterr().err
    assert f"{damaged.name}' cannot be read: {why}" in said
    assert f"it is kept as '{damaged.name}.unreadable-1', and its trial runs again" in said
    assert said.count("finished before") == 3
    assert numbers(folder) == numbers(finished)
    assert (folder / "trials" / f"{damaged.name}.unreadable-1").read_bytes() == content


@pytest.mark.usefixtures("never_trains")
def test_a_damaged_manifest_is_written_again(study: Study, finished: Path, tmp_path: Path):
    """Of which trials there are nothing may be taken from it: here the name of a record has another letter."""
    folder = tmp_path / "f"
    shutil.copytree(finished, folder)
    manifest, whole = folder / "manifest.json", (finished / "manifest.json").read_text()
    manifest.write_text(whole.replace('"id": "resnet8', '"id": "resnet9', 1))
    with pytest.raises(SkipwayError, match=r"manifest.json' cannot be read: it is damaged: .*; run the study again"):
        read_results(folder)
    assert len(study.run(folder, quiet=True).records) == 4
    assert manifest.read_text() == whole


def test_a_full_disk_is_one_sentence_and_loses_nothing(
    study: Study, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        write, written = write_record, []

        def full_at_the_second(path: Path, record: Record) -> None:
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(path)
            write(path, record)

        patch.setattr("skipway.study.running.work.write_record", full_at_the_second)
        with pytest.raises(SkipwayError, match="the disk is full: .* every finished trial is kept"):
            study.run(tmp_path, quiet=True)
    assert len(numbers(tmp_path)) == 1
    study.run(tmp_path, quiet=True)
    assert numbers(tmp_path) == numbers(finished)


def test_a_disk_that_really_fills_up(study: Study, finished: Path, tmp_path: Path):
    """A file system too small for a checkpoint, or, where none can be mounted, files that may not grow."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    code = (
        "import sys\nfrom skipway.errors import SkipwayError\nfrom skipway.study import Study\n"
        f"study = Study(skip=['none', 'stochastic-depth'], **{SMALL!r})\n"
        "if __name__ == '__main__':\n"
        "    try: study.run(sys.argv[1], workers=2, quiet=True)\n"
        "    except SkipwayError as error: print(error)\n"
    )
    before = None if mounted.returncode == 0 else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder / "run")],
            capture_output=True,
            text=True,
            preexec_fn=before,
            check=False,
            timeout=300,
        )
        assert done.stdout.startswith("the disk is full: '"), done.stderr
        assert len(done.stdout.splitlines()) == 1
        assert len(read_manifest(folder / "run")["trials"]) == 4
        shutil.copytree(folder / "run", tmp_path / "roomy")
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", str(folder)], check=True)
    study.run(tmp_path / "roomy", quiet=True)
    assert numbers(tmp_path / "roomy") == numbers(finished)


def test_a_folder_without_permission_is_one_sentence(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "locked"
    folder.mkdir()
    folder.chmod(0o500)
    with contextlib.ExitStack() as stack:
        if os.access(folder, os.W_OK):
            # The superuser may write anywhere: let the system say what it says to others.
            def forbidden(self: Path, *_: object, **__: object) -> None:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))

            stack.enter_context(monkeypatch.context()).setattr(Path, "mkdir", forbidden)
        with pytest.raises(SkipwayError, match="no permission to use '.*locked.*'; choose a folder"):
            study.run(folder / "run", quiet=True)


def test_a_file_in_the_way_is_one_sentence(study: Study, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SkipwayError, match="is in the way: the results need a folder there"):
        study.run(tmp_path / "file", quiet=True)


def test_a_diverged_trial_does_not_stop_the_study(tmp_path: Path):
    study = Study(skip=["none", "residual"], learning_rate=1e30, **{**SMALL, "seeds": [0]})
    results = study.run(tmp_path, quiet=True)
    assert [record.diverged is not None for record in results.records] == [True, True]
    assert results.table()["diverged"].tolist() == [1, 1]
    assert "diverged" in results.report().read_text()
    assert study.run(tmp_path, quiet=True).records == results.records


def test_images_that_a_network_cannot_take_are_refused_before_training(tmp_path: Path, shared_data: Path):
    study = Study(data=shared_data / "cifar10", **{**SMALL, "image_size": 2, "limit": 20})
    with pytest.raises(SkipwayError, match="2 x 2"):
        study.run(tmp_path, quiet=True)


@pytest.mark.usefixtures("shared_data")
def test_a_study_of_coloured_images_from_parquet(tmp_path: Path, shared_data: Path):
    study = Study(data=shared_data / "cifar10", **{**SMALL, "epochs": 1, "seeds": [0], "limit": 40})
    results = study.run(tmp_path, quiet=True)
    assert results.records[0].data["shape"] == [3, 32, 32]
    assert results.table()["train_error"].between(0, 1).all()


def test_the_table_is_that_of_the_records(study: Study, finished: Path):
    results = study.run(finished, quiet=True)
    table = results.table()
    assert table["depth"].tolist() == [8, 8]
    for row, skip in zip(table.to_dict("records"), ("none", "stochastic-depth"), strict=True):
        errors = [r.curves["train_error"][-1] or 0.0 for r in results.records if r.skip == skip]
        assert row["skip"] == skip
        assert row["train_error"] == pytest.approx(sum(errors) / 2)
        assert (row["train_error_low"], row["train_error_high"]) == (min(errors), max(errors))


def test_workers_are_counted_from_one(study: Study, tmp_path: Path):
    with pytest.raises(SkipwayError, match="workers takes whole numbers from 1, not 0"):
        study.run(tmp_path, workers=0)


def test_results_are_values(study: Study, finished: Path):
    results = study.run(finished, quiet=True)
    assert dataclasses.replace(results, records=results.records[:1]).summaries[0].seeds == 1


def test_a_question_for_a_measure_that_there_is_not_is_told_after_the_first_trial_and_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    study = Study(skip=["none"], question={"measure": "tst_error"}, **{**SMALL, "epochs": 1})
    results = study.run(tmp_path)
    told = "the question asks for what this trial does not have: no measure of this study 'tst_error'; did you mean"
    assert capsys.readouterr().err.count(told) == 1
    with pytest.raises(SkipwayError, match="did you mean 'test_error'"):
        _ = results.answer
    again = study.changed(question={"measure": "test_error"}).run(tmp_path)
    assert again.records == results.records
