"""Random sequences of edits on random small nets: they apply and keep the laws, or are refused with a sentence."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.edit.edit_nets import equal, pulled
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Constant, Residual, ReZero
from skipway.errors import SkipwayError
from skipway.graph import trace

MERGES = ("x + f", "f + x", "+=", "x + f + g", "alpha", "cat", "nested", "none")


class RandomBlock(nn.Module):
    """One way to merge, behind it an activation that may work in place."""

    def __init__(self, merge: str, inplace: bool):
        super().__init__()
        self.merge = merge
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)
        self.down = nn.Linear(8, 4) if merge == "cat" else None
        self.activation = nn.ReLU(inplace)

    def merged(self, x: Tensor) -> Tensor:
        if self.merge == "f + x":
            return self.f(x) + x
        if self.merge == "+=":
            y = self.f(x)
            y += x
            return y
        if self.merge == "x + f + g":
            return x + self.f(x) + self.g(x)
        if self.merge == "alpha":
            return torch.add(x, self.f(x), alpha=0.5)
        if self.merge == "cat":
            assert self.down is not None
            return self.down(torch.cat([x, self.f(x)], -1))
        if self.merge == "nested":
            return x + self.g(torch.tanh(x + self.f(x)))
        return x + self.f(x) if self.merge == "x + f" else self.f(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.merged(x))


class RandomNet(nn.Module):
    """Blocks, of which some run twice."""

    def __init__(self, merges: list[str], again: list[bool], inplace: bool):
        super().__init__()
        self.blocks = nn.ModuleList([RandomBlock(merge, inplace) for merge in merges])
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1
        for block, again in zip(self.blocks, self.again, strict=True):
            x = block(block(x)) if again else block(x)
        return x


NETS = st.lists(st.tuples(st.sampled_from(MERGES), st.booleans()), min_size=1, max_size=4)
VERBS = ("cut", "lesion", "scale one", "rezero one", "pre-norm", "graft", "reorder", "retrace", "undo")
STEPS = st.lists(st.tuples(st.sampled_from(VERBS), st.integers(0, 7)), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(blocks=NETS, inplace=st.booleans(), steps=STEPS, seed=st.integers(0, 5))
def test_random_edits(blocks: list[tuple[str, bool]], inplace: bool, steps: list[tuple[str, int]], seed: int):
    torch.manual_seed(seed)
    original = RandomNet([merge for merge, _ in blocks], [again for _, again in blocks], inplace)
    x = torch.randn(3, 4)
    expected, names = pulled(original, x), list(original.state_dict())
    model: Any = original
    graph = trace(model, x)
    for verb, number in steps:
        before = pulled(model, x)
        skips = graph.skips[number % len(graph.skips) :][:1] if graph.skips else ()
        try:
            if verb in ("cut", "lesion"):
                edited = getattr(edit, verb)(model, skips)
            elif verb == "scale one":
                edited = edit.swap(model, skips, Residual(scale=Constant(1.0)))
            elif verb == "rezero one":
                edited = edit.swap(model, skips, Residual(scale=ReZero(initial=1.0)))
            elif verb == "pre-norm":
                edited = edit.swap(model, skips, "pre-norm")
            elif verb == "graft":
                edited = edit.graft(model, f"blocks.{number % len(blocks)}", graph=graph)
            elif verb == "reorder":
                last = len(blocks) - 1
                edited = edit.reorder(model, ["blocks.0", f"blocks.{last}"], [1, 0], graph=graph)
            elif verb == "retrace":
                graph = trace(model, x)
                continue
            else:
                edited = edit.undo(model)
            found = pulled(edited, x)
        except SkipwayError:
            equal(pulled(model, x), before, 0)
            continue
        assert torch.overrides._get_current_function_mode_stack() == []
        assert set(names) <= set(edited.state_dict())
        with torch.no_grad():
            equal(edited(x), found[0], 1e-5)
        if verb != "undo":
            equal(pulled(edit.undo(edited), x), before, 0)
        if verb in ("scale one", "rezero one") and not any(
            change.verb in ("cut", "lesion", "swap") for change in edit.history(model)
        ):
            equal(found[: len(before)][0], before[0], 1e-5)
        model = edited
    equal(pulled(original, x), expected, 0)
    equal(pulled(edit.undo(model, None), x), expected, 0)
