"""Stochastic depth: what is dropped, how often, and that a dropped branch costs nothing and leaves no trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import skipway as sw

GRID = (0.125, 0.375, 0.625, 0.875)


class Counting(nn.Module):
    """A branch that counts its runs."""

    def __init__(self, branch: nn.Module | Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.branch, self.runs = branch, 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.branch(x)


@pytest.fixture
def uniform(monkeypatch: pytest.MonkeyPatch) -> Callable[[Iterator[float]], None]:
    """Take every uniform number from a list instead of the generator.

    Over all points of GRID, a rate of a quarter, a half or three quarters is met exactly, whichever side it drops.
    """

    def prepare(numbers: Iterator[float]) -> None:
        def rand(*size: Any, **options: Any) -> Tensor:
            shape = size[0] if isinstance(size[0], (tuple, list)) else size
            count = int(torch.tensor(shape).prod()) if len(shape) else 1
            return torch.tensor([next(numbers) for _ in range(count)]).view(tuple(shape))

        monkeypatch.setattr(torch, "rand", rand)

    return prepare


def runs_and_outputs(
    stack: nn.Module, x: Tensor, draws: int, uniform: Callable[[Iterator[float]], None]
) -> Iterator[Tensor]:
    """The stack's output under every outcome of its draws, all equally likely."""
    for numbers in itertools.product(GRID, repeat=draws):
        uniform(iter(numbers))
        yield stack(x)


@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize("schedule", ["linear", "constant"])
@pytest.mark.parametrize("merge", ["add", "concat"])
def test_evaluation_is_the_expectation_of_training(
    uniform: Callable[[Iterator[float]], None], mode: str, schedule: str, merge: str
) -> None:
    """Exact for branches that are affine, for then the output is linear in each draw on its own."""
    drop = sw.StochasticDepth(0.5, schedule, mode)  # type: ignore[arg-type]
    joins = merge == "concat"
    branches = [nn.Conv2d(6 if k and joins else 3, 3, 3, padding=1) for k in range(2)]
    skip = sw.Residual(drop=drop, merge=merge)  # type: ignore[arg-type]
    stack = sw.Stack(branches, skip, channels=3, branch_channels=3).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    draws = 2 * (len(x) if mode == "row" else 1)
    with torch.no_grad():
        outputs = list(runs_and_outputs(stack.train(), x, draws, uniform))
        assert len({tuple(y.flatten().tolist()) for y in outputs}) == (4 if mode == "batch" else 16)
        torch.testing.assert_close(torch.stack(outputs).mean(0), stack.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"gate": sw.Highway(0.0)},
        {"gate": sw.ShortcutGate(0.0)},
        {"gate": sw.PooledGate()},
        {"scale": sw.LayerScale(0.5), "shortcut_scale": sw.Constant(0.7)},
        {"reweight": sw.SqueezeExcite(1)},
        {"placement": sw.Placement(before=("norm",), out=("norm",), norm="layer")},
        {"shortcut": sw.ZeroPad()},
        {"shortcut": sw.Projection(norm=False), "placement": sw.Placement(before=("norm", "relu"), norm="layer")},
        {"shortcut": sw.ZeroPad(), "gate": sw.Highway(0.0)},
    ],
    ids=str,
)
def test_evaluation_is_the_expectation_whatever_else_is_chosen(
    uniform: Callable[[Iterator[float]], None], mode: str, fields: dict[str, Any]
) -> None:
    drop = sw.StochasticDepth(0.25, mode=mode)  # type: ignore[arg-type]
    out_channels = 4 if "shortcut" in fields else 3
    branch = nn.Sequential(nn.Conv2d(3, out_channels, 3, padding=1), nn.Tanh())
    block = sw.Skip(branch, sw.Residual(drop=drop, **fields), 3, out_channels).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    with torch.no_grad():
        outputs = list(runs_and_outputs(block.train(), x, 2 if mode == "row" else 1, uniform))
        torch.testing.assert_close(torch.stack(outputs).mean(0), block.eval()(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("schedule", "rates"), [("linear", (0.25, 0.5)), ("constant", (0.5, 0.5))])
def test_as_many_branches_run_as_the_rates_say(
    uniform: Callable[[Iterator[float]], None], schedule: str, rates: tuple[float, float]
) -> None:
    drop = sw.StochasticDepth(0.5, schedule)  # type: ignore[arg-type]
    branches = [Counting(torch.sin) for _ in rates]
    outcomes = list(runs_and_outputs(sw.Stack(branches, sw.Residual(drop=drop), 3), torch.ones(1, 3, 2, 2), 2, uniform))
    for branch, rate in zip(branches, rates, strict=True):
        assert branch.runs == (1 - rate) * len(outcomes)


def test_rates_grow_linearly_to_the_last_branch() -> None:
    """p_l = l/L p_L with l counted from 1 (Huang 2016)."""
    stack = sw.Stack([nn.Identity() for _ in range(5)], sw.Residual(drop=0.5), channels=3)
    rates = [skip.connection.get_submodule("drop").rate for skip in stack]  # type: ignore[union-attr]
    torch.testing.assert_close(rates, [0.1, 0.2, 0.3, 0.4, 0.5])


def test_the_share_of_dropped_branches_over_many_steps() -> None:
    branch = Counting(torch.sin)
    block = sw.Skip(branch, sw.Residual(drop=sw.StochasticDepth(0.3, "constant")), channels=2)
    steps = 2000
    for _ in range(steps):
        block(torch.ones(1, 2, 1, 1))
    assert abs(branch.runs / steps - 0.7) < 4 * (0.3 * 0.7 / steps) ** 0.5


def test_a_dropped_branch_does_not_run_and_its_statistics_stand_still() -> None:
    norm = nn.BatchNorm2d(3)
    branch = Counting(nn.Sequential(nn.Conv2d(3, 3, 1), norm))
    skip = sw.Residual(drop=sw.StochasticDepth(0.5), placement="branch-norm")
    block = sw.Skip(branch, skip, channels=3)
    own = block.connection.get_submodule("norm_out")
    seen = {True: 0, False: 0}
    for _ in range(40):
        before = {k: v.clone() for k, v in block.state_dict().items()}
        runs = branch.runs
        x = torch.randn(4, 3, 5, 5)
        y = block(x)
        ran = branch.runs > runs
        seen[ran] += 1
        moved = {k for k, v in block.state_dict().items() if not torch.equal(v, before[k])}
        assert moved == ({k for k, _ in block.named_buffers()} if ran else set())
        assert ran or torch.equal(y, x)
    assert min(seen.values()) > 5
    assert norm.num_batches_tracked == own.get_buffer("num_batches_tracked") == seen[True]


def test_parameters_of_a_dropped_branch_get_no_gradient() -> None:
    branch = nn.Conv2d(3, 3, 1)
    block = sw.Skip(branch, sw.Residual(drop=sw.StochasticDepth(1 - 1e-9)), channels=3)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    block(x).sum().backward()
    assert branch.weight.grad is None
    assert x.grad is not None
    assert (x.grad == 1).all()


def test_rows_are_dropped_one_by_one() -> None:
    x = torch.rand(400, 3, 2, 2) + 1
    y = sw.Skip(torch.square, sw.Residual(drop=sw.StochasticDepth(0.25, mode="row")), channels=3)(x)
    kept = (y != x).flatten(1)
    assert (kept.all(1) | ~kept.any(1)).all()
    torch.testing.assert_close(y[kept.all(1)], (x + x**2 / 0.75)[kept.all(1)])
    assert abs(kept.all(1).float().mean() - 0.75) < 4 * (0.25 * 0.75 / 400) ** 0.5


@pytest.mark.parametrize("dims", [0, 1, 3])
@pytest.mark.parametrize("mode", ["batch", "row"])
def test_other_data_than_images(dims: int, mode: str) -> None:
    x = torch.rand((5, 4, 3) if dims == 0 else (5, 3, *(2,) * dims)) + 1
    drop = sw.StochasticDepth(0.5, mode=mode)  # type: ignore[arg-type]
    block = sw.Skip(torch.square, sw.Residual(drop=drop), channels=3, dims=dims)
    for _ in range(5):
        y = block(x)
        full = x + 2 * x**2
        assert all(torch.equal(row, x[k]) or torch.allclose(row, full[k]) for k, row in enumerate(y))


@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_nothing_is_drawn_in_evaluation(mode: str, drop: float) -> None:
    skip = sw.Residual(drop=sw.StochasticDepth(drop, mode=mode))  # type: ignore[arg-type]
    stack = sw.Stack([nn.Identity() for _ in range(3)], skip, channels=3)
    state = torch.get_rng_state()
    stack.eval()(torch.ones(2, 3, 2, 2))
    assert torch.equal(torch.get_rng_state(), state)
    stack.train()(torch.ones(2, 3, 2, 2))
    assert torch.equal(torch.get_rng_state(), state) == (drop == 0)


@pytest.mark.parametrize("mode", ["batch", "row"])
def test_the_same_seed_drops_the_same(mode: str) -> None:
    skip = sw.Residual(drop=sw.StochasticDepth(0.5, mode=mode))  # type: ignore[arg-type]
    stack = sw.Stack([nn.Conv2d(3, 3, 1) for _ in range(6)], skip, channels=3)
    x = torch.randn(4, 3, 2, 2)
    outputs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(stack(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("mode", ["batch", "row"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_drops_the_same_branches_again(mode: str, reentrant: bool) -> None:
    skip = sw.Residual(drop=sw.StochasticDepth(0.5, mode=mode))  # type: ignore[arg-type]
    branches = [nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh()) for _ in range(6)]
    stack = sw.Stack(branches, skip, channels=3)
    gradients = []
    for run in (stack, lambda x: checkpoint(stack, x, use_reentrant=reentrant)):
        torch.manual_seed(5)
        x = torch.linspace(-1, 1, 4 * 3 * 4).view(4, 3, 2, 2).requires_grad_()
        run(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in stack.parameters())])
        stack.zero_grad()
    assert any(g is None for g in gradients[0]) == (mode == "batch")
    for direct, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(direct, recomputed)


def test_the_draw_is_on_the_cpu_whatever_the_default_device() -> None:
    block = sw.Skip(torch.sin, sw.Residual(drop=sw.StochasticDepth(0.5)), channels=3)
    x = torch.ones(1, 3, 2, 2)
    with torch.device("meta"):
        for _ in range(5):
            assert block(x).device == x.device
