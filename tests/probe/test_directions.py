"""Filter-normalised directions: the published rule, and the rules that it lacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from probe_nets import mlp, tiny_resnet
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe import random_direction
from skipway.probe.directions import check_direction, cosine, state_of


def filters(tensor: Tensor, axis: int = 0) -> Tensor:
    return tensor.detach().movedim(axis, 0).flatten(1).norm(dim=1)


class TestNorms:
    @pytest.mark.parametrize(
        ("layer", "axis"),
        [
            (nn.Linear(5, 3), 0),
            (nn.Conv2d(4, 6, 3), 0),
            (nn.Conv1d(4, 6, 3, groups=2), 0),
            (nn.Conv2d(6, 6, 3, groups=6), 0),
            (nn.Embedding(7, 3), 0),
            (nn.Bilinear(2, 3, 4), 0),
            (nn.ConvTranspose2d(4, 6, 3), 1),
            (nn.ConvTranspose3d(2, 3, 2), 1),
        ],
    )
    def test_each_filter_has_the_norm_of_its_weights(self, layer: Any, axis: int):
        direction, _ = random_direction(layer, seed=0)
        assert list(direction) == ["weight"]
        torch.testing.assert_close(filters(direction["weight"], axis), filters(layer.weight, axis))

    def test_a_grouped_transposed_convolution(self):
        """Its weight is (inputs, outputs / groups, ...): the filter of an output reaches over its group's inputs."""
        layer = nn.ConvTranspose2d(6, 4, 3, groups=2)
        direction = random_direction(layer, seed=0)[0]["weight"]
        for group in range(2):
            for output in range(2):
                of_one = (slice(3 * group, 3 * group + 3), output)
                assert direction[of_one].norm().item() == pytest.approx(layer.weight[of_one].norm().item(), rel=1e-5)

    def test_what_a_filter_is_shows_in_the_output(self):
        """Scaling one filter of a transposed convolution changes one channel."""
        layer = nn.ConvTranspose2d(6, 4, 3, groups=2, bias=False)
        x = torch.randn(1, 6, 5, 5)
        before = layer(x)
        with torch.no_grad():
            layer.weight[3:, 1] *= 2
        assert (layer(x) != before).any(-1).any(-1)[0].tolist() == [False, False, False, True]

    def test_the_linear_layer_of_gpt2(self):
        conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
        layer = conv1d(5, 3)
        direction, ignored = random_direction(layer, seed=0)
        torch.testing.assert_close(filters(direction["weight"], 1), filters(layer.weight, 1))
        assert ignored == ("bias",)

    def test_layers_and_none(self):
        layer = nn.Conv2d(4, 6, 3)
        for_layer = random_direction(layer, 0, normalize="layer")[0]["weight"]
        assert for_layer.norm().item() == pytest.approx(layer.weight.norm().item(), rel=1e-5)
        assert random_direction(layer, 0, normalize="none")[0]["weight"].std().item() == pytest.approx(1, abs=0.15)
        with pytest.raises(SkipwayError, match="no normalisation 'filters'; did you mean 'filter'"):
            random_direction(layer, 0, normalize="filters")

    @given(st.integers(0, 2**31), st.integers(0, 5))
    def test_no_nan_ever(self, seed: int, number: int):
        direction, _ = random_direction(tiny_resnet(), seed, number)
        assert all(torch.isfinite(part).all() for part in direction.values())


class TestRules:
    def test_biases_norms_and_scalars_stay(self):
        """The original moves them in proportion unless told otherwise; loss-landscapes makes them |w|."""
        net = nn.ModuleDict(
            {
                "linear": nn.Linear(3, 3),
                "batch": nn.BatchNorm2d(3),
                "layer": nn.LayerNorm([3, 4, 4]),
                "group": nn.GroupNorm(3, 3),
            }
        )
        net.register_parameter("scale", nn.Parameter(torch.tensor(0.5)))
        direction, ignored = random_direction(net, 0)
        assert list(direction) == ["linear.weight"]
        assert set(ignored) == {
            "scale", "linear.bias", "batch.weight", "batch.bias", "layer.weight", "layer.bias", "group.weight",
            "group.bias",
        }  # fmt: skip

    def test_tied_weights_are_one(self):
        class Tied(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.embedding = nn.Embedding(6, 4)
                self.head = nn.Linear(4, 6, bias=False)
                self.head.weight = self.embedding.weight

        assert list(random_direction(Tied(), 0)[0]) == ["embedding.weight"]

    def test_a_filter_of_zeros_stays_and_gives_no_nan(self):
        layer = nn.Linear(4, 3)
        with torch.no_grad():
            layer.weight[1] = 0
        direction = random_direction(layer, 0)[0]["weight"]
        assert filters(direction)[1] == 0
        assert filters(direction)[0] > 0


class TestDraws:
    def test_the_same_seed_is_the_same_direction_whatever_else_there_is(self):
        small, large = mlp(4, 3), mlp(4, 3, 2)
        with torch.no_grad():
            large.state_dict()["0.weight"].copy_(small.state_dict()["0.weight"])
        one, other = random_direction(small, 5)[0], random_direction(large, 5)[0]
        assert torch.equal(one["0.weight"], other["0.weight"])
        assert not torch.equal(one["0.weight"], random_direction(small, 6)[0]["0.weight"])
        assert not torch.equal(one["0.weight"], random_direction(small, 5, 1)[0]["0.weight"])

    def test_and_in_every_precision_and_whatever_the_global_state(self):
        net = mlp(4, 3)
        one = random_direction(net, 5)[0]["0.weight"]
        torch.manual_seed(99)
        state = torch.get_rng_state()
        torch.testing.assert_close(random_direction(net.double(), 5)[0]["0.weight"].float(), one)
        assert torch.equal(torch.get_rng_state(), state)

    def test_gaussian_and_nearly_orthogonal(self):
        """loss-landscapes draws from [0, 1): cosine 0.75."""
        net = mlp(80, 80)
        one, other = (random_direction(net, 0, number)[0] for number in range(2))
        assert abs(cosine(one, other)) < 0.05
        assert abs(one["0.weight"].mean() / one["0.weight"].std()) < 0.05


class TestOthers:
    def test_another_model(self):
        net = mlp(3, 2)
        assert torch.equal(state_of(net, mlp(3, 2, seed=1))["0.weight"], mlp(3, 2, seed=1).state_dict()["0.weight"])
        assert state_of(net, mlp(3, 2).state_dict()).keys() == {"0.weight", "0.bias"}
        with pytest.raises(SkipwayError, match="no parameter '0.bias'; both must be of one architecture"):
            state_of(net, nn.Sequential(nn.Linear(3, 2, bias=False)))
        with pytest.raises(SkipwayError, match=r"'0.weight' is of shape \(2, 3\) here and \(2, 4\)"):
            state_of(net, mlp(4, 2))
        with pytest.raises(SkipwayError, match="another point is a model, a state dictionary or a weight file"):
            state_of(net, 3)

    def test_given_directions(self):
        net = mlp(3, 2)
        with pytest.raises(SkipwayError, match="no parameter '0.wieght'; did you mean '0.weight'"):
            check_direction(net, {"0.wieght": torch.zeros(2, 3)})
        with pytest.raises(SkipwayError, match="must be a tensor of shape"):
            check_direction(net, {"0.weight": torch.zeros(3, 3)})
        with pytest.raises(SkipwayError, match="is not finite"):
            check_direction(net, {"0.weight": torch.full((2, 3), torch.nan)})
