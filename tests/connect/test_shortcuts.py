"""Every shortcut equals its equation: what it computes, and the gradient that flows back through it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import skipway as sw
from skipway.connect import Part

DIMS = (1, 2, 3)
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (7,), 2: (7, 6), 3: (5, 4, 3)}


def subsampled(x: Tensor, stride: int) -> Tensor:
    for axis in range(2, x.ndim):
        x = x.index_select(axis, torch.arange(0, x.shape[axis], stride))
    return x


def averaged(x: Tensor, stride: int) -> Tensor:
    """Means over windows of the stride; the last window holds what is left."""
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        windows = [x.narrow(axis, i, min(stride, size - i)).mean(axis) for i in range(0, size, stride)]
        x = torch.stack(windows, axis)
    return x


def padded(x: Tensor, before: int, after: int) -> Tensor:
    def zeros(channels: int) -> Tensor:
        return x.new_zeros(x.shape[0], channels, *x.shape[2:])

    return torch.cat([zeros(before), x, zeros(after)], 1)


def projected(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("oc,nc...->no...", weight.flatten(1), x)


def normalized(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    axes = [0, *range(2, x.ndim)]
    mean = x.mean(axes, keepdim=True)
    variance = ((x - mean) ** 2).mean(axes, keepdim=True)
    shape = (1, -1, *(1,) * (x.ndim - 2))
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight.view(shape) + bias.view(shape)


def built(part: Part, site: sw.Site) -> nn.Module:
    module = part.build(site).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("out_channels", [4, 6, 9])
@pytest.mark.parametrize("channels", ["append", "split"])
@pytest.mark.parametrize("spatial", ["subsample", "average"])
def test_zero_padding_in_both_layouts(
    agree: Callable[..., None], dims: int, stride: int, out_channels: int, channels: str, spatial: str
) -> None:
    part = sw.ZeroPad(spatial=spatial, channels=channels)  # type: ignore[arg-type]
    new = out_channels - 4
    before = new // 2 if channels == "split" else 0

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        thinned = subsampled(x, stride) if spatial == "subsample" else averaged(x, stride)
        return padded(thinned, before, new - before)

    x = torch.randn(2, 4, *SIZES[dims], dtype=torch.float64)
    agree(built(part, sw.Site(4, out_channels, stride, dims=dims)), formula, x)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("out_channels", [4, 6])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("pool", [False, True])
def test_projection_with_every_option(
    agree: Callable[..., None], dims: int, stride: int, out_channels: int, everywhere: bool, norm: bool, pool: bool
) -> None:
    module = built(sw.Projection(everywhere, norm, pool), sw.Site(4, out_channels, stride, dims=dims))

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        if stride == 1 and out_channels == 4 and not everywhere:
            assert not weights
            return x * 1
        parameters = list(weights.values())
        assert len(parameters) == (3 if norm else 1)
        x = projected(averaged(x, stride) if pool else subsampled(x, stride), parameters[0])
        return normalized(x, parameters[1], parameters[2]) if norm else x

    agree(module, formula, torch.randn(3, 4, *SIZES[dims], dtype=torch.float64))


@pytest.mark.parametrize("part", [sw.Projection(), sw.Projection(everywhere=True), sw.Projection(pool=True)])
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 5, 4)])
def test_tokens_are_projected_by_a_bare_linear_map(
    agree: Callable[..., None], part: sw.Projection, shape: tuple[int, ...]
) -> None:
    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        (weight,) = weights.values()
        return x @ weight.T

    agree(built(part, sw.Site(4, 6, dims=0)), formula, torch.randn(shape, dtype=torch.float64))


@pytest.mark.parametrize(("channels", "before"), [("append", 0), ("split", 1)])
def test_tokens_are_padded_in_their_last_axis(agree: Callable[..., None], channels: str, before: int) -> None:
    part = sw.ZeroPad(channels=channels)  # type: ignore[arg-type]

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        zeros = x.new_zeros(2, 3, 3)
        return torch.cat([zeros[..., :before], x, zeros[..., before:]], -1)

    agree(built(part, sw.Site(4, 7, dims=0)), formula, torch.randn(2, 3, 4, dtype=torch.float64))


@pytest.mark.parametrize("part", [sw.Identity(), sw.Projection(), sw.Projection(pool=True), sw.ZeroPad()])
@pytest.mark.parametrize("dims", [0, *DIMS])
def test_where_nothing_changes_the_shortcut_is_the_stream_itself(part: Part, dims: int) -> None:
    x = torch.randn(2, *([4, *SIZES[dims]] if dims else [3, 4]))
    assert part.build(sw.Site(4, 4, dims=dims))(x) is x


@pytest.mark.parametrize("part", [sw.Projection(), sw.Projection(pool=True), sw.ZeroPad(), sw.ZeroPad("average")])
@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_the_shortcut_has_the_size_of_a_3x3_branch_at_any_size(part: Part, dims: int, stride: int) -> None:
    branch = CONVOLUTIONS[dims](2, 3, 3, stride=stride, padding=1)
    shortcut = part.build(sw.Site(2, 3, stride, dims=dims)).eval()
    for size in range(1, 10):
        x = torch.randn(2, 2, *(size,) * dims)
        assert shortcut(x).shape == branch(x).shape


@pytest.mark.parametrize("size", [5, 6, 7, 8])
def test_resnet_d_averages_a_ragged_border_over_what_is_there(size: int) -> None:
    x = torch.randn(2, 3, size, size)
    module = sw.Projection(norm=False, pool=True).build(sw.Site(3, 5, 2))
    pooled = F.avg_pool2d(x, 2, 2, ceil_mode=True, count_include_pad=False)
    torch.testing.assert_close(module(x), F.conv2d(pooled, module.get_parameter("1.weight")))
    ones = torch.ones(1, 3, size, size)
    torch.testing.assert_close(sw.ZeroPad("average").build(sw.Site(3, 4, 2))(ones)[:, :3].min(), torch.tensor(1.0))


def test_the_layouts_of_zero_padding_differ_where_they_are_said_to() -> None:
    x = torch.randn(1, 2, 4, 4)
    append, split = (sw.ZeroPad(channels=c).build(sw.Site(2, 6, 2))(x) for c in ("append", "split"))
    torch.testing.assert_close(append[:, :2], split[:, 2:4])
    assert not append[:, 2:].any()
    assert not split[:, [0, 1, 4, 5]].any()
    assert append[:, :2].all()
