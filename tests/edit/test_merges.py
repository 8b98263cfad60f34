"""Every way to write a merge: cut, lesioned and swapped, against the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from tests.edit.edit_nets import Merge, Merging, equal, pulled
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Constant, Residual, ReZero, StochasticDepth
from skipway.errors import SkipwayError
from skipway.graph import trace

Formula = Callable[[Tensor, nn.Module, nn.Module], Tensor]


class Written(NamedTuple):
    """How a merge is written, and what is left of it without the branch and without the shortcut."""

    merge: Merge
    lesion: Formula
    cut: Formula
    swaps: bool = True


def iadd(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    y = f(x)
    y += x
    return y


def iadd_seen_through_a_view(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    y = f(x)
    flat = y.view(-1)
    y += x
    return flat.view(3, 4)


def add_in_place(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    y = f(x)
    y.add_(x)
    return y


def add_in_place_kept(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    return f(x).add_(x) * 1


def add_to_a_copy(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    y = x.clone()
    y.add_(f(x), alpha=0.5)
    return y


def subtract_in_place(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    y = f(x)
    y -= x
    return y


def helper(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def x_alone(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    return x


def f_alone(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    return f(x)


def both(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
    return f(x) + g(x)


def gate(x: Tensor, g: nn.Module) -> Tensor:
    return torch.sigmoid(g(x))


WRITTEN: dict[str, Written] = {
    "x + f": Written(lambda x, f, g: x + f(x), x_alone, f_alone),
    "f + x": Written(lambda x, f, g: f(x) + x, x_alone, f_alone),
    "method": Written(lambda x, f, g: x.add(f(x)), x_alone, f_alone),
    "function": Written(lambda x, f, g: torch.add(x, f(x)), x_alone, f_alone),
    "keywords": Written(lambda x, f, g: torch.add(input=x, other=f(x)), x_alone, f_alone),
    "helper": Written(lambda x, f, g: helper(x, f(x)), x_alone, f_alone),
    "sum": Written(lambda x, f, g: sum([x, f(x)]), x_alone, f_alone),  # pyright: ignore[reportArgumentType]
    "alpha": Written(lambda x, f, g: torch.add(x, f(x), alpha=0.5), x_alone, lambda x, f, g: 0.5 * f(x)),
    "alpha on x": Written(lambda x, f, g: torch.add(f(x), x, alpha=0.5), lambda x, f, g: 0.5 * x, f_alone),
    "x - f": Written(lambda x, f, g: x - f(x), x_alone, lambda x, f, g: -f(x)),
    "f - x": Written(lambda x, f, g: f(x) - x, lambda x, f, g: -x, f_alone),
    "rsub": Written(lambda x, f, g: torch.rsub(f(x), x), x_alone, lambda x, f, g: -f(x)),
    "scaled branch": Written(lambda x, f, g: x + 2 * f(x), x_alone, lambda x, f, g: 2 * f(x)),
    "scaled shortcut": Written(lambda x, f, g: 2 * x + f(x), lambda x, f, g: 2 * x, f_alone),
    "addcmul": Written(
        lambda x, f, g: torch.addcmul(x, f(x), torch.full((4,), 0.5)), x_alone, lambda x, f, g: 0.5 * f(x)
    ),
    "addcmul on x": Written(
        lambda x, f, g: torch.addcmul(f(x), x, g.bias), lambda x, f, g: g.bias * x, f_alone  # pyright: ignore
    ),
    "lerp": Written(
        lambda x, f, g: torch.lerp(x, f(x), 0.25), lambda x, f, g: 0.75 * x, lambda x, f, g: 0.25 * f(x), False
    ),
    "lerp by a gate": Written(
        lambda x, f, g: torch.lerp(x, f(x), gate(x, g)),
        lambda x, f, g: (1 - gate(x, g)) * x, lambda x, f, g: gate(x, g) * f(x), False,
    ),
    "highway": Written(
        lambda x, f, g: gate(x, g) * f(x) + (1 - gate(x, g)) * x,
        lambda x, f, g: (1 - gate(x, g)) * x, lambda x, f, g: gate(x, g) * f(x), False,
    ),
    "where": Written(
        lambda x, f, g: torch.where(x > 0, x, f(x)),
        lambda x, f, g: x.clamp(min=0), lambda x, f, g: f(x) * (x <= 0), False,
    ),
    "+=": Written(iadd, x_alone, f_alone),
    "+= and a view": Written(iadd_seen_through_a_view, x_alone, f_alone),
    "add_": Written(add_in_place, x_alone, f_alone),
    "add_ as an expression": Written(add_in_place_kept, x_alone, f_alone),
    "add_ with alpha": Written(add_to_a_copy, x_alone, lambda x, f, g: 0.5 * f(x)),
    "-=": Written(subtract_in_place, lambda x, f, g: -x, f_alone),
    "x + f + g": Written(lambda x, f, g: x + f(x) + g(x), x_alone, both),
    "x + (f + g)": Written(lambda x, f, g: x + (f(x) + g(x)), x_alone, both),
    "f + x + g": Written(lambda x, f, g: f(x) + x + g(x), x_alone, both),
    "f + (g + x)": Written(lambda x, f, g: f(x) + (g(x) + x), x_alone, both),
    "f + g + x": Written(lambda x, f, g: f(x) + g(x) + x, x_alone, both),
}  # fmt: skip


@pytest.fixture(params=WRITTEN, name="written")
def _written(request: pytest.FixtureRequest) -> Written:
    return WRITTEN[request.param]


def formula(model: Merging, of: Formula) -> Merging:
    alike = Merging(of)
    alike.load_state_dict(model.state_dict())
    return alike


@pytest.mark.parametrize("verb", ["cut", "lesion"])
def test_what_is_left(written: Written, verb: str):
    model, x = Merging(written.merge), torch.randn(3, 4)
    graph = trace(model, x)
    assert len(graph.skips) == 1
    edited = getattr(edit, verb)(model, graph)
    expected = formula(model, getattr(written, verb))
    equal(edited(x), expected(x))
    ours, theirs = pulled(edited, x), pulled(expected, x)
    # A way that is not computed has no gradient, and one that the formula multiplies by nothing has zero.
    equal([0 * x if grad is None else grad for grad in ours[:2]], theirs[:2])


def test_a_scale_of_one_changes_nothing(written: Written):
    model, x = Merging(written.merge), torch.randn(3, 4)
    graph = trace(model, x)
    if not written.swaps:
        with pytest.raises(SkipwayError, match=r"gate|connection replaces sums"):
            edit.swap(model, graph, "residual")
        return
    expected = pulled(model, x)
    equal(pulled(edit.swap(model, graph, Residual(scale=Constant(1.0))), x), expected)
    swapped = edit.swap(model, graph, Residual(scale=ReZero(initial=1.0)))
    equal(pulled(swapped, x)[: len(expected)], expected)


def test_another_scale_weighs_the_branch(written: Written):
    if not written.swaps:
        pytest.skip("cannot be swapped")
    model, x = Merging(written.merge), torch.randn(3, 4)
    half = edit.swap(model, trace(model, x), Residual(scale=Constant(0.5)))
    equal(half(x), formula(model, written.lesion)(x) + 0.5 * formula(model, written.cut)(x))


def test_a_dropped_branch_is_not_there(written: Written):
    if not written.swaps:
        pytest.skip("cannot be swapped")
    model, x = Merging(written.merge), torch.randn(3, 4)
    dropping = edit.swap(model, trace(model, x), Residual(drop=StochasticDepth(0.999, "constant")))
    equal(dropping(x), formula(model, written.lesion)(x))
    equal(dropping.eval()(x), model(x))


def test_a_sum_into_a_tensor_that_is_given():
    def merge(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        y = f(x)
        torch.add(y, x, out=y)
        return y

    model, x = Merging(merge), torch.randn(3, 4)
    with torch.no_grad():
        graph = trace(model, x)
        equal(edit.lesion(model, graph)(x), x)
        equal(edit.cut(model, graph)(x), model.f(x))
        equal(edit.swap(model, graph, Residual(scale=Constant(3.0)))(x), x + 3 * model.f(x))


def test_a_stack_keeps_its_shape():
    model, x = Merging(lambda x, f, g: torch.stack([x, f(x)]).sum(0)), torch.randn(3, 4)
    graph = trace(model, x)
    equal(edit.lesion(model, graph)(x), x)
    equal(edit.cut(model, graph)(x), model.f(x))
    with pytest.raises(SkipwayError, match="merged by 'stack'"):
        edit.swap(model, graph, "residual")


@pytest.mark.parametrize("first", [True, False])
def test_concatenations(first: bool):
    def merge(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        return torch.cat([x, f(x)] if first else [f(x), x], -1)

    model, x = Merging(merge), torch.randn(3, 4)
    graph = trace(model, x)
    assert [skip.kind for skip in graph.skips] == ["concat"]

    def joined(x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([x, y] if first else [y, x], -1)

    equal(edit.lesion(model, graph)(x), joined(x, 0 * x))
    equal(edit.cut(model, graph)(x), joined(0 * x, model.f(x)))
    equal(edit.swap(model, graph, "concat")(x), model(x))
    scaled = edit.swap(model, graph, Residual(merge="concat", scale=Constant(2.0)))
    equal(scaled(x), joined(x, 2 * model.f(x)))
    with pytest.raises(SkipwayError, match="merge='concat'"):
        edit.swap(model, graph, "residual")
