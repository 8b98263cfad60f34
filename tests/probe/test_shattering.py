"""Shattering against closed forms for random rectifier networks."""

from __future__ import annotations

import copy
import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe.result import load
from skipway.probe.shattering import compare_shattering, noises, shattering

mpl.use("Agg")


class Random(nn.Module):
    """A rectifier network whose units are open at random and independently at every input: the theory's assumption.

    Balduzzi et al. 2017: the correlation of gradients at two inputs is then 1 / 2^L, with skips (3/4)^L.
    """

    def __init__(self, depth: int, skips: bool, points: int, width: int = 300):
        super().__init__()
        self.skips = skips
        self.first = nn.Linear(width, width, bias=False)
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=math.sqrt(2 / width))  # pyright: ignore[reportArgumentType]
        self.register_buffer("gates", (torch.rand(depth, points, width) < 0.5).float())

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for gates, layer in zip(self.gates, self.layers, strict=True):  # pyright: ignore[reportArgumentType]
            value = layer(x) * gates[: len(x)]
            x = x + value if self.skips else value
        return x


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize(("skips", "base"), [(False, 0.5), (True, 0.75)])
def test_random_rectifiers_have_the_correlation_of_the_theorem(depth: int, skips: bool, base: float):
    net = Random(depth, skips, 24)
    found = shattering(net, (torch.randn(2, 300), torch.zeros(2)), points=24, projections=16)
    assert found.correlation == pytest.approx(base**depth, rel=0.15, abs=0.01)


def rectifier(depth: int, skips: bool, width: int = 200) -> nn.Module:
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(width, width, bias=False)
            nn.init.normal_(self.layer.weight, std=math.sqrt(2 / width))

        def forward(self, x: Tensor) -> Tensor:
            value = self.layer(x.relu())
            return x + value if skips else value

    return nn.Sequential(nn.Linear(width, width, bias=False), *[Block() for _ in range(depth)])


def angles(depth: int) -> list[float]:
    """The angle between two opposite inputs after each layer of a wide rectifier network (Cho and Saul 2009)."""
    found = [math.pi]
    for _ in range(depth - 1):
        angle = found[-1]
        found.append(math.acos(min(1.0, (math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi)))
    return found


def test_of_real_rectifiers_it_is_the_wide_limit():
    # Two units are both open with probability (pi - angle) / 2 pi; each layer then keeps 1 - angle / pi of the
    # correlation. The first layer is linear, so the rectifiers see angles from that of the inputs on.
    x = torch.randn(1, 200)
    other = torch.randn(1, 200)
    other -= (other * x).sum() / (x * x).sum() * x
    inputs = torch.cat([x, other * x.norm() / other.norm()])
    for depth in (1, 3):
        # Inputs at a right angle: the recursion starts there.
        found = [
            shattering(rectifier(depth, False), (inputs, torch.zeros(2)), points=4, projections=16) for _ in range(6)
        ]
        ends = float(np.mean([one.correlations[0, -1] for one in found]))
        angle, expected = math.pi / 2, 1.0
        for _ in range(depth):
            expected *= 1 - angle / math.pi
            angle = math.acos((math.sin(angle) + (math.pi - angle) * math.cos(angle)) / math.pi)
        assert ends == pytest.approx(expected, rel=0.15)


def test_with_skips_gradients_shatter_less_and_with_depth_more():
    # A line past the origin: on one through it, rectifiers without biases have but two gradients.
    inputs = torch.randn(2, 200)
    found = {
        (depth, skips): shattering(rectifier(depth, skips), (inputs, torch.zeros(2)), points=33)
        for depth in (2, 20) for skips in (False, True)
    }  # fmt: skip
    correlations = {key: one.correlation for key, one in found.items()}
    assert correlations[20, False] < correlations[2, False]
    assert correlations[20, False] < correlations[20, True] < correlations[2, True]
    assert found[20, False].effective_rank > found[20, True].effective_rank


def test_a_linear_network_has_one_gradient():
    net = nn.Linear(4, 3).double()
    found = shattering(net, (torch.randn(2, 4), torch.zeros(2)), points=16)
    np.testing.assert_allclose(found.correlations, 1, atol=1e-10)
    assert found.effective_rank == pytest.approx(1)
    assert found.depth == 1


def test_gradients_are_those_of_finite_differences():
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    inputs = torch.randn(2, 3, dtype=torch.float64)
    found = shattering(net, (inputs, torch.zeros(2)), points=9)
    with torch.no_grad():

        def at(t: float) -> float:
            return net(inputs[0] * (1 - t) / 2 + inputs[1] * (1 + t) / 2).item()

        expected = [(at(t + 1e-5) - at(t - 1e-5)) / 2e-5 for t in found.positions]
    np.testing.assert_allclose(found.gradient, expected, rtol=1e-6, atol=1e-9)


def test_its_numbers_are_those_of_numpy_and_scipy():
    """The series of gradients by finite differences; then scipy's correlation, entropy and bounded least squares."""
    from scipy import optimize, signal, stats

    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)).double()
    inputs = 3 * torch.randn(2, 3, dtype=torch.float64)
    found = shattering(net, (inputs, torch.zeros(2)), points=24)
    ends = inputs.numpy()
    line = ends[0] * (1 - found.positions[:, None]) / 2 + ends[1] * (1 + found.positions[:, None]) / 2
    step = 1e-5 * np.eye(3)
    with torch.no_grad():
        sides = [net(torch.from_numpy(line[:, None] + sign * step)).squeeze(-1).numpy() for sign in (1, -1)]
    gradients = (sides[0] - sides[1]) / 2e-5
    centred = gradients - gradients.mean(0)
    columns = [signal.correlate(column, column, mode="full", method="direct")[23:] for column in centred.T]
    correlated = np.sum(columns, axis=0)
    expected = (correlated / correlated[0])[: len(found.autocorrelation)]
    np.testing.assert_allclose(found.autocorrelation, expected, rtol=1e-6, atol=1e-8)
    directions = gradients / np.linalg.norm(gradients, axis=1, keepdims=True)
    shares = np.linalg.svd(directions, compute_uv=False) ** 2 / len(directions)
    assert found.effective_rank == pytest.approx(np.exp(stats.entropy(shares)), rel=1e-6)
    white, brown = noises(24, len(expected))
    fit = optimize.lsq_linear((white - brown)[1:, None], (expected - brown)[1:], bounds=(0, 1))
    assert found.white_share == pytest.approx(fit.x[0], abs=1e-6)


def test_noises_have_their_known_autocorrelations():
    white, brown = noises(64, 32)
    assert white[0] == brown[0] == 1
    assert abs(white[1:]).max() < 2 / 64
    generator = np.random.default_rng(0)
    walks = generator.normal(size=(4000, 64)).cumsum(1)
    walks -= walks.mean(1, keepdims=True)
    measured = [(walks[:, : 64 - lag] * walks[:, lag:]).sum() / (walks**2).sum() for lag in range(32)]
    np.testing.assert_allclose(brown, measured, atol=0.03)


def test_plot_table_file_and_no_trace(tmp_path: Any):
    net = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    before = copy.deepcopy(net.state_dict())
    data = torch.randn(2, 2), torch.zeros(2)
    found = shattering(net, data, points=16, mode="train")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert load(found.save(tmp_path / "shattering")) == found
    assert len(found.plot()) == 3
    assert len(found.table()) == 8
    both = compare_shattering([found, found], ["a", "b"])
    assert len(both.plot()) == 2
    assert load(both.save(tmp_path / "both")) == both
    assert len(list(both.interactive().data)) == 2


def test_slips_are_told():
    net = nn.Linear(2, 2)
    with pytest.raises(SkipwayError, match="at least 4 points"):
        shattering(net, (torch.randn(2, 2), torch.zeros(2)), points=2)
    with pytest.raises(SkipwayError, match="the first batch of the data has one"):
        shattering(net, (torch.randn(1, 2), torch.zeros(1)))
    with pytest.raises(SkipwayError, match="whole numbers"):
        shattering(nn.Embedding(5, 2), (torch.tensor([[1], [2]]), torch.zeros(2)))
