"""Branches that put out zero, removed; pooling before a 1x1 convolution rather than behind it."""

from __future__ import annotations

import torch

from skipway.edit.folding import algebra
from skipway.edit.folding.affine import LINEAR
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Fact, Node, Program
from skipway.graph.ir import Ref


def remove_zeros(program: Program) -> bool:
    """Remove one summand that is zero or the same everywhere whatever the input; True if there was one."""
    for node in list(program.nodes):
        if node.name != "add" or program.touches_pinned(node) or len(set(node.reads)) != 2:
            continue
        for place, value in enumerate(node.reads):
            dead = program.producer(value)
            if dead is None or program.touches_pinned(dead) or not _ignores_input(dead):
                continue
            other = node.args[1 - place]
            why = f"the branch that ends in {dead.site.module or dead.site} puts out zero"
            factor = dead.args[1]
            program.constants.assume(factor, why)
            shift = dead.args[2]
            if shift is None or not bool(shift.value.any()):
                if shift is not None:
                    program.constants.assume(shift, why)
                program.bypass(node, other)
                program.log.folded(node.site, node.name, f"removed: {why}")
            else:
                axis = 1 if dead.name == "convolution" else len(program.facts[value].shape) - 1
                axis = dead.args[3] if dead.name == "affine" else axis
                node.name, node.function, node.args = "affine", algebra.affine, (other, None, shift, axis)
                program.changed()
                program.log.folded(node.site, "branch", f"replaced by its shift: {why} but for that")
            return True
    return False


def _ignores_input(node: Node) -> bool:
    factor = node.args[1] if node.name in (*LINEAR, "affine") else None
    return isinstance(factor, Expression) and not bool(factor.value.any())


def pool_first(program: Program) -> bool:
    """conv1x1 then average pool is average pool then conv1x1, on fewer positions; True if any were exchanged."""
    changed = False
    for pool in list(program.nodes):
        if pool.name not in ("avg_pool", "mean") or program.touches_pinned(pool):
            continue
        conv = program.lone(pool.source, "convolution")
        if conv is None or conv.args[6] or any(size != 1 for size in (*conv.args[1].shape[2:], *conv.args[3])):
            continue
        if any(conv.args[4]) or (pool.name == "avg_pool" and any(pool.args[3])):
            continue
        if pool.name == "mean" and (set(pool.args[1]) != set(range(2, len(conv.args[3]) + 2)) or not pool.args[2]):
            continue
        before, after = program.facts[conv.source or 0], program.facts[pool.result]
        positions, fewer = torch.Size(before.shape[2:]).numel(), torch.Size(after.shape[2:]).numel()
        weight = conv.args[1].shape
        # Fewer products, but more channels to pool: one pooled element costs about as much as ten products.
        if (positions - fewer) * weight[0] * weight[1] < 10 * positions * (weight[1] * conv.args[8] - weight[0]):
            continue
        between = program.new(Fact((*before.shape[:2], *after.shape[2:]), after.dtype, after.device))
        pool.args = (conv.args[0], *pool.args[1:])
        conv.args = (Ref(between), *conv.args[1:])
        conv.results, pool.results = pool.results, (between,)
        program.remove([conv])
        program.insert_after(pool, conv)
        program.log.folded(pool.site, "pooling", f"moved before {conv.site.module or conv.site}")
        changed = True
    return changed
