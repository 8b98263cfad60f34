"""What long skips are made of: the attention gate and the residual path equal their papers' equations at any site."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.slips import gives_one_sentence
from torch import Tensor, nn

import skipway as sw
from skipway.connect import AttentionGate, ResidualPath

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SHAPES: dict[int, tuple[int, ...]] = {1: (2, 4, 5), 2: (2, 4, 5, 3), 3: (2, 4, 3, 2, 3)}


class Written(nn.Module):
    """A connection between a map that it is given and another, as a U-Net's decoder uses it."""

    def __init__(self, skip: sw.Residual, site: sw.Site) -> None:
        super().__init__()
        self.connection = skip.build(site)

    def forward(self, x: Tensor, value: Tensor) -> Tensor:
        return self.connection.write(self.connection.open(x), value)


def written(skip: sw.Residual, site: sw.Site) -> Written:
    made = Written(skip, site).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter)
    return made


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, dims: int) -> Tensor:
    """A linear map of the channels at every position."""
    if dims == 0:
        y = torch.einsum("oc,...c->...o", weight, x)
        return y if bias is None else y + bias
    y = torch.einsum("oc,nc...->no...", weight.flatten(1), x)
    return y if bias is None else y + bias.view(1, -1, *(1,) * dims)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
@pytest.mark.parametrize(("merge", "width"), [("concat", 6), ("concat", 4), ("add", 4), ("add", 6)])
@pytest.mark.parametrize("channels", [None, 3])
def test_the_attention_gate(
    agree: Callable[..., None], dims: int, merge: str, width: int, channels: int | None
) -> None:
    skip = sw.Residual(gate=AttentionGate(channels), merge=merge, shortcut=sw.ZeroPad())  # type: ignore[arg-type]
    axis = 1 if dims else -1
    carried = 4 if merge == "concat" else width

    def formula(x: Tensor, value: Tensor, w: dict[str, Tensor]) -> Tensor:
        if carried > 4:
            x = torch.cat([x, torch.zeros_like(x.narrow(axis, 0, carried - 4))], axis)
        theta, phi, psi = (w[f"connection.gate.{name}.weight"] for name in ("theta", "phi", "psi"))
        assert theta.shape[:2] == (channels or carried // 2, carried)
        between = linear(x, theta, None, dims) + linear(value, phi, w["connection.gate.phi.bias"], dims)
        attention = 1 / (1 + torch.exp(-linear(between.clamp(min=0), psi, w["connection.gate.psi.bias"], dims)))
        return torch.cat([attention * x, value], axis) if merge == "concat" else attention * x + value

    x = torch.randn(SHAPES[dims] if dims else (2, 5, 4), dtype=torch.float64)
    value = torch.randn((2, width, *x.shape[2:]) if dims else (2, 5, width), dtype=torch.float64)
    agree(written(skip, sw.Site(4, width, dims=dims)), formula, x, value)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("out_channels", "stride"), [(4, 1), (6, 1), (6, 2)])
def test_the_residual_path(agree: Callable[..., None], dims: int, steps: int, out_channels: int, stride: int) -> None:
    module = ResidualPath(steps).build(sw.Site(4, out_channels, stride, dims=dims)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)

    def formula(x: Tensor, w: dict[str, Tensor]) -> Tensor:
        for step in range(steps):
            by = stride if step == 0 else 1
            wide = CONVOLVE[dims](x, w[f"{step}.conv.weight"], stride=by, padding=1)
            x = wide + CONVOLVE[dims](x, w[f"{step}.connection.shortcut.0.weight"], stride=by)
            axes, view = [0, *range(2, x.ndim)], (1, -1, *(1,) * dims)
            mean, variance = x.mean(axes, keepdim=True), x.var(axes, keepdim=True, correction=0)
            weight, bias = (w[f"{step}.connection.norm_after.{name}"].view(view) for name in ("weight", "bias"))
            x = ((x - mean) / (variance + 1e-5).sqrt() * weight + bias).clamp(min=0)
        return x

    agree(module, formula, torch.randn(SHAPES[dims], dtype=torch.float64))


def test_the_longest_of_a_unets_paths_has_the_most_steps() -> None:
    built = [ResidualPath().build(sw.Site(4, 4, index=level, depth=4)) for level in range(4)]
    assert [len(path) for path in built] == [4, 3, 2, 1]  # type: ignore[arg-type]


def test_an_attention_gate_that_is_shut_leaves_the_branch_and_one_that_is_open_leaves_all() -> None:
    x, value = torch.randn(2, 4, 3, 3), torch.randn(2, 6, 3, 3)
    made = Written(sw.Residual(gate=AttentionGate(), merge="concat"), sw.Site(4, 6))
    for bias, expected in ((-1e4, torch.cat([torch.zeros_like(x), value], 1)), (1e4, torch.cat([x, value], 1))):
        nn.init.constant_(made.get_parameter("connection.gate.psi.bias"), bias)
        torch.testing.assert_close(made(x, value), expected)


SLIPS: dict[str, tuple[Callable[[], object], str]] = {
    "no channels between": (lambda: AttentionGate(0), "an attention gate needs at least one channel between, not 0"),
    "no steps": (lambda: ResidualPath(0), "a residual path needs at least one step, not 0"),
    "a path of tokens": (
        lambda: sw.Skip(nn.Linear(4, 4), "residual-path", 4, dims=0),
        "a residual path convolves over the neighbours of each position, which tokens (dims=0) do not have",
    ),
    "a gate on what is dropped": (
        lambda: sw.Residual(gate=AttentionGate(), merge="concat", drop=0.5),
        "an attention gate reads what the branch put out, which drop= leaves out: drop one",
    ),
    "a gate as a shortcut": (
        lambda: sw.Residual(shortcut=AttentionGate()),
        "shortcut= takes Identity(), Projection() or ZeroPad(), not AttentionGate",
    ),
    "the class of a gate": (
        lambda: sw.Residual(gate=AttentionGate),  # type: ignore[arg-type]
        "not the class AttentionGate: call it",
    ),
    "a gate as a connection": (
        lambda: sw.Skip(torch.sin, AttentionGate(), 4),  # type: ignore[arg-type]
        "AttentionGate is a part of a connection: write skip=Residual(gate=AttentionGate(...))",
    ),
    "a path as a connection": (
        lambda: sw.Skip(torch.sin, ResidualPath(), 4),  # type: ignore[arg-type]
        "ResidualPath is a part of a connection: write skip=Residual(shortcut=ResidualPath(...))",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.usefixtures("no_shape_checks")
def test_each_slip_gives_one_clear_sentence(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])
