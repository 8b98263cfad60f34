"""Stochastic depth: whole branches left out in training.

Huang, Sun, Liu, Sedra, Weinberger 2016 (arXiv:1603.09382).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from skipway.connect.site import Site
from skipway.errors import SkipwayError, choose


@dataclass(frozen=True)
class StochasticDepth:
    """In training y = S(x) + b/(1-p) F(x), b ~ Bernoulli(1-p); in evaluation the plain sum, which is its expectation.

    `rate` is p at the last branch; "linear" lets p grow with depth, p_l = rate * (l+1)/depth, "constant" does not.
    Mode "batch" draws one b for all samples and does not run a dropped branch at all, so its time is saved and its
    BatchNorm statistics stand still; "row" draws one b a sample and masks.

    Raises SkipwayError when rate is not in [0, 1).

    >>> StochasticDepth(0.5).rate_at(Site(8, 8, index=4, depth=10))
    0.25
    """

    rate: float
    schedule: Literal["linear", "constant"] = "linear"
    mode: Literal["batch", "row"] = "batch"

    def __post_init__(self) -> None:
        choose("drop schedule", self.schedule, ("linear", "constant"))
        choose("drop mode", self.mode, ("batch", "row"))
        if not 0 <= self.rate < 1:
            raise SkipwayError(f"a drop rate lies in [0, 1), not {self.rate}: at 1 no branch would ever run")

    def rate_at(self, site: Site) -> float:
        """The probability of dropping the branch at a site."""
        return self.rate * (site.index + 1) / site.depth if self.schedule == "linear" else self.rate

    def build(self, site: Site) -> Dropper:
        return Dropper(self.rate_at(site), self.mode)


class Dropper(nn.Module):
    """Draws which branch, or which rows of it, to keep; nothing is drawn in evaluation."""

    def __init__(self, rate: float, mode: str) -> None:
        super().__init__()
        self.rate, self.mode = rate, mode

    @property
    def active(self) -> bool:
        """Whether anything is dropped now: in training, at a rate above 0."""
        return self.training and self.rate > 0

    def drops_branch(self) -> bool:
        """Draw whether the whole branch is left out. On the CPU, so that a GPU need not be waited for."""
        return self.mode == "batch" and bool(torch.rand((), device="cpu") < self.rate)

    def keep(self, value: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."] | float:
        """The factor on a branch that has run: 1/(1-p) in batch mode, b/(1-p) a row in row mode."""
        keep_rate = 1 - self.rate
        if self.mode == "batch":
            return 1 / keep_rate
        mask = torch.rand(len(value), device=value.device) < keep_rate
        return (mask.to(value.dtype) / keep_rate).view(-1, *(1,) * (value.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}, mode={self.mode!r}"
