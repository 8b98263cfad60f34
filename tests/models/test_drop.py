"""Stochastic depth inside a ResNet: a dropped block runs none of its convolutions and moves none of its norms."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import skipway as sw
from skipway.models import ResNet, cifar_resnet

ALWAYS = sw.StochasticDepth(1 - 1e-9, "constant")


def moved(model: ResNet) -> set[str]:
    """The modules whose statistics one training step moves."""
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()(torch.randn(4, 3, 8, 8))
    names = {name for name, value in model.named_buffers() if not torch.equal(value, before[name])}
    return {name.rsplit(".", 1)[0] for name in names}


def test_lent_norms_stand_still() -> None:
    """bn1 and bn2 belong to the block by name, and to its connection or its branch by use."""
    assert moved(cifar_resnet(8, sw.Residual(drop=ALWAYS), width=4)) == {"bn1"}


def test_a_norm_on_the_shortcut_still_runs() -> None:
    model = cifar_resnet(8, sw.Residual(drop=ALWAYS, shortcut=sw.Projection()), width=4)
    assert moved(model) == {"bn1", "layer2.0.downsample.1", "layer3.0.downsample.1"}


def test_a_norm_that_branch_and_projection_share_runs_for_the_projection() -> None:
    plain_pad = cifar_resnet(14, sw.Residual(drop=ALWAYS), width=4, preactivation=True)
    assert moved(plain_pad) == {"bn"}
    projected = cifar_resnet(14, sw.Residual(drop=ALWAYS, shortcut=sw.Projection(norm=False)), 10, 3, 4, None, True)
    assert moved(projected) == {"bn", "layer2.0.bn1", "layer3.0.bn1"}


@pytest.mark.parametrize("preactivation", [False, True])
def test_each_block_runs_whole_or_not_at_all(preactivation: bool) -> None:
    skip = sw.Residual(drop=sw.StochasticDepth(0.5, "constant"))
    model = cifar_resnet(20, skip, width=4, preactivation=preactivation)
    ran: list[nn.Module] = []
    for block in model.blocks:
        for name in ("conv1", "conv2", "bn1", "bn2"):
            block.get_submodule(name).register_forward_hook(lambda m, a, y: ran.append(m))
    for _ in range(5):
        counters = [block.get_buffer("bn2.num_batches_tracked").clone() for block in model.blocks]
        ran.clear()
        model.zero_grad()
        model(torch.randn(4, 3, 8, 8)).sum().backward()
        runs = [block.conv1 in ran for block in model.blocks]
        assert 0 < sum(runs) < len(runs)
        assert len(ran) == 4 * sum(runs)
        for block, ran_now, counter in zip(model.blocks, runs, counters, strict=True):
            assert block.get_buffer("bn2.num_batches_tracked") == counter + ran_now
            assert (block.get_parameter("conv2.weight").grad is not None) == ran_now


def test_rows_run_all_blocks() -> None:
    model = cifar_resnet(8, sw.Residual(drop=sw.StochasticDepth(0.9, mode="row")), width=4)
    assert {"layer1.0.bn1", "layer1.0.bn2", "layer3.0.bn2"} <= moved(model)


def test_rates_grow_over_all_stages() -> None:
    model = cifar_resnet(20, "stochastic-depth", width=4)
    rates = [block.get_submodule("connection.drop").rate for block in model.blocks]
    torch.testing.assert_close(rates, [0.5 * (k + 1) / 9 for k in range(9)])


def test_evaluation_draws_nothing() -> None:
    model = cifar_resnet(8, "stochastic-depth", width=4).eval()
    state = torch.get_rng_state()
    x = torch.ones(2, 3, 8, 8)
    assert torch.equal(model(x), model(x))
    assert torch.equal(torch.get_rng_state(), state)


def test_evaluation_is_the_network_without_drops() -> None:
    dropping = cifar_resnet(14, sw.Residual(drop=0.5), width=4).eval()
    plain = cifar_resnet(14, "residual", width=4).eval()
    plain.load_state_dict(dropping.state_dict())
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(dropping(x), plain(x))
