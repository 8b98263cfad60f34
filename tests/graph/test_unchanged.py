"""That `trace` leaves the model, its inputs and the random generators as they were, and keeps nothing alive."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from graph_nets import Written
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import trace


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


class Everything(nn.Module):
    """A model that changes all it can while it runs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.Dropout(0.5),
            nn.InstanceNorm2d(3, track_running_stats=True),
        )
        self.normed = nn.utils.spectral_norm(nn.Linear(3, 3))
        self.embedding = nn.Embedding(4, 3, max_norm=0.1)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(2))
        self.steps = 0
        self.cache: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = torch.ones(3)
        self.steps += 1
        self.seen = x.shape
        self.cache = F.relu(x, inplace=True)
        self.body[0].eval()
        noise = torch.rand(()) + random.random() + float(np.random.rand())
        table = self.embedding(torch.arange(3))
        return self.normed(self.body(x).mean((2, 3)) + table.mean(0)) * noise


class TestUnchanged:
    def test_model_inputs_and_generators_are_left_as_they_were(self, no_shape_checks: None):
        x = torch.randn(2, 3, 4, 4)
        model: Any = Everything().train()
        model.body[0].weight.requires_grad_(False)
        model.body[0].weight.grad = torch.ones_like(model.body[0].weight)
        handle = model.register_forward_hook(lambda *_: None)
        before, kept = copy.deepcopy(model.state_dict()), x.clone()
        attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
        states = torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)[1].copy()  # pyright: ignore[reportArgumentType]
        trace(model, x)
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert model.state_dict().keys() == before.keys()
        assert torch.equal(x, kept)
        assert not x.requires_grad
        for name, module in model.named_modules():
            assert vars(module).keys() == attributes[name].keys()
            assert all(vars(module)[key] is value for key, value in attributes[name].items())
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert (np.random.get_state(legacy=True)[1] == states[2]).all()  # pyright: ignore[reportArgumentType]
        assert torch.equal(model.body[0].weight.grad, torch.ones_like(model.body[0].weight))
        assert model.body[0].training
        assert list(model._forward_hooks) == [handle.id]
        assert torch.is_grad_enabled()

    def test_nothing_is_left_behind_after_an_error(self):
        model = Written(lambda self, x: self.f(x).view(7), f=linear())
        with pytest.raises(
            SkipwayError, match=r"does not run on these inputs \(args\[0\] \(2, 4\)\): RuntimeError: shape"
        ):
            trace(model, torch.randn(2, 4))
        assert not nn.modules.module._has_any_global_hook()
        assert torch.overrides._get_current_function_mode_stack() == []
        assert gc.isenabled()

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_the_statistics_of_a_scripted_norm(self):
        norm: Any = torch.jit.script(nn.BatchNorm1d(4)).train()
        trace(Written(lambda self, x: self.f(x), f=norm), torch.randn(8, 4))
        assert norm.num_batches_tracked == 0
        assert (norm.running_mean == 0).all()

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    def test_what_changed_out_of_sight_is_reported(self):
        bump: Any = torch.jit.trace(lambda x: x.add_(1), torch.zeros(1))
        bump._torchdynamo_inline = None
        model = Written(lambda self, x: x + bump(self.count))
        model.register_buffer("count", torch.zeros(1))
        with pytest.warns(UserWarning, match="tracing changed count: an operation unknown to torch wrote to it"):
            trace(model, torch.randn(2))

    def test_what_is_written_through_views_and_data_is_put_back(self):
        def forward(self, x):
            self.count.data.add_(1)
            self.count.detach()[0] += 1
            self.f.weight.data.view(-1).mul_(2)
            return self.f(x) + self.count

        model: Any = Written(forward, f=linear())
        model.register_buffer("count", torch.zeros(1))
        weight = copy.deepcopy(model.f.weight)
        trace(model, torch.randn(2, 4))
        assert model.count == 0
        assert torch.equal(model.f.weight, weight)

    def test_no_activation_and_no_model_is_kept_alive(self):
        made: list[weakref.ref[Tensor]] = []

        def forward(self, x):
            h = self.f(x)
            made.append(weakref.ref(h))
            y = x + h
            made.append(weakref.ref(y))
            return y

        model = Written(forward, f=linear())
        graph = trace(model, torch.randn(2, 4))
        assert [reference() for reference in made] == [None, None]
        reference = weakref.ref(model)
        del model
        gc.collect()
        assert reference() is None
        assert len(graph.skips) == 1

    def test_activations_are_freed_while_the_pass_goes_on(self):
        alive: list[weakref.ref[Tensor]] = []
        counts = []

        def forward(self, x):
            for _ in range(20):
                x = self.f(x)
                alive.append(weakref.ref(x))
                counts.append(sum(reference() is not None for reference in alive))
            return x

        trace(Written(forward, f=linear()), torch.randn(2, 4))
        assert max(counts) == 1
