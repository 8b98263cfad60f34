"""A connection's parts that a block holds under their published names: whoever changes them there changes the net."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from skipway.models import ResNet, cifar_resnet

PREACTIVATION = pytest.mark.parametrize("preactivation", [False, True])


def net(skip: str = "projection", preactivation: bool = False) -> ResNet:
    model = cifar_resnet(8, skip, width=4, preactivation=preactivation)
    for _ in range(3):
        model(torch.randn(8, 3, 8, 8))
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8)


@PREACTIVATION
def test_each_part_is_owned_once(preactivation: bool) -> None:
    model = net(preactivation=preactivation)
    modules = [module for _, module in model.named_modules(remove_duplicate=False)]
    assert len(modules) == len({id(module) for module in modules})
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names))
    assert not any(name.split(".")[-2] in ("norm_before", "norm_out") for name in names)


@PREACTIVATION
def test_norms_converted_for_many_processes_are_the_ones_that_run(preactivation: bool) -> None:
    model = net(preactivation=preactivation)
    x = images()
    expected = model(x)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert isinstance(converted, ResNet)
    assert not [m for m in converted.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(converted(x), expected)
    for block in converted.blocks:
        part = block.connection.part("norm_before" if preactivation else "norm_out")
        assert isinstance(part, nn.SyncBatchNorm)
        nn.init.zeros_(part.weight)
    assert not torch.allclose(converted(x), expected)


@PREACTIVATION
@pytest.mark.parametrize("layer", ["bn1", "bn2", "downsample"])
def test_a_module_put_in_their_place_is_used(preactivation: bool, layer: str) -> None:
    model = net(preactivation=preactivation)
    calls: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return self.inner(x)

    x = images()
    expected = model(x)
    for block in model.blocks:
        setattr(block, layer, Spy(block.get_submodule(layer)))
    torch.testing.assert_close(model(x), expected)
    assert len(calls) == len(model.blocks)


@PREACTIVATION
def test_norms_replaced_by_group_norm_train(preactivation: bool) -> None:
    model = net("residual", preactivation).train()
    model.get_submodule("bn" if preactivation else "bn1").eval()
    for block in model.blocks:
        for name in ("bn1", "bn2"):
            setattr(block, name, nn.GroupNorm(2, block.get_submodule(name).get_parameter("weight").numel()))
    x = images().requires_grad_()
    model(x).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    # No norm of a block sees other samples any more.
    torch.testing.assert_close(model(x)[:1], model(x[:1]))


@PREACTIVATION
def test_norms_replaced_by_identities_leave_a_net_without_norms(preactivation: bool) -> None:
    """The ReLU behind a norm works in place; behind an identity it must not, or it changes the stream itself."""
    model = net("residual", preactivation).double()
    for block in model.blocks:
        block.bn1 = block.bn2 = nn.Identity()
    block = model.blocks[0]
    conv1, conv2 = (block.get_submodule(f"conv{k}") for k in (1, 2))
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    kept = x.clone()
    y = block(x)
    assert torch.equal(x, kept)
    if preactivation:
        torch.testing.assert_close(y, x + conv2(conv1(x.relu()).relu()))
    else:
        torch.testing.assert_close(y, (x + conv2(conv1(x).relu())).relu())


@PREACTIVATION
def test_norms_that_end_in_an_activation_can_be_put_in_their_place(preactivation: bool) -> None:
    model = net("residual", preactivation).train()
    for block in model.blocks:
        for name in ("bn1", "bn2"):
            setattr(block, name, nn.Sequential(block.get_submodule(name), nn.Sigmoid()))
    model(images()).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_convolutions_fused_with_their_norms_compute_the_same() -> None:
    model = net()
    x = images()
    expected = model(x)
    for block in model.blocks:
        for k in (1, 2):
            conv, norm = block.get_submodule(f"conv{k}"), block.get_submodule(f"bn{k}")
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            setattr(block, f"conv{k}", fuse_conv_bn_eval(conv, norm))
            setattr(block, f"bn{k}", nn.Identity())
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_precision_reaches_lent_parts(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    assert {t.dtype for t in model.state_dict().values()} == {dtype, torch.int64}
    assert model(images().to(dtype)).dtype == dtype


def test_apply_visits_each_module_once() -> None:
    model = net()
    visited: list[nn.Module] = []
    model.apply(visited.append)
    assert len(visited) == len({id(m) for m in visited})
    assert {id(block.get_submodule(name)) for block in model.blocks for name in ("bn2", "downsample")} <= {
        id(m) for m in visited
    }


def test_parametrized_parts_are_the_ones_that_run() -> None:
    model = net()
    x = images()
    expected = model(x)
    block = model.blocks[1]
    projection = block.get_submodule("downsample.0")
    parametrizations.weight_norm(projection)
    torch.testing.assert_close(model(x), expected)

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    norm = block.get_submodule("bn2")
    parametrize.register_parametrization(norm, "weight", Doubled())
    assert not torch.allclose(model(x), expected)
    parametrize.remove_parametrizations(norm, "weight", leave_parametrized=False)
    torch.testing.assert_close(model(x), expected)
    model.train()(x).sum().backward()
    assert projection.get_parameter("parametrizations.weight.original0").grad is not None


def test_functional_calls_swap_the_weights_of_lent_parts() -> None:
    model, other = net(), net()
    x = images()
    torch.testing.assert_close(functional_call(model, dict(other.state_dict()), (x,)), other(x))


def test_the_whole_module_is_saved_and_loaded(tmp_path: Path) -> None:
    model = net("highway")
    torch.save(model, tmp_path / "net.pt")
    loaded = torch.load(tmp_path / "net.pt", weights_only=False)
    x = images()
    expected = model(x)
    assert torch.equal(loaded(x), expected)
    nn.init.zeros_(loaded.blocks[0].bn2.weight)
    assert not torch.equal(loaded(x), expected)
    assert torch.equal(model(x), expected)


def test_hooks_on_blocks_and_stages_fire() -> None:
    model = net()
    seen: dict[str, tuple[int, ...]] = {}
    for name in ("layer1", "layer1.0", "layer2.0", "layer3.0.bn2", "layer3.0.downsample"):
        model.get_submodule(name).register_forward_hook(
            lambda module, arguments, y, name=name: seen.update({name: tuple(y.shape)})  # type: ignore[misc]
        )
    model(images())
    assert seen == {
        "layer1": (2, 4, 8, 8),
        "layer1.0": (2, 4, 8, 8),
        "layer2.0": (2, 8, 4, 4),
        "layer3.0.bn2": (2, 16, 2, 2),
        "layer3.0.downsample": (2, 16, 2, 2),
    }


@pytest.mark.parametrize("skip", ["residual", "stochastic-depth", "stochastic-depth-row"])
def test_checkpointing_each_stage_gives_the_same_gradients(skip: str) -> None:
    model = cifar_resnet(20, skip, width=4)
    x = images()
    found: list[list[Any]] = []
    for checkpointed in (False, True):
        torch.manual_seed(3)
        model.zero_grad()
        y = torch.relu(model.get_submodule("bn1")(model.get_submodule("conv1")(x)))
        for k in (1, 2, 3):
            stage = model.get_submodule(f"layer{k}")
            y = checkpoint(stage, y, use_reentrant=False) if checkpointed else stage(y)
        y.square().mean().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(found[0], found[1])
