"""`swap`: another connection in the place of a merge."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from tests.edit.edit_nets import Chain, ConvNet, Repeated, equal, pulled, ran
from torch import Tensor, nn

import skipway as sw
from skipway import edit
from skipway.connect import Constant, Residual, ReZero, StochasticDepth
from skipway.errors import SkipwayError
from skipway.graph import trace


def norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, (4,))


# Norms are new, so they only normalise; behind each formula stands the block's own tanh.
FORMULAS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "none": lambda x, f: f(x),
    "residual": lambda x, f: x + f(x),
    "zero-pad": lambda x, f: x + f(x),
    "rezero": lambda x, f: x,
    "layerscale": lambda x, f: x + 1e-5 * f(x),
    "deepnorm": lambda x, f: norm(x + f(x)),
    "pre-norm": lambda x, f: x + f(norm(x)),
    "pre-activation": lambda x, f: x + f(F.relu(norm(x))),
    "relu-pre-activation": lambda x, f: x + norm(f(F.relu(x))),
    "relu-before-sum": lambda x, f: x + F.relu(norm(f(x))),
    "norm-after-sum": lambda x, f: F.relu(norm(x + f(x))),
    "original": lambda x, f: F.relu(x + norm(f(x))),
    "post-norm": lambda x, f: norm(x + f(x)),
    "branch-norm": lambda x, f: x + norm(f(x)),
    "sandwich": lambda x, f: x + norm(f(norm(x))),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_named_connection_is_its_formula(name: str):
    model, x = Chain(1), torch.randn(3, 4)
    swapped = edit.swap(model, trace(model, x), name)
    equal(swapped(x), torch.tanh(FORMULAS[name](x, model.blocks[0].f)), 1e-5)  # pyright: ignore


@pytest.mark.parametrize("name", ["highway", "exclusive-gate", "shortcut-gate", "pooled-gate", "squeeze-excite"])
def test_gates_are_the_connection_s_own(name: str):
    model, x = Chain(1), torch.randn(3, 4)
    swapped = edit.swap(model, trace(model, x), name)
    block = swapped.blocks[0]  # pyright: ignore[reportIndexIssue]
    equal(swapped(x), torch.tanh(block.connection(x, block.f)))  # pyright: ignore
    assert any("connection" in key for key in swapped.state_dict())


@pytest.mark.parametrize("name", ["pre-norm", "pre-activation", "sandwich"])
def test_a_convolutional_branch_reads_what_is_normalised(name: str):
    model, x = ConvNet(), torch.randn(4, 3, 8, 8)
    graph = trace(model, x)
    with pytest.raises(SkipwayError, match="needs the same channels in both"):
        edit.swap(model, graph, name)
    swapped = edit.swap(model, [graph.skips[index] for index in (0, 1, 3)], name)
    y = torch.randn(4, 4, 8, 8)
    connection = swapped.get_submodule("blocks.1.connection")
    equal(swapped.blocks[1](y), F.relu(connection(y, model.blocks[1].branch)), 1e-5)  # pyright: ignore


def test_one_call_of_a_module_that_runs_several_times():
    model, x = Repeated(), torch.randn(3, 4)
    f = model.block.f
    swapped = edit.swap(model, trace(model, x).skips[1], "pre-norm")
    y = torch.tanh(x + f(x))
    y = torch.tanh(y + f(norm(y)))
    equal(swapped(x), torch.tanh(y + f(y)))
    every = edit.swap(model, trace(model, x), Residual(scale=ReZero(initial=0.5)))
    assert sum("connection" in name for name, _ in every.named_parameters()) == 3


def test_a_projection_of_the_model_s_own_stays():
    model, x = ConvNet(), torch.randn(2, 3, 8, 8)
    swapped = edit.swap(model, trace(model, x), Residual(scale=Constant(1.0)))
    assert list(swapped.state_dict()) == list(model.state_dict())
    equal(pulled(swapped, x), pulled(model, x))


@pytest.mark.parametrize("mode", ["batch", "row"])
def test_stochastic_depth_skips_compute_and_follows_depth(mode: str):
    model, x = ConvNet().train(), torch.randn(2, 3, 8, 8)
    swapped = edit.swap(model, trace(model, x), Residual(drop=StochasticDepth(0.8, mode=mode)))  # pyright: ignore
    droppers = [module for module in swapped.modules() if type(module).__name__ == "Dropper"]
    assert [module.rate for module in droppers] == pytest.approx([0.2, 0.4, 0.6, 0.8])  # pyright: ignore
    runs = 60
    found = ran(swapped, lambda: [swapped(x) for _ in range(runs)])
    for index, rate in enumerate([0.2, 0.4, 0.6, 0.8]):
        times = found.count(f"blocks.{index}.conv1")
        expected = runs * (1 - rate) if mode == "batch" else runs
        assert abs(times - expected) <= 4 * (runs * rate * (1 - rate)) ** 0.5 * (mode == "batch")
        tracked = swapped.get_submodule(f"blocks.{index}.norm2").num_batches_tracked
        assert tracked == times
        shortcut = swapped.get_submodule(f"blocks.{index}").downsample
        if shortcut is not None:
            assert found.count(f"blocks.{index}.downsample.0") == runs  # pyright: ignore
    equal(swapped.eval()(x), edit.undo(swapped).eval()(x))


def test_rows_are_dropped_one_by_one():
    model, x = Chain(1), torch.randn(2000, 4)
    swapped = edit.swap(model, trace(model, x), Residual(drop=StochasticDepth(0.5, "constant", "row"))).train()
    y, kept = swapped(x), torch.tanh(x + 2 * model.blocks[0].f(x))  # pyright: ignore
    is_kept = (y - kept).abs().amax(1) < 1e-6
    is_dropped = (y - torch.tanh(x)).abs().amax(1) < 1e-6
    assert bool((is_kept ^ is_dropped).all())
    assert abs(float(is_kept.float().mean()) - 0.5) < 0.05


def test_the_connection_s_parameters_are_trained():
    model, x = Chain(), torch.randn(3, 4)
    swapped = edit.swap(model, trace(model, x), "rezero")
    optimizer = torch.optim.SGD(swapped.parameters(), 0.1)
    swapped(x).square().sum().backward()
    optimizer.step()
    scales = [p for name, p in swapped.named_parameters() if name.endswith("connection.scale.scale")]
    assert len(scales) == 3
    assert all(bool(scale.detach()) for scale in scales)


def test_a_later_swap_takes_the_place_of_an_earlier_one():
    model, x = Chain(), torch.randn(3, 4)
    graph = trace(model, x)
    twice = edit.swap(edit.swap(model, graph, "rezero"), graph, Residual(scale=Constant(2.0)))
    equal(twice(x), edit.swap(model, graph, Residual(scale=Constant(2.0)))(x))
    equal(edit.undo(twice)(x), edit.swap(model, graph, "rezero")(x))


def test_an_edit_planned_on_an_edited_model():
    model, x = Chain(), torch.randn(3, 4)
    f = [block.f for block in model.blocks]
    half = edit.swap(model, trace(model, x), Residual(scale=Constant(0.5)))
    again = trace(half, x)
    assert len(again.skips) == 3
    first = torch.tanh(x + 0.5 * f[0](x))  # pyright: ignore[reportCallIssue]
    lesioned, cut = edit.lesion(half, again.skips[1]), edit.cut(half, again.skips[1])
    swapped = edit.swap(half, again.skips[1], Residual(scale=Constant(3.0)))
    for edited, second in (
        (lesioned, torch.tanh(first)),
        (cut, torch.tanh(0.5 * f[1](first))),  # pyright: ignore[reportCallIssue]
        (swapped, torch.tanh(first + 1.5 * f[1](first))),  # pyright: ignore[reportCallIssue]
    ):
        equal(edited(x), torch.tanh(second + 0.5 * f[2](second)))  # pyright: ignore[reportCallIssue]
        assert torch.equal(edit.undo(edited)(x), half(x))
        assert torch.equal(edit.undo(edited, None)(x), model(x))


def test_a_connection_with_a_stream_of_its_own_is_refused():
    model, x = Chain(), torch.randn(3, 4)
    with pytest.raises(SkipwayError, match="keeps a stream of its own"):
        edit.swap(model, trace(model, x), "dense")
    with pytest.raises(SkipwayError, match="did you mean 'rezero'"):
        edit.swap(model, trace(model, x), "rezro")


def test_the_family_s_own_scale():
    model = sw.models.create("resnet20").eval()
    x = torch.randn(2, 3, 16, 16)
    swapped = edit.swap(model, trace(model, x), "rezero")
    lesioned = edit.lesion(model, trace(model, x))
    equal(swapped(x), lesioned(x))


def test_a_plain_sum_still_meets_the_hooks_of_its_shortcut():
    model, x = Chain(), torch.randn(3, 4)
    swapped = edit.swap(model, trace(model, x), "residual")
    seen: list[Tensor] = []
    for block in swapped.blocks:  # pyright: ignore
        block.connection.shortcut.register_forward_hook(lambda _, __, given: seen.append(given))  # pyright: ignore
    equal(swapped(x), model(x))
    equal(seen[:2], [x, model.blocks[0](x)])


def test_what_is_put_in_a_connection_later_is_used():
    model, x = Chain(1), torch.randn(3, 4)
    swapped = edit.swap(model, trace(model, x), "residual")
    equal(swapped(x), model(x))
    swapped.blocks[0].connection.shortcut = nn.Linear(4, 4)  # pyright: ignore
    block = swapped.blocks[0]  # pyright: ignore
    equal(swapped(x), torch.tanh(block.connection.shortcut(x) + model.blocks[0].f(x)))  # pyright: ignore


@pytest.mark.parametrize("kind", [Residual(scale=ReZero(initial=0.5)), "layerscale", "branch-norm", "highway"], ids=str)
@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
def test_what_is_planned_on_a_swapped_model_holds_without_gradients(verb: str, kind: str | Residual):
    """Where they are not, connections overwrite what no backward pass will ask for."""
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    swapped = edit.swap(model, [0, 1, 3], kind, graph=trace(model, x))
    for index in (0, 1, 3):
        again = trace(swapped, x).skips[index]
        choice = {"skip": Residual(scale=Constant(0.5))} if verb == "swap" else {}
        try:
            twice = getattr(edit, verb)(swapped, again, **choice)
        except SkipwayError:
            assert (kind, verb) == ("highway", "swap")
            continue
        expected = twice(x)
        with torch.no_grad():
            equal(twice(x), expected)
            equal(swapped(x), edit.undo(twice)(x))
