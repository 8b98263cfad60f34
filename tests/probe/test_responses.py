"""Responses against the formulas on captured tensors, and He et al.'s finding on trained networks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from real_data import images_of, martyn
from skip_nets import NETS, built
from torch import nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.probe.batches import Batch
from skipway.probe.capture import capture
from skipway.probe.responses import compare_responses, responses
from skipway.probe.result import load

mpl.use("Agg")


@pytest.mark.parametrize("name", NETS)
def test_at_every_skip_they_are_the_formulas(name: str):
    net, (x, y) = built(name)
    found = responses(net, (x, y))
    graph = sw.trace(net.eval(), x)
    results = {skip.index: graph.trace.operations[skip.merge].results[0] for skip in graph.skips}
    for skip in graph.skips:
        if len(skip.branches) != 1:
            continue
        wanted = {skip.source, skip.carried, *skip.branches, results[skip.index]}
        tensors, _ = capture(net, graph, Batch((x,), {}, y, 4), wanted, gradient=False)
        branch, shortcut, result = (
            tensors[v].flatten(1) for v in (skip.branches[0], skip.carried, results[skip.index])
        )
        index = skip.index
        assert found.branch_std[index] == pytest.approx(branch.std(correction=0).item())
        assert found.stream_std[index] == pytest.approx(result.std(correction=0).item())
        assert found.ratios[index] == pytest.approx((branch.norm(dim=1) / shortcut.norm(dim=1)).mean().item())
        entering = (
            tensors[skip.source]
            if tensors[skip.source].shape == tensors[results[index]].shape
            else tensors[skip.carried]
        )
        if entering.shape == tensors[results[index]].shape:
            cosine = torch.cosine_similarity(entering.flatten(1), result, dim=1).mean().item()
            assert found.cosines[index] == pytest.approx(cosine)


def test_of_a_layer_it_is_taken_after_its_norm_and_before_its_activation():
    net = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 3)).double()
    x = torch.randn(50, 5, dtype=torch.float64)
    found = responses(net, (x, torch.zeros(50, dtype=torch.long)))
    with torch.no_grad():
        net.eval()
        assert found.layer_std == pytest.approx([net[:2](x).std(correction=0).item(), net(x).std(correction=0).item()])
    assert found.layers == ("0:linear:0", "3:linear:0")
    assert len(found.skips) == 0


def test_several_batches_are_as_one():
    net, (x, y) = built("projected")
    whole, parts = responses(net, (x, y)), responses(net, [(x[:1], y[:1]), (x[1:], y[1:])])
    for name in ("layer_std", "branch_std", "ratios", "cosines", "stream_std"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-10)


def test_the_stream_of_random_blocks_grows_by_the_sum_of_their_variances():
    torch.manual_seed(0)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(256, 256, bias=False)
            nn.init.normal_(self.f.weight, std=256**-0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.f(x)

    net = nn.Sequential(*[Block() for _ in range(6)])
    found = responses(net, (torch.randn(256, 256), torch.zeros(256, dtype=torch.long)))
    np.testing.assert_allclose(found.growth, 2.0 ** np.arange(1, 7), rtol=0.1)
    np.testing.assert_allclose(found.ratios, 1, rtol=0.05)


def test_tables_plots_and_file(tmp_path: Any):
    net, batch = built("projected")
    found = responses(net, batch)
    assert list(found.table()["layer"]) == list(found.layers)
    assert list(found.table("skip")["skip"]) == list(found.skips)
    assert load(found.save(tmp_path / "responses")) == found
    assert len(found.plot()) == 2
    assert len(found.plot_stream()) == 3
    both = compare_responses([found, found], ["a", "b"])
    assert len(both.plot()[0].lines) == 2
    assert load(both.save(tmp_path / "both")) == both
    assert len(list(both.interactive().data)) == 2
    with pytest.raises(SkipwayError, match="a name each"):
        compare_responses([found], ["a"])


def test_no_trace_is_left():
    net, batch = built("projected")
    net.train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    responses(net, batch, mode="train")
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("depth", [20, 56])
def test_trained_resnets_respond_less_than_plain_nets(shared_data: Path, depth: int):
    batch = images_of(shared_data, "a-martyn", 128)
    plain, residual = (responses(martyn(shared_data, kind, depth), batch) for kind in ("plainnet", "resnet"))
    inner_plain, inner_residual = plain.layer_std[1:-1], residual.layer_std[1:-1]
    assert len(inner_plain) == len(inner_residual) == depth - 2
    assert np.median(inner_residual) < np.median(inner_plain)
    # At 20 layers the largest few responses of both are alike; at 56 hardly any of the plain net's is smaller.
    assert (np.sort(inner_residual) < np.sort(inner_plain)).mean() > (0.9 if depth == 56 else 0.7)
