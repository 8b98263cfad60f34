"""Whether an operation stands in a part of a host that gradient checkpointing will run again without the host."""

from __future__ import annotations

import sys
from types import CodeType
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointFunction

from skipway.edit.places import Place
from skipway.errors import SkipwayError


class Standing:
    """What held when a call of a host began: another checkpoint around an operation was entered by the host itself."""

    __slots__ = ("gradient", "hooks")

    def __init__(self) -> None:
        self.gradient, self.hooks = torch.is_grad_enabled(), _checkpoint_hooks()

    def check(self, place: Place) -> None:
        """Raise where the operation at a place is inside a checkpoint, and the host's start is not."""
        hooks = _checkpoint_hooks()
        inside = hooks is not None and hooks is not self.hooks
        if inside or (self.gradient and not torch.is_grad_enabled() and _reentrant()):
            raise SkipwayError(
                f"{place.host or 'the model'} gives the part of its code that runs {place} to torch.utils.checkpoint, "
                "which runs it again in the backward pass, where the edit would not hold: checkpoint the whole "
                "module instead, or switch checkpointing off in it"
            )


_top_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]


def _checkpoint_hooks() -> Any:
    """The hook of the innermost checkpoint around, if it is one that does not nest backward passes."""
    found = _top_hooks(True)
    return None if found is None or found[0].__module__ != "torch.utils.checkpoint" else found[0]


def _reentrant() -> bool:
    """Whether a checkpoint that nests backward passes was entered by what runs now, within the host."""
    checkpoint: CodeType = CheckpointFunction.forward.__code__
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "_watched":
        if frame.f_code is checkpoint:
            return True
        frame = frame.f_back
    return False
