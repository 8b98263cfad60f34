"""The engine of one machine: the same events from this process and from several, and what happens when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.works import Squares, Unprepared, gone

from skipway.engines import Done, Event, Failed, Halt, Local, Note, Told, find_engine, lacks_memory
from skipway.errors import SkipwayError


def run(jobs: list[Any], workers: int | None = 1, work: Any = None) -> list[Event]:
    events: list[Event] = []
    Local().run(work or Squares(), jobs, events.append, workers)
    return events


def results(events: list[Event]) -> dict[int, Any]:
    return {event.job: event.result for event in events if isinstance(event, Done)}


def failures(events: list[Event]) -> dict[int, Exception]:
    return {event.job: event.error for event in events if isinstance(event, Failed)}


class TestJobs:
    @pytest.mark.parametrize("workers", [None, 1, 2])
    def test_are_done_once_and_tell_of_themselves(self, workers: int | None):
        events = run([3, 4, 5], workers)
        assert results(events) == {0: 9, 1: 16, 2: 25}
        assert len([event for event in events if isinstance(event, Done)]) == 3
        # In another process, only some of what is told is passed on.
        told = [(event.job, event.what) for event in events if isinstance(event, Told)]
        assert set(told) <= {(0, 1.5), (1, 2.0), (2, 2.5)}
        assert told

    @pytest.mark.parametrize("workers", [1, 2])
    def test_fail_alone(self, workers: int):
        events = run([1, "wrong", "odd", "large", "array", "broken", 6], workers)
        failed = failures(events)
        assert results(events) == {0: 1, 6: 36}
        assert isinstance(failed[1], SkipwayError)
        assert str(failed[1]) == "that job is wrong"
        assert "left right" in str(failed[2])
        assert isinstance(failed[5], ZeroDivisionError)
        assert [lacks_memory(failed[number]) for number in (1, 2, 3, 4, 5)] == [False, False, True, True, False]
        traces = {event.job: event.trace for event in events if isinstance(event, Failed)}
        assert "in broken" in traces[5]

    @pytest.mark.parametrize("workers", [1, 2])
    def test_halt_ends_all(self, workers: int):
        with pytest.raises(Halt, match="the disk is full"):
            run(["halt", *range(50)], workers)

    @pytest.mark.parametrize("workers", [1, 2])
    def test_none_is_nothing(self, workers: int):
        assert run([], workers, Unprepared()) == []

    @pytest.mark.parametrize("workers", [1, 2])
    def test_that_cannot_be_prepared(self, workers: int):
        with pytest.raises(SkipwayError, match="there are no data"):
            run([1, 2, 3], workers, Unprepared())

    @pytest.mark.parametrize("workers", [1, 2])
    def test_what_the_handler_raises_ends_all_and_is_no_failure(self, workers: int):
        def handle(event: Event) -> None:
            raise ZeroDivisionError(type(event).__name__)

        with pytest.raises(ZeroDivisionError, match="Told"):
            Local().run(Squares(), [1, 2, 3], handle, workers)


class TestProcesses:
    def test_share_the_jobs_and_the_threads(self):
        before = torch.get_num_threads()
        torch.set_num_threads(4)
        try:
            events = run(["process", "process", "threads"], 2)
        finally:
            torch.set_num_threads(before)
        found = results(events)
        assert len({found[0], found[1], os.getpid()}) == 3
        assert found[2] == 2
        assert gone(found[0])
        assert gone(found[1])

    def test_results_and_work_that_cannot_be_sent(self):
        failed = failures(run(["unsendable", 2], 2))
        assert "its result cannot be sent" in str(failed[0])
        with pytest.raises(SkipwayError, match="cannot be sent to other processes .*use workers=1"):
            run([1, 2], 2, type("Here", (), {"prepare": lambda self: None})())

    def test_that_are_killed_lose_one_job_which_is_begun_again(self, tmp_path: Path):
        events = run([1, "die once 1", 3, 4, "die thrice 9", 6], 2, Squares(tmp_path))
        assert results(events) == {0: 1, 1: "alive", 2: 9, 3: 16, 5: 36}
        (failed,) = failures(events).items()
        assert failed[0] == 4
        assert "was lost 3 times; the last time it was ended by signal 9, perhaps for want of memory" in str(failed[1])
        assert [(tmp_path / name).stat().st_size for name in ("once", "thrice")] == [2, 3]
        notes = [event for event in events if isinstance(event, Note)]
        assert sorted(note.job or 0 for note in notes) == [1, 4, 4]
        assert "it is begun again" in notes[0].sentence

    def test_that_never_begin(self):
        with pytest.raises(SkipwayError, match="worker processes do not start: it was ended by signal 9"):
            run([1, 2, 3], 2, Unprepared(kill=True))

    def test_are_ended_by_ctrl_c(self, tmp_path: Path):
        """A signal to the whole group, as a terminal sends it."""
        process = start(tmp_path)
        pids = [int(wait_for(tmp_path / name)) for name in ("a", "b")]
        assert all(map(deaf_to_ctrl_c, pids))
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=300)
        assert said.strip().endswith("KeyboardInterrupt")
        assert said.count("Traceback") == 1
        assert all(map(gone, pids))

    def test_end_with_the_process_that_started_them(self, tmp_path: Path):
        process = start(tmp_path)
        pids = [int(wait_for(tmp_path / name)) for name in ("a", "b")]
        process.kill()
        process.communicate(timeout=300)
        assert all(map(gone, pids))


def start(folder: Path) -> subprocess.Popen[str]:
    """A process that has two others sleep; they leave their numbers in the files a and b."""
    code = (
        "from pathlib import Path\nfrom skipway.engines import Local\nfrom tests.engines.works import Squares\n"
        f"Local().run(Squares(Path({str(folder)!r})), ['sleep a', 'sleep b'], print, 2)\n"
    )
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True, cwd=root
    )


def deaf_to_ctrl_c(pid: int) -> bool:
    """Whether the first thread of a process has the signal blocked; true where there is no such file to read."""
    status = Path(f"/proc/{pid}/status")
    blocked = (
        [line.split()[1] for line in status.read_text().splitlines() if "SigBlk" in line] if status.exists() else []
    )
    return all(int(mask, 16) >> (signal.SIGINT - 1) & 1 for mask in blocked)


def wait_for(path: Path) -> str:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if path.exists() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} never came")


def test_nothing_is_left_behind():
    before = threading.active_count()
    run([1, 2, 3], 2)
    assert threading.active_count() == before


@pytest.mark.usefixtures("no_shape_checks")
def test_engines_by_name():
    assert find_engine("local") == Local()
    assert find_engine(Local()) == Local()
    with pytest.raises(SkipwayError, match="no engine 'lokal'; did you mean 'local'"):
        find_engine("lokal")
    with pytest.raises(SkipwayError, match="engine=3 is none; give 'local', 'ray'"):
        find_engine(3)  # pyright: ignore[reportArgumentType]
