"""Which joins are skip connections, of which kind, and past how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graph_nets import (
    ConvNorm,
    SqueezeExcite,
    UNet,
    Written,
    cifar_resnet56,
    densenet,
    linear,
    mobilenet_v2,
    parameter,
    resnet18,
    resnet50,
    skips,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from skipway.graph import Skip, trace


def kinds(found: tuple[Skip, ...]) -> Counter[tuple[str, str]]:
    return Counter((skip.kind, skip.shortcut) for skip in found)


class TestFamilies:
    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            (resnet18, {("add", "identity"): 5, ("add", "projection"): 3}),
            (resnet50, {("add", "identity"): 12, ("add", "projection"): 4}),
            (cifar_resnet56, {("add", "identity"): 25, ("add", "projection"): 2}),
            (mobilenet_v2, {("add", "identity"): 10}),
            (UNet, {("concat", "identity"): 3}),
            (lambda: UNet("add"), {("add", "identity"): 3}),
            (lambda: UNet("gated"), {("concat", "scaled"): 3}),
            (lambda: densenet((3, 2)), {("concat", "identity"): 3 * 4 // 2 + 2 * 3 // 2}),
        ],
    )
    def test_kinds(self, model: Callable[[], nn.Module], expected: dict[tuple[str, str], int]):
        found = skips(model(), torch.randn(1, 3, 32, 32))
        assert kinds(found) == expected
        assert all(skip.gradient for skip in found)

    def test_spans_and_modules_of_a_resnet(self):
        found = skips(resnet50(), torch.randn(1, 3, 32, 32))
        assert {skip.span for skip in found} == {(3, 3)}
        assert not any(skip.long for skip in found)
        projected = [skip for skip in found if skip.shortcut == "projection"]
        assert [skip.shortcut_modules for skip in projected] == [(f"{index}.shortcut",) for index in (1, 4, 8, 14)]
        assert found[1].branch_modules == ("2.body",)
        assert found[1].shortcut_operations == ()
        assert found[1].source_shape == found[1].branch_shape == found[1].shape == (1, 8, 32, 32)

    def test_the_skips_of_a_u_net_are_long(self):
        found = skips(UNet(), torch.randn(1, 3, 32, 32))
        assert all(skip.long for skip in found)
        # Bottom level: two convolutions and an up-convolution, six more for every level above it: the way is 3 + 5k.
        assert [skip.span.most for skip in found] == [3, 8, 13]
        assert [skip.span.fewest for skip in found] == [3, 5, 5]

    def test_dense_edges_are_skips_one_by_one(self):
        found = skips(densenet((3,)), torch.randn(1, 3, 8, 8))
        edges = [(str(skip.site), skip.span) for skip in found]
        assert edges == [
            ("1.1:cat:0", (2, 2)),
            ("1.2:cat:0", (2, 4)), ("1.2:cat:0", (2, 2)),
            ("1:cat:0", (2, 6)), ("1:cat:0", (2, 4)), ("1:cat:0", (2, 2)),
        ]  # fmt: skip

    def test_a_global_skip_around_residual_blocks_is_one_more_and_long(self):
        def forward(self, x):
            body = x
            for block in self.blocks:
                body = block(body)
            return x + body

        block = Written(lambda self, x: x + self.f(x), f=linear())
        found = skips(
            Written(forward, blocks=nn.ModuleList([block, Written(block.function, f=linear())])), torch.randn(2, 4)
        )
        assert [(skip.kind, skip.long) for skip in found] == [("add", False), ("add", False), ("add", True)]
        assert found[-1].span == (0, 2)


IDENTITY: dict[str, tuple[Callable[..., Any], dict[str, Any], str, str]] = {
    "plain": (lambda self, x: x + self.f(x), {}, "add", "identity"),
    "number on the branch": (lambda self, x: x + 0.1 * self.f(x), {}, "scaled add", "identity"),
    "one on the branch": (lambda self, x: x + 1.0 * self.f(x), {}, "add", "identity"),
    "divided branch": (lambda self, x: x + self.f(x) / 2, {}, "scaled add", "identity"),
    "number on the shortcut": (lambda self, x: 0.5 * x + self.f(x), {}, "scaled add", "scaled"),
    "learned scalar": (lambda self, x: x + self.a * self.f(x), {"a": parameter()}, "scaled add", "identity"),
    "learned scale per channel": (
        lambda self, x: x + self.a * self.f(x),
        {"a": parameter(4)},
        "scaled add",
        "identity",
    ),
    "tanh of a learned scalar": (
        lambda self, x: x + self.a.tanh() * self.f(x),
        {"a": parameter()},
        "scaled add",
        "identity",
    ),
    "learned scale on the shortcut": (
        lambda self, x: self.a * x + self.f(x),
        {"a": parameter(4)},
        "scaled add",
        "scaled",
    ),
    "dropout on the branch": (lambda self, x: x + F.dropout(self.f(x), 0.5, True), {}, "add", "identity"),
    "dropout on the shortcut": (lambda self, x: F.dropout(x, 0.5, True) + self.f(x), {}, "add", "identity"),
    "stochastic depth": (
        lambda self, x: x + self.f(x).div(0.8) * torch.empty(2, 1).bernoulli_(0.8),
        {},
        "add",
        "identity",
    ),
    "activation on the shortcut": (lambda self, x: F.relu(x) + self.f(x), {}, "add", "activation"),
    "norm on the shortcut": (lambda self, x: self.n(x) + self.f(x), {"n": nn.LayerNorm(4)}, "add", "norm"),
    "one branch is a learned scale": (lambda self, x: x + self.a * x, {"a": parameter(4)}, "scaled add", "identity"),
    "one branch is a norm": (lambda self, x: x + self.n(x), {"n": nn.LayerNorm(4)}, "add", "identity"),
    "a gate as the branch": (lambda self, x: x + x * torch.sigmoid(self.f(x)), {}, "add", "identity"),
    "difference": (lambda self, x: x - self.f(x), {}, "add", "identity"),
    "two branches": (lambda self, x: x + self.f(x) + self.g(x), {"g": linear()}, "multi-branch", "identity"),
    "two branches summed first": (
        lambda self, x: (self.f(x) + self.g(x)) + x,
        {"g": linear()},
        "multi-branch",
        "identity",
    ),
    "two branches with dropout between": (
        lambda self, x: F.dropout(self.f(x) + self.g(x), 0.1, False) + x,
        {"g": linear()},
        "multi-branch",
        "identity",
    ),
    "python's sum": (lambda self, x: sum([x, self.f(x), self.g(x)]), {"g": linear()}, "multi-branch", "identity"),
    "a linear layer beside a deeper way": (
        lambda self, x: self.f(x) + self.h(F.relu(self.g(x))),
        {"g": linear(), "h": linear()},
        "add",
        "projection",
    ),
    "highway": (
        lambda self, x: (t := torch.sigmoid(self.g(x))) * self.f(x) + (1 - t) * x,
        {"g": linear()},
        "gate",
        "scaled",
    ),
    "highway by lerp": (
        lambda self, x: torch.lerp(x, self.f(x), torch.sigmoid(self.g(x))),
        {"g": linear()},
        "gate",
        "identity",
    ),
    "coupling of halves": (
        lambda self, x: torch.cat([(h := x.chunk(2, 1))[0] + self.g(h[1]), h[1]], 1),
        {"g": linear(2, 2)},
        "add",
        "identity",
    ),
    "attention without parameters": (
        lambda self, x: x + torch.softmax(x @ x.mT, -1) @ x,
        {},
        "add",
        "identity",
    ),
    "fourier mixing": (lambda self, x: x + torch.fft.fft(x).real, {}, "add", "identity"),
}


@pytest.mark.parametrize("case", IDENTITY)
def test_additive_skips(case: str):
    function, parts, kind, shortcut = IDENTITY[case]
    found = skips(Written(function, f=linear(), **parts), torch.randn(2, 4))
    found = tuple(skip for skip in found if skip.kind != "concat")
    assert [(skip.kind, skip.shortcut) for skip in found] == [(kind, shortcut)]


def test_number_of_branches():
    model = Written(lambda self, x: self.a(x) + (x + self.b(x)) + self.c(self.c(x)), a=linear(), b=linear(), c=linear())
    (skip,) = skips(model, torch.randn(2, 4))
    assert skip.kind == "multi-branch"
    assert len(skip.branches) == 3
    assert skip.span == (1, 2)


IMAGES: dict[str, tuple[Callable[..., Tensor], dict[str, Any], list[tuple[str, str]]]] = {
    "padding (option A)": (
        lambda self, x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + self.f(x),
        {"f": ConvNorm(4, 8, 3, 2)},
        [("add", "padding")],
    ),
    "padding by cat with zeros": (
        lambda self, x: torch.cat([x, torch.zeros_like(x)], 1) + self.f(x),
        {"f": ConvNorm(4, 8)},
        [("add", "padding")],
    ),
    "padding into zeros": (
        lambda self, x: _written_into(torch.zeros(1, 8, 8, 8), x) + self.f(x),
        {"f": ConvNorm(4, 8)},
        [("add", "padding")],
    ),
    "pooled shortcut": (lambda self, x: F.avg_pool2d(x, 2) + self.f(x), {"f": ConvNorm(4, 4, 3, 2)}, [("add", "pool")]),
    "strided shortcut": (lambda self, x: x[..., ::2, ::2] + self.f(x), {"f": ConvNorm(4, 4, 3, 2)}, [("add", "pool")]),
    "pooled projection (ResNet-D)": (
        lambda self, x: self.p(F.avg_pool2d(x, 2)) + self.g(F.relu(self.f(x))),
        {"p": ConvNorm(4, 8, 1), "f": ConvNorm(4, 8, 3, 2), "g": ConvNorm(8, 8)},
        [("add", "projection")],
    ),
    "upsampled shortcut": (
        lambda self, x: F.interpolate(x, scale_factor=2.0) + self.f(x),
        {"f": nn.ConvTranspose2d(4, 4, 2, 2)},
        [("add", "upsample")],
    ),
    "pre-activation projection": (
        lambda self, x: self.p(h := F.relu(self.n(x))) + self.g(F.relu(self.f(h))),
        {
            "n": nn.BatchNorm2d(4),
            "p": nn.Conv2d(4, 8, 1),
            "f": nn.Conv2d(4, 8, 3, padding=1),
            "g": nn.Conv2d(8, 8, 3, padding=1),
        },
        [("add", "projection")],
    ),
    "RepVGG with identity": (
        lambda self, x: F.relu(self.f(x) + self.p(x) + self.n(x)),
        {"f": ConvNorm(4, 4), "p": ConvNorm(4, 4, 1), "n": nn.BatchNorm2d(4)},
        [("multi-branch", "norm")],
    ),
    "squeeze and excite in a branch": (
        lambda self, x: x + self.s(self.f(x)),
        {"f": ConvNorm(4, 4), "s": SqueezeExcite(4)},
        [("add", "identity")],
    ),
    "pooling as a branch (PoolFormer)": (
        lambda self, x: x + self.a * (F.avg_pool2d(x, 3, 1, 1) - x),
        {"a": parameter(4, 1, 1)},
        [("scaled add", "identity")],
    ),
    "global context added to all positions": (
        lambda self, x: x + self.p(F.adaptive_avg_pool2d(x, 1)),
        {"p": nn.Conv2d(4, 4, 1)},
        [("add", "identity")],
    ),
    "channel split and shuffle": (
        lambda self, x: F.channel_shuffle(torch.cat([(h := x.chunk(2, 1))[0], self.f(h[1])], 1), 2),
        {"f": ConvNorm(2, 2)},
        [("concat", "identity")],
    ),
    "partial convolution in place": (
        lambda self, x: self.p(_written_into(x.clone(), self.f(x[:, :2]))),
        {"f": ConvNorm(2, 2), "p": ConvNorm(4, 4, 1)},
        [("concat", "identity")],
    ),
    "feature pyramid": (
        lambda self, x: self.l(a := self.f(x)) + F.interpolate(self.m(self.g(a)), scale_factor=2.0),
        {
            "f": ConvNorm(4, 4, act=nn.ReLU()),
            "g": ConvNorm(4, 4, 3, 2, act=nn.ReLU()),
            "l": nn.Conv2d(4, 4, 1),
            "m": nn.Conv2d(4, 4, 1),
        },
        [("add", "projection")],
    ),
    "decoder that reads low-level features through a layer (DeepLab v3+)": (
        lambda self, x: torch.cat([self.l(a := self.f(x)), F.interpolate(self.m(self.g(a)), scale_factor=2.0)], 1),
        {
            "f": ConvNorm(4, 4, act=nn.ReLU()),
            "g": ConvNorm(4, 4, 3, 2, act=nn.ReLU()),
            "l": ConvNorm(4, 2, 1, act=nn.ReLU()),
            "m": ConvNorm(4, 4, 3, act=nn.ReLU()),
        },
        [("concat", "projection")],
    ),
}


def _written_into(whole: Tensor, part: Tensor) -> Tensor:
    whole[:, : part.shape[1]] = part
    return whole


@pytest.mark.parametrize("case", IMAGES)
def test_skips_of_images(case: str):
    function, parts, expected = IMAGES[case]
    found = skips(Written(function, **parts), torch.randn(1, 4, 8, 8))
    assert [(skip.kind, skip.shortcut) for skip in found] == expected


@st.composite
def stacks(draw: st.DrawFn) -> list[tuple[str, int]]:
    """A network as a list of blocks: how each merges, and how many layers its branch has."""
    merges = st.sampled_from(["plain", "add", "add_", "concat", "scaled", "projection", "post-norm", "pre-norm"])
    return draw(st.lists(st.tuples(merges, st.integers(1, 3)), min_size=1, max_size=8))


class _Block(nn.Module):
    def __init__(self, c: int, merge: str, depth: int):
        super().__init__()
        self.merge = merge
        self.norm = nn.LayerNorm(c)
        self.layers = nn.ModuleList(nn.Linear(c, c) for _ in range(depth))
        self.shortcut = nn.Linear(c, c)
        self.scale = nn.Parameter(torch.ones(()))
        self.down = nn.Linear(2 * c, c)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.norm(x) if self.merge == "pre-norm" else x
        for layer in self.layers:
            branch = torch.tanh(layer(branch))
        if self.merge == "plain":
            return branch
        if self.merge == "add_":
            branch += x
            return branch
        if self.merge == "concat":
            return self.down(torch.cat([x, branch], -1))
        if self.merge == "scaled":
            return x + self.scale * branch
        if self.merge == "projection":
            return self.shortcut(x) + branch
        return self.norm(x + branch) if self.merge == "post-norm" else x + branch


@given(stacks())
@settings(max_examples=60)
def test_random_stacks_have_exactly_the_skips_they_were_built_with(blocks: list[tuple[str, int]]):
    model = nn.Sequential(*(_Block(3, merge, depth) for merge, depth in blocks))
    expected = []
    for merge, depth in blocks:
        kind = {"concat": "concat", "scaled": "scaled add"}.get(merge, "add")
        # A projection beside a single layer is a parallel layer, not a skip.
        if merge != "plain" and not (merge == "projection" and depth == 1):
            expected.append((kind, "projection" if merge == "projection" else "identity", (depth, depth)))
    found = trace(model, torch.randn(2, 3)).skips
    assert [(skip.kind, skip.shortcut, skip.span) for skip in found] == expected
