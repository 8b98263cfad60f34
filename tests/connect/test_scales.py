"""Factors on the branch and on the shortcut equal v -> a v, learned or not, at every depth and in every precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import skipway as sw

SHAPES = {0: (2, 3, 4), 1: (2, 4, 5), 2: (2, 4, 5, 3), 3: (2, 4, 3, 2, 2)}


def along(vector: Tensor, x: Tensor, dims: int) -> Tensor:
    """One number a channel, spread over a tensor by hand."""
    return vector.expand_as(x) if dims == 0 else vector.view(1, -1, *(1,) * dims).expand_as(x)


@pytest.mark.parametrize("dims", SHAPES)
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_a_learned_scale_multiplies(agree: Callable[..., None], dims: int, per: str) -> None:
    scale = sw.Scale(0.3, learned=True, per=per)  # type: ignore[arg-type]
    module = scale.build(sw.Site(4, 4, dims=dims)).double()
    nn.init.normal_(module.get_parameter("scale"))

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        (a,) = weights.values()
        return a * x if per == "tensor" else along(a, x, dims) * x

    agree(module, formula, torch.randn(SHAPES[dims], dtype=torch.float64))


@pytest.mark.parametrize("dims", SHAPES)
def test_a_constant_scale_has_no_parameters(agree: Callable[..., None], dims: int) -> None:
    module = sw.Constant(0.17).build(sw.Site(4, 4, dims=dims))
    assert not list(module.parameters())
    agree(module, lambda x, weights: 0.17 * x, torch.randn(SHAPES[dims], dtype=torch.float64))


@pytest.mark.parametrize("on", ["scale", "shortcut_scale"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
@pytest.mark.parametrize("dims", SHAPES)
def test_scales_stand_on_the_branch_or_on_the_shortcut(
    agree: Callable[..., None], on: str, per: str, dims: int
) -> None:
    scale = sw.Scale(0.5, learned=True, per=per)  # type: ignore[arg-type]
    fields: dict[str, Any] = {on: scale}
    block = sw.Skip(torch.sin, sw.Residual(**fields), channels=4, dims=dims).double()
    nn.init.normal_(block.get_parameter(f"connection.{on}.scale"))

    def formula(x: Tensor, weights: dict[str, Tensor]) -> Tensor:
        (a,) = weights.values()
        a = a if per == "tensor" else along(a, x, dims)
        return x + a * torch.sin(x) if on == "scale" else a * x + torch.sin(x)

    agree(block, formula, torch.randn(SHAPES[dims], dtype=torch.float64))


def test_both_scales_at_once_give_the_half_and_half_of_he_2016(agree: Callable[..., None]) -> None:
    block = sw.Skip(torch.sin, sw.Residual(scale=sw.Constant(0.5), shortcut_scale=sw.Constant(0.5)), channels=4)
    agree(block, lambda x, weights: 0.5 * x + 0.5 * torch.sin(x), torch.randn(2, 4, 3, 3, dtype=torch.float64))


def test_factors_on_the_shortcut_multiply_up_over_depth() -> None:
    skip = sw.Residual(shortcut_scale=sw.Constant(0.5), scale=sw.Constant(0.0))
    stack = sw.Stack([nn.Identity() for _ in range(10)], skip, channels=4)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(stack(x), x * 0.5**10)


@pytest.mark.parametrize(
    ("scale", "start", "learned", "shape"),
    [
        (sw.ReZero(), 0.0, True, ()),
        (sw.SkipInit(), 0.0, True, ()),
        (sw.LayerScale(), 1e-5, True, (8,)),
        (sw.LayerScale(1e-6), 1e-6, True, (8,)),
        (sw.Constant(0.2), 0.2, False, ()),
        (sw.Constant(depth_power=0.25), 2.0, False, ()),
        (sw.Scale(depth_power=-0.5, learned=True, per="channel"), 0.25, True, (8,)),
    ],
)
def test_published_scales_start_where_their_papers_say(
    scale: sw.Scale, start: float, learned: bool, shape: tuple[int, ...]
) -> None:
    module = scale.build(sw.Site(4, 8, index=3, depth=16))
    parameters = list(module.parameters())
    assert len(parameters) == (1 if learned else 0)
    if learned:
        torch.testing.assert_close(parameters[0].detach(), torch.full(shape, start))
    torch.testing.assert_close(module(torch.ones(1, 8, 2, 2)), torch.full((1, 8, 2, 2), start))


def test_a_scale_on_the_shortcut_of_a_concatenation_has_the_channels_of_the_stream() -> None:
    skip = sw.Residual(merge="concat", shortcut_scale=sw.LayerScale(2.0), scale=sw.LayerScale(3.0))
    block = sw.Skip(nn.Conv2d(4, 6, 1), skip, channels=4, out_channels=6)
    assert block.get_parameter("connection.shortcut_scale.scale").shape == (4,)
    assert block.get_parameter("connection.scale.scale").shape == (6,)
    x = torch.randn(2, 4, 3, 3)
    assert isinstance(block.branch, nn.Conv2d)
    torch.testing.assert_close(block(x), torch.cat([2 * x, 3 * block.branch(x)], 1))


@pytest.mark.parametrize("scale", [sw.ReZero(), sw.LayerScale(), sw.Constant(0.5)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_scale_keeps_the_precision_of_what_it_scales(scale: sw.Scale, dtype: torch.dtype) -> None:
    module = scale.build(sw.Site(4, 4))
    assert module(torch.ones(1, 4, 2, 2, dtype=dtype)).dtype == dtype


def test_the_gradient_of_a_scale_at_zero_is_the_branch_times_what_comes_back() -> None:
    block = sw.Skip(torch.cos, "rezero", channels=4).double()
    x, back = torch.randn(2, 2, 4, 3, 3, dtype=torch.float64)
    block(x).backward(back)
    found = block.get_parameter("connection.scale.scale").grad
    torch.testing.assert_close(found, (torch.cos(x) * back).sum())
