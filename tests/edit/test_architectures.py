"""Edits of published architectures, against the same model with its merges replaced by hand while it runs."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.architectures import ARCHITECTURES, built
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from skipway import edit
from skipway.connect import Constant, Residual
from skipway.graph import trace
from skipway.graph.ir import Ref
from skipway.graph.sites import SiteMode
from skipway.graph.skips import Skip
from skipway.graph.state import Inventory

pytestmark = [pytest.mark.filterwarnings("ignore")]

SUMS = ("add", "scaled add")
# One of each way to write a model runs always, the rest with the slow tests.
QUICK = ("ResNet", "ConvNext", "MobileViT", "Albert", "GPT2", "GPTNeoX", "Mamba", "T5", "Funnel", "Perceiver")
WITH_SUMS = [name for name, (_, _, skips) in ARCHITECTURES.items() if any(kind in SUMS for kind, _ in skips)]


def marked(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


class ByHand(SiteMode):
    """Counts every operation of the whole model, and gives one operand back in the place of a merge."""

    def __init__(self, model: nn.Module, skip: Skip, keep_branch: bool):
        super().__init__(Inventory.of(model))
        self.wanted = skip.site
        operation = skip.trace.operations[skip.merge]
        values = [item.value for item in operation.args[:2] if isinstance(item, Ref)]
        assert skip.carried in values
        self.position = 1 - values.index(skip.carried) if keep_branch else values.index(skip.carried)
        self.hits = 0

    position: Any = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        known, inplace = self.called(func, args, kwargs or {})
        if known.name and not known.name.startswith("_set"):
            kept = [item.clone() if isinstance(item, Tensor) else item for item in args[:2]]
            result = func(*args, **(kwargs or {}))
            if isinstance(result, (Tensor, tuple, list)) and self.site(known.name, inplace) == self.wanted:
                self.hits += 1
                return kept[self.position]
            return result
        return func(*args, **(kwargs or {}))


@contextmanager
def hooks(mode: SiteMode):
    first = register_module_forward_pre_hook(mode.enter_module)
    last = register_module_forward_hook(mode.leave_module, with_kwargs=True, always_call=True)
    try:
        yield
    finally:
        first.remove()
        last.remove()
        torch.nn.modules.module._global_forward_hooks_with_kwargs.pop(last.id, None)


def outputs(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    found = []

    def gather(item: Any) -> None:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, dict):
            for part in item.values():
                gather(part)
        elif isinstance(item, (tuple, list)):
            for part in item:
                gather(part)

    gather(model(**inputs))
    return [tensor for tensor in found if tensor.is_floating_point()]


def gradients(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor | None]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    total = sum(tensor.double().square().mean() for tensor in outputs(model, inputs))
    return list(torch.autograd.grad(total, parameters, allow_unused=True))  # pyright: ignore[reportArgumentType, reportCallIssue]


def close(ours: list[Any], theirs: list[Any], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            scale = max(1.0, float(other.detach().abs().max()))
            assert float((one.detach() - other.detach()).abs().max()) <= tolerance * scale


@pytest.mark.parametrize("name", marked(WITH_SUMS))
def test_a_swap_with_a_scale_fixed_at_one_changes_nothing(name: str):
    model, inputs = built(name)
    graph = trace(model, **inputs)
    skips = [skip for skip in graph.skips if skip.kind in SUMS]
    swapped = edit.swap(model, skips, Residual(scale=Constant(1.0)))
    assert list(swapped.state_dict()) == list(model.state_dict())
    close(outputs(swapped, inputs), outputs(model, inputs), 1e-6)
    # Rwkv's own code overwrites what its backward pass needs.
    if name != "Rwkv":
        close(gradients(swapped, inputs), gradients(model, inputs), 1e-6)


@pytest.mark.parametrize("name", marked(ARCHITECTURES))
@pytest.mark.parametrize("verb", ["cut", "lesion"])
def test_undoing_gives_back_every_bit(name: str, verb: str):
    model, inputs = built(name)
    before = outputs(model, inputs)
    skips = trace(model, **inputs).skips
    for skip in skips[:: max(1, len(skips) // 2)]:
        edited = getattr(edit, verb)(model, skip)
        outputs(edited, inputs)
        for one, other in zip(outputs(edit.undo(edited), inputs), before, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", marked(WITH_SUMS))
@pytest.mark.parametrize(("verb", "keep_branch"), [("cut", True), ("lesion", False)])
def test_one_operand_is_left(name: str, verb: str, keep_branch: bool):
    model, inputs = built(name)
    skips = [skip for skip in trace(model, **inputs).skips if skip.kind in SUMS]
    skips = [skip for skip in skips if skip.carried in skip.trace.operations[skip.merge].operands]
    for skip in skips[:: max(1, len(skips) // 2)]:
        edited = getattr(edit, verb)(model, skip)
        mode = ByHand(model, skip, keep_branch)
        with hooks(mode), mode:
            expected = outputs(model, inputs)
        assert mode.hits == 1
        close(outputs(edited, inputs), expected, 1e-6)
