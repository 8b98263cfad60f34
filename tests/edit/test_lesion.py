"""`lesion`: y = shortcut(x), and what only the branch needed is not computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.edit.edit_nets import Chain, ConvNet, Merging, Repeated, UNet, equal, ran
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Constant, Residual, StochasticDepth
from skipway.errors import SkipwayError
from skipway.graph import trace


def without(model: ConvNet, lesioned: int, x: Tensor) -> Tensor:
    """The formula of a ConvNet with one branch missing."""
    x = model.stem(x)
    for index, block in enumerate(model.blocks):
        shortcut = x if block.downsample is None else block.downsample(x)  # pyright: ignore
        x = F.relu(shortcut if index == lesioned else block.branch(x) + shortcut)  # pyright: ignore
    return model.head(x.mean((2, 3)))


@pytest.mark.parametrize("index", range(4))
def test_a_convolutional_branch(index: int):
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    edited = edit.lesion(model, trace(model, x).skips[index])
    equal(edited(x), without(model, index, x))
    found = ran(edited, lambda: edited(x))
    branch = {f"blocks.{index}.{name}" for name in ("conv1", "norm1", "conv2", "norm2")}
    assert not branch & set(found)
    assert len(found) == len(ran(model, lambda: model(x))) - 5


def test_statistics_of_the_branch_stand_still_in_training():
    model, x = ConvNet().train(), torch.randn(2, 3, 8, 8)
    edited = edit.lesion(model, trace(model, x).skips[1])
    before = {name: buffer.clone() for name, buffer in edited.named_buffers()}
    edited(x)
    for name, buffer in edited.named_buffers():
        assert torch.equal(buffer, before[name]) == name.startswith("blocks.1.norm"), name


def test_gradients_of_the_branch_are_none():
    model, x = ConvNet(), torch.randn(2, 3, 8, 8)
    edited = edit.lesion(model, trace(model, x).skips[1])
    edited(x).sum().backward()
    for name, parameter in edited.named_parameters():
        assert (parameter.grad is None) == name.startswith("blocks.1."), name


def test_a_branch_in_the_host_s_own_code_is_not_computed():
    weight = torch.randn(4, 4)

    def merge(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        return x + torch.relu(F.linear(torch.exp(x), f.weight)) @ weight  # pyright: ignore

    model, x = Merging(merge), torch.randn(3, 4)
    edited = edit.lesion(model, trace(model, x))
    equal(edited(x), x)

    class Devices(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if getattr(func, "__name__", "") in ("exp", "linear", "relu", "matmul"):
                devices.append(result.device.type)
            return result

    devices: list[str] = []
    with Devices():
        edited(x)
    assert set(devices) == {"meta"}


@pytest.mark.parametrize("index", range(3))
def test_one_call_of_a_module_that_runs_several_times(index: int):
    model, x = Repeated(), torch.randn(3, 4)
    edited = edit.lesion(model, trace(model, x).skips[index])
    y = x
    for turn in range(3):
        y = torch.tanh(y if turn == index else y + model.block.f(y))
    for _ in range(2):
        equal(edited(x), y)
        assert ran(edited, lambda: edited(x)).count("block.f") == 2
    with pytest.raises(SkipwayError, match="block runs 3 times in a pass"):
        edited.block(x)  # pyright: ignore[reportCallIssue]


def test_a_branch_that_something_else_needs_runs():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            hidden = self.f(x)
            return x + self.g(torch.tanh(hidden)), hidden

    model, x = Both(), torch.randn(3, 4)
    edited = edit.lesion(model, trace(model, x))
    one, two = edited(x)
    equal([one, two], [x, model.f(x)])
    assert ran(edited, lambda: edited(x)) == ["f"]


def test_nested_skips():
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.after = Chain(2), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.after(self.inner(x))

    model, x = Nested(), torch.randn(3, 4)
    graph = trace(model, x)
    assert len(graph.skips) == 3
    outer = next(skip for skip in graph.skips if skip.site.module == "")
    inner = graph.skips[0]
    edited = edit.lesion(model, outer)
    equal(edited(x), x)
    assert ran(edited, lambda: edited(x)) == []
    equal(edit.lesion(edited, inner)(x), x)
    equal(edit.lesion(model, inner)(x), x + model.after(model.inner.blocks[1](torch.tanh(x))))
    both = edit.cut(edit.lesion(model, inner), outer)
    equal(both(x), model.after(model.inner.blocks[1](torch.tanh(x))))


def test_a_unet_without_its_depth():
    model, x = UNet(), torch.randn(1, 3, 8, 8)
    edited = edit.lesion(model, trace(model, x))
    kept = F.relu(model.down(x))
    equal(edited(x), model.last(torch.cat([kept, torch.zeros_like(kept)], 1)))
    assert ran(edited, lambda: edited(x)) == ["down", "last"]


def test_dictionaries_keywords_and_several_outputs():
    class Outputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Chain(1), Chain(1)])

        def forward(self, x: Tensor, *, scale: float, mask: Tensor | None = None) -> dict[str, Any]:
            states = []
            for block in self.blocks:
                x = block(x) * scale
                states.append(x)
            return {"last": x if mask is None else x * mask, "states": tuple(states), "name": "outputs"}

    model, x, mask = Outputs(), torch.randn(3, 4), torch.ones(3, 1)
    graph = trace(model, x, scale=2.0, mask=mask)
    edited = edit.lesion(model, graph.skips[0])
    result = edited(x, scale=2.0, mask=mask)
    one = 2 * torch.tanh(x)
    two = 2 * model.blocks[1](one)
    equal([result["last"], *result["states"]], [two, one, two])
    assert result["name"] == "outputs"
    equal(edited(x=x, scale=2.0)["last"], two)


def test_an_edit_of_a_submodule_within_a_bigger_model():
    inner, x = Chain(), torch.randn(3, 4)
    whole = nn.Sequential(nn.Linear(4, 4), edit.lesion(inner, trace(inner, x).skips[1]), nn.Linear(4, 2))
    head, tail = whole[0], whole[2]
    y = torch.tanh(inner.blocks[0](head(x)))
    equal(whole(x), tail(inner.blocks[2](y)))
    again = edit.lesion(whole, trace(whole, x).skips[0])
    equal(again(x), tail(inner.blocks[2](torch.tanh(torch.tanh(head(x))))))
    assert torch.equal(edit.undo(again)(x), whole(x))
    assert [change.where for change in edit.history(again[1])] == ["blocks.1:add:0"]  # pyright: ignore


def test_train_and_eval_stay_live():
    model, x = Chain(drop=0.5), torch.randn(64, 4)
    edited = edit.lesion(model.eval(), trace(model.eval(), x).skips[0])
    assert torch.equal(edited(x), edited(x))
    edited.train()
    assert not torch.equal(edited(x), edited(x))


@pytest.mark.parametrize("verb", ["cut", "lesion", "swap"])
def test_what_follows_may_overwrite_the_result(verb: str):
    """A merge made a tensor of its own, so what takes its place must not be the stream or the branch's output."""

    def merge(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        hidden = torch.tanh(f(x))
        y = x + hidden
        y += 1
        return y.mul_(2) + hidden.sum()

    model, x = Merging(merge), torch.randn(3, 4)
    graph, before = trace(model, x), x.clone()
    edited = edit.swap(model, graph, "none") if verb == "swap" else getattr(edit, verb)(model, graph)
    hidden = torch.tanh(model.f(x))
    equal(edited(x), 2 * ((x if verb == "lesion" else hidden) + 1) + hidden.sum())
    edited(x).sum().backward()
    assert torch.equal(x, before)


def test_a_dropped_branch_leaves_the_stream_alone():
    model, x = ConvNet().train(), torch.randn(2, 3, 8, 8)
    dropping = edit.swap(model, trace(model, x), Residual(drop=StochasticDepth(0.999, "constant")))
    dropping(x).sum().backward()
    before = x.clone()
    grafted = edit.graft(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(inplace=True)), "0", Residual(drop=0.999))
    equal(grafted.train()(x), F.relu(x))
    assert torch.equal(x, before)


def test_sums_that_grow_in_place():
    def merge(x: Tensor, f: nn.Module, g: nn.Module) -> Tensor:
        y = x.clone()
        y += f(x)
        y += g(x)
        return y

    model, x = Merging(merge), torch.randn(3, 4)
    graph = trace(model, x)
    assert [skip.kind for skip in graph.skips] == ["multi-branch"]
    equal(edit.lesion(model, graph)(x), x)
    equal(edit.cut(model, graph)(x), model.f(x) + model.g(x))
    half = edit.swap(model, graph, Residual(scale=Constant(0.5)))
    equal(half(x), x + 0.5 * (model.f(x) + model.g(x)))
    half(x).sum().backward()


def test_an_argument_that_is_no_tensor_may_change_the_shape_of_a_branch_that_is_not_run():
    class Times:
        n = 1

    class Repeating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(4, 4)

        def forward(self, x: Tensor, times: Times) -> Tensor:
            return self.f(x).repeat(1, times.n)

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = Repeating()

        def forward(self, x: Tensor, times: Times) -> Tensor:
            return torch.cat([x, self.branch(x, times)], 1)

    model, x, times = Joined(), torch.randn(3, 4), Times()
    edited = edit.lesion(model, trace(model, x, times))
    for times.n in (1, 3, 2):
        equal(edited(x, times), F.pad(x, (0, 4 * times.n)))
