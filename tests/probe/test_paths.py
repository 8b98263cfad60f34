"""The gradient by path length: its law, brute force over all paths, and the trained network of the literature."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from real_data import akamaster, images_of
from skip_nets import NETS, Written, branch, built, chain
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.probe.paths import paths
from skipway.probe.result import load

mpl.use("Agg")


class Paths(nn.Module):
    """A chain of residual blocks in which a gradient comes back along one path alone: values are the chain's."""

    def __init__(self, net: Any, taken: frozenset[int]):
        super().__init__()
        self.net, self.taken = net, taken

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.stem(x)
        for index, block in enumerate(self.net.blocks):
            value = block(x)
            x = F.softplus(x.detach() + value if index in self.taken else x + value.detach())
        return self.net.head(x)


def along(net: nn.Module, x: Tensor, y: Tensor, taken: frozenset[int]) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.cross_entropy(Paths(net, taken)(x), y), x)[0]


class TestLaw:
    @pytest.mark.parametrize("name", NETS)
    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_the_sum_over_lengths_is_the_gradient(self, name: str, mode: Any):
        net, batch = built(name)
        found = paths(net, batch, "cross_entropy", draws=0, mode=mode)
        assert found.residual < 1e-10
        assert found.shares.sum() == pytest.approx(1, abs=1e-10)

    @settings(max_examples=15)
    @given(n=st.integers(1, 5), seed=st.integers(0, 10**6))
    def test_it_is_brute_force_over_all_paths(self, n: int, seed: int):
        torch.manual_seed(seed)
        net = chain(n).double()
        x, y = torch.randn(3, 5, dtype=torch.float64), torch.tensor([0, 1, 2])
        found = paths(net, (x, y), "cross_entropy", draws=0)
        for length in range(n + 1):
            total = sum(along(net, x, y, frozenset(taken)) for taken in itertools.combinations(range(n), length))
            assert isinstance(total, Tensor)
            assert found.norms[length] == pytest.approx(total.norm().item(), rel=1e-10, abs=1e-15)

    @given(slopes=st.lists(st.floats(-2, 2), min_size=1, max_size=8))
    def test_of_linear_branches_it_is_the_elementary_symmetric_polynomial(self, slopes: list[float]):
        def forward(self: Any, x: Tensor) -> Tensor:
            for slope, block in zip(slopes, self.blocks, strict=True):
                x = x + slope * block(x)
            return x

        blocks = nn.ModuleList([nn.Linear(1, 1, bias=False).double() for _ in slopes])
        for block in blocks:
            nn.init.ones_(block.weight)  # pyright: ignore[reportArgumentType]
        x = torch.ones(1, 1, dtype=torch.float64)
        found = paths(Written(forward, blocks=blocks), [(x, None)], lambda output, _: output.sum(), draws=0)
        for length, norm in zip(found.lengths, found.norms, strict=True):
            expected = sum(math.prod(chosen) for chosen in itertools.combinations(slopes, length))
            assert norm == pytest.approx(abs(expected), rel=1e-9, abs=1e-12)

    def test_a_shared_branch_counts_at_every_call(self):
        net, batch = built("shared branch")
        found = paths(net, batch, "cross_entropy", draws=0)
        assert found.lengths.tolist() == [0, 1, 2, 3]
        assert (found.norms > 0).all()

    def test_several_batches_are_as_one(self):
        net, (x, y) = built("chain")
        whole = paths(net, (x, y), "cross_entropy", draws=0)
        parts = paths(net, [(x[:1], y[:1]), (x[1:], y[1:])], "cross_entropy", draws=0)
        np.testing.assert_allclose(parts.norms, whole.norms, rtol=1e-10)


class TestDrawn:
    def test_single_paths_are_those_of_the_protocol(self):
        net, (x, y) = built("chain")
        found = paths(net, (x, y), "cross_entropy", draws=3, seed=5)
        every = {
            length: {round(along(net, x, y, frozenset(taken)).norm().item(), 12)
                     for taken in itertools.combinations(range(4), length)}
            for length in range(5)
        }  # fmt: skip
        for length in range(5):
            assert {round(norm, 12) for norm in found.drawn[:, length]} <= every[length]
        np.testing.assert_allclose(found.drawn[:, 0], found.norms[0])
        np.testing.assert_allclose(found.drawn[:, 4], found.norms[4])
        assert found.coherence_by_length[0] == pytest.approx(1)

    @pytest.mark.parametrize("name", ["in place", "shared branch", "projected", "pre-norm", "post-norm"])
    def test_all_draws_of_the_shortest_and_longest_are_the_exact_ones(self, name: str):
        net, batch = built(name)
        found = paths(net, batch, "cross_entropy", draws=2)
        np.testing.assert_allclose(found.drawn[:, [0, -1]], np.stack([found.norms[[0, -1]]] * 2), rtol=1e-9)

    @pytest.mark.parametrize("name", ["nested", "dense"])
    def test_nested_skips_are_refused(self, name: str):
        net, batch = built(name)
        with pytest.raises(SkipwayError, match="nested or side by side; draws=0 gives the exact sums"):
            paths(net, batch, "cross_entropy")


class TestResult:
    def test_table_plot_and_file(self, tmp_path: Any):
        net, batch = built("chain")
        found = paths(net, batch, "cross_entropy")
        assert found.frequency.tolist() == [1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16]
        assert found.table()["frequency"].sum() == 1
        assert load(found.save(tmp_path / "paths")) == found
        assert len(found.plot()) == 3
        assert len(list(found.interactive().data)) == 2
        assert found.effective(1.0) == (0, 4)

    def test_no_trace_is_left(self):
        net, batch = built("projected")
        net.train()
        before = copy.deepcopy(net.state_dict())
        paths(net, batch, "cross_entropy", mode="train")
        assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
        assert all(parameter.requires_grad and parameter.grad is None for parameter in net.parameters())
        assert net.training

    def test_token_models_are_split_at_their_embeddings(self):
        transformers: Any = pytest.importorskip("transformers")
        config = transformers.GPT2Config(
            n_layer=2, n_embd=16, n_head=2, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=2
        )
        net = transformers.GPT2LMHeadModel(config).double()
        tokens = torch.randint(0, 50, (2, 7))
        found = paths(net, {"input_ids": tokens, "labels": tokens}, draws=1)
        assert found.lengths.tolist() == [0, 1, 2, 3, 4]
        assert found.residual < 1e-10

    def test_slips_are_told(self):
        with pytest.raises(SkipwayError, match="Sequential has no skips: all of its gradient comes along one path"):
            paths(
                nn.Sequential(nn.Linear(5, 3)), (torch.zeros(2, 5), torch.zeros(2, dtype=torch.long)), "cross_entropy"
            )
        net, batch = built("chain")
        with pytest.raises(SkipwayError, match="draws=-1"):
            paths(net, batch, "cross_entropy", draws=-1)
        found = paths(net, batch, "cross_entropy", draws=0)
        with pytest.raises(SkipwayError, match="share=2.0"):
            found.effective(2.0)

    def test_a_stream_written_through_a_view_is_refused_or_exact(self):
        def forward(self: Any, x: Tensor) -> Tensor:
            x = self.stem(x)
            part = x[:, :3]
            part += self.f(x)[:, :3]
            return self.head(x * 1.5)

        net = Written(forward, stem=nn.Linear(5, 6), f=nn.Sequential(nn.Dropout(0.0), branch()), head=nn.Linear(6, 3))
        batch = torch.randn(4, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
        try:
            found = paths(net.double(), batch, "cross_entropy", draws=0)
        except SkipwayError:
            return
        assert found.residual < 1e-10


@pytest.mark.slow
def test_short_paths_carry_the_gradient_of_the_trained_resnet56(shared_data: Path):
    net, batch = akamaster(shared_data, 56), images_of(shared_data, "akamaster", 32)
    found = paths(net, batch, "cross_entropy", draws=2)
    assert found.residual < 1e-5
    low, high = found.effective()
    # Veit et al.: 5 to 17 of 54; of 27 blocks that is about 2 to 9, where half of all paths are longer than 13.
    assert 1 <= low <= 4
    assert 8 <= high <= 13
    assert 4 < found.mean_length < 9
    decay = np.polyfit(found.lengths[:11], np.log(found.drawn.mean(0)[:11]), 1)[0]
    assert 0.2 < math.exp(decay) < 0.7
