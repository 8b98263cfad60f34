"""Whether an operation stands in a part of a host that gradient checkpointing will run again without the host."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.utils.checkpoint

from skipway.edit.places import Place
from skipway.errors import SkipwayError

_top_hooks: Any = torch._C._autograd._top_saved_tensors_default_hooks  # pyright: ignore[reportAttributeAccessIssue]


def check(place: Place, gradient: bool) -> None:
    """Raise where the operation at a place is inside a checkpoint that its host has entered.

    `gradient` says whether gradients were recorded when the call of the host began. A checkpoint that nests backward
    passes switches them off, and one that does not sets a hook of its own: only then is it looked for.
    """
    hooks = _top_hooks(True)
    nests = gradient and not torch.is_grad_enabled()
    if (nests or (hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint")) and _entered():
        raise SkipwayError(
            f"{place.host or 'the model'} gives the part of its code that runs {place} to torch.utils.checkpoint, "
            "which runs it again in the backward pass, where the edit would not hold: checkpoint the whole "
            "module instead, or switch checkpointing off in it"
        )


def _entered() -> bool:
    """Whether a checkpoint was entered by what runs now, within the host."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "_watched":
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            return True
        frame = frame.f_back
    return False
