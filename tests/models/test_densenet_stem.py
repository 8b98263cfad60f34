"""The stem of a DenseNet as one function against torch.nn's own norm, ReLU and pooling, and where it gives way."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipway.models import DenseNet, DenseNetPlan, densenet_stem


def pair(dtype: torch.dtype = torch.float64) -> tuple[DenseNet, nn.Sequential]:
    """A small net with an ImageNet stem, and its stem's own modules alone, with scales of both signs and of zero."""
    net = DenseNet(DenseNetPlan((2, 2), growth=4, width=6), num_classes=5).to(dtype)
    norm = net.features.get_submodule("norm0")
    assert isinstance(norm, nn.BatchNorm2d)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    with torch.no_grad():
        norm.weight[0] = 0.0
    return net, copy.deepcopy(nn.Sequential(*list(net.features)[1:4]))


def only_stem(net: DenseNet) -> DenseNet:
    """Norm, ReLU and pooling of the net alone."""
    del net.features[4:], net.features[0]
    return net


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    inner = densenet_stem.run

    def spied(*args: Any) -> Tensor:
        found.append(args[0])
        return inner(*args)

    monkeypatch.setattr(densenet_stem, "run", spied)
    return found  # type: ignore[return-value]


@pytest.mark.parametrize("shape", [(3, 6, 8, 8), (1, 6, 9, 7), (2, 6, 4, 11)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_outputs_gradients_and_statistics_are_those_of_the_modules(
    shape: tuple[int, ...], layout: torch.memory_format, runs: list[Tensor]
) -> None:
    net, stem = pair()
    features = only_stem(net).features
    x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
    found = []
    for module in (features, stem):
        given = x.clone().requires_grad_()
        y = module(given)
        along = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
        inputs = [given, *module.parameters()]
        first = torch.autograd.grad((y.square() * along).sum(), inputs, create_graph=True)
        second = torch.autograd.grad(sum((g.square().sum() for g in first), torch.zeros(())), inputs)
        found.append([y, *first, *second])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(features.state_dict().values(), stem.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert len(runs) == 1


def test_without_second_derivatives_the_gradients_are_the_same(runs: list[Tensor]) -> None:
    net, stem = pair()
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    found = []
    for module in (only_stem(net).features, stem):
        given = x.clone().requires_grad_()
        y = module(given)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        found.append([given.grad, *(parameter.grad for parameter in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert len(runs) == 1


def test_bfloat16_is_as_near_to_the_truth_as_the_modules() -> None:
    net, stem = pair(torch.float32)
    x = torch.randn(4, 6, 16, 16)
    exact = copy.deepcopy(stem).double()
    truth, ours, theirs = (
        torch.autograd.grad(module(given).float().sum(), list(module.parameters()))
        for module, given in ((exact, x.double()), (only_stem(net).features, x.bfloat16()), (stem, x.bfloat16()))
        for _ in [torch.set_autocast_enabled("cpu", given.dtype == torch.bfloat16)]
    )
    torch.set_autocast_enabled("cpu", False)
    for a, b, c in zip(truth, ours, theirs, strict=True):
        assert a is not None
        assert (b - a).norm() <= 1.5 * (c - a).norm() + 1e-2 * a.norm()
        assert b.dtype == torch.float32


def _evaluating(net: DenseNet) -> None:
    net.eval()


def _doubled(module: nn.Module, args: Any, y: Tensor) -> Tensor:
    return 2 * y


def _hooked(net: DenseNet) -> None:
    net.features.get_submodule("relu0").register_forward_hook(_doubled)


def _other_pool(net: DenseNet) -> None:
    net.features.pool0 = nn.MaxPool2d(2)


def _other_norm(net: DenseNet) -> None:
    net.features.norm0 = nn.GroupNorm(2, 6).double()


def _plain(net: DenseNet) -> None:
    net.memory = "plain"


@pytest.mark.parametrize("change", [_evaluating, _hooked, _other_pool, _other_norm, _plain])
def test_a_changed_stem_runs_as_its_modules_say(change: Callable[[DenseNet], None], runs: list[Tensor]) -> None:
    net, _ = pair()
    change(net)
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    expected = copy.deepcopy(net)
    y = x
    for module in list(expected.features)[1:4]:
        y = module(y)
    torch.testing.assert_close(only_stem(net).features(x), y, rtol=1e-12, atol=1e-12)
    assert not runs
