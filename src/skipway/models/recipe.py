"""How the Transformer was trained in 2017: labels smoothed, the learning rate warmed up.

Vaswani et al. 2017, sections 5.3 and 5.4 (arXiv:1706.03762).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from skipway.errors import SkipwayError


def smoothed_loss(
    logits: Float[Tensor, "n t v"],
    targets: Int[Tensor, "n t"],
    padding: Bool[Tensor, "n t"] | None = None,
    smoothing: float = 0.1,
) -> Float[Tensor, ""]:
    """Mean of -sum_k q(k) log p(k), q = (1 - e) at the target plus e/v everywhere; padding does not count.

    In nats a token. Raises SkipwayError for a smoothing outside [0, 1) and where nothing but padding is given.

    >>> import torch
    >>> round(float(smoothed_loss(torch.zeros(1, 1, 8), torch.zeros(1, 1, dtype=torch.int64))), 4)
    2.0794
    """
    if not 0 <= smoothing < 1:
        raise SkipwayError(f"smoothing lies in [0, 1), not {smoothing}")
    if padding is not None:
        logits, targets = logits[~padding], targets[~padding]
        if not len(targets):
            raise SkipwayError("all of the targets are padding: there is nothing to take a loss of")
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), label_smoothing=smoothing)


def warmup_rate(step: int, width: int, warmup: int = 4000) -> float:
    """width^-0.5 min(step^-0.5, step warmup^-1.5): the rate grows in a line for `warmup` steps, and then falls.

    Steps count from 1. Raises SkipwayError for an earlier step and for no warm-up.

    >>> round(warmup_rate(4000, width=512), 6)
    0.000699
    """
    if step < 1 or warmup < 1 or width < 1:
        raise SkipwayError(f"step, width and warmup are at least 1, not {step}, {width}, {warmup}")
    return width**-0.5 * min(step**-0.5, step * warmup**-1.5)


def warm_up(optimizer: Optimizer, width: int, warmup: int = 4000) -> LambdaLR:
    """A schedule to step after every optimizer step: its own learning rate times `warmup_rate`.

    >>> from torch import nn, optim
    >>> schedule = warm_up(optim.Adam(nn.Linear(2, 2).parameters(), lr=1.0), width=64, warmup=100)
    >>> schedule.get_last_lr()
    [0.000125]
    """
    return LambdaLR(optimizer, lambda taken: warmup_rate(taken + 1, width, warmup))
