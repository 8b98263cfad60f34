"""What an edited model still is: class, attributes, names and weights; and how edits are taken back."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from tests.edit.edit_nets import Chain, ConvNet, UNet, equal, pulled
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Residual, ReZero
from skipway.errors import SkipwayError
from skipway.graph import trace

X = torch.linspace(-1, 1, 12).view(3, 4)


def test_class_signature_hooks_and_attributes_stay():
    model = ConvNet()
    model.note = "kept"  # pyright: ignore
    seen: list[str] = []
    model.blocks[0].register_forward_hook(lambda *_: seen.append("hook"))
    images = torch.randn(1, 3, 8, 8)
    edited = edit.swap(model, trace(model, images), "rezero")
    assert type(edited) is ConvNet
    assert isinstance(edited.blocks[0], type(model.blocks[0]))
    assert edited.note == "kept"
    assert inspect.signature(edited.forward) == inspect.signature(model.forward)
    assert [name for name, _ in edited.named_children()] == [name for name, _ in model.named_children()]
    assert len(edited.blocks) == len(model.blocks)
    seen.clear()
    edited(images)
    assert seen == ["hook"]


def test_a_checkpoint_of_the_original_lacks_the_new_parameters_alone():
    model = Chain()
    edited = edit.swap(model, trace(model, X), "rezero")
    other = Chain()
    found = edited.load_state_dict(other.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys == [f"blocks.{index}.connection.scale.scale" for index in range(3)]
    for name, tensor in other.state_dict().items():
        assert torch.equal(edited.state_dict()[name], tensor)


def test_a_state_dict_round_trip_from_a_parent():
    parents = [nn.Sequential(nn.Linear(4, 4), edit.swap(one, trace(one, X), "rezero")) for one in (Chain(), Chain())]
    parents[0].load_state_dict(parents[1].state_dict())
    assert torch.equal(parents[0](X), parents[1](X))


@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
def test_undo_gives_back_every_bit(verb: str):
    for model, x in ((ConvNet(), torch.randn(2, 3, 8, 8)), (UNet(), torch.randn(1, 3, 8, 8)), (Chain(), X)):
        before, names = pulled(model.eval(), x), list(model.state_dict())
        choice = {"skip": "concat" if isinstance(model, UNet) else "rezero"} if verb == "swap" else {}
        edited = getattr(edit, verb)(model, trace(model, x), **choice)
        edited(x)
        undone = edit.undo(edited)
        for one, other in zip(pulled(undone, x), before, strict=True):
            assert torch.equal(one, other)
        assert list(undone.state_dict()) == names
        assert not edit.history(undone)
        assert all("forward" not in vars(module) for module in undone.modules())
        for mine, theirs in zip(undone.modules(), model.modules(), strict=True):
            assert set(vars(mine)) == set(vars(theirs))


def test_undo_keeps_what_was_trained_since():
    model = Chain()
    edited = edit.swap(model, trace(model, X), "rezero")
    with torch.no_grad():
        for parameter in edited.parameters():
            parameter.add_(1)
    undone = edit.undo(edited)
    for name, parameter in undone.named_parameters():
        assert torch.equal(parameter, edited.get_parameter(name))


def test_steps():
    model = Chain()
    graph = trace(model, X)
    one = edit.cut(model, graph.skips[0])
    two = edit.lesion(one, graph.skips[1:])
    three = edit.graft(two, "blocks.2")
    assert [(change.verb, change.where) for change in edit.history(three)] == [
        ("cut", "blocks.0:add:0"), ("lesion", "blocks.1:add:0"), ("lesion", "blocks.2:add:0"), ("graft", "blocks.2"),
    ]  # fmt: skip
    assert torch.equal(edit.undo(three)(X), two(X))
    assert torch.equal(edit.undo(three, 2)(X), one(X))
    assert torch.equal(edit.undo(three, None)(X), model(X))
    assert torch.equal(edit.undo(three, 0)(X), three(X))
    with pytest.raises(SkipwayError, match="there are 3 edits to undo in this Chain, not 4"):
        edit.undo(three, 4)
    with pytest.raises(SkipwayError, match="there are 0 edits to undo"):
        edit.undo(model)


def test_in_place():
    model = Chain()
    original = model(X)
    graph = trace(model, X)
    assert edit.lesion(model, graph, inplace=True) is model
    equal(model(X), torch.tanh(torch.tanh(torch.tanh(X))))
    assert edit.undo(model, inplace=True) is model
    assert torch.equal(model(X), original)


@pytest.mark.parametrize("inplace", [True, False])
def test_a_failure_leaves_the_model_as_it_was(inplace: bool):
    model = ConvNet().eval()
    images = torch.randn(1, 3, 8, 8)
    graph = trace(model, images)
    model = edit.cut(model, graph.skips[0])
    expected, names, attributes = model(images), list(model.state_dict()), [set(vars(m)) for m in model.modules()]
    attempts: list[Any] = [
        lambda: edit.swap(model, graph, "pre-norm", inplace=inplace),
        lambda: edit.swap(model, graph, "concat", inplace=inplace),
        lambda: edit.graft(model, ["blocks.0", "blocks.9"], inplace=inplace),
        lambda: edit.reorder(model, graph.skips[:3], [2, 1, 0], inplace=inplace),
    ]
    for attempt in attempts:
        with pytest.raises(SkipwayError):
            attempt()
        assert torch.equal(model(images), expected)
        assert list(model.state_dict()) == names
        assert [set(vars(m)) for m in model.modules()] == attributes
        assert len(edit.history(model)) == 1


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize("way", ["copy", "share"])
def test_parameters_are_copied_or_shared(way: str):
    model, images = ConvNet(), torch.randn(2, 3, 8, 8)
    graph = trace(model, images)
    edited = edit.swap(model, graph, Residual(scale=ReZero(initial=1.0)), parameters=way)  # pyright: ignore
    for mine, theirs in ((model.named_parameters, edited.get_parameter), (model.named_buffers, edited.get_buffer)):
        for name, tensor in mine():
            assert (theirs(name) is tensor) == (way == "share"), name
    edited.train()(images)
    assert int(model.blocks[0].norm1.num_batches_tracked) == (way == "share")  # pyright: ignore
    undone = edit.undo(edited, parameters=way)  # pyright: ignore
    assert (undone.head.weight is model.head.weight) == (way == "share")  # pyright: ignore
    with pytest.raises(SkipwayError, match="did you mean 'share'"):
        edit.cut(model, graph, parameters="shared")  # pyright: ignore


def test_a_model_that_was_used_can_be_edited():
    class Keeping(Chain):
        def forward(self, x: Tensor) -> Tensor:
            self.last = super().forward(x)
            return self.last

    model = Keeping()
    model(X)
    edited = edit.lesion(model, trace(model, X))
    equal(edited(X), torch.tanh(torch.tanh(torch.tanh(X))))
