"""Skips written as a blend y = s + t * (v - s), in which the shortcut is subtracted again along the branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_nets import Written
from torch import nn

from skipway.graph import trace

BLENDS: dict[str, tuple[Callable[..., Any], str]] = {
    "by a signal": (lambda self, x: x + torch.sigmoid(self.g(x)) * (self.f(x) - x), "gate"),
    "by a signal, the other way round": (lambda self, x: x - torch.sigmoid(self.g(x)) * (x - self.f(x)), "gate"),
    "by a number": (lambda self, x: x + 0.3 * (self.f(x) - x), "scaled add"),
    "by a learned scalar": (lambda self, x: x + self.a * (self.f(x) - x), "scaled add"),
    "by noise": (lambda self, x: x + torch.rand(2, 1).round() * (self.f(x) - x), "add"),
}


@pytest.mark.parametrize("way", BLENDS)
def test_a_blend_is_one_skip(way: str):
    function, kind = BLENDS[way]
    model = Written(function, f=nn.Linear(4, 4), g=nn.Linear(4, 4), a=nn.Parameter(torch.ones(())))
    graph = trace(nn.Sequential(nn.Linear(4, 4), model, nn.Linear(4, 4)), torch.randn(2, 4))
    assert [(skip.kind, skip.span.most) for skip in graph.skips] == [(kind, 1)]
    assert graph.paths() == {2: 1, 3: 1}


def test_rows_dropped_around_a_normalised_sum_leave_that_sum_as_the_skip():
    def forward(self, x):
        merged = self.n(x + self.f(x))
        return x + torch.rand(2, 1).round() * (merged - x)

    graph = trace(Written(forward, f=nn.Linear(4, 4), n=nn.LayerNorm(4)), torch.randn(2, 4))
    assert [str(skip.site) for skip in graph.skips] == [":add:0"]
    assert graph.paths() == {0: 1, 1: 1}
