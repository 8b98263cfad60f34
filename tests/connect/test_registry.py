"""Every named connection on 1-d, 2-d, 3-d data and tokens: it trains, it is saved, copied, compiled, autocast."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import skipway as sw
from skipway import connect

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SHAPES: dict[int, tuple[int, ...]] = {0: (4, 5, 4), 1: (4, 4, 6), 2: (4, 4, 5, 6), 3: (4, 4, 3, 4, 2)}

PILE_UP = ("dense", "concat", "attention-gate", "residual-path")

every_name = pytest.mark.parametrize("name", connect.names())
all_data = pytest.mark.parametrize("dims", SHAPES, ids=["tokens", "1-d", "2-d", "3-d"])


def stage(name: str, dims: int) -> sw.Stack:
    """Three branches of one weight layer and a Tanh, reading 4 channels, or all there are where they pile up."""
    if name == "residual-path" and dims == 0:
        pytest.skip("tokens have no neighbours that its convolutions could read, and it says so")
    channels = (4, 7, 10) if name in PILE_UP else (4, 4, 4)
    put_out = 3 if name in PILE_UP else 4
    layers = [CONVOLUTIONS[dims](c, put_out, 3, padding=1) if dims else nn.Linear(c, put_out) for c in channels]
    return sw.Stack([nn.Sequential(layer, nn.Tanh()) for layer in layers], name, 4, put_out, dims=dims)


@every_name
@all_data
def test_it_runs_and_its_gradients_flow(name: str, dims: int) -> None:
    stack = stage(name, dims)
    x = torch.randn(SHAPES[dims], requires_grad=True)
    y = stack(x)
    assert y.shape[0 if dims == 0 else 2 :] == x.shape[0 if dims == 0 else 2 :] or dims == 0
    assert y.shape[1 if dims else -1] == stack.out_channels
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.any()
    for block in stack:
        gradients = [parameter.grad for parameter in block.parameters()]
        if name == "stochastic-depth" and gradients[0] is None:
            continue
        assert all(g is not None and g.isfinite().all() for g in gradients)


@every_name
@all_data
def test_state_pickle_and_copy_compute_the_same(name: str, dims: int) -> None:
    stack = stage(name, dims)
    stack(torch.randn(SHAPES[dims]))
    stack.eval()
    x = torch.randn(SHAPES[dims])
    expected = stack(x)
    fresh = stage(name, dims).eval()
    fresh.load_state_dict(stack.state_dict())
    for other in (fresh, pickle.loads(pickle.dumps(stack)), copy.deepcopy(stack)):
        assert torch.equal(other(x), expected)
    twin = copy.deepcopy(stack)
    for parameter in twin.parameters():
        nn.init.normal_(parameter)
    assert torch.equal(stack(x), expected)


@every_name
@all_data
def test_training_and_evaluation_differ_only_where_they_may(name: str, dims: int) -> None:
    stack = stage(name, dims)
    x = torch.randn(SHAPES[dims])
    state = copy.deepcopy(stack.state_dict())
    y = stack.eval()(x)
    assert torch.equal(stack(x), y)
    assert all(torch.equal(value, state[key]) for key, value in stack.state_dict().items())
    batch_normed = dims > 0 and any("norm_" in key or "shortcut.1" in key for key in state)
    if not batch_normed and not name.startswith("stochastic-depth"):
        assert torch.equal(stack.train()(x), y)


@every_name
@all_data
def test_autocast_computes_close_to_single_precision(name: str, dims: int) -> None:
    stack = stage(name, dims).eval()
    x = torch.randn(SHAPES[dims])
    with torch.autocast("cpu", torch.bfloat16):
        y = stack(x)
    torch.testing.assert_close(y.float(), stack(x), rtol=0.05, atol=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        stack.train()(x).float().sum().backward()
    assert all(p.grad is None or (p.grad.dtype == p.dtype and p.grad.isfinite().all()) for p in stack.parameters())


@every_name
@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_gives_the_same_and_stays_so(name: str, dims: int) -> None:
    layout = {2: torch.channels_last, 3: torch.channels_last_3d}[dims]
    stack = stage(name, dims).eval()
    x = torch.randn(SHAPES[dims])
    expected = stack(x)
    stack.to(memory_format=layout)  # type: ignore[call-overload]
    y = stack(x.to(memory_format=layout))
    torch.testing.assert_close(y, expected)
    # torch's own 1x1x1 convolution gives its layout up.
    assert y.is_contiguous(memory_format=layout) or (dims == 3 and name in ("projection-everywhere", "residual-path"))


@every_name
@pytest.mark.usefixtures("no_shape_checks")
def test_it_compiles_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    block = stage(name, 2)[0].eval()
    x = torch.randn(SHAPES[2])
    compiled = torch.compile(block, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), block(x))


@every_name
@pytest.mark.slow
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_training_gives_the_same_gradients(name: str) -> None:
    """The draw of batch-wise stochastic depth cannot be in the graph: it breaks there, and still drops."""
    torch._dynamo.reset()
    stack = stage(name, 2)
    x = torch.randn(SHAPES[2], requires_grad=True)
    compiled = torch.compile(stack, backend="aot_eager", fullgraph=name != "stochastic-depth")
    found: list[list[Tensor | None]] = []
    for run in (stack, compiled):
        torch.manual_seed(1)
        stack.zero_grad()
        run(x).square().mean().backward()
        found.append([p.grad for p in stack.parameters()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual", "rezero", "highway", "squeeze-excite", "dense", "sandwich"])
@pytest.mark.usefixtures("no_shape_checks")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
def test_inductor_compiles_it_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    stack = stage(name, 2)
    x = torch.randn(SHAPES[2])
    compiled = torch.compile(stack, fullgraph=True)
    torch.testing.assert_close(compiled(x), stack(x), rtol=1e-4, atol=1e-5)
