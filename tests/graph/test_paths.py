"""Counting paths: exact values of published networks, the laws of counting, and brute force."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from graph_nets import (
    Highway,
    Inception,
    SqueezeExcite,
    UNet,
    Written,
    cifar_resnet56,
    densenet,
    mobilenet_v2,
    resnet18,
    resnet50,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.graph.paths import Paths


def graph_of(model: nn.Module) -> SkipGraph:
    return trace(model.eval(), torch.randn(1, 3, 32, 32))


class TestPublishedNumbers:
    @pytest.mark.parametrize(
        ("model", "total"),
        [
            (resnet18, 2**8),
            (resnet50, 2**16),
            (mobilenet_v2, 2**10),
            (cifar_resnet56, 2**27),
            (lambda: densenet((6, 12, 24, 16)), 2**58),
        ],
        ids=["resnet18", "resnet50", "mobilenet_v2", "resnet56", "densenet121"],
    )
    def test_totals(self, model, total: int):
        graph = graph_of(model())
        assert graph.paths().total == total
        assert graph.paths(by="block").total == total

    def test_lengths_of_resnet50(self):
        paths = graph_of(resnet50()).paths()
        assert (paths.shortest, paths.longest, paths.mean) == (6, 50, 28.0)

    def test_blocks_of_a_residual_network_are_binomial(self):
        paths = graph_of(cifar_resnet56()).paths("block")
        assert paths == {k: math.comb(27, k) for k in range(28)}

    def test_the_shares_of_veit(self):
        """110 layers, 54 blocks: 0.45 % of the paths have 5 to 17 blocks, more than 95 % have 19 to 35."""
        block = Written(lambda self, x: x + self.f(x), f=nn.Linear(2, 2))
        paths = trace(Written(_repeat, block=block, n=54), torch.randn(1, 2)).paths("block")
        assert paths.share(5, 17) == pytest.approx(0.004536670, abs=1e-9)
        assert paths.share(19, 35) == pytest.approx(0.98016567, abs=1e-8)
        assert paths.mean == 27

    def test_densenet121_takes_milliseconds(self):
        graph = graph_of(densenet((6, 12, 24, 16)))
        assert len(graph.skips) == 6 * 7 // 2 + 12 * 13 // 2 + 24 * 25 // 2 + 16 * 17 // 2
        begin = time.perf_counter()
        graph.paths()
        assert time.perf_counter() - begin < 0.5


def _repeat(self, x):
    for _ in range(self.n):
        x = self.block(x)
    return x


class TestWhatForks:
    def test_gates_attention_and_arithmetic_do_not_fork(self):
        for model in (SqueezeExcite(3), nn.Sequential(nn.Conv2d(3, 3, 1), SqueezeExcite(3))):
            assert graph_of(model).paths().total == 1
        attention = nn.MultiheadAttention(4, 2, batch_first=True)
        written = Written(
            lambda self, x: torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x),
            **{n: nn.Linear(4, 4) for n in "qkv"},
        )
        norm = Written(lambda self, x: (x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True))
        turn = Written(lambda self, x: x * 0.5 + torch.cat([-x[..., 2:], x[..., :2]], -1) * 0.5)
        for model, length in (
            (Written(lambda self, x: self.a(x, x, x)[0], a=attention), 2),
            (written, 1),
            (norm, 0),
            (turn, 0),
        ):
            assert trace(model, torch.randn(1, 3, 4)).paths() == {length: 1}

    def test_parallel_branches_fork(self):
        assert graph_of(nn.Sequential(Inception(3), Inception(8))).paths() == {2: 4, 3: 4, 4: 5, 5: 2, 6: 1}

    def test_highways_fork_into_transform_and_carry(self):
        paths = trace(nn.Sequential(*(Highway(4) for _ in range(5))), torch.randn(2, 4)).paths()
        assert paths == {k: math.comb(5, k) for k in range(6)}

    def test_a_u_net_forks_once_a_level(self):
        paths = graph_of(UNet()).paths("block")
        assert paths == {0: 1, 1: 1, 2: 1, 3: 1}

    def test_dense_and_iterated_concatenation_agree(self):
        def growing(self, x):
            for layer in self.layers:
                x = torch.cat([x, layer(x)], 1)
            return x

        def listed(self, x):
            maps = [x]
            for layer in self.layers:
                maps.append(layer(torch.cat(maps, 1)))
            return torch.cat(maps, 1)

        layers = nn.ModuleList(nn.Linear(2 + k, 1) for k in range(6))
        first, second = (trace(Written(way, layers=layers), torch.randn(1, 2)).paths() for way in (growing, listed))
        assert first == second == {k: math.comb(6, k) for k in range(7)}


class TestThrough:
    def test_a_lesion_removes_half_of_the_paths(self):
        graph = graph_of(resnet50())
        paths = graph.paths()
        for skip in graph.skips:
            assert paths.lost(skip).total * 2 == paths.total
            assert paths.through(skip).total + paths.lost(skip).total == paths.total

    def test_several_branches_and_dropout_between_sums(self):
        model = Written(
            lambda self, x: torch.dropout(self.a(x) + self.b(x), 0.1, False) + x, a=nn.Linear(4, 4), b=nn.Linear(4, 4)
        )
        graph = trace(nn.Sequential(model, nn.Linear(4, 4)), torch.randn(2, 4))
        (skip,) = graph.skips
        assert graph.paths() == {1: 1, 2: 2}
        assert graph.paths().through(skip) == {1: 1}
        assert graph.paths().lost(skip) == {2: 2}

    def test_modules(self):
        graph = graph_of(resnet18())
        paths = graph.paths("block")
        assert paths.through("1.conv1") == {k: math.comb(7, k - 1) for k in range(1, 9)}
        assert paths.through("1") == paths
        assert paths.through("3.shortcut") == {k: math.comb(7, k) for k in range(8)}

    def test_dense_edges(self):
        graph = graph_of(densenet((3,)))
        paths = graph.paths()
        into_last = [skip for skip in graph.skips if str(skip.site) == "1:cat:0"]
        # The block's input, and the first two of its three layers, straight to its end: 1, 1 and 2 paths of 8.
        assert [paths.through(skip).total for skip in into_last] == [1, 1, 2]

    def test_a_skip_of_another_graph_is_refused(self):
        skip = graph_of(resnet50()).skips[3]
        with pytest.raises(SkipwayError, match=r"4:add:0 is no skip of this graph"):
            graph_of(resnet18()).paths().through(skip)

    def test_an_unknown_module_is_refused(self):
        with pytest.raises(SkipwayError, match=r"no module '1.conv9'; did you mean "):
            graph_of(resnet18()).paths().through("1.conv9")


class TestOutputs:
    def model(self) -> nn.Module:
        def forward(self, x):
            h = x + self.a(x)
            return {"loss": h.mean(), "logits": self.b(h), "hidden": h}

        return Written(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 2))

    def test_the_first_output_that_is_no_number_counts(self):
        graph = trace(self.model(), torch.randn(2, 4))
        assert graph.paths() == graph.paths(output="logits") == graph.paths(output=1) == {1: 1, 2: 1}
        assert graph.paths(output="hidden") == {0: 1, 1: 1}

    @pytest.mark.parametrize(
        ("output", "message"), [("logit", "no output 'logit'; did you mean 'logits'"), (3, "there is no output 3")]
    )
    def test_unknown_outputs_are_refused(self, output: str | int, message: str):
        with pytest.raises(SkipwayError, match=message):
            trace(self.model(), torch.randn(2, 4)).paths(output=output)

    def test_an_unknown_unit_is_refused(self, no_shape_checks: None):
        with pytest.raises(SkipwayError, match="no unit of length 'layers'; did you mean 'layer'"):
            trace(self.model(), torch.randn(2, 4)).paths(by="layers")  # pyright: ignore[reportArgumentType]


def test_paths_are_a_mapping():
    paths = Paths({2: 1, 0: 3, 1: 0})
    assert dict(paths) == {0: 3, 2: 1}
    assert list(paths) == [0, 2]
    assert paths.distribution() == {0: 0.75, 2: 0.25}
    assert Paths({}).total == 0
    assert Paths({}).share(0, 9) == 0.0
    with pytest.raises(SkipwayError, match="there is no path"):
        _ = Paths({}).shortest


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=6))
@settings(max_examples=40)
def test_random_sums_against_brute_force(wiring: list[tuple[int, int, int]]):
    """Each step adds two earlier tensors, either of them through a number of layers: every path is walked."""

    def forward(self, x):
        made = [self.first(x)]
        for layers, (a, b, _) in zip(self.layers, wiring, strict=True):
            made.append(made[-1 - min(a, len(made) - 1)] + layers(made[-1 - min(b, len(made) - 1)]))
        return self.last(made[-1])

    layers = nn.ModuleList(nn.Sequential(*(nn.Linear(2, 2) for _ in range(n + 1))) for _, _, n in wiring)
    model = Written(forward, first=nn.Linear(2, 2), last=nn.Linear(2, 2), layers=layers)

    def walk(step: int) -> list[int]:
        if step == 0:
            return [1]
        a, b, n = wiring[step - 1]
        return list(
            itertools.chain(walk(step - 1 - min(a, step - 1)), (k + n + 1 for k in walk(step - 1 - min(b, step - 1))))
        )

    lengths = [length + 1 for length in walk(len(wiring))]
    assert trace(model, torch.randn(1, 2)).paths() == {length: lengths.count(length) for length in sorted(set(lengths))}
