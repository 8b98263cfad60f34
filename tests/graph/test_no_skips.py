"""Joins of signals that are no skip connections: norms, gates, attention, positions, recurrence, parallel branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_nets import ConvNorm, Inception, SqueezeExcite, Written, linear, parameter, skips
from torch import Tensor, nn


def rotary(self: Any, x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[-1] // 2).float()
    cos, sin = torch.cat([angles.cos()] * 2), torch.cat([angles.sin()] * 2)
    half = x.shape[-1] // 2
    return self.g(x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin)


def attend(self: Any, x: Tensor) -> Tensor:
    scores = self.q(x) @ self.k(x).mT
    scores = scores + self.bias
    return torch.softmax(scores, -1) @ self.v(x)


def two_layers_share_a_bias(self: Any, x: Tensor) -> Tensor:
    bias = self.table(torch.arange(4)).view(2, 2)
    for _ in range(2):
        scores = self.q(x) @ self.k(x).mT + bias
        x = self.v(torch.softmax(scores, -1) @ x)
    return x


def queries_are_added_again(self: Any, x: Tensor) -> Tensor:
    query = self.table.weight[:2]
    h = x
    for _ in range(3):
        with_query = h + query
        h = self.f(F.scaled_dot_product_attention(self.q(with_query), self.k(with_query), self.v(h)))
    return h


def elman(self: Any, x: Tensor) -> Tensor:
    h = torch.zeros(x.shape[0], 4)
    inside = self.f(x)
    for step in range(x.shape[1]):
        h = torch.tanh(inside[:, step] + self.g(h))
    return h


def scan(self: Any, x: Tensor) -> Tensor:
    """A selective state space: h = a(x) h + b(x) x, step by step."""
    a, b = torch.exp(-F.softplus(self.f(x))), self.g(x) * x
    h = torch.zeros(x.shape[0], 4)
    found = []
    for step in range(x.shape[1]):
        h = a[:, step] * h + b[:, step]
        found.append(h)
    return self.out(torch.stack(found, 1))


NO_SKIP: dict[str, tuple[Callable[..., Any], dict[str, Any], tuple[int, ...]]] = {
    "GELU written out": (
        lambda self, x: self.g(0.5 * (h := self.f(x)) * (1 + torch.tanh(0.8 * (h + 0.044715 * h**3)))),
        {"g": linear()},
        (2, 4),
    ),
    "a cube written as products": (lambda self, x: self.g((h := self.f(x)) + 0.1 * h * h * h), {"g": linear()}, (2, 4)),
    "Snake, with its learned frequency": (
        lambda self, x: self.g((h := self.f(x)) + (self.a + 1e-9).reciprocal() * torch.sin(self.a * h) ** 2),
        {"g": linear(), "a": parameter(4)},
        (2, 4),
    ),
    "LayerNorm written out": (
        lambda self, x: self.g(
            (self.a * (d := x - x.mean(-1, keepdim=True)) / (d * d).mean(-1, keepdim=True).sqrt()) + self.b
        ),
        {"g": linear(), "a": parameter(4), "b": parameter(4)},
        (2, 4),
    ),
    "RMSNorm written out": (
        lambda self, x: self.g(self.a * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))),
        {"g": linear(), "a": parameter(4)},
        (2, 4),
    ),
    "softmax written out": (
        lambda self, x: self.f(torch.exp(x - x.amax(-1, keepdim=True)) / x.exp().sum(-1, keepdim=True)),
        {},
        (2, 4),
    ),
    "rotary positions": (rotary, {"g": linear()}, (2, 3, 4)),
    "a gated linear unit": (lambda self, x: self.f(x) * torch.sigmoid(self.g(x)), {"g": linear()}, (2, 4)),
    "SwiGLU": (lambda self, x: self.h(F.silu(self.f(x)) * self.g(x)), {"g": linear(), "h": linear()}, (2, 4)),
    "attention with a bias": (
        attend,
        {"q": linear(), "k": linear(), "v": linear(), "bias": parameter(3, 3)},
        (2, 3, 4),
    ),
    "a bias shared by the attention of two layers": (
        two_layers_share_a_bias,
        {"q": linear(), "k": linear(), "v": linear(), "table": nn.Embedding(4, 1)},
        (2, 4),
    ),
    "queries added again in every layer": (
        queries_are_added_again,
        {"q": linear(), "k": linear(), "v": linear(), "table": nn.Embedding(4, 4)},
        (1, 2, 4),
    ),
    "two parallel layers": (lambda self, x: self.f(x) + self.g(x), {"g": linear()}, (2, 4)),
    "two parallel deep branches": (
        lambda self, x: self.f(F.relu(self.g(x))) + self.g(F.relu(self.f(x))),
        {"g": linear()},
        (2, 4),
    ),
    "two towers of residual blocks are parallel where they meet": (
        lambda self, x: torch.cat([self.f(x), self.g(self.g(x).relu())], -1),
        {"g": linear()},
        (2, 4),
    ),
    "two inputs": (lambda self, x: self.f(x) + torch.ones(2, 4), {}, (2, 4)),
    "a learned position": (lambda self, x: self.f(x + self.a), {"a": parameter(4)}, (2, 4)),
    "a recurrent cell": (elman, {"g": linear()}, (2, 3, 4)),
    "a selective state space": (scan, {"g": linear(), "out": linear()}, (2, 3, 4)),
    "tokens put together": (lambda self, x: self.g(torch.cat([self.f(x), x], 1)), {"g": linear()}, (2, 3, 4)),
    "a class token": (
        lambda self, x: self.f(torch.cat([self.a.expand(2, -1, -1), x], 1)),
        {"a": parameter(1, 1, 4)},
        (2, 3, 4),
    ),
    "a loss": (lambda self, x: {"loss": (x - (y := self.g(self.f(x)))).pow(2).mean(), "y": y}, {"g": linear()}, (2, 4)),
    "chained layers": (lambda self, x: self.g(F.relu(self.f(x))), {"g": linear()}, (2, 4)),
}


@pytest.mark.parametrize("case", NO_SKIP)
def test_what_is_no_skip(case: str):
    function, parts, shape = NO_SKIP[case]
    assert [str(skip) for skip in skips(Written(function, f=linear(), **parts), torch.randn(shape))] == []


@pytest.mark.parametrize("place", ["before", "in every layer"])
def test_a_condition_spread_over_all_positions_in_every_layer_is_no_skip(place: str):
    def forward(self, x, time):
        condition = self.c(time)
        condition = F.silu(condition) if place == "before" else condition
        for _ in range(3):
            of_layer = condition if place == "before" else F.silu(condition)
            scale, shift = self.g(of_layer)[:, None].chunk(2, -1)
            x = F.relu(self.f(x) * (1 + scale) + shift)
        return x

    model = Written(forward, f=linear(), g=linear(4, 8), c=linear())
    assert skips(model, torch.randn(2, 5, 4), torch.randn(2, 4)) == ()


def test_parallel_heavy_branches_are_no_skip():
    assert skips(nn.Sequential(Inception(3), Inception(8)), torch.randn(1, 3, 8, 8)) == ()


def test_gates_alone_are_no_skip():
    assert skips(nn.Sequential(ConvNorm(3, 4), SqueezeExcite(4)), torch.randn(1, 3, 8, 8)) == ()
