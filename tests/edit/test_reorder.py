"""`reorder`: blocks of equal shape exchange what they compute."""

from __future__ import annotations

import pytest
import torch
from tests.edit.edit_nets import Chain, ConvNet, equal, pulled

from skipway import edit
from skipway.errors import SkipwayError
from skipway.graph import trace


def test_two_blocks():
    model, x = Chain(3), torch.randn(3, 4)
    graph = trace(model, x)
    moved = edit.reorder(model, graph.skips, [2, 0, 1])
    one, two, three = model.blocks
    equal(moved(x), two(one(three(x))))
    assert list(moved.state_dict()) == list(model.state_dict())
    assert torch.equal(edit.undo(moved)(x), model(x))
    pulled(moved, x)


def test_with_edits_before_and_after():
    model, x = Chain(3), torch.randn(3, 4)
    graph = trace(model, x)
    _, two, three = model.blocks
    lesioned = edit.lesion(model, graph.skips[0])
    moved = edit.reorder(lesioned, ["blocks.0", "blocks.1"], [1, 0], graph=graph)
    expected = three(torch.tanh(two(x)))
    equal(moved(x), expected)
    again = trace(moved, x)
    assert [str(skip.site) for skip in again.skips] == ["blocks.0:add:0", "blocks.2:add:0"]
    equal(edit.lesion(moved, again.skips[0])(x), three(torch.tanh(torch.tanh(x))))


def test_what_cannot_be_exchanged():
    model, x = ConvNet().eval(), torch.randn(1, 3, 8, 8)
    graph = trace(model, x)
    with pytest.raises(SkipwayError, match="only blocks of equal shape"):
        edit.reorder(model, graph.skips[:3], [2, 1, 0])
    with pytest.raises(SkipwayError, match="a permutation of 0 to 1"):
        edit.reorder(model, graph.skips[:2], [0, 0])
    with pytest.raises(SkipwayError, match="named twice"):
        edit.reorder(model, ["blocks.0", "blocks.0"], [1, 0])
    with pytest.raises(SkipwayError, match="lies inside"):
        edit.reorder(model, ["blocks.0", "blocks.0.conv1"], [1, 0])
    with pytest.raises(SkipwayError, match="did you mean 'blocks.0'"):
        edit.reorder(model, ["block.0", "blocks.1"], [1, 0])
    moved = edit.reorder(model, graph.skips[:2], [1, 0])
    y = model.blocks[0](model.blocks[1](model.stem(x)))
    equal(moved(x), model.head(model.blocks[2:](y).mean((2, 3))))
