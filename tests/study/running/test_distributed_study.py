import os
import subprocess
import sys
from pathlib import Path

import pytest

from skipway.errors import SkipwayError
from skipway.study import Record, Study
from skipway.study.declaring.files import read_study
from skipway.study.running.results import read_results
from skipway.study.training.distributed import share_of

ROOT = Path(__file__).parents[3]
DECLARED = """
name = "two"
model = "gpt-{depth}x16"
depth = [1, 2]
skip = ["residual", "rezero"]
options = { dropout = 0.0 }
data = "TEXT"
length = 16
seeds = [0]
steps = 8
every = 4
batch_size = 8
learning_rate = 0.01
strategy = "STRATEGY"
probes = ["gradients"]
"""
# Of a user's own, with the skips of an edit in it; each process has norms of its own for its part of a batch.
OUTSIDE = """
name = "outside"
model = "tests.study.outside_nets:residual"
skip = ["none", "residual", "rezero"]
data = "digits"
limit = 100
epochs = 1
batch_size = 16
seeds = [0]
strategy = "STRATEGY"
probes = ["gradients"]
"""
EXPLODING = """
name = "exploding"
model = "tests.study.nets:perceptron"
skip = "none"
data = "digits"
limit = 100
epochs = 2
batch_size = 16
seeds = [0]
learning_rate = [1e30, 0.1]
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "skipway", "study", "run", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)


def _records(folder: Path) -> dict[str, Record]:
    return {record.title: record for record in read_results(folder).records}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_study_in_two_processes_finds_what_one_finds(tmp_path: Path, strategy: str):
    text, file = tmp_path / "text.txt", tmp_path / "two.toml"
    text.write_text("to be or not to be, that is the question: " * 30)
    file.write_text(DECLARED.replace("TEXT", str(text)).replace("STRATEGY", strategy))
    alone = read_study(str(file), {"strategy": "ddp"}).run(tmp_path / "one", quiet=True)
    done = _run(str(file), "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    # One process speaks.
    assert done.stderr.count("[4/4] ") == 1
    assert done.stdout.count("Report: ") == 1
    assert (tmp_path / "two" / "report.html").exists()
    together = _records(tmp_path / "two")
    assert len(together) == len(alone.records) == 4
    for record in alone.records:
        other = together[record.title]
        assert other.id == record.id
        assert other.versions["processes"] == "2"
        assert "processes" not in record.versions
        for name, values in record.curves.items():
            assert other.curves[name] == pytest.approx(values, abs=1e-5)
        assert other.first_gradients == pytest.approx(record.first_gradients, rel=1e-4)
        assert other.measures["gradient_range"] == pytest.approx(record.measures["gradient_range"], rel=0.01)
        assert other.measures["parameters"] == record.measures["parameters"]
    assert not (tmp_path / "two" / "unfinished").exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "trials").iterdir()}
    done = _run(str(file), "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("finished before") == 4
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "two" / "trials").iterdir()}


@pytest.mark.slow
def test_twins_of_a_model_from_outside_are_divided_among_processes(tmp_path: Path):
    found = {}
    for strategy in ("ddp", "fsdp"):
        file = tmp_path / f"{strategy}.toml"
        file.write_text(OUTSIDE.replace("STRATEGY", strategy))
        done = _run(str(file), "--out", str(tmp_path / strategy))
        assert done.returncode == 0, done.stderr
        found[strategy] = _records(tmp_path / strategy)
    assert [record.connection for record in found["ddp"].values()] == [
        record.connection for record in found["fsdp"].values()
    ]
    assert len(found["fsdp"]) == 3
    for title, record in found["ddp"].items():
        other = found["fsdp"][title]
        assert other.id == record.id
        assert other.layers == record.layers
        for name, values in record.curves.items():
            assert other.curves[name] == pytest.approx(values, abs=1e-5)
        assert other.first_gradients == pytest.approx(record.first_gradients, rel=1e-4)
        assert other.measures["parameters"] == record.measures["parameters"]


@pytest.mark.slow
def test_both_processes_go_on_behind_a_trial_that_diverges(tmp_path: Path):
    file = tmp_path / "exploding.toml"
    file.write_text(EXPLODING)
    done = _run(str(file), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    diverged, trained = read_results(tmp_path / "out").records
    assert diverged.diverged is not None
    assert trained.diverged is None
    assert len(trained.curves["test_error"]) == 2


@pytest.mark.usefixtures("no_shape_checks")
def test_what_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert share_of(16) == 8
    with pytest.raises(SkipwayError, match="a batch of 15 does not divide among 2 processes"):
        share_of(15)
    with pytest.raises(SkipwayError, match="2 processes train each trial together, one trial after another"):
        Study(depth=[8], seeds=[0]).run(tmp_path, workers=2)
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(SkipwayError, match="and this is a single one"):
        Study(depth=[8], seeds=[0], strategy="fsdp").run(tmp_path)
    assert not (tmp_path / "trials").exists()
