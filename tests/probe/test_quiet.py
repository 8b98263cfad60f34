"""A probe leaves no trace, whatever happens inside."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from probe_nets import images, tiny_resnet
from torch import nn

from skipway.errors import SkipwayError
from skipway.probe import quiet


def state(model: nn.Module) -> Any:
    return (
        copy.deepcopy(model.state_dict()),
        [(name, module.training, dict(vars(module))) for name, module in model.named_modules()],
        [(p.requires_grad, id(p), id(p.grad)) for p in model.parameters()],
        torch.get_rng_state(),
        random.getstate(),
        np.random.get_state(legacy=False)["state"]["key"].copy(),  # pyright: ignore
    )


def same(a: Any, b: Any) -> None:
    assert all(torch.equal(a[0][name], b[0][name]) for name in {**a[0], **b[0]})
    assert [part[:2] for part in a[1]] == [part[:2] for part in b[1]]
    for (_, _, one), (_, _, other) in zip(a[1], b[1], strict=True):
        assert one.keys() == other.keys()
        assert all(one[key] is other[key] for key in one)
    assert a[2] == b[2]
    assert torch.equal(a[3], b[3])
    assert a[4] == b[4]
    assert (a[5] == b[5]).all()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, RuntimeError])
def test_all_is_as_before(error: type[BaseException] | None, no_shape_checks: None):
    model = tiny_resnet().train()
    model.blocks[0].eval()
    model.head.weight.requires_grad_(False)
    model.head.bias.grad = torch.ones(4)
    before = state(model)
    x, y = images()
    with pytest.raises(error or ZeroDivisionError), quiet(model, training=True, seed=3):
        assert all(module.training for module in model.modules())
        assert model.head.bias.grad is None
        nn.functional.cross_entropy(model(x), y).backward()
        model.head.weight.requires_grad_(True)
        model.register_forward_hook(lambda *_: None)
        model.stem.register_buffer("new", torch.zeros(1))
        model.head.bias.grad.add_(5)
        np.random.rand()
        random.random()
        raise error() if error else ZeroDivisionError
    same(before, state(model))
    assert torch.equal(model.head.bias.grad, torch.ones(4))


def test_the_mode_inside():
    model = tiny_resnet().train()
    model.head.eval()
    with quiet(model):
        assert not any(module.training for module in model.modules())
    with quiet(model, training=None):
        assert model.training
        assert not model.head.training


def test_embeddings_that_renormalise_themselves():
    model = nn.Embedding(4, 3, max_norm=0.1)
    before = model.weight.detach().clone()
    with quiet(model), torch.no_grad():
        model(torch.arange(4))
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


def test_it_takes_modules(no_shape_checks: None):
    model: Any = nn.Linear
    with pytest.raises(SkipwayError, match=r"a probe takes a torch\.nn\.Module, and this is the class Linear"):  # noqa: SIM117
        with quiet(model):
            pass
