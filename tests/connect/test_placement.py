"""The placements of norms and activations equal their equations, with every norm, on maps and on tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway.connect import Part
from skipway.connect.placement import PLACEMENTS

SHAPES: dict[int, tuple[int, ...]] = {0: (3, 5, 6), 1: (3, 6, 5), 2: (3, 6, 5, 4), 3: (3, 6, 3, 2, 2)}
NORMS = {0: ("layer", "rms"), 1: ("batch", "layer", "group"), 2: ("batch", "layer", "group"), 3: ("batch", "layer")}
KINDS = [(dims, kind) for dims, kinds in NORMS.items() for kind in kinds]

Apply = Callable[[Tensor], Tensor]


def relu(x: Tensor) -> Tensor:
    return x.clamp(min=0)


# The equations of the papers, by what stands before the branch (b), behind it (o) and after the sum (a); S is x, or
# nothing at all in the plain network.
EQUATIONS: dict[str, Callable[[Tensor, Apply, Apply, Apply, Apply, Apply], Tensor]] = {
    "bare": lambda x, S, F, b, o, a: S(x) + F(x),
    "original": lambda x, S, F, b, o, a: relu(S(x) + o(F(x))),
    "norm-after-sum": lambda x, S, F, b, o, a: relu(a(S(x) + F(x))),
    "relu-before-sum": lambda x, S, F, b, o, a: S(x) + relu(o(F(x))),
    "relu-pre-activation": lambda x, S, F, b, o, a: S(x) + o(F(relu(x))),
    "pre-activation": lambda x, S, F, b, o, a: S(x) + F(relu(b(x))),
    "pre-norm": lambda x, S, F, b, o, a: S(x) + F(b(x)),
    "post-norm": lambda x, S, F, b, o, a: a(S(x) + F(x)),
    "branch-norm": lambda x, S, F, b, o, a: S(x) + o(F(x)),
    "sandwich": lambda x, S, F, b, o, a: S(x) + o(F(b(x))),
}


def normed(kind: str, x: Tensor, weights: dict[str, Tensor], slot: str) -> Tensor:
    """Each norm from its definition: subtract the mean, divide by the root of the variance, over its own axes."""
    weight = weights[f"connection.norm_{slot}.weight"]
    groups = {"batch": None, "layer": 1, "group": 2, "rms": None}[kind]
    channels_last = x.ndim == 3 and x.shape[-1] == len(weight) and kind in ("layer", "rms")
    if channels_last:
        mean = x.mean(-1, keepdim=True) if kind == "layer" else 0
        epsilon = 1e-5 if kind == "layer" else torch.finfo(x.dtype).eps
        y = (x - mean) / torch.sqrt(((x - mean) ** 2).mean(-1, keepdim=True) + epsilon) * weight
        return y + weights[f"connection.norm_{slot}.bias"] if kind == "layer" else y
    if groups is None:
        axes, y = [0, *range(2, x.ndim)], x
    else:
        y = x.reshape(x.shape[0], groups, -1)
        axes = [2]
    mean = y.mean(axes, keepdim=True)
    y = ((y - mean) / torch.sqrt(((y - mean) ** 2).mean(axes, keepdim=True) + 1e-5)).reshape(x.shape)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return y * weight.view(shape) + weights[f"connection.norm_{slot}.bias"].view(shape)


@pytest.mark.parametrize("name", PLACEMENTS)
@pytest.mark.parametrize(("dims", "kind"), KINDS)
@pytest.mark.parametrize("skips", [True, False], ids=["residual", "plain"])
def test_every_placement_with_every_norm(
    agree: Callable[..., None], name: str, dims: int, kind: str, skips: bool
) -> None:
    named = PLACEMENTS[name]
    placement = sw.Placement(named.before, named.out, named.after, kind)  # type: ignore[arg-type]
    skip = sw.Residual(placement=placement) if skips else sw.Plain(placement)
    block = sw.Skip(torch.sin, skip, channels=6, dims=dims).double()
    for parameter in block.parameters():
        nn.init.normal_(parameter)

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        before, out, after = (
            lambda v, slot=slot: normed(kind, v, weights, slot) for slot in ("before", "out", "after")
        )
        return EQUATIONS[name](x, (lambda v: v) if skips else torch.zeros_like, torch.sin, before, out, after)

    agree(block, formula, torch.randn(SHAPES[dims], dtype=torch.float64))


@pytest.mark.parametrize("dims", SHAPES)
def test_the_usual_norm_is_batch_norm_for_maps_and_layer_norm_for_tokens(dims: int) -> None:
    block = sw.Skip(torch.sin, "pre-norm", channels=6, dims=dims)
    usual = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims]
    assert type(block.connection.get_submodule("norm_before")) is usual


@pytest.mark.parametrize(("channels", "groups"), [(64, 32), (48, 16), (32, 32), (6, 2), (7, 1)])
def test_group_norm_has_32_groups_or_what_divides(channels: int, groups: int) -> None:
    block = sw.Skip(torch.sin, sw.Residual(placement=sw.Placement(before=("norm",), norm="group")), channels=channels)
    norm = block.connection.get_submodule("norm_before")
    assert isinstance(norm, nn.GroupNorm)
    assert norm.num_groups == groups


@pytest.mark.parametrize("name", ["pre-activation", "relu-pre-activation", "pre-norm", "sandwich"])
@pytest.mark.parametrize("shortcut", [sw.Projection(norm=False), sw.ZeroPad()])
def test_a_projection_reads_what_the_branch_reads_and_padding_the_raw_stream(
    agree: Callable[..., None], name: str, shortcut: Part
) -> None:
    named = PLACEMENTS[name]
    branch = nn.Conv2d(6, 8, 3, stride=2, padding=1)
    skip = sw.Residual(shortcut=shortcut, placement=sw.Placement(named.before, (), ()))
    block = sw.Skip(branch, skip, channels=6, out_channels=8, stride=2).double()

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        read = normed("batch", x, weights, "before") if "norm" in named.before else x
        read = relu(read) if "relu" in named.before else read
        value = branch(read)
        if isinstance(shortcut, sw.ZeroPad):
            return torch.cat([x, torch.zeros_like(x[:, :2])], 1)[:, :, ::2, ::2] + value
        weight = weights["connection.shortcut.0.weight"].flatten(1)
        return torch.einsum("oc,nchw->nohw", weight, read[:, :, ::2, ::2]) + value

    agree(block, formula, torch.randn(2, 6, 7, 6, dtype=torch.float64))


def test_norms_follow_the_channels_where_they_stand() -> None:
    skip = sw.Residual(placement=sw.Placement(("norm",), ("norm",), ("norm",)), merge="concat")
    block = sw.Skip(nn.Conv2d(4, 6, 1), skip, channels=4, out_channels=6)
    features = [block.get_parameter(f"connection.norm_{slot}.weight").numel() for slot in ("before", "out", "after")]
    assert features == [4, 6, 10]
    assert block(torch.randn(2, 4, 3, 3)).shape == (2, 10, 3, 3)


def test_evaluation_takes_the_running_statistics(agree: Callable[..., None]) -> None:
    block = sw.Skip(torch.sin, "post-norm", channels=6).double()
    for _ in range(3):
        block(torch.randn(8, 6, 2, 2, dtype=torch.float64) * 3 + 1)
    norm = block.eval().connection.get_submodule("norm_after")
    mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    assert mean.abs().min() > 0

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        weight, bias = (weights[f"connection.norm_after.{name}"].view(-1, 1, 1) for name in ("weight", "bias"))
        standard = (x + torch.sin(x) - mean.view(-1, 1, 1)) / torch.sqrt(variance.view(-1, 1, 1) + 1e-5)
        return standard * weight + bias

    agree(block, formula, torch.randn(2, 6, 2, 2, dtype=torch.float64))
