"""The engine of many machines, on one small Ray cluster that is started here."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.engines.works import Squares, Unprepared

from skipway.engines import Done, Event, Failed, Halt, Needs, Note, Ray, Told, find_engine, lacks_memory
from skipway.errors import SkipwayError
from skipway.probe import curvature_map, landscape

pytestmark = pytest.mark.xdist_group("ray")


def run(jobs: list[Any], work: Any = None, workers: int | None = None, needs: Needs = Needs()) -> list[Event]:  # noqa: B008
    events: list[Event] = []
    Ray(needs=needs).run(work or Squares(), jobs, events.append, workers)
    return events


@pytest.mark.usefixtures("ray_cluster")
class TestJobs:
    def test_are_done_once_and_tell_of_themselves(self):
        events = run([3, 4, "process", 5, "threads", "visible"])
        results = {event.job: event.result for event in events if isinstance(event, Done)}
        pid = results.pop(2)
        assert results == {0: 9, 1: 16, 3: 25, 4: 1, 5: ""}
        assert pid != os.getpid()
        told = {(event.job, event.what) for event in events if isinstance(event, Told)}
        assert told <= {(0, 1.5), (1, 2.0), (3, 2.5)}

    def test_tell_while_they_run(self, tmp_path: Path):
        events: list[Event] = []

        def handle(event: Event) -> None:
            events.append(event)
            if event == Told(1, "waiting"):
                (tmp_path / "heard").touch()

        Ray().run(Squares(tmp_path), [1, "until heard"], handle)
        assert Done(1, True) in events

    def test_fail_alone(self):
        events = run([1, "wrong", "odd", "large", "array", "broken", 6])
        failed = {event.job: event.error for event in events if isinstance(event, Failed)}
        assert {event.job for event in events if isinstance(event, Done)} == {0, 6}
        assert str(failed[1]) == "that job is wrong"
        assert [lacks_memory(failed[number]) for number in (1, 2, 3, 4, 5)] == [False, False, True, True, False]

    def test_halt_and_failed_preparations_end_all(self):
        with pytest.raises(Halt, match="the disk is full"):
            run(["halt", 1, 2])
        with pytest.raises(SkipwayError, match="there are no data"):
            run([1, 2], Unprepared())

    def test_results_that_cannot_be_sent_are_said(self):
        class Local:
            def __reduce__(self) -> Any:
                raise TypeError("not this one")

        with pytest.raises(SkipwayError, match="cannot be sent to other machines .*use engine='local'"):
            run([1], type("Here", (), {"prepare": lambda self: None, "held": Local()})())

    def test_of_lost_workers_are_begun_again(self, tmp_path: Path):
        events = run([1, "die once 1", 3, "die thrice 9", 5], Squares(tmp_path), 2)
        assert {event.job: event.result for event in events if isinstance(event, Done)} == {
            0: 1,
            1: "alive",
            2: 9,
            4: 25,
        }
        (failed,) = [event for event in events if isinstance(event, Failed)]
        assert failed.job == 3
        assert "was lost 3 times; the last time WorkerCrashedError" in str(failed.error)
        assert [(tmp_path / name).stat().st_size for name in ("once", "thrice")] == [2, 3]
        assert sorted(event.job or 0 for event in events if isinstance(event, Note)) == [1, 3, 3]

    def test_landscapes_and_maps_are_the_same_bits(self):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        data = torch.randn(24, 4), torch.randint(3, (24,))
        try:
            probes: list[tuple[Any, dict[str, Any]]] = [
                (landscape, {"steps": 9}),
                (curvature_map, {"steps": 3, "products": 8}),
            ]
            for probe, options in probes:
                one = probe(net, data, "cross_entropy", **options)
                assert probe(net, data, "cross_entropy", engine="ray", **options) == one
        finally:
            torch.set_num_threads(threads)


@pytest.mark.usefixtures("no_shape_checks")
def test_needs_are_numbers():
    with pytest.raises(SkipwayError, match="needs of gpus=-1; it takes a number from 0"):
        Needs(gpus=-1)
    with pytest.raises(SkipwayError, match="needs of cpus='two'"):
        Needs(cpus="two")  # pyright: ignore[reportArgumentType]


def test_addresses():
    assert find_engine("ray") == Ray()
    assert find_engine("ray://head:10001") == Ray("ray://head:10001")
    assert find_engine("ray:head:6379") == Ray("head:6379")


def test_without_ray_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SkipwayError, match=r"engine='ray' needs the package 'ray': pip install 'skipway\[ray\]'"):
        run([1])
