"""`cut`: y = F(x), and what only the shortcut needed is not computed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.edit.edit_nets import Chain, ConvNet, Repeated, UNet, equal, pulled, ran
from torch import nn

import skipway as sw
from skipway import edit
from skipway.errors import SkipwayError
from skipway.graph import trace


def test_a_block_without_its_shortcut():
    model, x = Chain(), torch.randn(3, 4)
    one, two, three = (block.f for block in model.blocks)
    edited = edit.cut(model, trace(model, x).skips[1])
    y = torch.tanh(x + one(x))  # pyright: ignore[reportCallIssue]
    y = torch.tanh(two(y))  # pyright: ignore[reportCallIssue]
    equal(edited(x), torch.tanh(y + three(y)))  # pyright: ignore[reportCallIssue]
    assert [str(skip.site) for skip in trace(edited, x).skips] == ["blocks.0:add:0", "blocks.2:add:0"]


@pytest.mark.parametrize("training", [True, False])
def test_a_projection_is_not_run(training: bool):
    model, x = ConvNet().train(training), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    skip = graph.skips[2]
    assert skip.shortcut == "projection"
    edited = edit.cut(model, skip)
    modules = ran(edited, lambda: edited(x))
    assert not [name for name in modules if "downsample" in name]
    assert len(modules) == len(ran(model, lambda: model(x))) - 2
    norm = edited.get_submodule("blocks.2.downsample.1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.num_batches_tracked == 0
    block = model.blocks[2]
    assert isinstance(block, nn.Module)
    equal(edited.blocks[2](edited.blocks[:2](model.stem(x))), F.relu(block.branch(model.blocks[:2](model.stem(x)))))  # pyright: ignore


def test_a_unet_without_its_long_skip():
    model, x = UNet(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    assert [(skip.kind, skip.long) for skip in graph.skips] == [("concat", True)]
    edited = edit.cut(model, graph)
    deep = model.up(F.relu(model.deep(F.max_pool2d(F.relu(model.down(x)), 2))))
    equal(edited(x), model.last(torch.cat([torch.zeros_like(deep), deep], 1)))
    with pytest.raises(SkipwayError, match="no short skip"):
        edit.plain_twin(model, x)


def test_one_call_of_a_module_that_runs_several_times():
    model, x = Repeated(), torch.randn(3, 4)
    f = model.block.f
    edited = edit.cut(model, trace(model, x).skips[1])
    y = torch.tanh(x + f(x))
    y = torch.tanh(f(y))
    expected = torch.tanh(y + f(y))
    equal(edited(x), expected)
    equal(edited(x), expected)


def test_a_shortcut_that_changes_the_shape_cannot_be_cut():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.f(x)

    model, x = Wide(), torch.randn(3, 4)
    for skip in trace(model, x).skips:
        with pytest.raises(SkipwayError, match=r"cannot cut .* the branch alone is \(3, 1\)"):
            edit.cut(model, skip)


def test_gradients_pass_the_branch_alone():
    model, x = ConvNet(), torch.randn(2, 3, 8, 8)
    plain = edit.cut(model, trace(model, x))
    found = dict(zip(["output", "input", *dict(model.named_parameters())], pulled(plain, x), strict=True))
    assert found["blocks.2.downsample.0.weight"] is None
    assert all(grad is not None for name, grad in found.items() if "downsample" not in name)


def test_the_choice_of_skips():
    model = sw.models.create("resnet20").eval()
    x = torch.randn(1, 3, 16, 16)
    graph = trace(model, x)
    by_pattern = edit.cut(model, "layer3.*", graph=graph)
    by_number = edit.cut(model, [6, 7, 8], graph=graph)
    by_function = edit.cut(model, lambda skip: skip.site.module.startswith("layer3"), graph=graph)
    assert torch.equal(by_pattern(x), by_number(x))
    assert torch.equal(by_pattern(x), by_function(x))
    assert len(edit.history(by_pattern)) == 3
