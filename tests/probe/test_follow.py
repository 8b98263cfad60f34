"""Following a trace on the live model: what is captured is what autograd has, and a changed model is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from skip_nets import NETS, Written, branch, built
from torch import nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.probe.batches import Batch
from skipway.probe.capture import capture
from skipway.probe.quiet import quiet


@pytest.mark.parametrize("name", NETS)
def test_the_loss_and_all_gradients_are_those_of_the_model_alone(name: str):
    net, (x, y) = built(name)
    with quiet(net, training=True):
        # Reentrant checkpoints refuse torch.autograd.grad.
        F.cross_entropy(net(x), y).backward()
        alone = [parameter.grad for parameter in net.parameters()]
        graph = sw.trace(net, x)
    values = {value for skip in graph.skips for value in (skip.source, skip.carried, *skip.branches)}
    with quiet(net, training=True):
        tensors, output = capture(net, graph, Batch((x,), {}, y, 4), values)
        followed = torch.autograd.grad(F.cross_entropy(output, y), list(net.parameters()), retain_graph=True)
    assert tensors.keys() == values
    for one, other in zip(alone, followed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NETS)
def test_captured_operands_of_a_sum_add_up_to_its_result(name: str):
    net, (x, y) = built(name)
    graph = sw.trace(net.eval(), x)
    sums = [
        skip for skip in graph.skips if skip.kind == "add" and len(graph.trace.operations[skip.merge].operands) == 2
    ]
    wanted = {value for skip in sums for value in (skip.carried, *skip.branches)}
    merged = {skip.index: graph.trace.operations[skip.merge].results[0] for skip in sums}
    tensors, _ = capture(net, graph, Batch((x,), {}, y, 4), wanted | set(merged.values()))
    assert sums or name in ("dense", "multi-branch and gates")
    for skip in sums:
        torch.testing.assert_close(tensors[skip.carried] + tensors[skip.branches[0]], tensors[merged[skip.index]])


def test_a_gradient_taken_at_a_captured_tensor_is_right_though_it_is_written_over():
    net: Any = Written(
        lambda self, x: self.head(self.f(x).add_(x).relu_()), f=nn.Linear(5, 5), head=nn.Linear(5, 1)
    ).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    graph = sw.trace(net, x)
    tensors, output = capture(net, graph, Batch((x,), {}, None, 3), graph.skips[0].branches)
    (gradient,) = torch.autograd.grad(output.sum(), list(tensors.values()))
    mask = (net.f(x) + x > 0).double()  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(gradient, mask * net.head.weight)  # pyright: ignore[reportArgumentType, reportCallIssue]


class TestStale:
    def test_another_operation_is_named(self):
        net: Any = nn.Sequential(nn.Linear(5, 5), nn.ReLU(), nn.Linear(5, 5))
        x = torch.zeros(2, 5)
        graph = sw.trace(net, x)
        net[1] = nn.Tanh()
        with pytest.raises(SkipwayError, match=r"where the trace has 1:relu:0, it now runs 2:linear:0; trace it again"):
            capture(net, graph, Batch((x,), {}, None, 2), [0])

    def test_the_end_of_the_model_is_named(self):
        net: Any = nn.Sequential(nn.Linear(5, 5), nn.ReLU())
        x = torch.zeros(2, 5)
        graph = sw.trace(net, x)
        with pytest.raises(SkipwayError, match="the trace has 1:relu:0, it now ends"):
            capture(nn.Sequential(net[0]), graph, Batch((x,), {}, None, 2), [0])

    def test_an_operation_on_another_tensor_is_named(self):
        net: Any = Written(
            lambda self, x: self.b(self.a(x)) + (x if self.skips else self.a.weight[0]), a=branch(), b=branch()
        )
        net.skips, net.a.weight = True, nn.Parameter(torch.ones(6, 6))
        x = torch.zeros(2, 6)
        graph = sw.trace(net, x)
        net.skips = False
        with pytest.raises(SkipwayError, match="no longer runs as it was traced"):
            capture(net, graph, Batch((x,), {}, None, 2), [0])

    def test_a_value_that_is_not_there_is_refused(self):
        net = nn.Linear(2, 2)
        x = torch.zeros(1, 2)
        with pytest.raises(SkipwayError, match="has no value 99; its values are 0 to"):
            capture(net, sw.trace(net, x), Batch((x,), {}, None, 1), [99])
