"""Every named connection in every family: it trains, it is saved, copied, pickled and autocast; or it says why not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tests.models.small_examples import BY_KEY, EXAMPLES, inputs, key, make
from torch import Tensor, nn

import skipway as sw
from skipway import connect

# What a family cannot take, and the reason in its refusal.
WIDTH = r"keep their width, which .* does not: choose an additive connection"
ADDITIVE: dict[str, str] = dict.fromkeys(("concat", "attention-gate", "residual-path", "dense"), WIDTH)
TOKENS = {**ADDITIVE, "residual-path": r"neighbours of each position, which tokens \(dims=0\) do not have"}
MASKED = {**TOKENS, **dict.fromkeys(("pooled-gate", "squeeze-excite"), "mean over all tokens, and so looks at padding")}
ANYTHING: dict[str, str] = {}
REFUSALS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("resnet18", "resnet20", "preresnet18", "preresnet110", "se_resnet18", "se_resnet20"), ADDITIVE),
    **dict.fromkeys(("wrn-28-10", "resnext-29-8x64", "vgg11", "vgg11-cifar", "highway-conv-10"), ADDITIVE),
    **dict.fromkeys(("highway-10", "vit_b_16", "vit_tiny"), TOKENS),
    **dict.fromkeys(("gpt2", "bert-base", "transformer"), MASKED),
    **dict.fromkeys(("unet", "unet-bilinear", "unet1d", "unet3d", "unet-2015"), ANYTHING),
    **dict.fromkeys(("densenet121", "densenet-40-12", "densenet-bc-100-12"), ANYTHING),
}
# What every family is tried with in the quick suite, beside its own; of those of one module one is tried with all.
COMMON = ("none", "residual", "highway")
# So that every branch runs in one of them.
PASSES = 16


def pairs(quick: bool) -> list[Any]:
    """All families under all connections that they take; those that are not for the quick suite are marked slow."""
    return [
        pytest.param(family, name, id=f"{family}-{name}", marks=[] if now else [pytest.mark.slow])
        for family, example in EXAMPLES.items()
        for name in connect.names()
        if name not in REFUSALS[family]
        for now in [name in (*COMMON, BY_KEY[family].skip) or (quick and example.quick)]
    ]


taken = pytest.mark.parametrize(("family", "name"), pairs(quick=False))
taken_by_many = pytest.mark.parametrize(("family", "name"), pairs(quick=True))


def opened(model: nn.Module) -> nn.Module:
    """The model with every learned scale at 1, as some start at 0 and let nothing of their branch through."""
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if path.endswith(".scale"):
                parameter.fill_(1.0)
    return model


def flat(outputs: Any) -> Tensor:
    """All that a model puts out, in one."""
    return outputs.flatten() if isinstance(outputs, Tensor) else torch.cat([one.flatten() for one in outputs])


def test_every_family_has_a_small_example_and_its_refusals() -> None:
    """A family that joins the registry is to join the two tables: then it is tested under every connection."""
    names = {key(family) for family in BY_KEY.values()}
    assert set(EXAMPLES) == names, "give the new family a small example in tests/models/small_examples.py"
    assert set(REFUSALS) == names, "say in REFUSALS what the new family refuses, and why"
    assert all(set(refusals) <= set(connect.names()) for refusals in REFUSALS.values())


@pytest.mark.parametrize(
    ("family", "name", "reason"),
    [(family, name, reason) for family, refused in REFUSALS.items() for name, reason in refused.items()],
)
def test_what_it_cannot_take_it_refuses_with_the_reason(family: str, name: str, reason: str) -> None:
    with pytest.raises(sw.SkipwayError, match=reason) as caught:
        make(family, name)
    assert "\n" not in str(caught.value)


@taken_by_many
def test_it_runs_and_its_gradients_reach_everything(family: str, name: str) -> None:
    model = opened(make(family, name))
    given = inputs(family, model)
    images = given[0].dtype == torch.float32
    if images:
        given[0].requires_grad_()
    for _ in range(PASSES if name == "stochastic-depth" else 1):
        y = flat(model(*given))
        assert y.isfinite().all()
        y.square().sum().backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    if images:
        assert given[0].grad is not None
        assert given[0].grad.isfinite().all()
        assert given[0].grad.any()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            assert module.weight.grad is not None
            assert module.weight.grad.any()


@taken
def test_states_copies_and_pickles_compute_the_same_and_share_nothing(family: str, name: str) -> None:
    model = make(family, name).eval()
    given = inputs(family, model, 2)
    expected = flat(model(*given))
    fresh = make(family, name).eval()
    fresh.load_state_dict(model.state_dict(), strict=True)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for twin in (fresh, copied, pickled):
        assert torch.equal(flat(twin(*given)), expected)
        for module in twin.modules():
            if isinstance(module, connect.Connection):
                for part, (home, place) in module._lent.items():
                    assert module.part(part) is getattr(home, place)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.normal_()
    assert torch.equal(flat(model(*given)), expected)


@taken
def test_autocast_computes_close_to_single_precision(family: str, name: str) -> None:
    model = make(family, name)
    given = inputs(family, model)
    model(*given)
    expected = flat(model.eval()(*given))
    with torch.autocast("cpu", torch.bfloat16):
        found = flat(model(*given))
    assert (found.float() - expected).abs().max() <= 0.05 * expected.abs().max().clamp(min=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = flat(model.train()(*given)).float().square().mean()
    loss.backward()
    assert all(p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("family", EXAMPLES)
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_it_computes_the_same(family: str) -> None:
    torch._dynamo.reset()
    model = make(family, BY_KEY[family].skip).eval()
    given = inputs(family, model)
    torch.testing.assert_close(torch.compile(model, backend="eager")(*given), model(*given))


@pytest.mark.parametrize("family", EXAMPLES)
def test_the_family_s_own_connection_is_the_default(family: str) -> None:
    """What is not said is as the family publishes it."""
    of, settled = BY_KEY[family], BY_KEY[family].sizes[family]
    with torch.device("meta"):
        default, chosen = sw.models.create(family), of.build(**settled, skip=of.skip)
    assert [(k, v.shape) for k, v in default.state_dict().items()] == [
        (k, v.shape) for k, v in chosen.state_dict().items()
    ]


@pytest.mark.parametrize("family", EXAMPLES)
def test_its_published_models_take_the_inputs_that_it_tells(family: str) -> None:
    """On the meta device, without memory; and an example is the same every time."""
    with torch.device("meta"):
        model: Any = sw.models.create(family).eval()
        y = model(*sw.models.example(family, model, 2, device="meta"))
    assert flat(y).is_meta
    assert isinstance(model.depth, int)
    assert model.depth > 1
    first, again = (sw.models.example(family, model)[0] for _ in range(2))
    assert torch.equal(first, again)
