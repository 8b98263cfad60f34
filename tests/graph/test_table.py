"""A skip graph printed, as a data frame, as JSON and as a networkx graph."""

from __future__ import annotations

import json

import networkx
import pytest
import torch
from graph_nets import Written, resnet18
from torch import nn

from skipway.graph import SkipGraph, trace


@pytest.fixture(scope="module")
def graph() -> SkipGraph:
    return trace(resnet18().eval(), torch.randn(1, 3, 16, 16))


def test_the_table(graph: SkipGraph):
    lines = str(graph).splitlines()
    assert lines[0] == "Sequential: 8 skips, 21 weight layers, 68 operations"
    assert lines[1].split() == ["site", "kind", "shortcut", "past", "from", "to", "length"]
    assert lines[2].split() == ["0", "1:add_:0", "add", "identity", "2", "1x4x16x16", "1x4x16x16", "short"]
    assert lines[4].split() == ["2", "3:add_:0", "add", "projection", "2", "1x4x16x16", "1x8x8x8", "short"]
    assert len(lines) == 10
    assert len({line.index("short") for line in lines[2:]}) == 1


def test_a_network_without_skips_and_one_with_a_cut_shortcut():
    assert str(trace(nn.Linear(2, 2), torch.randn(1, 2))) == "Linear: 0 skips, 1 weight layer, 1 operation"
    cut = trace(Written(lambda self, x: x.detach() + self.f(x), f=nn.Linear(2, 2)), torch.randn(1, 2))
    assert "identity (no gradient)" in str(cut)


def test_notes_are_printed():
    outside = [nn.Linear(2, 2)]
    graph = trace(Written(lambda self, x: x + outside[0](x)), torch.randn(1, 2))
    assert str(graph).splitlines()[-1].startswith("note: <Linear> runs in the model but is not registered")


def test_repr(graph: SkipGraph):
    assert repr(graph) == "<SkipGraph of Sequential: 8 skips>"


def test_the_data_frame(graph: SkipGraph):
    frame = graph.to_frame()
    assert list(frame.site) == [str(skip.site) for skip in graph.skips]
    assert frame.groupby("shortcut").size().to_dict() == {"identity": 5, "projection": 3}
    assert frame.most.max() == 2
    empty = trace(nn.Linear(2, 2), torch.randn(1, 2)).to_frame()
    assert list(empty.columns) == list(frame.columns)


def test_json(graph: SkipGraph):
    content = json.loads(graph.to_json())
    assert [skip["site"] for skip in content["skips"]] == [str(skip.site) for skip in graph.skips]
    assert content["skips"][2]["shortcut_modules"] == ["3.shortcut"]
    assert "operations" not in content
    whole = json.loads(graph.to_json(operations=True))
    assert len(whole["operations"]) == len(graph.trace.operations)
    assert whole["operations"][0]["site"] == "0.0:conv2d:0"
    assert whole["operations"][0]["parameters"] == ["0.0.weight"]


def test_networkx(graph: SkipGraph):
    made = graph.to_networkx()
    assert networkx.is_directed_acyclic_graph(made)
    assert sum(bool(data.get("skips")) for _, data in made.nodes(data=True)) == 8
    last = graph.trace.operations[-1].index
    assert networkx.has_path(made, "input args[0]" if "input args[0]" in made else "input input", last)
    # Every skip closes a cycle: edges - nodes + 1 of them in a connected graph.
    assert made.number_of_edges() - made.number_of_nodes() + 1 == 8
