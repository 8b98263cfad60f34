"""What a study survives, each done for real: behind it the same again goes on, redoes nothing, and gives the same.

A full disk, Ctrl-C among workers, a damaged record and a loss that is not finite are in `test_run`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from benchmarks.disturbing import RAY, SMALL, begin, half_done, numbers, ray_workers, records, running, until

from skipway.errors import SkipwayError
from skipway.study import Study
from skipway.study.running.work import UNFINISHED


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("undisturbed")
    Study(**SMALL).run(folder, quiet=True)
    return numbers(folder)


def goes_on(folder: Path, kept: dict[str, bytes], undisturbed: dict[str, Any]) -> None:
    """Run again: what was done is as it was, and all is as if nothing had happened."""
    results = Study(**SMALL).run(folder, quiet=True)
    assert len(results.records) == 4
    assert not results.failed
    assert {name: content for name, content in records(folder).items() if name in kept} == kept
    assert numbers(folder) == undisturbed
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "trials"]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_study_goes_on(workers: int, tmp_path: Path, undisturbed: dict[str, Any]):
    process = begin(tmp_path, f"workers={workers}, quiet=True")
    until(lambda: half_done(tmp_path), process)
    below = running("spawn_main", process.pid)
    assert len(below) == (workers if workers > 1 else 0)
    process.kill()
    process.communicate()
    until(lambda: not set(below) & set(running("spawn_main")))
    goes_on(tmp_path, records(tmp_path), undisturbed)


def test_a_killed_worker_costs_an_epoch(tmp_path: Path, undisturbed: dict[str, Any]):
    process = begin(tmp_path, "workers=2")
    until(lambda: list(tmp_path.glob(f"{UNFINISHED}/*.ckpt")), process)
    os.kill(running("spawn_main", process.pid)[0], signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert said.count("is lost: it was ended by signal 9, perhaps for want of memory; it is begun again") == 1
    assert numbers(tmp_path) == undisturbed
    goes_on(tmp_path, records(tmp_path), undisturbed)


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_ray_worker_costs_an_epoch(
    tmp_path: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    killed: list[int] = []

    def kill() -> None:
        until(lambda: list(tmp_path.glob(f"{UNFINISHED}/*.ckpt")))
        killed.append(until(lambda: ray_workers(os.getpid()))[0])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    results = Study(**SMALL).run(tmp_path, engine="ray")
    thread.join()
    assert killed
    assert capsys.readouterr().err.count("is begun again") == 1
    assert len(results.records) == 4
    assert numbers(tmp_path) == undisturbed
    goes_on(tmp_path, records(tmp_path), undisturbed)


@pytest.mark.xdist_group("ray")
@pytest.mark.usefixtures("ray_cluster")
def test_a_folder_that_workers_do_not_see_gets_what_they_send(
    tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    """The token in the lock is what a worker knows the folder by: with another one, it is no folder of its machine."""
    from skipway.study.running import run

    seeing = run.TrialWork
    monkeypatch.setattr(run, "TrialWork", lambda study, folder, token, *rest: seeing(study, folder, "", *rest))
    results = Study(**SMALL).run(tmp_path, engine="ray", quiet=True)
    assert len(results.records) == 4
    assert numbers(tmp_path) == undisturbed


def test_a_damaged_checkpoint_is_set_aside_named_and_done_again(
    tmp_path: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "study"
    process = begin(folder, "quiet=True")
    until(lambda: half_done(folder), process)
    process.kill()
    process.communicate()
    (checkpoint,) = folder.glob(f"{UNFINISHED}/*.ckpt")
    whole = checkpoint.read_bytes()
    kept = records(folder)
    # One bit of a weight is as bad as half of the file.
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    for damaged in (whole[: len(whole) // 2], bytes(flipped)):
        copy = tmp_path / f"copy-{len(damaged)}"
        subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
        (copy / UNFINISHED / checkpoint.name).write_bytes(damaged)
        Study(**SMALL).run(copy)
        assert f"is kept as '{checkpoint.name}.unreadable-1', and its trial begins anew" in capsys.readouterr().err
        assert (copy / UNFINISHED / f"{checkpoint.name}.unreadable-1").read_bytes() == damaged
        assert numbers(copy) == undisturbed
        assert {name: content for name, content in records(copy).items() if name in kept} == kept


def test_two_processes_on_one_folder(tmp_path: Path, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]):
    process = begin(tmp_path, "quiet=True")
    until(lambda: half_done(tmp_path), process)
    with pytest.raises(SkipwayError, match=rf"is in use by process {process.pid} on \S+ since .*wait=True"):
        Study(**SMALL).run(tmp_path, quiet=True)
    results = Study(**SMALL).run(tmp_path, wait=True)
    process.communicate(timeout=300)
    assert process.returncode == 0
    said = capsys.readouterr().err
    assert f"waiting for '{tmp_path}', which is in use by process {process.pid}" in said
    assert said.count("finished before") == len(results.records) == 4
    assert numbers(tmp_path) == undisturbed
    assert not (tmp_path / ".lock").exists()


def test_a_lock_that_was_left_behind_blocks_nobody(tmp_path: Path):
    """A machine that went down leaves the file, and nobody who holds it."""
    study = Study(**{**SMALL, "epochs": 1, "seeds": [0]})
    (tmp_path / ".lock").write_text('{"host": "gone", "process": 1, "since": 0, "token": "x"}\n')
    assert len(study.run(tmp_path, quiet=True).records) == 1


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_out_of_memory_fails_alone_with_advice(workers: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A layer of 9 * 300,000^2 weights is more than any machine takes."""
    study = Study(**{**SMALL, "epochs": 1, "seeds": [0], "width": [4, 300_000, 8]})
    for again in (False, True):
        results = study.run(tmp_path, workers=workers)
        assert [record.labels["width"] for record in results.records] == ["4", "8"]
        (failed,) = results.failed
        assert "300000" in failed[0]
        assert re.match("out of memory .*; make batch_size smaller, use precision='bf16', or fewer workers", failed[1])
        (path,) = (tmp_path / "failed").iterdir()
        assert json.loads(path.read_text())["error"] == failed[1]
        said = capsys.readouterr().err
        assert said.count("failed: out of memory") == 1
        assert said.count("finished before") == 2 * again
        assert "300000" in results.report().read_text()


def test_a_failed_trial_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    study = Study(model="tests.study.faulty_nets:sometimes", seeds=[0, 1], epochs=1, limit=64, skip=None)
    monkeypatch.setenv("LACKS_MEMORY", "1")
    results = study.run(tmp_path, quiet=True)
    assert (len(results.records), len(results.failed)) == (0, 2)
    assert len(list((tmp_path / "failed").iterdir())) == 2
    monkeypatch.delenv("LACKS_MEMORY")
    results = study.run(tmp_path, quiet=True)
    assert (len(results.records), results.failed) == (2, ())
    assert not (tmp_path / "failed").exists()


@pytest.mark.slow
class TestWholeClusters:
    """Clusters that the study starts, which take a while to start and to end."""

    def test_a_killed_head_is_said_and_gone_on_from(self, tmp_path: Path):
        """What runs goes on without a head, so it takes trials that outlast the patience with it."""
        values = {**SMALL, "seeds": [0, 1], "epochs": 600}
        process = begin(tmp_path / "disturbed", f"engine={RAY}, quiet=True", values)
        until(lambda: len(list(tmp_path.glob(f"disturbed/{UNFINISHED}/*.ckpt"))) == 2, process)
        os.kill(running("gcs_server", process.pid)[0], signal.SIGKILL)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 1, said
        assert "SkipwayError: the head of the Ray cluster has not answered for" in said
        assert not list(tmp_path.glob("disturbed/trials/*"))
        for folder in ("disturbed", "undisturbed"):
            assert len(Study(**values).run(tmp_path / folder, quiet=True).records) == 2
        assert numbers(tmp_path / "disturbed") == numbers(tmp_path / "undisturbed")

    def test_a_killed_study_leaves_no_cluster(self, tmp_path: Path, undisturbed: dict[str, Any]):
        process = begin(tmp_path, f"engine={RAY}, quiet=True")
        until(lambda: half_done(tmp_path), process)
        below = running("gcs_server|raylet", process.pid)
        process.kill()
        process.communicate()
        until(lambda: not set(below) & set(running("gcs_server|raylet")))
        goes_on(tmp_path, records(tmp_path), undisturbed)

    def test_ctrl_c_leaves_nothing_running(self, tmp_path: Path, undisturbed: dict[str, Any]):
        process = begin(tmp_path, f"engine={RAY}, quiet=True")
        until(lambda: half_done(tmp_path), process)
        below = running("gcs_server|raylet", process.pid)
        assert below
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
        assert re.search(r"KeyboardInterrupt: stopped; \d of 4 trials are finished and kept in", said)
        until(lambda: not set(below) & set(running("gcs_server|raylet")))
        goes_on(tmp_path, records(tmp_path), undisturbed)

    def test_a_cluster_that_is_joined_is_left(
        self, tmp_path: Path, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ):
        # Who joins a cluster has its token, as Ray's own documents tell.
        monkeypatch.setenv("RAY_worker_niceness", "0")
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        monkeypatch.setenv("RAY_AUTH_TOKEN", "a-token-for-this-test-and-no-other-32")
        code = (
            "import ray\n"
            "ray.init(address='local', num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, "
            "_temp_dir='/tmp/skipway-ray')\n"
            "print(ray.get_runtime_context().gcs_address, flush=True)\n"
            "input()\n"
        )
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen([sys.executable, "-c", code], text=True, start_new_session=True, **pipes) as holder:
            assert holder.stdout is not None
            address = holder.stdout.readline().strip()
            process = begin(tmp_path, f"engine='ray:{address}', quiet=True")
            _, said = process.communicate(timeout=300)
            assert process.returncode == 0, said
            assert holder.poll() is None
            assert not ray_workers(holder.pid)
            assert running("gcs_server", holder.pid)
            holder.communicate("\n", timeout=300)
        goes_on(tmp_path, records(tmp_path), undisturbed)
