import json
from pathlib import Path

import pytest
import torch.nn.functional as F

from skipway import probe
from skipway.models import create
from skipway.study import Study
from skipway.study.probing.probes import examples, run_probe, sums
from skipway.study.tasks.problems import DataChoice, Problem, open_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(DataChoice("digits", limit=64))


def test_probes_run_on_the_first_seeds_networks_and_are_kept_as_files(tmp_path: Path):
    study = Study(
        depth=[8], width=4, skip=["none", "residual"], seeds=[3, 4], epochs=1, limit=64,
        probes=["gradients", "paths", {"name": "landscape", "steps": 3}],
    )  # fmt: skip
    results = study.run(tmp_path, quiet=True)
    for record in results.records:
        folder = tmp_path / "probes" / record.id
        if record.seed == 4:
            assert not folder.exists()
            assert "roughness" not in record.measures
            continue
        assert isinstance(probe.load(folder / "gradients.npz"), probe.Gradients)
        found = probe.load(folder / "landscape.npz")
        assert isinstance(found, probe.Landscape)
        assert record.measures["roughness"] == pytest.approx(probe.contour_roughness(found.loss))
        # A network without skips has no paths to take apart, which is said, and costs nothing else.
        if record.plain:
            assert json.loads((folder / "paths.json").read_text())["probe"] == "paths"
            assert not (folder / "paths.npz").exists()
        else:
            assert isinstance(probe.load(folder / "paths.npz"), probe.PathGradients)


def test_a_study_that_asks_for_other_probes_measures_them(problem: Problem):
    values = {"depth": [8], "width": 4, "skip": ["residual"], "seeds": [3, 4], "epochs": 1, "limit": 64}

    def names(probes: list[object]) -> list[str]:
        study = Study(**values, probes=probes)
        return [study.identify(trial, problem) for trial in study.trials()]

    none, some, every = names([]), names(["gradients"]), names([{"name": "gradients", "seeds": "all"}])
    assert none[0] != some[0]
    # Those of further seeds are not probed, and what is done of them stays.
    assert none[1] == some[1]
    assert none[1] != every[1]
    assert some[0] != names([{"name": "gradients", "samples": 8}])[0]


def test_a_probe_measures_the_held_out_images_as_the_network_sees_them(problem: Problem):
    network = create("resnet8", width=4, in_channels=1)
    (inputs, labels), loss = examples(problem.task, 32)
    assert loss == "cross_entropy"
    found = run_probe("gradients", {"mode": "eval", "samples": 32}, network, problem.task)
    assert isinstance(found, probe.Gradients)
    network.eval()
    F.cross_entropy(network(inputs), labels).backward()
    norms = dict(zip(found.parameters, found.norms, strict=True))
    assert norms["fc.weight"] == pytest.approx(float(network.fc.weight.grad.norm()), rel=1e-4)  # pyright: ignore
    ours = sums(found)["gradient_range"]
    layers = found.norms[found.layers >= 0]
    assert ours == pytest.approx(layers.max() / layers.min())
