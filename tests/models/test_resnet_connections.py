"""ResNets under every connection, beyond what all families are tested for: blocks, layouts of memory, compilers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.models.test_every_connection import REFUSALS
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.models import ResNet, ResNetPlan, cifar_resnet

NAMES = [name for name in connect.names() if name not in REFUSALS["resnet20"]]
FAMILIES: dict[str, Callable[[str], ResNet]] = {
    "cifar": lambda skip: cifar_resnet(8, skip, width=4),
    "cifar bottleneck": lambda skip: cifar_resnet(11, skip, width=4, block="bottleneck"),
    "cifar pre-activation": lambda skip: cifar_resnet(8, skip, width=4, preactivation=True),
    "cifar pre-activation bottleneck": lambda skip: cifar_resnet(
        11, skip, width=4, block="bottleneck", preactivation=True
    ),
    "imagenet": lambda skip: ResNet(ResNetPlan((1, 1, 1), 4), skip, 10),
    "imagenet bottleneck": lambda skip: ResNet(ResNetPlan((1, 1, 1), 4, "bottleneck"), skip, 10),
    "imagenet pre-activation": lambda skip: ResNet(
        ResNetPlan((1, 1, 1), 4, "bottleneck", placement="pre-activation"), skip, 10
    ),
}
every_name = pytest.mark.parametrize("name", NAMES)
every_family = pytest.mark.parametrize("family", FAMILIES)
QUICK = ("cifar", "cifar pre-activation", "imagenet bottleneck")
# The other blocks are tried in tests/models/test_every_connection.py.
BLOCKS = ("cifar bottleneck", "cifar pre-activation bottleneck", "imagenet")
# A compilation takes half a second; every connection is compiled on its own beside the algebra.
COMPILED_QUICKLY = [
    ("cifar", "none"),
    ("cifar", "residual"),
    ("cifar", "highway"),
    ("cifar pre-activation", "rezero"),
    ("imagenet bottleneck", "residual"),
]
families_quick_first = pytest.mark.parametrize(
    "family", [pytest.param(family, marks=[] if family in QUICK else pytest.mark.slow) for family in FAMILIES]
)


def images(family: str, n: int = 4) -> Tensor:
    size = 16 if family.startswith("imagenet") else 8
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", BLOCKS)
@every_name
def test_it_runs_and_its_gradients_flow(family: str, name: str) -> None:
    model = FAMILIES[family](name)
    x = images(family).requires_grad_()
    logits = model(x)
    assert logits.shape == (4, 10)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()
    dropped = {
        id(parameter)
        for block in model.blocks
        if name == "stochastic-depth" and block.get_parameter("conv1.weight").grad is None
        for parameter in block.parameters()
    }
    for key, parameter in model.named_parameters():
        if id(parameter) not in dropped:
            assert parameter.grad is not None, key
            assert parameter.grad.isfinite().all(), key


@families_quick_first
@every_name
def test_channels_last_gives_the_same_and_stays_so(family: str, name: str) -> None:
    model = FAMILIES[family](name).eval()
    x = images(family)
    expected = model(x)
    layouts: list[bool] = []
    for block in model.blocks:
        block.register_forward_hook(lambda m, a, y: layouts.append(y.is_contiguous(memory_format=torch.channels_last)))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    found = model(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert layouts == [True] * len(model.blocks)


@pytest.mark.parametrize(
    ("family", "name"),
    [
        pytest.param(family, name, marks=[] if (family, name) in COMPILED_QUICKLY else pytest.mark.slow)
        for family in FAMILIES
        for name in NAMES
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
def test_it_compiles_into_one_graph(family: str, name: str) -> None:
    torch._dynamo.reset()
    model = FAMILIES[family](name).eval()
    x = images(family)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.slow
@every_name
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_training_gives_the_same_gradients(name: str) -> None:
    torch._dynamo.reset()
    model = FAMILIES["cifar"](name)
    x = images("cifar").requires_grad_()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=name != "stochastic-depth")
    found: list[list[Tensor | None]] = []
    for run in (model, compiled):
        torch.manual_seed(1)
        model.zero_grad()
        run(x).square().mean().backward()
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("cifar", "residual"),
        ("cifar", "rezero"),
        ("cifar", "squeeze-excite"),
        ("cifar pre-activation", "residual"),
        ("imagenet bottleneck", "highway"),
    ],
)
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_inductor_compiles_it_into_one_graph(family: str, name: str) -> None:
    torch._dynamo.reset()
    model = FAMILIES[family](name).eval()
    x = images(family)
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-5)


@every_family
def test_a_connection_of_ones_own_choosing(family: str) -> None:
    """What papers did not name: gates, scales and drops together, in any family."""
    skip = sw.Residual(
        scale=sw.LayerScale(0.1),
        reweight=sw.SqueezeExcite(2),
        gate=sw.Highway(),
        drop=sw.StochasticDepth(0.3, mode="row"),
    )
    model = FAMILIES[family](skip)  # type: ignore[arg-type]
    model(images(family)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", ["cifar", "imagenet"])
def test_training_moves_statistics_and_evaluation_does_not(family: str) -> None:
    model = FAMILIES[family]("residual")
    x = images(family)
    counters = [m.num_batches_tracked for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model(x)
    model.eval()(x)
    assert all(counter == 1 for counter in counters)
