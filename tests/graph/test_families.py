"""The skips of our own families, with every connection that they take."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import skipway as sw
from skipway.errors import SkipwayError
from skipway.graph import trace

PADDED = {"identity": 7, "padding": 2}
# What differs from a sum with identity shortcuts that pad with zeros between stages: the kind, and the shortcuts.
CONNECTIONS: dict[str, tuple[str, dict[str, int]]] = {
    "none": ("add", {}),
    "projection": ("add", {"identity": 7, "projection": 2}),
    "pooled-projection": ("add", {"identity": 7, "projection": 2}),
    "projection-everywhere": ("add", {"projection": 9}),
    "zero-pad-average": ("add", {"identity": 7, "pool": 2}),
    "rezero": ("scaled add", PADDED),
    "skipinit": ("scaled add", PADDED),
    "layerscale": ("scaled add", PADDED),
    "deepnorm": ("scaled add", {"scaled": 9}),
    "highway": ("gate", {"scaled": 9}),
    "exclusive-gate": ("gate", {"scaled": 9}),
    "pooled-gate": ("gate", {"scaled": 9}),
    "shortcut-gate": ("gate", {"scaled": 7, "padding": 2}),
}


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("skip", sw.connect.names())
def test_every_connection_in_a_resnet20(skip: str, mode: str):
    try:
        model = sw.models.create("resnet20", skip=skip, width=4)
    except SkipwayError as refusal:
        pytest.skip(f"a ResNet does not take it: {refusal}")
    if skip == "stochastic-depth" and mode == "train":
        pytest.skip("which branches run is drawn anew in every pass")
    getattr(model, mode)()
    graph = trace(model, torch.randn(2, 3, 16, 16))
    kind, shortcuts = CONNECTIONS.get(skip, ("add", PADDED))
    assert Counter(found.shortcut for found in graph.skips) == shortcuts
    assert {found.kind for found in graph.skips} == ({kind} if shortcuts else set())
    assert not any(found.long for found in graph.skips)
    assert graph.paths("block").total == 2 ** len(graph.skips)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet56", "preresnet18", "preresnet50", "preresnet164"])
def test_sizes(name: str):
    model = sw.models.create(name, width=4).eval()
    graph = trace(model, torch.randn(1, 3, 64, 64))
    blocks = {"18": 8, "50": 16, "56": 27, "164": 54}[name.lstrip("pres").lstrip("net")]
    assert len(graph.skips) == blocks
    assert graph.paths().total == 2**blocks
    assert graph.paths().longest == sw.models.describe(name, width=4).depth


def test_plain_twins_have_one_path():
    graph = trace(sw.models.create("resnet56", skip="none", width=4).eval(), torch.randn(1, 3, 16, 16))
    assert graph.paths() == {56: 1}


@pytest.mark.parametrize(("skip", "widths"), [("dense", [4, 6, 8]), ("concat", [4, 6, 8])])
def test_stacks_that_concatenate(skip: str, widths: list[int]):
    branches = [nn.Conv2d(width, 2, 3, padding=1) for width in widths]
    stack = sw.Stack(branches, skip, channels=4, branch_channels=2, dims=2)
    graph = trace(nn.Sequential(stack, nn.Conv2d(10, 4, 1)).eval(), torch.randn(1, 4, 6, 6))
    assert {found.kind for found in graph.skips} == {"concat"}
    assert graph.paths("block") == {0: 1, 1: 3, 2: 3, 3: 1}


def test_stochastic_depth_in_training_traces_the_branches_that_ran():
    torch.manual_seed(0)
    model = sw.models.create("resnet20", skip=sw.Residual(drop=0.5), width=4).train()
    counts = set()
    for seed in range(6):
        torch.manual_seed(seed)
        counts.add(len(trace(model, torch.randn(2, 3, 16, 16)).skips))
    assert len(counts) > 1
    assert max(counts) <= 9
