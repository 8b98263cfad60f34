"""Every named connection in every family: it trains, it is saved, copied, compiled, autocast; or it refuses."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect
from skipway.models import ResNet, ResNetPlan, cifar_resnet

CHANGES_WIDTH = ("concat", "dense", "attention-gate", "residual-path")
NAMES = [name for name in connect.names() if name not in CHANGES_WIDTH]
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


@every_family
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


@every_family
@every_name
def test_loaded_states_compute_the_same(family: str, name: str) -> None:
    model, fresh = FAMILIES[family](name).eval(), FAMILIES[family](name).eval()
    x = images(family, 2)
    expected = model(x)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), expected)


@families_quick_first
@every_name
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"]
)
def test_copies_and_pickles_compute_the_same_and_share_nothing(
    family: str, name: str, duplicate: Callable[[ResNet], ResNet]
) -> None:
    model = FAMILIES[family](name).eval()
    x = images(family, 2)
    expected = model(x)
    twin = duplicate(model)
    assert torch.equal(twin(x), expected)
    for ours, theirs in zip(twin.blocks, model.blocks, strict=True):
        for part, (home, key) in ours.connection._lent.items():
            assert home is ours
            assert ours.connection.part(part) is getattr(ours, key)
            assert getattr(ours, key) is None or getattr(ours, key) is not getattr(theirs, key)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.normal_()
    assert torch.equal(model(x), expected)


@families_quick_first
@every_name
def test_autocast_computes_close_to_single_precision(family: str, name: str) -> None:
    model = FAMILIES[family](name)
    x = images(family)
    model(x)
    expected = model.eval()(x)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(x)
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max().clamp(min=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(x).float().square().mean()
    loss.backward()
    assert all(p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all()) for p in model.parameters())


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
@pytest.mark.parametrize("name", CHANGES_WIDTH)
def test_what_changes_the_width_is_refused_with_a_reason(family: str, name: str) -> None:
    with pytest.raises(sw.SkipwayError, match="a ResNet's stages keep their width, which .* does not: choose an add"):
        FAMILIES[family](name)


def test_the_table_above_holds_every_name() -> None:
    assert set(NAMES) | set(CHANGES_WIDTH) == set(connect.names())


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
