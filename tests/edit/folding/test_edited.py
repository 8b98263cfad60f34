"""Folds of edited models: what an edit leaves out is not in the program, and what it brings is folded like the rest."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.edit.edit_nets import Chain, ConvNet, equal
from tests.edit.folding.folding_nets import settle
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Constant, Residual, ReZero
from skipway.graph import trace

Edit = Callable[[nn.Module, Tensor], nn.Module]

EDITS: dict[str, Edit] = {
    "cut": lambda model, x: edit.cut(model, trace(model, x).skips[2]),
    "lesion": lambda model, x: edit.lesion(model, trace(model, x).skips[1]),
    "residual": lambda model, x: edit.swap(model, trace(model, x), "residual"),
    "constant": lambda model, x: edit.swap(model, trace(model, x), Residual(scale=Constant(0.5))),
    "rezero": lambda model, x: edit.swap(model, trace(model, x), Residual(scale=ReZero(initial=0.5))),
    "stochastic depth": lambda model, x: edit.swap(model, trace(model, x), "stochastic-depth"),
    "pre-norm": lambda model, x: edit.swap(model, trace(model, x).skips[:2], "pre-norm"),
    "graft": lambda model, x: edit.graft(model, "blocks.3", graph=trace(model, x)),
    "reorder": lambda model, x: edit.reorder(model, ["blocks.0", "blocks.1"], [1, 0]),
}


@pytest.mark.parametrize("name", EDITS)
def test_the_same_function(name: str):
    for model, x in ((ConvNet(), torch.randn(2, 3, 8, 8)), (Chain(4), torch.randn(3, 4))):
        settle(model)
        edited = EDITS[name](model.double().eval(), x.double()).eval()
        # Not run before: what a lesion learns of shapes in its first run must not look like a state of the model's.
        folded = edit.fold(edited, x.double())
        equal(folded(2 * x.double()), edited(2 * x.double()).detach(), 1e-9)


def test_a_branch_that_is_left_out_is_not_in_the_program():
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(model, x)
    folds = [edit.fold(one, x).source.count("convolution") for one in (model, edit.lesion(model, graph.skips[1]))]
    assert folds[0] - folds[1] == 2


def test_a_scale_goes_into_the_branch():
    model, x = ConvNet().eval(), torch.randn(2, 3, 8, 8)
    scaled = edit.fold(edit.swap(model, trace(model, x), Residual(scale=ReZero(initial=0.5))).eval(), x)
    assert scaled.report.after == edit.fold(model, x).report.after
