"""The laws of the algebra, for any shape: what is the identity at the start, and that no path loses its gradient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import skipway as sw

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
dimensions = st.sampled_from([0, 1, 2, 3])
channel_counts = st.integers(1, 7)
sizes = st.integers(1, 5)
seeds = st.integers(0, 2**16)


def branch(dims: int, channels: int) -> nn.Module:
    linear = nn.Linear(channels, channels) if dims == 0 else CONVOLUTIONS[dims](channels, channels, 3, padding=1)
    return nn.Sequential(linear, nn.ELU())


def data(dims: int, n: int, channels: int, size: int) -> Tensor:
    return torch.randn(n, *((size, channels) if dims == 0 else (channels, *(size,) * dims)))


@pytest.mark.parametrize("name", ["rezero", "skipinit"])
@settings(max_examples=40)
@given(dims=dimensions, n=st.integers(0, 3), channels=channel_counts, size=sizes, depth=st.integers(1, 8), seed=seeds)
def test_a_scale_that_starts_at_zero_gives_exactly_the_identity(
    name: str, dims: int, n: int, channels: int, size: int, depth: int, seed: int
) -> None:
    torch.manual_seed(seed)
    stack = sw.Stack([branch(dims, channels) for _ in range(depth)], name, channels, dims=dims)
    x = data(dims, n, channels, size).requires_grad_()
    y = stack(x)
    assert torch.equal(y, x)
    back = torch.randn_like(y)
    assert torch.equal(torch.autograd.grad(y, x, back)[0], back)


@settings(max_examples=40)
@given(dims=dimensions, n=st.integers(1, 3), channels=channel_counts, size=sizes, depth=st.integers(1, 8), seed=seeds)
def test_highway_with_a_very_negative_bias_is_the_identity(
    dims: int, n: int, channels: int, size: int, depth: int, seed: int
) -> None:
    torch.manual_seed(seed)
    skip = sw.Residual(gate=sw.Highway(bias=-60.0))
    stack = sw.Stack([branch(dims, channels) for _ in range(depth)], skip, channels, dims=dims).double()
    x = data(dims, n, channels, size).double().requires_grad_()
    torch.testing.assert_close(stack(x), x, rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(stack(x).sum(), x)
    torch.testing.assert_close(gradient, torch.ones_like(x), rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(
    dims=st.sampled_from([1, 2, 3]),
    channels=channel_counts,
    new=st.integers(0, 7),
    stride=st.integers(1, 3),
    size=st.integers(1, 7),
    split=st.booleans(),
    average=st.booleans(),
    seed=seeds,
)
def test_the_gradient_of_option_a_is_what_comes_back_at_the_kept_places(
    dims: int, channels: int, new: int, stride: int, size: int, split: bool, average: bool, seed: int
) -> None:
    """With the branch at zero all gradient comes through the padded shortcut: one library's detaches it there."""
    torch.manual_seed(seed)
    pad = sw.ZeroPad("average" if average else "subsample", "split" if split else "append")
    convolution = CONVOLUTIONS[dims](channels, channels + new, 3, stride=stride, padding=1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    block = sw.Skip(convolution, sw.Residual(shortcut=pad), channels, channels + new, stride, dims)
    x = data(dims, 2, channels, size).requires_grad_()
    y = block(x)
    back = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, back)
    before = new // 2 if split else 0
    kept = back[:, before : before + channels]
    expected = torch.zeros_like(x)
    if average:
        for axis in range(2, 2 + dims):
            counts = torch.tensor([min(stride, size - i) for i in range(0, size, stride)])
            shape = [1] * (2 + dims)
            shape[axis] = -1
            kept = (kept / counts.view(shape)).repeat_interleave(counts, axis)
        expected = kept
    else:
        expected[(..., *[slice(None, None, stride)] * dims)] = kept
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().max() > 0


@settings(max_examples=40)
@given(dims=dimensions, channels=channel_counts, size=sizes, depth=st.integers(1, 8), seed=seeds)
def test_layerscale_starts_within_its_scale_of_the_identity(
    dims: int, channels: int, size: int, depth: int, seed: int
) -> None:
    torch.manual_seed(seed)
    stack = sw.Stack([nn.Hardtanh() for _ in range(depth)], "layerscale", channels, dims=dims)
    x = data(dims, 2, channels, size)
    assert (stack(x) - x).abs().max() <= 1.01e-5 * depth + 1e-6


@settings(max_examples=40)
@given(dims=dimensions, channels=channel_counts, size=sizes, depth=st.integers(1, 6), seed=seeds)
def test_the_gradient_of_a_residual_stack_is_the_product_of_identity_plus_jacobian(
    dims: int, channels: int, size: int, depth: int, seed: int
) -> None:
    """With F(x) = w x at every branch, dy/dx is exactly the product of (1 + w)."""
    torch.manual_seed(seed)
    weights = torch.randn(depth, dtype=torch.float64)
    stack = sw.Stack([lambda x, w=w: w * x for w in weights], "residual", channels, dims=dims)
    x = data(dims, 2, channels, size).double().requires_grad_()
    (gradient,) = torch.autograd.grad(stack(x).sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, float(torch.prod(1 + weights))))


@settings(max_examples=40)
@given(dims=dimensions, channels=channel_counts, size=sizes, depth=st.integers(1, 6), seed=seeds)
def test_without_skips_a_stack_is_its_branches_one_after_the_other(
    dims: int, channels: int, size: int, depth: int, seed: int
) -> None:
    torch.manual_seed(seed)
    branches = [branch(dims, channels) for _ in range(depth)]
    x = data(dims, 2, channels, size)
    assert torch.equal(sw.Stack(branches, "none", channels, dims=dims)(x), nn.Sequential(*branches)(x))


@settings(max_examples=40)
@given(dims=dimensions, channels=channel_counts, size=sizes, deeper=st.integers(1, 6), seed=seeds)
def test_a_stack_deepened_by_zero_branches_computes_the_same_but_without_skips_it_does_not(
    dims: int, channels: int, size: int, deeper: int, seed: int
) -> None:
    """The construction argument of He 2015, on branches; on whole networks it is tested beside the models."""
    torch.manual_seed(seed)
    shallow = [branch(dims, channels) for _ in range(2)]
    added = [branch(dims, channels) for _ in range(deeper)]
    x = data(dims, 2, channels, size) + 3
    for skip, same in (("residual", True), ("none", False)):
        old = sw.Stack(shallow, skip, channels, dims=dims)
        new = [sw.Skip(b, "rezero" if skip == "residual" else "none", channels, dims=dims) for b in added]
        assert torch.equal(sw.Stack([*old, *new])(x), old(x)) == same
