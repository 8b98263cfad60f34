"""Dense connection and concatenation: every branch reads all that came before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import skipway as sw

CONVOLUTIONS = {1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d)}
SHAPES: dict[int, tuple[int, ...]] = {0: (2, 5, 4), 1: (2, 4, 5), 2: (2, 4, 5, 3), 3: (2, 4, 3, 2, 2)}


@pytest.mark.parametrize("skip", ["dense", "concat"])
@pytest.mark.parametrize("dims", SHAPES)
def test_each_branch_reads_the_concatenation_of_all_before(agree: Callable[..., None], skip: str, dims: int) -> None:
    axis = 1 if dims else -1
    widths = (3, 2, 3)

    def layer(channels: int, width: int) -> nn.Module:
        return CONVOLUTIONS[dims][0](channels, width, 1) if dims else nn.Linear(channels, width)

    branches = [layer(4 + sum(widths[:k]), width) for k, width in enumerate(widths)]
    stack = sw.Stack(branches, skip, channels=4, branch_channels=widths, dims=dims).double()
    apply = CONVOLUTIONS[dims][1] if dims else F.linear

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        maps = [x]
        for k in range(len(widths)):
            maps.append(apply(torch.cat(maps, axis), weights[f"{k}.branch.weight"], weights[f"{k}.branch.bias"]))
        return torch.cat(maps, axis)

    assert stack.out_channels == 12
    agree(stack, formula, torch.randn(SHAPES[dims], dtype=torch.float64))


def test_one_dense_step_alone_is_a_concatenation() -> None:
    branch = nn.Conv2d(4, 3, 1)
    x = torch.randn(2, 4, 5, 5)
    expected = torch.cat([x, branch(x)], 1)
    for skip in ("dense", "concat", sw.Dense(), sw.Residual(merge="concat")):
        assert torch.equal(sw.Skip(branch, skip, 4, 3)(x), expected)


def test_the_gradient_reaches_every_earlier_map() -> None:
    """Each of L maps is read by all later branches: with F summing its channels, the derivative counts the paths."""
    stack = sw.Stack([lambda x: x.sum(1, keepdim=True)] * 4, "dense", channels=1, branch_channels=1)
    x = torch.ones(1, 1, 1, 1, requires_grad=True)
    y = stack(x)
    assert y.flatten().tolist() == [1, 1, 2, 4, 8]
    assert torch.autograd.grad(y.sum(), x)[0].item() == 16


def test_concatenation_carries_the_shortcut_at_a_stride() -> None:
    branch = nn.Conv2d(4, 3, 3, stride=2, padding=1)
    x = torch.randn(2, 4, 7, 6)
    skip = sw.Residual(merge="concat", shortcut=sw.ZeroPad())
    block = sw.Skip(branch, skip, channels=4, out_channels=3, stride=2)
    assert torch.equal(block(x), torch.cat([x[:, :, ::2, ::2], branch(x)], 1))
    assert block.connection.out_channels == 7


def test_a_dropped_branch_of_a_concatenation_leaves_zeros() -> None:
    skip = sw.Residual(merge="concat", drop=sw.StochasticDepth(1 - 1e-9))
    x = torch.randn(2, 4, 5, 5)
    y = sw.Skip(nn.Conv2d(4, 3, 1), skip, channels=4, out_channels=3)(x)
    assert torch.equal(y, torch.cat([x, torch.zeros(2, 3, 5, 5)], 1))


def test_streams_of_different_kinds_follow_one_another() -> None:
    """A dense stage may end in a residual block, and the other way round, in one Stack of one's own Skips."""
    growing, keeping, again = nn.Conv2d(4, 3, 1), nn.Conv2d(7, 7, 1), nn.Conv2d(7, 2, 1)
    stack = sw.Stack([sw.Skip(growing, "dense", 4, 3), sw.Skip(keeping, channels=7), sw.Skip(again, "dense", 7, 2)])
    x = torch.randn(1, 4, 5, 5)
    a = torch.cat([x, growing(x)], 1)
    b = a + keeping(a)
    torch.testing.assert_close(stack(x), torch.cat([b, again(b)], 1))
    assert stack.out_channels == 9


@pytest.mark.parametrize(
    "value", [torch.ones(2, 3, 4, 5), torch.ones(2, 3, 1, 1), torch.ones(1, 3, 5, 5), torch.ones(2, 3, 5)]
)
def test_maps_of_another_size_are_not_appended(value: Tensor) -> None:
    block = sw.Skip(lambda x: value, "dense", channels=4, out_channels=3)
    with pytest.raises(sw.SkipwayError, match=r"put out .* where \(2, 3, 5, 5\) can be appended"):
        block(torch.randn(2, 4, 5, 5))
