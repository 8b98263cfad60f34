"""A graph of another model, or of an older one: the first difference is named, and no wrong place is edited."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests.edit.edit_nets import Chain, Merging, Repeated, equal
from torch import Tensor, nn

import skipway as sw
from skipway import edit
from skipway.connect import Constant, Residual
from skipway.errors import SkipwayError
from skipway.graph import trace

Form = Callable[[Tensor, nn.Module, nn.Module], Tensor]
X = torch.linspace(-1, 1, 12).view(3, 4)


def planned(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    y = f(x)
    return g(torch.tanh(x * 1 + y))


CHANGED: dict[str, tuple[Form, str]] = {
    "product in place of the sum": (lambda x, f, g: g(torch.tanh(x * 1 * f(x))), "expected 'add' after f in the model"),
    "no merge": (lambda x, f, g: g(torch.tanh(f(x))), "expected 'add' after f"),
    "difference": (lambda x, f, g: g(torch.tanh(x * 1 - f(x))), "expected 'add' after f in the model, and it ran sub"),
    "in place": (lambda x, f, g: g(torch.tanh(f(x).add_(x * 1))), "expected 'add' after f"),
    "other module": (lambda x, f, g: f(torch.tanh(x * 1 + g(x))), "expected 'add' after f"),
    "later": (lambda x, f, g: x * 1 + g(torch.tanh(f(x))), "expected 'add' after f"),
    "module not run": (lambda x, f, g: g(torch.tanh(x * 1 + x)), "expected 'add' after f"),
    "missing operation": (lambda x, f, g: g(torch.tanh(x + f(x))), "should run 'mul' before 'add' after f"),
}


@pytest.mark.parametrize("change", CHANGED)
@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
def test_the_code_has_changed(change: str, verb: str):
    form, message = CHANGED[change]
    graph = trace(Merging(planned), X)
    newer = Merging(form)
    choice = {"skip": Residual(scale=Constant(0.5))} if verb == "swap" else {}
    edited = getattr(edit, verb)(newer, graph, **choice)
    with pytest.raises(SkipwayError, match=message):
        edited(X)
    assert torch.overrides._get_current_function_mode_stack() == []
    equal(edit.undo(edited)(X), newer(X))


def test_an_operation_of_another_kind_more_does_no_harm():
    graph = trace(Merging(planned), X)

    def form(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        y = torch.exp(f(x))
        return g(torch.tanh(x * 1 + y))

    newer = Merging(form)
    equal(edit.cut(newer, graph)(X), newer.g(torch.tanh(torch.exp(newer.f(X)))))


def test_another_branch_is_taken_in_a_run():
    class Switch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.skips = nn.Linear(4, 4), True

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.f(x) if self.skips else self.f(x))

    model = Switch()
    edited = edit.lesion(model, trace(model, X))
    equal(edited(X), torch.relu(X))
    edited.skips = False  # pyright: ignore[reportArgumentType]
    with pytest.raises(SkipwayError, match="no longer runs as it was traced"):
        edited(X)
    edited.skips = True  # pyright: ignore[reportArgumentType]
    equal(edited(X), torch.relu(X))


def test_fewer_calls_than_planned():
    model = Repeated(3)
    edited = edit.lesion(model, trace(model, X).skips[1])
    edited.n = 3  # pyright: ignore[reportArgumentType]
    expected = edited(X)
    assert torch.equal(edited(X), expected)


@pytest.mark.usefixtures("no_shape_checks")
def test_another_model():
    graph = trace(Chain(3), X)
    with pytest.raises(SkipwayError, match=r"the model itself was a Chain in it and is a Repeated here"):
        edit.cut(Repeated(), graph)
    with pytest.raises(SkipwayError, match=r"'blocks.2' ran in it, and this Chain has no such module"):
        edit.cut(Chain(2), graph)
    small, wide = sw.models.create("resnet20"), sw.models.create("resnet20", num_classes=7)
    images = torch.randn(1, 3, 8, 8)
    with pytest.raises(SkipwayError, match=r"the parameter 'fc.weight' was \(10, 64\) in it and is \(7, 64\) here"):
        edit.cut(wide, trace(small, images))
    with pytest.raises(SkipwayError, match=r"the parameter 'blocks.3.f.weight' here is not in it"):
        edit.cut(Chain(4), graph)
    with pytest.raises(SkipwayError, match="takes a torch.nn.Module, not int"):
        edit.cut(3, graph)  # pyright: ignore


def test_what_an_edit_brought_makes_no_other_model_of_it():
    model = Chain()
    graph = trace(model, X)
    swapped = edit.swap(model, graph.skips[0], "layerscale")
    twice = edit.lesion(swapped, graph.skips[1])
    assert [change.verb for change in edit.history(twice)] == ["swap", "lesion"]


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("which", "message"),
    [
        (0, "give the graph too"),
        ("layer9.*", "give the graph too"),
        ([], "no skip is meant"),
        (3.5, "not by float"),
    ],
)
def test_a_choice_without_a_graph(which: object, message: str):
    with pytest.raises(SkipwayError, match=message):
        edit.cut(Chain(), which)  # pyright: ignore


@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.parametrize(
    ("which", "message"),
    [
        (7, "there is no skip 7: the graph has 3"),
        (True, "True and False are none"),
        ("layer9.*", "no skip's site or kind matches 'layer9"),
        ("concat", "no skip is meant by 'concat'"),
        (lambda skip: False, "no skip is meant"),
    ],
)
def test_a_choice_of_nothing(which: object, message: str):
    model = Chain()
    with pytest.raises(SkipwayError, match=message):
        edit.cut(model, which, graph=trace(model, X))  # pyright: ignore


def test_skips_of_two_graphs():
    model = Chain()
    one, other = trace(model, X), trace(model, torch.randn(5, 4))
    with pytest.raises(SkipwayError, match="come from different graphs"):
        edit.cut(model, [one.skips[0], other.skips[1]])
    assert edit.select(model, [2, "blocks.0*"], one) == (one.skips[0], one.skips[2])
    numbers = np.argsort([0.3, 0.1, 0.2])
    assert edit.select(model, numbers[:2], one) == (one.skips[1], one.skips[2])
    assert edit.select(model, numbers[0], one) == (one.skips[1],)
