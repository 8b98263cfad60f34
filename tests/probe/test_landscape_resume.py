"""A landscape or a curvature map that is stopped goes on to the same bits; shards and processes give them too."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probe_nets import images, mlp, points, tiny_resnet
from torch import nn

from skipway.errors import SkipwayError
from skipway.probe import curvature_map, landscape, load, merge_landscapes
from skipway.probe.landscape_points import LandscapeTask
from skipway.probe.points import measure_points

KILLED = """
import sys
sys.path.insert(0, {here!r})
import torch
torch.set_num_threads(1)
from probe_nets import images, tiny_resnet
from skipway.probe import curvature_map, landscape
{call}
"""
CALLS = {
    "landscape": "landscape(tiny_resnet(), images(), 'cross_entropy', steps=(25, 21), folder={folder!r})",
    "map": "curvature_map(tiny_resnet(), images(), 'cross_entropy', steps=5, products=12, folder={folder!r})",
}


def lines(folder: Path) -> list[str]:
    return [line for path in folder.glob("points-*.jsonl") for line in path.read_text().splitlines()]


class TestKilled:
    @pytest.mark.parametrize("what", ["landscape", "map"])
    def test_and_run_again_is_bit_identical(self, what: str, tmp_path: Path):
        folder = tmp_path / "points"
        call = CALLS[what].format(folder=str(folder))
        here = str(Path(__file__).parent)
        process = subprocess.Popen([sys.executable, "-c", KILLED.format(here=here, call=call)])
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and len(lines(folder)) < 8:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = lines(folder)
        # What was being written at that moment may end anywhere.
        with open(next(folder.glob("points-*.jsonl")), "a") as file:
            file.write("[24, 0.12")
        total = 25 * 21 if what == "landscape" else 25
        assert 8 <= len(kept) < total
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            scope = {
                "landscape": landscape,
                "curvature_map": curvature_map,
                "tiny_resnet": tiny_resnet,
                "images": images,
            }
            resumed = eval(call, scope)
            unbroken = eval(call.replace(repr(str(folder)), "None"), scope)
        finally:
            torch.set_num_threads(threads)
        assert resumed == unbroken
        assert len(lines(folder)) == total + 1
        assert len({json.loads(line)[0] for line in lines(folder) if line.endswith("]")}) == total
        before = len(list(folder.iterdir()))
        assert eval(call, scope) == unbroken
        assert len(list(folder.iterdir())) == before


class Counting:
    """A task whose values are zero, negative, infinite or NaN, and that says how often it measured."""

    def __init__(self) -> None:
        self.measured: list[int] = []

    def measure(self) -> Any:
        def values(point: int) -> tuple[float, ...]:
            self.measured.append(point)
            return ((0.0, -1.0, float("nan"), float("inf"))[point % 4],)

        return values


class TestJournal:
    def test_a_loss_of_zero_or_nan_is_measured_once(self, tmp_path: Path):
        """tomgoldstein/loss-landscape takes every value <= 0 for one that is missing."""
        task = Counting()
        first = measure_points(task, 8, 1, title="", manifest={"a": 1}, folder=tmp_path)
        again = measure_points(task, 8, 1, title="", manifest={"a": 1}, folder=tmp_path)
        assert task.measured == list(range(8))
        np.testing.assert_array_equal(first[0], again[0])
        assert first[1].all()
        assert again[1].all()

    def test_another_measurement_is_refused(self, tmp_path: Path):
        net, batch = mlp(5, 3), points()
        landscape(net, batch, "cross_entropy", steps=3, folder=tmp_path)
        for options, name in (
            ({"steps": 4}, "axes"),
            ({"seed": 1}, "policy"),
            ({"normalize": "layer"}, "directions"),
            ({"test": batch}, "sets"),
        ):
            message = f"holds the points of another measurement: its {name} is"
            with pytest.raises(SkipwayError, match=message):
                landscape(net, batch, "cross_entropy", **{"steps": 3, "folder": tmp_path, **options})
        with pytest.raises(SkipwayError, match="its weights is"):
            landscape(mlp(5, 3, seed=1), batch, "cross_entropy", steps=3, folder=tmp_path)
        with pytest.raises(SkipwayError, match="its data is"):
            landscape(net, points(seed=9), "cross_entropy", steps=3, folder=tmp_path)
        with pytest.raises(SkipwayError, match="its what is"):
            curvature_map(net, batch, "cross_entropy", steps=3, folder=tmp_path)

    @pytest.mark.parametrize("options", [{"dims": 1}, {"other": mlp(5, 3, seed=1)}, {"dtype": torch.bfloat16}])
    def test_every_kind_of_landscape_goes_on(self, options: dict[str, Any], tmp_path: Path):
        net, batch = mlp(5, 3), points()
        found = [landscape(net, batch, "cross_entropy", steps=5, folder=tmp_path, **options) for _ in range(2)]
        assert found[0] == found[1] == merge_landscapes(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2

    def test_ctrl_c_keeps_what_is_done(self, tmp_path: Path):
        task = Counting()
        plain = task.measure

        def interrupted() -> Any:
            values = plain()
            return lambda point: (_ for _ in ()).throw(KeyboardInterrupt()) if point == 5 else values(point)

        task.measure = interrupted
        with pytest.raises(KeyboardInterrupt, match=r"stopped; 5 of 8 points are kept in .*goes on where this stopped"):
            measure_points(task, 8, 1, title="", manifest={}, folder=tmp_path)
        task.measure = plain
        assert measure_points(task, 8, 1, title="", manifest={}, folder=tmp_path)[1].all()
        assert task.measured == list(range(8))
        task.measure = interrupted
        with pytest.raises(KeyboardInterrupt, match="are lost; with folder='...' they would have been kept"):
            measure_points(task, 8, 1, title="", manifest={})

    def test_a_place_that_cannot_be_written(self, tmp_path: Path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(SkipwayError, match="cannot write"):
            landscape(mlp(5, 3), points(), "cross_entropy", steps=3, folder=tmp_path / "file")


class TestSharing:
    def test_shards_merge_into_the_whole(self, tmp_path: Path):
        net, batch = tiny_resnet(), images()
        whole = landscape(net, batch, "cross_entropy", steps=(5, 4), test=batch)
        folders = [tmp_path / str(number) for number in range(3)]
        parts = [
            landscape(net, batch, "cross_entropy", steps=(5, 4), test=batch, folder=folder, shard=(number, 3))
            for number, folder in enumerate(folders)
        ]
        assert sum(int(part.measured.sum()) for part in parts) == 20
        assert "13 of them not measured yet" in parts[0].caption
        parts[0].plot(kind="heat")
        with pytest.raises(SkipwayError, match="6 of 20 points are in none of these folders, the first number 2"):
            merge_landscapes(folders[:2])
        assert merge_landscapes(folders) == whole
        for folder in folders[1:]:
            for path in folder.glob("points-*"):
                shutil.copy(path, folders[0] / f"{path.stem}-{folder.name}.jsonl")
        assert merge_landscapes(folders[0]) == whole
        path = whole.save(tmp_path / "whole")
        assert load(path) == whole

    def test_folders_of_different_landscapes_do_not_merge(self, tmp_path: Path):
        for seed in range(2):
            landscape(mlp(5, 3), points(), "cross_entropy", steps=3, seed=seed, folder=tmp_path / str(seed))
        with pytest.raises(SkipwayError, match="hold different landscapes: their policy differs"):
            merge_landscapes([tmp_path / "0", tmp_path / "1"])
        with pytest.raises(SkipwayError, match="holds no measured points"):
            merge_landscapes(tmp_path)

    def test_processes_give_the_same_bits(self, tmp_path: Path):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            net, batch = tiny_resnet(), images()
            one = landscape(net, batch, "cross_entropy", steps=5)
            assert landscape(net, batch, "cross_entropy", steps=5, workers=2, folder=tmp_path) == one
            assert len(lines(tmp_path)) == 25
        finally:
            torch.set_num_threads(threads)

    def test_what_cannot_be_sent_is_said(self):
        with pytest.raises(SkipwayError, match="cannot be sent to other processes .*use workers=1"):
            landscape(
                mlp(5, 3),
                points(),
                lambda output, targets: nn.functional.cross_entropy(output, targets) * 2,
                steps=3,
                workers=2,
            )

    def test_a_task_is_sent_without_its_fold(self):
        import pickle

        net, batch = tiny_resnet(), images()
        from skipway.probe import read_batches
        from skipway.probe.landscape_points import with_way
        from skipway.probe.plane import make_plane

        plane = make_plane(net, 1, None, None, "filter", 0, "frozen")
        task = with_way(
            LandscapeTask(net, plane, np.array([[0.5]]), (read_batches(net, batch, "cross_entropy"),), "frozen")
        )
        assert task.folded is not None
        sent = pickle.loads(pickle.dumps(task))
        assert sent.folded is None
        assert sent.measure()(0) == task.measure()(0)
