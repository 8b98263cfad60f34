from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skipway import probe
from skipway.errors import SkipwayError
from skipway.study import Study, load_images
from skipway.study.declaring.files import read_study
from skipway.study.probing.experiments import EXPERIMENTS, _features
from skipway.study.probing.probes import run_probe, sums
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.problems import DataChoice, open_problem

QUICK: dict[str, Any] = {"limit": 200, "steps": 30, "seeds": [0, 1]}


def test_the_identity_is_learned_as_the_probe_alone_learns_it(tmp_path: Path):
    study = read_study("identity", {**QUICK, "depth": [1, 3]})
    results = study.run(tmp_path, quiet=True)
    assert [record.title for record in results.records][:2] == ["identity none seed 0", "identity residual seed 0"]
    assert {record.judge for record in results.records} == {"identity_error"}
    task = Classification(load_images("digits", samples=200))
    pixels = task.normalise(task.images.train_images).flatten(1)
    alone = probe.identity(pixels, depths=(1, 3), seeds=(0, 1), steps=30)
    for record in results.records:
        place = ("none", "residual").index(record.skip), (1, 3).index(record.depth or 0), record.seed
        assert record.measures["identity_error"] == pytest.approx(alone.errors[place], rel=1e-5)
        assert record.measures["jacobian_distance"] == pytest.approx(alone.distances[place], rel=1e-5)
        assert record.curves["loss"] == pytest.approx(alone.curves[place].tolist(), rel=1e-5)
        kept = probe.load(tmp_path / "probes" / record.id / "identity.npz")
        assert isinstance(kept, probe.Identity)
    assert "identity error" in results.answer.sentence


def test_construction_is_that_of_the_probe(tmp_path: Path):
    study = read_study("construction", {**QUICK, "seeds": [3], "options": {"deeper": [4]}})
    (trial,) = study.trials()
    assert trial.title == "construction seed 3"
    (record,) = study.run(tmp_path, quiet=True).records
    task = Classification(load_images("digits", samples=200))
    pixels = task.normalise(task.images.train_images).flatten(1)
    alone = probe.construction(pixels, task.images.train_labels, deeper=4, seeds=(3,), steps=30)
    ends = dict(zip(alone.nets, alone.losses[:, 0, -1], strict=True))
    assert record.measures["plain_over_built"] == pytest.approx(ends["plain"] / ends["built"], rel=1e-5)
    assert record.measures["difference_of_outputs"] == 0.0
    assert record.curves["built_loss"] == pytest.approx(alone.losses[1, 0].tolist(), rel=1e-5)
    assert record.skip == "as built"


def test_symmetry_breaking_is_probed_in_trained_networks(tmp_path: Path):
    study = read_study("symmetry-breaking", {"limit": 100, "epochs": 1, "width": 4, "seeds": [0, 1], "depth": [8]})
    for record in study.run(tmp_path, quiet=True).records:
        kept = probe.load(tmp_path / "probes" / record.id / "singularities.npz")
        assert isinstance(kept, probe.Singularities)
        assert record.measures["overlap"] == pytest.approx(kept.overlap.mean())
        assert 0 < (record.measures["overlap"] or 0) < 1


def test_the_probes_of_symmetry_are_summed_up():
    torch.manual_seed(0)
    task = Classification(load_images("digits", samples=100))
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 6), torch.nn.ReLU(), torch.nn.Linear(6, 10))
    found = run_probe("collisions", {}, network, task)
    # Two units of one layer that are the same: what the one gives more than the other changes no output (10 of these),
    # nor does the difference of the weights that make them (64 and a bias).
    assert isinstance(found, probe.Collisions)
    assert sums(found)["flat_directions"] == found.output_zeros[1] - found.output_zeros[0] > 0


def test_principal_components_keep_what_varies_most():
    problem = open_problem(DataChoice("digits", 200))
    rows, labels = _features(problem, 5)
    whole, _ = _features(problem, None)
    assert rows.shape == (200, 5)
    assert len(labels) == 200
    centred = (whole - whole.mean(0)).double().numpy()
    values = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(rows.norm(dim=0).numpy(), values[:5], rtol=1e-4)
    with pytest.raises(SkipwayError, match="width 65 is more than 200 images of 64 pixels"):
        _features(problem, 65)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"experiment": "identity", "epochs": 3}, "no axis of the experiment 'identity' 'epochs'; "),
        ({"experiment": "identity", "options": {"deeper": 4}}, "no option of the experiment 'identity' 'deeper'"),
        ({"experiment": "construction", "skip": ["none"]}, "no axis of the experiment 'construction' 'skip'"),
        ({"experiment": "constructoin"}, "did you mean 'construction'"),
        ({"probes": [{"name": "gradients", "seeds": "last"}]}, "no seeds of a probe 'last'; allowed: first, all"),
    ],
)
def test_what_an_experiment_has_no_use_for_is_refused(changes: dict[str, Any], sentence: str):
    with pytest.raises(SkipwayError, match=sentence):
        Study(**changes)


def test_every_experiment_says_what_it_is_judged_by(tmp_path: Path):
    for name, experiment in EXPERIMENTS.items():
        (record,) = Study(experiment=name, seeds=[0], limit=50, steps=2, **(
            {"depth": [2], "skip": ["none"]} if name == "identity" else {"options": {"deeper": 3}}
        )).run(tmp_path / name, quiet=True).records  # fmt: skip
        assert record.measures[experiment.judge] is not None
