"""The order in which the rules are applied."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from skipway.edit.folding.affine import explain, fold_affine
from skipway.edit.folding.backend import fuse, fused_calls, lay_out, lower_precision, restore_layout
from skipway.edit.folding.buffers import share_buffers
from skipway.edit.folding.clamps import fold_clamps
from skipway.edit.folding.code import Packer
from skipway.edit.folding.lower import lower_affine
from skipway.edit.folding.normalize import normalize
from skipway.edit.folding.program import Program
from skipway.edit.folding.sums import fold_chains, fold_sums
from skipway.edit.folding.winograd_rule import use_winograd
from skipway.edit.folding.zeros import pool_first, remove_zeros

EFFORTS = ("rewritten", "rewritten plainly", "as recorded")


@dataclass(frozen=True)
class Choices:
    """What the user of `fold` chose."""

    memory_format: str = "auto"
    dtype: torch.dtype | None = None
    keep_zeros: bool = False
    winograd: bool = True


def optimize(program: Program, choices: Choices, effort: str) -> dict[tuple[int, int], Packer]:
    """Rewrite a program; returns how constants are to be packed, by node and place.

    The second effort leaves layouts and fused calls alone, the third only removes what nobody reads.
    """
    _drop_unused(program)
    if effort != "as recorded":
        normalize(program)
        program.changed()
        rewrite(program, choices)
        explain(program)
    if choices.dtype is not None:
        lower_precision(program, choices.dtype)
    packers: dict[tuple[int, int], Packer] = {}
    if effort == "rewritten":
        last = choices.memory_format == "channels_last" or (choices.memory_format == "auto" and _on_cpu(program))
        if last and choices.winograd:
            packers = use_winograd(program, fused_calls())
        packers |= fuse(program, last)
        if last:
            lay_out(program)
        share_buffers(program, last)
        if last:
            restore_layout(program)
    lower_affine(program)
    return packers


def rewrite(program: Program, choices: Choices) -> None:
    """Apply the rules until none finds anything."""
    changed = True
    while changed:
        changed = fold_affine(program) or fold_sums(program) or fold_chains(program)
        if not changed and not choices.keep_zeros:
            changed = remove_zeros(program)
        if changed:
            program.prune()
        else:
            changed = pool_first(program) or fold_clamps(program)


def _drop_unused(program: Program) -> None:
    for node in program.prune():
        program.log.folded(node.site, node.name, "removed: nothing reads its result")


def _on_cpu(program: Program) -> bool:
    return all(fact.device.type == "cpu" for fact in program.facts)
