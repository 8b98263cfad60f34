"""`Skip` around one branch of one's own, and `Stack` around many: arguments, hooks, places, saving."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import skipway as sw


class Attention(nn.Module):
    """A branch that takes a mask, and returns one tensor where torch's layer returns a pair."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.MultiheadAttention(channels, 2, batch_first=True)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, flip: bool = False) -> Tensor:
        value, _ = self.layer(x, x, x, attn_mask=mask, need_weights=False)
        return -value if flip else value


def test_a_single_line_puts_a_skip_around_any_branch() -> None:
    branch = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU())
    x = torch.randn(1, 64, 4, 4)
    torch.testing.assert_close(sw.Skip(branch, skip="residual", channels=64)(x), x + branch(x))


def test_further_arguments_reach_the_branch() -> None:
    attention = Attention(8)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(2, 5, 8)
    block = sw.Skip(attention, "pre-norm", channels=8, dims=0)
    normed = F.layer_norm(x, (8,))
    torch.testing.assert_close(block(x, mask), x + attention(normed, mask))
    torch.testing.assert_close(block(x, mask=mask, flip=True), x - attention(normed, mask))
    later = x.clone()
    later[:, 3:] += 1
    torch.testing.assert_close(block(later, mask)[:, :3], block(x, mask)[:, :3])


def test_a_stack_hands_further_arguments_to_every_branch() -> None:
    first, second = Attention(8), Attention(8)
    stack = sw.Stack([first, second], "residual", channels=8, dims=0)
    mask = nn.Transformer.generate_square_subsequent_mask(5)
    x = torch.randn(2, 5, 8)
    middle = x + first(x, mask, flip=True)
    torch.testing.assert_close(stack(x, mask, flip=True), middle + second(middle, mask, flip=True))


def test_conditioning_reaches_a_dense_stage_too() -> None:
    branches = [nn.Bilinear(4 + 3 * k, 2, 3) for k in range(2)]
    stack = sw.Stack(branches, "dense", channels=4, branch_channels=3, dims=0)
    x, condition = torch.randn(5, 4), torch.randn(5, 2)
    middle = torch.cat([x, branches[0](x, condition)], -1)
    torch.testing.assert_close(stack(x, condition), torch.cat([middle, branches[1](middle, condition)], -1))


def test_functions_are_branches_too() -> None:
    x = torch.randn(2, 3, 4, 4)
    block = sw.Skip(torch.relu, channels=3)
    assert not list(block.parameters())
    torch.testing.assert_close(block(x), x + x.clamp(min=0))
    torch.testing.assert_close(sw.Stack([torch.relu, torch.sin], channels=3)(x), block(x) + torch.sin(block(x)))


def test_a_stack_places_each_branch_among_its_like() -> None:
    skip = sw.Residual(drop=0.5, shortcut=sw.ZeroPad())
    branches = [nn.Conv2d(a, b, 3, stride=s, padding=1) for a, b, s in ((4, 4, 1), (4, 6, 2), (6, 8, 1))]
    stack = sw.Stack(branches, skip, channels=4, branch_channels=[4, 6, 8], strides=[1, 2, 1])
    sites = [block.connection.site for block in stack]  # type: ignore[union-attr]
    assert sites == [sw.Site(4, 4, 1, 0, 3), sw.Site(4, 6, 2, 1, 3), sw.Site(6, 8, 1, 2, 3)]
    assert stack.eval()(torch.randn(2, 4, 7, 7)).shape == (2, 8, 4, 4)
    assert len(stack) == 3
    assert stack[1] is list(stack)[1]
    assert stack[-1].branch is branches[-1]


def test_parameter_names_and_state() -> None:
    stack = sw.Stack([nn.Conv2d(4, 4, 1) for _ in range(2)], "highway", channels=4)
    names = [
        f"{k}.{part}.{w}" for k in range(2) for part in ("branch", "connection.gate.weight") for w in ("weight", "bias")
    ]
    assert list(stack.state_dict()) == names


@pytest.mark.parametrize("name", ["residual", "dense", "none"])
def test_hooks_of_blocks_and_branches_fire_inside_a_stack(name: str) -> None:
    """As feature extractors, profilers and sharding need it."""
    widths = (4, 8, 12) if name == "dense" else (4, 4, 4)
    stack = sw.Stack([nn.Conv2d(c, 4, 1) for c in widths], name, channels=4, branch_channels=4)
    heard: list[str] = []
    for k, block in enumerate(stack):
        block.register_forward_pre_hook(lambda m, a, k=k: heard.append(f"enter {k}"))
        block.register_forward_hook(lambda m, a, y, k=k: heard.append(f"leave {k}"))
        assert isinstance(block.branch, nn.Module)
        block.branch.register_forward_hook(lambda m, a, y, k=k: heard.append(f"branch {k}"))
    stack(torch.randn(1, 4, 2, 2))
    assert heard == [f"{event} {k}" for k in range(3) for event in ("enter", "branch", "leave")]


def test_a_hook_can_replace_a_blocks_output() -> None:
    def zeros(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    stack = sw.Stack([nn.Identity(), nn.Identity()], channels=3)
    stack[0].register_forward_hook(zeros)
    assert not stack(torch.ones(1, 3, 2, 2)).any()


def test_the_same_branch_twice_shares_its_weights() -> None:
    branch = nn.Conv2d(3, 3, 1)
    stack = sw.Stack([branch, branch], channels=3)
    assert len(list(stack.parameters())) == 2
    x = torch.randn(1, 3, 2, 2)
    middle = x + branch(x)
    torch.testing.assert_close(stack(x), middle + branch(middle))


def test_stacks_nest() -> None:
    inner = sw.Stack([torch.sin, torch.cos], channels=3)
    x = torch.randn(1, 3, 2, 2)
    torch.testing.assert_close(sw.Skip(inner, channels=3)(x), x + inner(x))


@pytest.mark.parametrize("name", ["residual", "dense", "highway", "stochastic-depth"])
def test_whole_modules_are_saved_and_loaded(name: str, tmp_path: Path) -> None:
    grows = name == "dense"
    branches = [nn.Conv2d(4 + 3 * k if grows else 4, 3 if grows else 4, 1) for k in range(2)]
    stack = sw.Stack(branches, name, channels=4, branch_channels=3 if grows else 4).eval()
    x = torch.randn(2, 4, 3, 3)
    torch.save(stack, tmp_path / "stack.pt")
    for other in (torch.load(tmp_path / "stack.pt", weights_only=False), pickle.loads(pickle.dumps(stack))):
        assert torch.equal(other(x), stack(x))
    twin = copy.deepcopy(stack)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    assert not torch.equal(twin(x), stack(x))


def test_precision_and_apply_reach_every_part() -> None:
    skip = sw.Residual(gate=sw.Highway(), scale=sw.LayerScale(), placement="sandwich")
    block = sw.Skip(nn.Conv2d(4, 4, 1), skip, channels=4).to(torch.float64)
    assert {p.dtype for p in block.parameters()} == {torch.float64}
    visited: list[str] = []
    block.apply(lambda module: visited.append(type(module).__name__))
    expected = ["Conv2d", "BatchNorm2d", "BatchNorm2d", "Scaling", "Conv2d", "Gating", "Identity"]
    assert sorted(visited) == sorted([*expected, "ResidualConnection", "Skip"])


def test_gradient_checkpointing_around_a_stage_gives_the_same_gradients() -> None:
    stack = sw.Stack([nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh()) for _ in range(4)], "post-norm", channels=3)
    x = torch.randn(4, 3, 5, 5)
    found: list[list[Any]] = []
    for run in (stack, lambda x: checkpoint(stack, x, use_reentrant=False)):
        stack.zero_grad()
        run(x).square().mean().backward()
        found.append([p.grad for p in stack.parameters()])
    torch.testing.assert_close(found[0], found[1])
