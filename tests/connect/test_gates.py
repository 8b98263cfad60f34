"""Gates and squeeze-and-excitation equal the equations of their papers, on maps and on tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skipway as sw

SHAPES: dict[str, tuple[int, tuple[int, ...]]] = {
    "tokens": (0, (2, 5, 4)),
    "vectors": (0, (3, 4)),
    "windows of tokens": (0, (2, 3, 5, 4)),
    "1-d": (1, (2, 4, 5)),
    "2-d": (2, (2, 4, 5, 3)),
    "3-d": (3, (2, 4, 3, 2, 2)),
}
data = pytest.mark.parametrize(("dims", "shape"), SHAPES.values(), ids=list(SHAPES))


def linear(x: Tensor, weight: Tensor, bias: Tensor, dims: int) -> Tensor:
    """A linear map of the channels at every position."""
    if dims == 0:
        return torch.einsum("oc,...c->...o", weight, x) + bias
    return torch.einsum("oc,nc...->no...", weight.flatten(1), x) + bias.view(1, -1, *(1,) * dims)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def pooled(x: Tensor, dims: int) -> Tensor:
    """The mean over all positions of one sample."""
    if dims:
        return x.flatten(2).mean(2).view(*x.shape[:2], *(1,) * dims)
    if x.ndim == 2:
        return x
    return x.flatten(1, -2).mean(1).view(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])


def block(skip: sw.Residual, dims: int, **site: Any) -> sw.Skip:
    made = sw.Skip(torch.sin, skip, channels=4, dims=dims, **site).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


@data
def test_highway(agree: Callable[..., None], dims: int, shape: tuple[int, ...]) -> None:
    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        transform = sigmoid(linear(x, *weights.values(), dims=dims))
        return transform * torch.sin(x) + (1 - transform) * x

    agree(block(sw.Residual(gate=sw.Highway()), dims), formula, torch.randn(shape, dtype=torch.float64))


@data
def test_the_shortcut_only_gate_of_he_2016(agree: Callable[..., None], dims: int, shape: tuple[int, ...]) -> None:
    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return torch.sin(x) + (1 - sigmoid(linear(x, *weights.values(), dims=dims))) * x

    agree(block(sw.Residual(gate=sw.ShortcutGate()), dims), formula, torch.randn(shape, dtype=torch.float64))


@data
def test_the_pooled_gate(agree: Callable[..., None], dims: int, shape: tuple[int, ...]) -> None:
    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        value = torch.sin(x)
        alpha = sigmoid(linear(pooled(value, dims), *weights.values(), dims=dims))
        return alpha * value + (1 - alpha) * x

    agree(block(sw.Residual(gate=sw.PooledGate()), dims), formula, torch.randn(shape, dtype=torch.float64))


@data
@pytest.mark.parametrize("weighs", ["both", "shortcut"])
@pytest.mark.parametrize("reads", ["stream", "branch"])
@pytest.mark.parametrize("is_pooled", [False, True])
def test_every_gate_there_can_be(
    agree: Callable[..., None], dims: int, shape: tuple[int, ...], weighs: str, reads: str, is_pooled: bool
) -> None:
    gate = sw.Gate(0.0, weighs, reads, is_pooled)  # type: ignore[arg-type]

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        value = torch.sin(x)
        source = x if reads == "stream" else value
        g = sigmoid(linear(pooled(source, dims) if is_pooled else source, *weights.values(), dims=dims))
        return (g if weighs == "both" else 1) * value + (1 - g) * x

    agree(block(sw.Residual(gate=gate), dims), formula, torch.randn(shape, dtype=torch.float64))


@data
@pytest.mark.parametrize("reduction", [1, 2, 16])
def test_squeeze_and_excitation(agree: Callable[..., None], dims: int, shape: tuple[int, ...], reduction: int) -> None:
    skip = sw.Residual(reweight=sw.SqueezeExcite(reduction))

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        down, down_bias, up, up_bias = weights.values()
        assert down.shape[:2] == (max(1, 4 // reduction), 4)
        value = torch.sin(x)
        squeezed = linear(pooled(value, dims), down, down_bias, dims).clamp(min=0)
        return x + value * sigmoid(linear(squeezed, up, up_bias, dims))

    agree(block(skip, dims), formula, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize(
    "gate", [sw.Highway(), sw.PooledGate(), sw.ShortcutGate(), sw.Gate(pooled=True), sw.Gate(reads="branch")]
)
@pytest.mark.parametrize("size", [5, 6])
def test_gates_where_the_shape_changes(agree: Callable[..., None], gate: sw.Gate, size: int) -> None:
    branch = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    skip = sw.Residual(gate=gate, shortcut=sw.ZeroPad())
    made = sw.Skip(branch, skip, channels=4, out_channels=6, stride=2).double()
    nn.init.normal_(made.get_parameter("connection.gate.weight.weight"))

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        value = branch(x)
        thinned = x[:, :, ::2, ::2]
        shortcut = torch.cat([thinned, torch.zeros_like(thinned[:, :2])], 1)
        source = (x if gate.pooled else thinned) if gate.reads == "stream" else value
        weight, bias = weights["connection.gate.weight.weight"], weights["connection.gate.weight.bias"]
        g = sigmoid(linear(pooled(source, 2) if gate.pooled else source, weight, bias, 2))
        return (g if gate.weighs == "both" else 1) * value + (1 - g) * shortcut

    agree(made, formula, torch.randn(2, 4, size, size, dtype=torch.float64))


@pytest.mark.parametrize(
    ("gate", "bias"),
    [(sw.Highway(), -2.0), (sw.Highway(-6.0), -6.0), (sw.ShortcutGate(), -6.0), (sw.PooledGate(), 0.0)],
)
def test_gates_start_from_the_published_bias(gate: sw.Gate, bias: float) -> None:
    module = gate.build(sw.Site(4, 4))
    assert (module.get_parameter("weight.bias") == bias).all()


def test_an_open_gate_is_the_branch_and_a_shut_one_the_shortcut() -> None:
    x = torch.randn(2, 4, 3, 3)
    for bias, expected in ((1e3, torch.sin(x)), (-1e3, x)):
        gated = sw.Skip(torch.sin, sw.Residual(gate=sw.Highway(bias)), channels=4)
        torch.testing.assert_close(gated(x), expected)
    shut = sw.Skip(torch.sin, sw.Residual(gate=sw.ShortcutGate(-1e3)), channels=4)
    assert torch.equal(shut(x), torch.sin(x) + x)
