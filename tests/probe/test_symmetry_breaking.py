"""Collisions, planes and singularities: laws that hold for every net, and torch.func.hessian."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from probe_nets import images, mlp, points, tiny_resnet
from torch import Tensor, nn

import skipway as sw
from skipway.edit import plain_twin
from skipway.errors import SkipwayError
from skipway.probe import (
    SingularityMonitor,
    collisions,
    load,
    singularities,
    symmetry_breaking,
    symmetry_plane,
    two_parameters,
)
from skipway.probe.pairs import collided, exchanged, find_pair
from skipway.probe.units import UnitMap

mpl.use("Agg")


class Blocks(nn.Module):
    """Two residual blocks of tanh layers on a stream."""

    def __init__(self, width: int = 4, inner: int = 5, outputs: int = 3) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(5, width), nn.Linear(width, outputs)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, width)) for _ in range(2)]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.tanh(x + block(x))
        return self.head(x)


@pytest.fixture
def torch_func() -> Iterator[None]:
    """What torch.func itself imports at its first call is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


LAYER = "blocks.0.2.weight"
DATA = points(60)


class TestCollisions:
    def test_the_spectrum_is_that_of_torch_func(self, torch_func: None):
        net = mlp(5, 4, 3).double()
        x, y = DATA[0].double(), DATA[1]
        found = collisions(net, [(x[:50], y[:50]), (x[50:], y[50:])], "cross_entropy", layer="0.weight", steps=0)
        own = dict(net.named_parameters())
        sizes = [part.numel() for part in own.values()]

        def parts(w: Tensor) -> dict[str, Tensor]:
            return {name: part.view_as(own[name]) for name, part in zip(own, w.split(sizes), strict=True)}

        w = torch.cat([part.detach().flatten() for part in own.values()])
        hessian = torch.func.hessian(lambda w: F.cross_entropy(torch.func.functional_call(net, parts(w), (x,)), y))(w)
        np.testing.assert_allclose(found.hessian[0], torch.linalg.eigvalsh(hessian).flip(0).numpy(), atol=1e-12)
        jacobian = torch.func.jacrev(lambda w: torch.func.functional_call(net, parts(w), (x,)))(w).flatten(0, 1)
        expected = torch.linalg.eigvalsh(jacobian.T @ jacobian / len(x)).flip(0)
        np.testing.assert_allclose(found.outputs[0], expected.detach().numpy(), atol=1e-12)

    @settings(max_examples=6)
    @given(st.integers(0, 1000), st.integers(1, 4))
    def test_in_a_plain_net_a_collision_is_flat_in_every_outgoing_weight(self, seed: int, outputs: int):
        net = mlp(5, 6, outputs, seed=seed)
        x = torch.randn(60, 5, generator=torch.Generator().manual_seed(seed))
        found = collisions(net, (x, torch.zeros(60, outputs)), "mse", layer="0.weight", units=(1, 4), steps=0)
        assert found.flat == outputs
        assert found.output_zeros[1] - found.output_zeros[0] >= outputs

    def test_at_a_zero_loss_the_hessian_has_n_zeros_of_brea(self):
        """Brea et al. 2019: at least n_{k+1} zero eigenvalues, here where no error is left that couples weights."""
        net = mlp(5, 6, 3).double()
        x = DATA[0].double()
        merged = collided(net, find_pair(UnitMap(sw.trace(net, x)), "0.weight", (0, 1), False))
        found = collisions(merged, (x, merged(x).detach()), "mse", layer="0.weight", steps=0, threshold=1e-12)
        # The net as it is: another, that gives the same targets to rounding in no direction.
        apart = collisions(net, (x, net(x).detach()), "mse", layer="0.weight", steps=0, threshold=1e-12)
        assert found.losses[0] == pytest.approx(0, abs=1e-20)
        assert found.zeros[0] >= apart.zeros[0] + 3
        np.testing.assert_allclose(found.hessian[0], 2 * found.outputs[0] / 3, atol=1e-12)

    def test_with_a_skip_the_layer_alone_does_not_collide_and_all_tied_layers_do(self):
        net = Blocks()
        alone, tied = (
            collisions(net, DATA, "cross_entropy", layer=LAYER, whole=whole, steps=20) for whole in (False, True)
        )
        twin = collisions(plain_twin(net, DATA[0]), DATA, "cross_entropy", layer=LAYER, steps=20)
        assert alone.tied == tied.tied == ("stem.weight", "blocks.1.2.weight")
        assert twin.tied == ()
        more = [int(one.output_zeros[1] - one.output_zeros[0]) for one in (alone, tied, twin)]
        assert more[0] < twin.flat
        assert more[1] >= tied.flat == 5 + 5 + 3
        assert more[2] >= twin.flat == 5
        # Gradients part what is two, and never what is one.
        assert alone.apart[-1] > 0.05
        assert tied.apart.max() < 1e-9
        assert twin.apart.max() < 1e-9

    def test_large_layers_are_measured_in_the_weights_of_the_two_units(self):
        net = tiny_resnet()
        found = collisions(net, images(4), "cross_entropy", layer="blocks.0.conv1.weight", steps=1, largest=300)
        # 2 units: 6 x 3 x 3 incoming, its norm's 2, and 6 x 3 x 3 outgoing weights.
        assert found.parameters == 2 * (54 + 2 + 54)
        assert found.of == "the weights of the two units"
        assert found.output_zeros[1] >= 54
        with pytest.raises(SkipwayError, match="largest=100"):
            collisions(net, images(4), "cross_entropy", layer="blocks.0.conv1.weight", steps=1, largest=100)

    def test_no_trace_table_plot_and_file(self, tmp_path: Any):
        net = tiny_resnet().train()
        before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        found = collisions(net, images(4), "cross_entropy", layer="blocks.0.conv1.weight", steps=2, largest=300)
        assert net.training
        assert torch.equal(state, torch.get_rng_state())
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert all(part.grad is None and part.requires_grad for part in net.parameters())
        assert load(found.save(tmp_path / "collisions")) == found
        assert list(found.table()["point"]) == ["as it is", "collided", "trained on"]
        assert len(found.plot()) == 3
        assert len(list(found.interactive().data)) == 3
        assert "float64" in found.caption

    def test_slips_are_told(self):
        net = Blocks()
        with pytest.raises(SkipwayError, match="did you mean 'stem.weight'"):
            collisions(net, DATA, "cross_entropy", layer="stem.wieght")
        with pytest.raises(SkipwayError, match="two different units of the 4"):
            collisions(net, DATA, "cross_entropy", layer="stem.weight", units=(0, 4))
        with pytest.raises(SkipwayError, match="cannot be exchanged"):
            collisions(net, DATA, "cross_entropy", layer="head.weight")
        with pytest.raises(SkipwayError, match="no layer of this model"):
            collisions(nn.Linear(5, 3), DATA, "cross_entropy")


class TestPlanes:
    @settings(max_examples=6)
    @given(st.integers(0, 1000))
    def test_the_plane_of_a_plain_net_is_symmetric_and_flat_where_units_are_one(self, seed: int):
        net = mlp(5, 6, 4, 3, seed=seed).double()
        found = symmetry_plane(
            net, (DATA[0].double(), DATA[1]), "cross_entropy", layer="0.weight", units=(2, 5), steps=5
        )
        np.testing.assert_allclose(found.loss, found.loss[::-1, ::-1], rtol=1e-10)
        np.testing.assert_allclose(found.loss[2], found.loss[2, 0], rtol=1e-10)

    def test_its_corners_are_the_net_and_its_image(self):
        net = Blocks().double()
        x, y = DATA[0].double(), DATA[1]
        for whole in (False, True):
            found = symmetry_plane(net, (x, y), "cross_entropy", layer=LAYER, whole=whole, steps=7)
            pair = find_pair(UnitMap(sw.trace(net, x)), LAYER, (0, 1), whole)
            ones = [int(np.abs(found.x - value).argmin()) for value in (1, -1)]
            with torch.no_grad():
                expected = [float(F.cross_entropy(one(x), y)) for one in (net, exchanged(net, pair))]
            assert [found.loss[one, one] for one in ones] == pytest.approx(expected)
            # The skip breaks the symmetry of the layer; it ties it across layers and does not take it away.
            assert (found.asymmetry < 1e-10) == whole
            assert (found.ridge < 1e-10) == whole

    def test_table_plot_file(self, tmp_path: Any):
        found = symmetry_plane(tiny_resnet(), images(8), "cross_entropy", layer="blocks.1.conv1.weight", steps=3)
        # The statistics of BatchNorm are units' too: they are at their mean on the whole plane.
        assert found.asymmetry < 1e-3
        assert load(found.save(tmp_path / "plane")) == found
        assert len(found.table()) == 9
        assert len(found.plot()) == 2
        assert found.interactive() is not None
        with pytest.raises(SkipwayError, match="steps are odd"):
            symmetry_plane(tiny_resnet(), images(8), "cross_entropy", steps=4)


def test_the_two_parameter_surfaces_are_their_closed_forms(torch_func: None):
    found = two_parameters(1.5, steps=21)

    def loss(shift: float) -> Any:
        return lambda w: (1.5 - (w[0] + shift) * (w[1] + shift)) ** 2 / 2

    for number, (surface, shift) in enumerate(((found.plain, 0.0), (found.skip, 1.0))):
        saddle = torch.tensor(found.saddles[number])
        assert torch.func.grad(loss(shift))(saddle).abs().max() == 0
        hessian = torch.func.hessian(loss(shift))(saddle)
        np.testing.assert_allclose(np.linalg.eigvalsh(hessian.numpy()), found.eigenvalues[number])
        assert float(torch.func.grad(loss(shift))(torch.zeros(2).double()).norm()) == pytest.approx(
            found.starts[number]
        )
        for i, j in ((0, 3), (7, 11), (20, 20)):
            assert surface[i, j] == pytest.approx(float(loss(shift)(torch.tensor(found.weights)[[i, j]])))
        # Exchanging the two weights changes nothing, with the skip or without.
        np.testing.assert_array_equal(surface, surface.T)
    assert len(found.plot()) == 2
    assert "closed form" in found.caption
    assert len(found.table()) == 2
    with pytest.raises(SkipwayError, match="target=0"):
        two_parameters(0.0)


class TestSingularities:
    def test_of_known_units(self):
        first, last = nn.Linear(4, 6), nn.Linear(6, 3)
        net = nn.Sequential(first, nn.ReLU(), last)
        with torch.no_grad():
            first.weight.copy_(torch.eye(6)[:, :4])
            first.weight[4], first.weight[5] = 3 * first.weight[0], torch.tensor([1.0, 1, 0, 0])
            first.bias.zero_()
            first.bias[2] = -1e3
            last.weight[:, 1] = 0
        found = singularities(net, (torch.randn(256, 4).double(), torch.zeros(256).long()))
        expected = [1, 1 / np.sqrt(2), 0, 0, 1, 1 / np.sqrt(2)]
        np.testing.assert_allclose(found.cosines[0, :6], expected, atol=1e-6)
        assert found.outgoing.tolist() == pytest.approx([0, 1 / 6])
        assert found.inactive.tolist() == pytest.approx([0, 1 / 6])
        assert found.width.tolist() == [4, 6]
        # The inputs are independent and alike; of the hidden units one is another's multiple, and one is dead.
        assert found.rank[0] == pytest.approx(4, rel=0.02)
        assert found.rank[1] < 4
        assert np.isinf(found.condition[1])

    def test_the_effective_rank_is_that_of_the_covariance(self):
        net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Tanh(), nn.Conv2d(3, 2, 1), nn.Flatten(), nn.Linear(8, 2)).double()
        x = torch.randn(30, 2, 2, 2).double()
        found = singularities(net, [(x[:20], torch.zeros(20).long()), (x[20:], torch.zeros(10).long())])
        hidden = torch.tanh(net[0](x)).detach().permute(0, 2, 3, 1).reshape(-1, 3).numpy()
        share = np.linalg.eigvalsh(np.cov(hidden.T, bias=True))
        share = share / share.sum()
        assert found.rank[1] == pytest.approx(np.exp(-(share * np.log(share)).sum()))

    def test_they_are_what_scikit_learn_and_numpy_say(self):
        from sklearn.metrics.pairwise import cosine_similarity

        net: Any = nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 2)).double()
        x = torch.randn(80, 4, dtype=torch.float64)
        found = singularities(net, (x, torch.zeros(80).long()))
        read = [x, torch.tanh(net[0](x)), torch.relu(net[2](torch.tanh(net[0](x))))]
        for number, layer in enumerate((net[0], net[2], net[4])):
            alike = cosine_similarity(layer.weight.detach().numpy()) - 3 * np.eye(layer.out_features)
            np.testing.assert_allclose(found.cosines[number, : layer.out_features], alike.max(1), rtol=1e-10)
            assert found.overlap[number] == pytest.approx(alike.max(1).mean())
            condition = np.linalg.cond(np.cov(read[number].detach().numpy().T))
            assert found.condition[number] == pytest.approx(condition, rel=1e-6)

    def test_over_training(self, tmp_path: Any):
        net = Blocks()
        monitor = SingularityMonitor(net, DATA, every=5)
        before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
        for _ in range(5):
            monitor.after_step()
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert torch.equal(state, torch.get_rng_state())
        assert net.training
        with torch.no_grad():
            net.head.weight[1] = net.head.weight[0]
        for _ in range(5):
            monitor.after_step()
        found = monitor.result()
        assert found.steps.tolist() == [0, 5, 10]
        assert (found.overlap[0] == found.overlap[1]).all()
        assert found.overlap[2, -1] > found.overlap[1, -1]
        once = singularities(net, DATA)
        np.testing.assert_allclose(found.overlap[2], once.overlap)
        np.testing.assert_allclose(found.dependence[2], once.dependence)
        for one in (found, once):
            assert load(one.save(tmp_path / type(one).__name__)) == one
            assert len(one.plot()) == 3
            assert len(list(one.interactive().data)) == 3
        assert len(found.table()) == 3 * 6
        assert len(once.table()) == 6

    def test_as_a_lightning_callback(self):
        lightning = pytest.importorskip("lightning")
        monitor = SingularityMonitor(Blocks(), DATA, every=2)
        callback = monitor.lightning()
        assert isinstance(callback, lightning.Callback)
        for number in range(4):
            callback.on_train_batch_end(None, None, None, None, number)
        assert monitor.result().steps.tolist() == [0, 2, 4]


class TestTogether:
    def test_with_the_twin_and_with_a_trained_plain_net(self, tmp_path: Any):
        net = Blocks()
        found = symmetry_breaking(net, DATA, "cross_entropy", layer=LAYER, steps=5, grid=5, samples=40)
        assert load(found.save(tmp_path / "all")) == found
        frame = found.table()
        assert list(frame["expected more"]) == [0, 13, 5]
        more = (frame["flat, collided"] - frame["flat, as it is"]).tolist()
        assert more[0] < 5
        assert more[1] >= 13
        assert more[2] >= 5
        assert frame["asymmetry"].tolist()[0] > 100 * max(frame["asymmetry"].tolist()[1:])
        # Skips tie units of different layers, so the net without them has more permutations.
        assert found.log10_orders[0] < found.log10_orders[1]
        assert found.plot().shape == (3, 3)
        assert len(list(found.interactive().data)) == 3
        other = symmetry_breaking(
            net, DATA, "cross_entropy", plain=plain_twin(Blocks(), DATA[0]), steps=1, grid=3, samples=20
        )
        assert other.trained
        assert "trained by itself" in other.caption

    def test_slips_are_told(self):
        with pytest.raises(SkipwayError, match="no short skip to cut"):
            symmetry_breaking(mlp(5, 4, 3), DATA, "cross_entropy")
        with pytest.raises(SkipwayError, match="has skips too"):
            symmetry_breaking(Blocks(), DATA, "cross_entropy", plain=Blocks())
        with pytest.raises(SkipwayError, match="not alike"):
            symmetry_breaking(Blocks(), DATA, "cross_entropy", plain=Blocks(5))
