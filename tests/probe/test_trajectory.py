"""The plane of a training run: against numpy's singular values and scikit-learn's components."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from probe_nets import images, mlp, points, tiny_resnet
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe import landscape, load, trajectory


def run(net: nn.Module, batch: tuple[Tensor, Tensor], steps: int = 6, rate: float = 0.3) -> list[dict[str, Tensor]]:
    """Checkpoints of a short training run, from the start."""
    saved = []
    for step in range(steps * 4):
        if step % 4 == 0:
            saved.append({name: tensor.detach().clone() for name, tensor in net.state_dict().items()})
        gradients = torch.autograd.grad(F.cross_entropy(net(batch[0]), batch[1]), list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= rate * gradient
    return [*saved, {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}]


def rows(checkpoints: list[dict[str, Tensor]], names: tuple[str, ...]) -> Any:
    flat = np.stack([torch.cat([state[name].flatten() for name in names]).double().numpy() for state in checkpoints])
    return flat[:-1] - flat[-1]


NET = mlp(5, 8, 3)
CHECKPOINTS = run(mlp(5, 8, 3), points())


class TestComponents:
    def test_against_singular_values(self):
        found = trajectory(NET, CHECKPOINTS)
        matrix = rows(CHECKPOINTS, found.names)
        _, values, vectors = np.linalg.svd(matrix, full_matrices=False)
        np.testing.assert_allclose(found.explained, values**2 / (values**2).sum(), atol=1e-6)
        for direction, vector in zip(found.directions, vectors, strict=False):
            assert abs(direction @ vector) == pytest.approx(1, abs=1e-4)
            assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-4)
        np.testing.assert_allclose(np.abs(found.coordinates[:-1]), np.abs(matrix @ vectors[:2].T), atol=1e-4)
        assert found.coordinates[-1].tolist() == [0, 0]

    def test_centred_is_what_scikit_learn_does(self):
        from sklearn.decomposition import PCA

        found = trajectory(NET, CHECKPOINTS, centred=True)
        matrix = rows(CHECKPOINTS, found.names)
        fitted: Any = PCA(2).fit(matrix)
        np.testing.assert_allclose(found.explained[:2], fitted.explained_variance_ratio_, atol=1e-6)
        for direction, vector in zip(found.directions, fitted.components_, strict=True):
            assert abs(direction @ vector) == pytest.approx(1, abs=1e-4)
        np.testing.assert_allclose(np.abs(found.coordinates[:-1]), np.abs(matrix @ fitted.components_.T), atol=1e-4)

    def test_distances_off_the_plane(self):
        found = trajectory(NET, CHECKPOINTS)
        matrix = rows(CHECKPOINTS, found.names)
        rest = matrix - (matrix @ found.directions.T) @ found.directions
        np.testing.assert_allclose(found.off_plane[:-1], np.linalg.norm(rest, axis=1), atol=1e-5)
        np.testing.assert_allclose(found.distance[:-1], np.linalg.norm(matrix, axis=1), rtol=1e-6)

    def test_a_path_in_a_plane_is_not_off_it(self):
        torch.manual_seed(3)
        end, a, b = ({k: torch.randn_like(v) for k, v in NET.state_dict().items()} for _ in range(3))
        path = [{k: end[k] + s * a[k] + t * b[k] for k in end} for s, t in ((3, 0), (2, 1), (1, -1), (0, 0))]
        found = trajectory(NET, path)
        assert found.off_plane.max() < 1e-5 * found.distance.max()
        assert found.explained[:2].sum() == pytest.approx(1, abs=1e-9)

    def test_few_rows_at_a_time_give_the_same(self, monkeypatch: pytest.MonkeyPatch):
        whole = trajectory(NET, CHECKPOINTS)
        monkeypatch.setattr(sys.modules["skipway.probe.trajectory"], "_HELD", 2 * whole.centre.size)
        parts = trajectory(NET, CHECKPOINTS)
        np.testing.assert_allclose(parts.coordinates, whole.coordinates, atol=1e-5)
        np.testing.assert_allclose(parts.directions, whole.directions, atol=1e-5)

    def test_weights_alone(self):
        found = trajectory(NET, CHECKPOINTS, parts="weights")
        assert found.names == ("0.weight", "2.weight")


class TestFiles:
    def test_files_models_and_dictionaries(self, tmp_path: Path):
        files = []
        for number, state in enumerate(CHECKPOINTS):
            files.append(tmp_path / f"{number}.pt")
            torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, files[-1])
        assert trajectory(NET, files) == trajectory(NET, CHECKPOINTS)
        models = [mlp(5, 8, 3) for _ in CHECKPOINTS]
        for model, state in zip(models, CHECKPOINTS, strict=True):
            model.load_state_dict(state)
        assert trajectory(NET, models) == trajectory(NET, CHECKPOINTS)

    def test_what_does_not_fit(self, tmp_path: Path):
        with pytest.raises(SkipwayError, match="checkpoint 1: no weight file"):
            trajectory(NET, [CHECKPOINTS[0], tmp_path / "missing.pt", CHECKPOINTS[1]])
        with pytest.raises(SkipwayError, match="checkpoint 2: the other model has no parameter '0.weight'"):
            trajectory(NET, [*CHECKPOINTS[:2], {}])
        with pytest.raises(SkipwayError, match="2 checkpoints make no plane"):
            trajectory(NET, CHECKPOINTS[:2])
        with pytest.raises(SkipwayError, match="the checkpoints are all the same"):
            trajectory(NET, [CHECKPOINTS[0]] * 3)
        with pytest.raises(SkipwayError, match="2 learning rates for 7 checkpoints"):
            trajectory(NET, CHECKPOINTS, rates=[0.1, 0.1])


class TestLosses:
    def test_each_checkpoint_has_its_own(self):
        net, batch = tiny_resnet(), images()
        path = run(tiny_resnet().train(), batch, steps=3, rate=0.05)
        found = trajectory(net, path, batch, "cross_entropy", rates=[0.1, 0.1, 0.01, 0.01])
        for state, loss in zip(path, found.loss, strict=True):
            other = tiny_resnet()
            other.load_state_dict(state)
            with torch.no_grad():
                assert loss == pytest.approx(float(F.cross_entropy(other.eval()(batch[0]), batch[1])), rel=1e-6)
        assert found.drops == (2,)

    def test_the_surface_around_it(self, tmp_path: Path):
        batch = points()
        found = trajectory(NET, CHECKPOINTS, batch, "cross_entropy", rates=[0.1] * 4 + [0.01] * 3)
        surface = landscape(NET, batch, "cross_entropy", directions=found, steps=(9, 7))
        assert surface.labels == found.labels
        assert surface.labels[0].startswith("1st PC: ")
        # The path lies inside, and the surface runs through the last checkpoint, not through the model that was given.
        assert surface.y is not None
        assert surface.path is not None
        assert surface.x[0] < surface.path[:, 0].min()
        assert surface.y[-1] > surface.path[:, 1].max()
        last = mlp(5, 8, 3)
        last.load_state_dict(CHECKPOINTS[-1])
        at_end = landscape(NET, batch, "cross_entropy", directions=found, steps=3, span=1)
        with torch.no_grad():
            assert at_end.loss[1, 1] == pytest.approx(float(F.cross_entropy(last(batch[0]), batch[1])), rel=1e-6)
        for result in (found, surface):
            assert load(result.save(tmp_path / type(result).__name__)) == result
            result.plot()
            result.interactive()
        assert len(found.table()) == 7

    def test_another_model_is_refused(self):
        found = trajectory(NET, CHECKPOINTS)
        with pytest.raises(SkipwayError, match="the trajectory is of another model: '0.weight' does not fit"):
            landscape(mlp(5, 9, 3), points(), "cross_entropy", directions=found)

    def test_the_model_is_left_alone(self):
        net = tiny_resnet().train()
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        path = [{k: v * s if v.is_floating_point() else v for k, v in before.items()} for s in (3.0, 2.0, 1.5)]
        trajectory(net, path, images(), "cross_entropy")
        assert net.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
