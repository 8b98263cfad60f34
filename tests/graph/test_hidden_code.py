"""What `trace` makes of checkpointed, scripted, compiled and foreign code inside a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from graph_nets import Written
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skipway.graph import SkipGraph, trace


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def sites(graph: SkipGraph) -> list[str]:
    return [str(skip.site) for skip in graph.skips]


def names(graph: SkipGraph) -> list[str]:
    return [operation.name for operation in graph.trace.operations]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
class TestHiddenCode:
    @pytest.mark.parametrize("reentrant", [True, False])
    def test_checkpointed_blocks_are_seen_through_and_carry_a_gradient(self, reentrant: bool):
        def forward(self, x):
            return x + checkpoint(self.f, x, use_reentrant=reentrant)

        graph = trace(Written(forward, f=nn.Sequential(linear(), nn.ReLU(), linear())).train(), torch.randn(2, 4))
        assert [skip.span for skip in graph.skips] == [(2, 2)]
        assert all(operation.gradient for operation in graph.trace.operations)

    @pytest.mark.parametrize("reentrant", [True, False])
    def test_a_whole_checkpointed_residual_block(self, reentrant: bool):
        block = Written(lambda self, x: x + self.f(x), f=linear())
        model = Written(lambda self, x: checkpoint(self.block, x, use_reentrant=reentrant), block=block)
        assert sites(trace(model.train(), torch.randn(2, 4))) == ["block:add:0"]

    def test_scripted_modules_count_as_one_operation_and_say_so(self):
        scripted: Any = torch.jit.script(nn.Sequential(linear(), nn.ReLU(), linear()))
        graph = trace(Written(lambda self, x: x + self.f(x), f=scripted), torch.randn(2, 4))
        assert len(graph.skips) == 1
        assert graph.skips[0].branch_modules == ("f",)
        assert any("f is compiled by torch.jit: its inside cannot be seen" in note for note in graph.trace.notes)

    def test_scripted_functions_are_traced_by_their_source(self):
        @torch.jit.script
        def gelu(x: Tensor) -> Tensor:
            return x * 0.5 * (1.0 + torch.tanh(0.79788456 * x * (1 + 0.044715 * x * x)))

        graph = trace(Written(lambda self, x: x + self.g(gelu(self.f(x))), f=linear(), g=linear()), torch.randn(2, 4))
        assert [skip.span for skip in graph.skips] == [(2, 2)]
        assert "tanh" in names(graph)
        assert gelu(torch.ones(1)).shape == (1,)

    @pytest.mark.filterwarnings("ignore:`torch.jit")
    def test_functions_compiled_without_source_count_as_one_operation_and_say_so(self):
        double: Any = torch.jit.trace(lambda x: x * 2, torch.zeros(2, 4))
        double._torchdynamo_inline = None
        graph = trace(Written(lambda self, x: x + self.f(double(x)), f=linear()), torch.randn(2, 4))
        assert len(graph.skips) == 1
        assert any("is compiled by torch.jit" in note for note in graph.trace.notes)

    def test_modules_that_leave_torch_count_as_one_operation_and_say_so(self):
        outside = Written(lambda self, x: torch.from_numpy(np.tanh(x.numpy())))
        graph = trace(
            Written(lambda self, x: x + self.f(self.outside(x)), f=linear(), outside=outside), torch.randn(2, 4)
        )
        assert len(graph.skips) == 1
        assert graph.trace.notes == (
            "outside runs code that torch does not show: its inside cannot be seen, so it counts as one operation",
        )

    def test_compiled_submodules_are_seen_through(self):
        compiled: Any = torch.compile(nn.Sequential(linear(), nn.ReLU(), linear()), backend="eager")
        graph = trace(Written(lambda self, x: x + self.f(x), f=compiled), torch.randn(2, 4))
        assert [skip.span for skip in graph.skips] == [(2, 2)]

    def test_custom_autograd_functions_are_seen_through_with_their_gradient(self):
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):  # pyright: ignore[reportIncompatibleMethodOverride]
                return x * 2

            @staticmethod
            def backward(ctx, gradient):  # pyright: ignore[reportIncompatibleMethodOverride]
                return gradient * 2

        graph = trace(Written(lambda self, x: x + self.f(Double.apply(x)), f=linear()), torch.randn(2, 4))
        assert [skip.span for skip in graph.skips] == [(1, 1)]
        assert all(operation.gradient for operation in graph.trace.operations)

    def test_modules_outside_the_tree_are_named_and_noted(self):
        outside = [linear()]
        graph = trace(Written(lambda self, x: x + outside[0](x)), torch.randn(2, 4))
        assert len(graph.skips) == 1
        assert any("<Linear> runs in the model but is not registered in it" in note for note in graph.trace.notes)
