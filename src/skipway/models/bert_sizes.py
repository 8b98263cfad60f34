"""BERTs by name: base and large, and a small one for small machines."""

from __future__ import annotations

from skipway.connect import Kind
from skipway.models.bert import BERT, Head
from skipway.models.family import Family, Input
from skipway.models.gpt_sizes import heads_of
from skipway.models.positions import PositionKind
from skipway.models.transformer_layers import LayerPlan

# Layers, width, heads.
SIZES: dict[str, tuple[int, int, int]] = {
    "bert-base": (12, 768, 12),
    "bert-large": (24, 1024, 16),
    "bert-mini": (4, 256, 4),
}


def bert(
    layers: int,
    width: int,
    heads: int | None = None,
    skip: str | Kind = "residual",
    vocabulary: int = 30522,
    length: int = 512,
    dropout: float = 0.1,
    head: Head = "language",
    num_classes: int = 2,
    positions: PositionKind = "learned",
    placement: str = "post-norm",
) -> BERT:
    """A BERT of these layers and this width; `heads` None makes them 64 wide, or narrower where that does not divide.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in bert(12, 768, head="pooled").parameters())
    109482240
    """
    plan = LayerPlan(width, heads_of(width) if heads is None else heads, 4, dropout, "gelu", placement, epsilon=1e-12)
    return BERT(plan, layers, vocabulary, length, skip, head, num_classes, positions)


def _tokens(model: BERT) -> tuple[Input, ...]:
    return (Input((min(model.length, 64),), below=model.vocabulary),)


FAMILIES = (
    Family(
        bert,
        {name: {"layers": layers, "width": width, "heads": heads} for name, (layers, width, heads) in SIZES.items()},
        _tokens,
        task="hidden language",
        pattern=r"bert-(?P<layers>\d+)x(?P<width>\d+)",
    ),
)
