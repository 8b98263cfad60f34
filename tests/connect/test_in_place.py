"""Nothing overwrites what someone still needs: the stream, what a branch put out, what a backward pass keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.connect.placement import PLACEMENTS

# Functions whose backward pass needs their own output: overwriting it is an error that autograd reports.
NEED_THEIR_OUTPUT: list[Callable[[Tensor], Tensor]] = [torch.sigmoid, torch.tanh, torch.exp, torch.relu]
placements = pytest.mark.parametrize("placement", PLACEMENTS)
kinds = pytest.mark.parametrize("kind", [sw.Residual, sw.Plain], ids=["residual", "plain"])
all_data = pytest.mark.parametrize("dims", [0, 1, 2, 3])


def data(dims: int) -> Tensor:
    return torch.randn(4, 5, 6) if dims == 0 else torch.randn(4, 6, *(3,) * dims)


@placements
@kinds
@all_data
@pytest.mark.parametrize("training", [True, False])
def test_the_stream_is_as_it_was(placement: str, kind: type, dims: int, training: bool) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def branch(x: Tensor) -> Tensor:
        value = torch.sin(x)
        seen.append((value, value.clone()))
        return value

    block = sw.Skip(branch, kind(placement=placement), channels=6, dims=dims).train(training)
    x = data(dims)
    kept = x.clone()
    y = block(x)
    assert torch.equal(x, kept)
    assert y is not x
    value, as_put_out = seen[0]
    assert torch.equal(value, as_put_out)


@placements
@kinds
def test_a_branch_may_hand_the_stream_back(placement: str, kind: type) -> None:
    block = sw.Skip(nn.Identity(), kind(placement=placement), channels=6)
    x = data(2)
    kept = x.clone()
    block(x)
    assert torch.equal(x, kept)


@placements
@kinds
@pytest.mark.parametrize("function", NEED_THEIR_OUTPUT)
def test_backward_passes_find_what_they_kept(placement: str, kind: type, function: Callable[[Tensor], Tensor]) -> None:
    """The stream and the branch's output both come from functions that need them again."""
    block = sw.Skip(function, kind(placement=placement), channels=6).double()
    before = torch.randn(4, 6, 3, 3, dtype=torch.float64, requires_grad=True)

    def run(before: Tensor) -> Tensor:
        return block(function(before))

    run(before).square().sum().backward()
    assert before.grad is not None
    assert torch.autograd.gradcheck(run, before, fast_mode=True)


@pytest.mark.parametrize("name", connect.names())
@pytest.mark.parametrize("function", NEED_THEIR_OUTPUT)
def test_every_named_connection_leaves_inputs_and_outputs_alone(
    name: str, function: Callable[[Tensor], Tensor]
) -> None:
    grows = name in ("dense", "concat", "attention-gate", "residual-path")
    branches: list[nn.Module | Callable[[Tensor], Tensor]] = [function] if grows else [function] * 3
    stack = sw.Stack(branches, name, channels=6)
    before = data(2).requires_grad_()
    x = function(before)
    kept = x.clone()
    stack(x).square().sum().backward()
    assert torch.equal(x, kept)
    assert before.grad is not None


@placements
@pytest.mark.parametrize("fields", [{}, {"shortcut": sw.Projection(everywhere=True)}, {"merge": "concat"}], ids=str)
def test_a_dropped_branch_leaves_the_stream_as_it_was(placement: str, fields: dict) -> None:
    drop = sw.StochasticDepth(1 - 1e-9)
    block = sw.Skip(torch.sin, sw.Residual(placement=placement, drop=drop, **fields), channels=6)
    before = data(2).requires_grad_()
    x = torch.tanh(before)
    kept = x.clone()
    block(x).square().sum().backward()
    assert torch.equal(x, kept)
    assert before.grad is not None


@pytest.mark.parametrize(
    ("placement", "slot"),
    [
        (name, slot)
        for name in PLACEMENTS
        for slot in ("before", "out", "after")
        if "norm" in getattr(PLACEMENTS[name], slot)
    ],
)
@kinds
@pytest.mark.parametrize(
    "instead",
    [nn.Identity(), nn.Sequential(nn.BatchNorm2d(6), nn.Sigmoid()), nn.Tanh(), nn.Dropout(0.0)],
    ids=["identity", "norm and sigmoid", "tanh", "dropout"],
)
def test_what_a_user_puts_in_a_norms_place_is_not_overwritten(
    placement: str, kind: type, slot: str, instead: nn.Module
) -> None:
    block = sw.Skip(torch.exp, kind(placement=placement), channels=6)
    assert isinstance(block.connection.get_submodule(f"norm_{slot}"), nn.BatchNorm2d)
    setattr(block.connection, f"norm_{slot}", instead)
    before = (0.1 * data(2)).requires_grad_()
    x = torch.tanh(before)
    kept = x.clone()
    block(x).square().sum().backward()
    assert torch.equal(x, kept)
    assert before.grad is not None


def test_inference_mode_does_not_change_the_input_either() -> None:
    for name in connect.names():
        block = sw.Skip(torch.sin, name, channels=6).eval()
        x = data(2)
        kept = x.clone()
        with torch.inference_mode():
            block(x)
        assert torch.equal(x, kept)
