"""Scale, shift and ReLU before a linear map, in one pass.

relu(s x + t) is s * max(x, -t/s) + t for s > 0, s * min(x, -t/s) + t for s < 0, and relu(t) for s = 0. So it is a clamp
with one bound a channel, and another scale and shift behind it, which the linear map that reads it takes on.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skipway.edit.folding import algebra
from skipway.edit.folding.affine import LINEAR, takes_inputs, where_below
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Node, Program
from skipway.graph.ir import Ref


def fold_clamps(program: Program) -> bool:
    """Turn one norm and ReLU whose readers take on a scale and a shift into a clamp; True if there was one."""
    for node in list(program.nodes):
        if node.name != "affine" or program.touches_pinned(node):
            continue
        relu = program.only_reader(node.result)
        if relu is None or relu.name != "relu" or program.touches_pinned(relu) or not program.free(relu.result):
            continue
        source, scale, shift, axis = node.args
        make = program.constants.make
        behind = make(clamped_shift, scale, shift) if shift is not None else None
        if not _taken(program, relu.result, axis, behind):
            continue
        ndim = len(program.facts[node.result].shape)
        low, high = (make(algebra.aligned, make(bound, scale, shift, up), axis, ndim) for up in (False, True))
        between = program.new(program.facts[relu.result])
        clamp = Node("clamp", torch.clamp, (source, low, high), (between,), node.site)
        program.insert_before(relu, clamp, Node("affine", algebra.affine, (Ref(between), scale, behind, axis),
                                                relu.results, node.site))  # fmt: skip
        program.remove([node, relu])
        program.log.folded(node.site, f"{node.site.operation} and relu", "became a clamp")
        return True
    return False


def _taken(program: Program, value: int, axis: int, shift: Expression | None) -> bool:
    """Whether linear maps take on scale and shift of a value, at once or behind a mean."""
    readers = program.readers(value)
    if not readers or not program.free(value):
        return False
    if len(readers) == 1 and readers[0].name not in LINEAR:
        moved = where_below(program, readers[0], axis, shift)
        return moved is not None and _taken(program, readers[0].result, moved, shift)
    return not any(takes_inputs(program, reader, value, axis, shift) for reader in readers)


def _factor(scale: Tensor) -> Tensor:
    return torch.where(scale.abs() < 1e-30, 0.0, scale)


def bound(scale: Tensor | None, shift: Tensor | None, upper: bool) -> Tensor:
    """Where scale * x + shift crosses zero, as the lower or the upper bound that keeps x on the positive side."""
    if scale is None:
        assert shift is not None
        return torch.full_like(shift, float("inf")) if upper else -shift
    scale = _factor(scale)
    crossing = -(torch.zeros_like(scale) if shift is None else shift) / torch.where(scale == 0, 1.0, scale)
    open_side = torch.full_like(crossing, float("inf") if upper else float("-inf"))
    found = torch.where((scale < 0) if upper else (scale > 0), crossing, open_side)
    return torch.where(scale == 0, torch.zeros_like(found), found)


def clamped_shift(scale: Tensor | None, shift: Tensor) -> Tensor:
    """What is added behind the clamp: the shift, and its positive part where the scale is zero."""
    return shift if scale is None else torch.where(_factor(scale) == 0, shift.relu(), shift)
