"""Sums, differences, products and quotients: of two signals, or of a signal and a constant."""

from __future__ import annotations

import torch

from skipway.edit.folding import algebra
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Fact, Node, Program
from skipway.graph.ir import Ref


def arithmetic(program: Program, node: Node) -> None:
    """Sums of two signals, and what a constant is added to or multiplies."""
    if len(node.args) != 2 or set(node.kwargs) - {"alpha"}:
        return
    first, second = node.args
    alpha = node.kwargs.get("alpha", 1)
    result = program.facts[node.result]
    if not result.dtype.is_floating_point or not isinstance(alpha, (int, float)):
        return
    if isinstance(first, Ref) and isinstance(second, Ref):
        alike = all((program.facts[part.value].shape, program.facts[part.value].dtype) == (result.shape, result.dtype)
                    for part in (first, second))  # fmt: skip
        if node.name == "add" and alpha == 1 and alike:
            node.become("add", torch.add, (first, second))
        elif node.name == "sub" and alpha == 1 and alike:
            minus = program.new(result)
            one = program.constants.number(-1.0, result.dtype, result.device)
            program.insert_before(node, Node("affine", algebra.affine, (second, one, None, 0), (minus,), node.site,
                                              normal=True))  # fmt: skip
            node.become("add", torch.add, (first, Ref(minus)))
        elif node.name == "mul" and not node.kwargs:
            node.become("mul", torch.mul, (first, second))
        return
    x, constant = (first, second) if isinstance(first, Ref) else (second, first)
    if not isinstance(x, Ref) or (program.facts[x.value].shape, program.facts[x.value].dtype) != (
        result.shape,
        result.dtype,
    ):
        return
    if isinstance(constant, (int, float)) and not isinstance(constant, bool):
        constant = program.constants.number(float(constant), result.dtype, result.device)
    if not isinstance(constant, Expression):
        return
    found = _along(program, constant, result)
    if found is None:
        return
    vector, axis = found
    make, name = program.constants.make, node.name
    if name == "rsub":
        first, second = second, first
    minus = program.constants.number(-float(alpha), result.dtype, result.device)
    if alpha != 1 and name == "add" and second is not x:
        vector = make(torch.mul, vector, float(alpha))
    if name == "add" and (alpha == 1 or second is not x):
        args = (x, None, vector, axis)
    elif name in ("sub", "rsub") and first is x:
        args = (x, None, make(torch.mul, vector, -float(alpha)), axis)
    elif name in ("sub", "rsub"):
        args = (x, minus, vector, axis)
    elif name == "mul":
        args = (x, vector, None, axis)
    elif name == "div" and first is x and not node.kwargs:
        args = (x, make(torch.reciprocal, vector), None, axis)
    else:
        return
    node.become("affine", algebra.affine, args)


def _along(program: Program, constant: Expression, result: Fact) -> tuple[Expression, int] | None:
    """A constant as one number or as a vector along an axis of what it broadcasts against."""
    if not constant.dtype.is_floating_point and constant.value.numel() != 1:
        return None
    if constant.value.numel() == 1 and len(constant.shape) <= len(result.shape):
        number = program.constants.make(torch.Tensor.reshape, constant, ())
        if constant.dtype != result.dtype:
            number = program.constants.make(torch.Tensor.to, number, result.dtype)
        return number, 0
    if constant.dtype != result.dtype:
        return None
    offset = len(result.shape) - len(constant.shape)
    axes = [offset + place for place, size in enumerate(constant.shape) if size != 1]
    if offset < 0 or len(axes) != 1 or constant.value.numel() != result.shape[axes[0]]:
        return None
    return program.constants.make(torch.Tensor.reshape, constant, (-1,)), axes[0]


def negated(program: Program, node: Node) -> None:
    """-x."""
    result = program.facts[node.result]
    if isinstance(node.args[0], Ref) and result.dtype.is_floating_point:
        one = program.constants.number(-1.0, result.dtype, result.device)
        node.become("affine", algebra.affine, (node.args[0], one, None, 0))
