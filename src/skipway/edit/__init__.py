"""Change: cut, lesion, swap, graft, reorder and fold the skips of any `nn.Module`."""

from skipway.edit.folding import fold
from skipway.edit.graft import graft
from skipway.edit.log import history, undo
from skipway.edit.reorder import reorder
from skipway.edit.selection import select
from skipway.edit.skips import cut, lesion, swap
from skipway.edit.twins import plain_twin, residual_twin

__all__ = [
    "cut", "fold", "graft", "history", "lesion", "plain_twin", "reorder", "residual_twin", "select", "swap", "undo",
]  # fmt: skip
