"""Symmetries of nets so small that every permutation of every axis can be tried, and of nets drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from symmetry_nets import Program, deviation, outputs, scrambled
from symmetry_programs import Programs
from torch import Tensor, nn

from skipway.graph import trace
from skipway.graph.symmetry import Symmetry, symmetry


def linear(n: int, m: int) -> nn.Linear:
    return nn.Linear(n, m, bias=False)


def heads_of(net: Any, x: Tensor, n: int) -> list[Tensor]:
    return [part(x).unflatten(-1, (-1, n)).transpose(1, 2) for part in (net.q, net.k, net.v)]


def attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = heads_of(net, x, 2)
    return net.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def grouped_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = heads_of(net, x, 1)
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    return net.o(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


def fused_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = heads_of(net, x, 2)
    return net.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def einsum_attention(net: Any, x: Tensor) -> Tensor:
    q, k, v = (part(x).unflatten(-1, (2, 2)) for part in (net.q, net.k, net.v))
    weights = torch.einsum("bihd,bjhd->bhij", q, k).softmax(-1)
    return net.o(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


VECTORS, TOKENS, MAPS = (5, 2), (2, 3, 2), (2, 2, 3, 3)
MLP = {"a": linear(2, 3), "b": linear(3, 3), "c": linear(3, 2)}
TINY: dict[str, tuple[Callable[..., Any], Mapping[str, nn.Module], tuple[int, ...], int]] = {
    "plain": (lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.a(x))))), MLP, VECTORS, 36),
    "residual": (lambda net, x: net.c((y := net.a(x)) + torch.tanh(net.b(torch.tanh(y)))), MLP, VECTORS, 6),
    "concat": (
        lambda net, x: net.c(torch.cat([y := torch.tanh(net.a(x)), net.b(y) ** 2], -1)),
        {"a": linear(2, 2), "b": linear(2, 2), "c": linear(4, 2)},
        VECTORS,
        4,
    ),
    "halves": (
        lambda net, x: net.b(F.glu(net.a(x))),
        {"a": linear(2, 6), "b": linear(3, 2)},
        VECTORS,
        6,
    ),
    "padding": (
        lambda net, x: net.c(F.pad(y := torch.tanh(net.a(x)), (0, 2)) + net.b(y) ** 2),
        {"a": linear(2, 2), "b": linear(2, 4), "c": linear(4, 2)},
        VECTORS,
        4,
    ),
    "layer norm": (
        lambda net, x: net.b(F.layer_norm(net.a(x), (4,))),
        {"a": linear(2, 4), "b": linear(4, 2)},
        VECTORS,
        24,
    ),
    "group norm": (
        lambda net, x: net.b(F.group_norm(net.a(x), 2)),
        {"a": nn.Conv2d(2, 4, 1, bias=False), "b": nn.Conv2d(4, 2, 1, bias=False)},
        MAPS,
        8,
    ),
    "depth-wise": (
        lambda net, x: net.c(net.b(net.a(x)) ** 2),
        {"a": nn.Conv2d(2, 3, 1, bias=False), "b": nn.Conv2d(3, 3, 3, groups=3), "c": nn.Conv2d(3, 2, 1)},
        MAPS,
        6,
    ),
    "flatten": (
        lambda net, x: net.b(torch.tanh(net.a(x)).flatten(1)),
        {"a": nn.Conv2d(2, 3, 2, bias=False), "b": linear(12, 2)},
        MAPS,
        6,
    ),
    "attention": (attention, {"q": linear(2, 4), "k": linear(2, 4), "v": linear(2, 4), "o": linear(4, 2)}, TOKENS, 32),
    "grouped attention": (
        grouped_attention,
        {"q": linear(2, 4), "k": linear(2, 2), "v": linear(2, 2), "o": linear(4, 2)},
        TOKENS,
        8,
    ),
    "pinned": (lambda net, x: net.b(net.a(x).cumsum(-1) ** 2), {"a": linear(2, 4), "b": linear(4, 2)}, VECTORS, 1),
}


@pytest.mark.parametrize("name", TINY)
def test_the_order_is_that_of_all_permutations_that_keep_the_function(name: str) -> None:
    run, parts, shape, order = TINY[name]
    model = scrambled(Program(run, **parts))
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    found = symmetry(trace(model, x))
    assert found.order == order
    assert tried(model, x, found) == order


def tried(model: nn.Module, x: Tensor, found: Symmetry) -> int:
    """How many choices of one permutation for each hidden axis of each parameter keep the output.

    The wide axis behind a flattening is permuted by blocks, or there would be too many.
    """
    axes = [
        (name, axis) for name, p in model.named_parameters() for axis in range(min(p.dim(), 2)) if p.shape[axis] > 1
    ]
    ends = {("a.weight", 1), ("c.weight" if hasattr(model, "c") else "b.weight", 0), ("o.weight", 0), ("c.bias", 0)}
    ends |= {(f"{name}.weight", 1) for name in "qkv"}
    hidden = [place for place in axes if place not in ends]
    parameters = dict(model.named_parameters())
    choices = []
    for name, axis in hidden:
        size = parameters[name].shape[axis]
        block = 4 if size > 6 else 1
        spots = torch.arange(size).reshape(-1, block)
        choices.append(torch.stack([spots[list(p)].flatten() for p in itertools.permutations(range(len(spots)))]))
    expected = model(x)
    kept = 0
    # The first axis is run through; all choices for the others are tried at once.
    rest = torch.cartesian_prod(*(torch.arange(len(c)) for c in choices[1:])).reshape(-1, len(choices) - 1)
    for first in choices[0]:
        changed = {name: parameter.expand(len(rest), *parameter.shape) for name, parameter in parameters.items()}
        for k, (name, axis) in enumerate(hidden):
            index = first.expand(len(rest), -1) if k == 0 else choices[k][rest[:, k - 1]]
            spread = index.reshape(len(rest), *(-1 if a == axis else 1 for a in range(parameters[name].dim())))
            changed[name] = changed[name].gather(axis + 1, spread.expand_as(changed[name]))
        made = torch.vmap(lambda weights: torch.func.functional_call(model, weights, (x,)))(changed)
        kept += int(((made - expected).flatten(1).abs().max(1).values < 1e-9).sum())
    assert found.order <= kept
    return kept


@pytest.mark.parametrize("run", [fused_attention, einsum_attention])
def test_ways_to_write_attention_agree(run: Callable[..., Any]) -> None:
    _, parts, shape, order = TINY["attention"]
    assert symmetry(trace(Program(run, **parts).double(), torch.zeros(shape, dtype=torch.float64))).order == order


@pytest.mark.parametrize(("n", "m", "groups"), [(4, 4, 2), (4, 2, 2), (3, 6, 3), (6, 3, 3), (4, 4, 1)])
def test_grouped_convolutions_keep_their_blocks(n: int, m: int, groups: int) -> None:
    """As dense matrices, grouped convolutions may be permuted exactly where blocks stay blocks."""
    model = nn.Sequential(
        nn.Conv2d(2, n, 1), nn.ReLU(), nn.Conv2d(n, m, 1, groups=groups), nn.ReLU(), nn.Conv2d(m, 2, 1)
    )
    blocks = np.kron(np.eye(groups), np.ones((m // groups, n // groups))).astype(bool)
    kept = sum(
        bool((blocks[list(rows)][:, list(columns)] == blocks).all())
        for rows in itertools.permutations(range(m))
        for columns in itertools.permutations(range(n))
    )
    assert symmetry(trace(model, torch.zeros(MAPS))).order == kept


class Drawn(nn.Module):
    """A net written as a list of steps, each of which reads the latest tensor and perhaps an earlier one."""

    def __init__(self, steps: list[tuple[str, int, int]], maps: bool) -> None:
        super().__init__()
        self.maps = maps
        self.parts = nn.ModuleList()
        widths = [3]
        self.steps: list[tuple[str, int]] = []
        for kind, number, back in steps:
            width, earlier = widths[-1], back % len(widths)
            if kind == "cat" and width + widths[earlier] > 24:
                kind = "map"
            if kind == "add" and widths[earlier] != width:
                kind = "cat" if width + widths[earlier] <= 24 else "map"
            made, width = self.part(kind, width, number)
            self.parts.append(made)
            self.steps.append((kind, earlier))
            widths.append(width + widths[earlier] if kind == "cat" else width)
        self.parts.append(nn.Conv2d(widths[-1], 2, 1) if maps else nn.Linear(widths[-1], 2))

    def part(self, kind: str, n: int, number: int) -> tuple[nn.Module, int]:
        groups = next(g for g in (number % 3 + 1, 1) if n % g == 0)
        if kind == "map":
            return (nn.Conv2d(n, number, 1) if self.maps else nn.Linear(n, number)), number
        if kind == "groups":
            return (
                (nn.Conv2d(n, groups * 2, 1, groups=groups), groups * 2) if self.maps else (linear(n, number), number)
            )
        if kind == "each":
            return (nn.Conv2d(n, n, 3, padding=1, groups=n) if self.maps else nn.LayerNorm(n)), n
        if kind == "norm":
            return (
                nn.GroupNorm(groups, n)
                if self.maps and number % 2
                else nn.BatchNorm2d(n)
                if self.maps
                else nn.RMSNorm(n)
            ), n
        if kind == "bend":
            return (nn.ReLU(), nn.Tanh(), nn.LeakyReLU(0.1), nn.GELU())[number % 4], n
        if kind == "half":
            return nn.Identity(), max(1, n // 2)
        return nn.Identity(), n

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for (kind, earlier), part in zip(self.steps, self.parts, strict=False):
            y = part(seen[-1])
            if kind == "add":
                y = y + seen[earlier]
            elif kind == "cat":
                y = torch.cat([y, seen[earlier]], 1)
            elif kind == "gate":
                y = y * torch.sigmoid(seen[-1].flip(0))
            elif kind == "half":
                y = y[:, : max(1, y.shape[1] // 2)]
            elif kind == "pad":
                y = F.pad(y, (0, 0, 0, 0, 0, 0) if self.maps else (0, 0))
            seen.append(y)
        return self.parts[-1](seen[-1])


STEPS = st.tuples(
    st.sampled_from(["map", "map", "bend", "bend", "add", "add", "cat", "norm", "each", "groups", "gate", "half"]),
    st.integers(2, 6),
    st.integers(0, 20),
)


@settings(max_examples=100)
@given(steps=st.lists(STEPS, min_size=1, max_size=10), maps=st.booleans(), seed=st.integers(0, 1000))
def test_nets_drawn_at_random_compute_the_same(steps: list[tuple[str, int, int]], maps: bool, seed: int) -> None:
    model = scrambled(Drawn(steps, maps), seed)
    x = torch.randn(
        (2, 3, 3, 3) if maps else (4, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    found = symmetry(trace(model, x))
    expected = outputs(model, (x,))
    assert deviation(expected, outputs(found.apply(model, found.sample(seed)), (x,))) < 1e-9
    assert deviation(expected, outputs(found.apply(model, found.sample(seed, rescale=0.3)), (x,))) < 1e-9
    assert sum(one.log10_order for one in found.classes) == pytest.approx(math.log10(found.order))


@settings(max_examples=20)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["map", "bend", "add", "cat"]), st.integers(2, 3), st.integers(0, 9)), max_size=4
    ),
    seed=st.integers(0, 1000),
)
def test_small_nets_drawn_at_random_have_no_further_symmetry(steps: list[tuple[str, int, int]], seed: int) -> None:
    """Every permutation of one hidden axis, with any of the others, either is in the group or changes the function."""
    steps = [("map", 3, 0), ("bend", 1, 0), *steps]
    model = scrambled(Drawn(steps, maps=False), seed)
    weights = [p for p in model.parameters() if p.dim() == 2]
    hidden = [(k, 0) for k in range(len(weights) - 1)] + [(k, 1) for k in range(1, len(weights))]
    if math.prod(math.factorial(weights[k].shape[axis]) for k, axis in hidden) > 2000:
        return
    for parameter in model.parameters():
        if parameter.dim() == 1:
            nn.init.zeros_(parameter)
    x = torch.randn((4, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = outputs(model, (x,))[0]
    before = [weight.detach().clone() for weight in weights]
    kept = 0
    for choice in itertools.product(*(itertools.permutations(range(before[k].shape[axis])) for k, axis in hidden)):
        for weight, old in zip(weights, before, strict=True):
            weight.data = old
        for (k, axis), order in zip(hidden, choice, strict=True):
            weights[k].data = weights[k].data.index_select(axis, torch.tensor(order))
        kept += bool((outputs(model, (x,))[0] - expected).abs().max() < 1e-9)
    for weight, old in zip(weights, before, strict=True):
        weight.data = old
    assert symmetry(trace(model, x)).order == kept


# Each of these kept its function under what an earlier, simpler account of tied units would have allowed.
HARD: dict[str, tuple[Callable[..., Any], dict[str, tuple[int, ...]]]] = {
    "halves of copies": (
        lambda net, x: F.glu(F.glu((x @ net.a).repeat_interleave(2, 1))) @ net.b,
        {"a": (3, 6), "b": (3, 2)},
    ),
    "copies of tied units": (
        lambda net, x: torch.cat([(y := x @ net.a).softmax(1), y], 1).repeat_interleave(2, 1) @ net.b,
        {"a": (3, 4), "b": (16, 2)},
    ),
    "halves of padding": (
        lambda net, x: F.glu(F.pad(x @ net.a, (1, 1))) @ net.b @ net.c,
        {"a": (3, 2), "b": (2, 4), "c": (4, 2)},
    ),
    "rows against rows": (
        lambda net, x: torch.tanh((y := torch.stack([z := x @ net.a, z.tanh()], 2)) @ y.mT).flatten(1) @ net.b,
        {"a": (3, 4), "b": (16, 2)},
    ),
    "two maps of rows against rows": (
        lambda net, x: ((y := (x @ net.a)[:, None].expand(-1, 2, -1)).mT @ y).flatten(1) @ net.b,
        {"a": (3, 4), "b": (16, 2)},
    ),
    "stacked with what has no scale": (
        lambda net, x: torch.stack([y := x @ net.a, y.tanh()], 1).flatten(1) @ net.b,
        {"a": (3, 4), "b": (8, 2)},
    ),
    "a scale of a whole": (
        lambda net, x: (
            ((x @ net.a).view(-1, 2, 2).softmax(1) * net.s).repeat_interleave(2, 1)[:, 2:].flatten(1) @ net.b
        ),
        {"a": (3, 4), "s": (2, 1), "b": (4, 2)},
    ),
    "a sum over two kinds": (
        lambda net, x: ((x @ net.a)[:, :, None] * (x @ net.b)[:, None]).relu().flatten(1) @ net.c,
        {"a": (3, 4), "b": (3, 2), "c": (8, 2)},
    ),
    "attention over halves of a stream": (
        lambda net, x: (
            F.scaled_dot_product_attention(*[(x @ net.a).view(-1, 2, 4, 1) * p for p in (net.q, net.k, net.v)])[
                :, 0
            ].flatten(1)
            @ net.b
        ),
        {"a": (3, 8), "q": (1, 2), "k": (1, 2), "v": (1, 2), "b": (8, 2)},
    ),
}


@pytest.mark.parametrize("name", HARD)
def test_hard_programs_compute_the_same(name: str) -> None:
    run, shapes = HARD[name]
    made = {part: nn.Parameter(torch.ones(shape)) for part, shape in shapes.items()}
    keeps(scrambled(Program(run, **made)), 0)


@pytest.mark.parametrize("start", range(0, 160, 40))
def test_programs_drawn_at_random_compute_the_same(start: int) -> None:
    for seed in range(start, start + 40):
        model = Programs(seed)
        model(torch.zeros(4, 3, dtype=torch.float64))
        keeps(scrambled(model, seed), seed)


def keeps(model: nn.Module, seed: int) -> None:
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = outputs(model, (x,))
    found = symmetry(trace(model, x))
    elements = [found.sample(0), found.sample(1), found.sample(2, rescale=0.3)]
    for element in elements:
        made = outputs(found.apply(model, element), (x,))
        assert (made[0] - expected[0]).abs().max() < 1e-9 * (1 + expected[0].abs().max()), (
            seed,
            getattr(model, "run", ""),
        )
