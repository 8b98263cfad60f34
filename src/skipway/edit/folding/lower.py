"""From rewritten operations to functions that run."""

from __future__ import annotations

import torch

from skipway.edit.folding import algebra
from skipway.edit.folding.program import Program


def lower_affine(program: Program) -> None:
    """Give the constants of affine operations the shapes in which they broadcast."""
    make = program.constants.make
    _restore_differences(program)
    for node in program.nodes:
        if node.name != "affine":
            continue
        x, scale, shift, axis = node.args
        ndim = len(program.facts[node.result].shape)
        scale, shift = (None if part is None else make(algebra.aligned, part, axis, ndim) for part in (scale, shift))
        if shift is None and scale is not None:
            node.name, node.function, node.args = "mul", torch.mul, (x, scale)
        elif scale is None and shift is not None:
            node.name, node.function, node.args = "add_constant", torch.add, (x, shift)
        else:
            node.name, node.function, node.args = "addcmul", torch.addcmul, (shift, x, scale)


def _restore_differences(program: Program) -> None:
    """x + (-1) * y is x - y again where the factor was not folded."""
    for node in list(program.nodes):
        if node.name != "add" or program.touches_pinned(node):
            continue
        first, second = node.args
        minus = program.lone(second.value, "affine")
        if minus is None or minus.args[2] is not None or minus.args[1].shape or float(minus.args[1].value) != -1:
            continue
        node.name, node.function, node.args = "sub", torch.sub, (first, minus.args[0])
        program.remove([minus])
