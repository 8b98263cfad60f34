"""Where norms and activations stand around a branch and the sum.

Three slots hold them: `before` what the branch reads, `out` on what it puts out, `after` the merge. The five
placements of He et al. 2016, fig. 4 (arXiv:1603.05027) wrap one and the same branch, conv-norm-relu-conv.
"""

from __future__ import annotations

from dataclasses import dataclass

from skipway.connect.layers import NormKind
from skipway.errors import SkipwayError, choose

Slot = tuple[str, ...]


@dataclass(frozen=True)
class Placement:
    """Which of norm and relu stand before the branch, behind it, and after the merge.

    A slot is (), ("norm",), ("relu",) or ("norm", "relu"). `norm` is its kind: None means batch norm for maps and
    layer norm for tokens. A projection shares the branch's `before`, as pre-activation nets do where the shape changes.

    >>> Placement.named("pre-activation").before
    ('norm', 'relu')
    """

    before: Slot = ()
    out: Slot = ()
    after: Slot = ()
    norm: NormKind | None = None

    def __post_init__(self) -> None:
        for name in ("before", "out", "after"):
            slot = getattr(self, name)
            if slot not in _SLOTS:
                allowed = ", ".join(map(str, _SLOTS))
                raise SkipwayError(f"placement slot {name}={slot!r} is not one of: {allowed}")

    @staticmethod
    def named(name: str) -> Placement:
        """The placement published under a name."""
        return PLACEMENTS[choose("placement", name, PLACEMENTS)]


_SLOTS: tuple[Slot, ...] = ((), ("norm",), ("relu",), ("norm", "relu"))

PLACEMENTS: dict[str, Placement] = {
    "bare": Placement(),
    "original": Placement(out=("norm",), after=("relu",)),
    "norm-after-sum": Placement(after=("norm", "relu")),
    "relu-before-sum": Placement(out=("norm", "relu")),
    "relu-pre-activation": Placement(before=("relu",), out=("norm",)),
    "pre-activation": Placement(before=("norm", "relu")),
    "pre-norm": Placement(before=("norm",)),
    "post-norm": Placement(after=("norm",)),
    "branch-norm": Placement(out=("norm",)),
    "sandwich": Placement(before=("norm",), out=("norm",)),
}
