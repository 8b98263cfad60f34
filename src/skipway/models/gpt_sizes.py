"""GPTs by name: GPT-2 in its four sizes, and small ones for small machines."""

from __future__ import annotations

from skipway.connect import Kind
from skipway.models.family import Family, Input
from skipway.models.gpt import GPT
from skipway.models.positions import PositionKind
from skipway.models.transformer_layers import LayerPlan

# Layers, width, heads.
SIZES: dict[str, tuple[int, int, int]] = {
    "gpt2": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "gpt2-large": (36, 1280, 20),
    "gpt2-xl": (48, 1600, 25),
    "gpt-mini": (6, 192, 6),
    "gpt-micro": (4, 128, 4),
    "gpt-nano": (3, 48, 3),
}


def gpt(
    layers: int,
    width: int,
    heads: int | None = None,
    skip: str | Kind = "residual",
    vocabulary: int = 50257,
    length: int = 1024,
    dropout: float = 0.1,
    positions: PositionKind = "learned",
    tied: bool = True,
    placement: str = "pre-norm",
) -> GPT:
    """A GPT of these layers and this width; `heads` None makes them 64 wide, or narrower where that does not divide.

    >>> sum(p.numel() for p in gpt(3, 48, vocabulary=65, length=128).parameters())
    94176
    """
    plan = LayerPlan(
        width, heads_of(width) if heads is None else heads, dropout=dropout, activation="gelu-tanh", placement=placement
    )
    return GPT(plan, layers, vocabulary, length, skip, positions, tied)


def heads_of(width: int) -> int:
    """How many heads a width is divided into where nobody says: of 64 channels, or the nearest that divides."""
    return next(heads for heads in range(max(1, round(width / 64)), 0, -1) if width % heads == 0)


def _tokens(model: GPT) -> tuple[Input, ...]:
    return (Input((min(model.length, 64),), below=model.vocabulary),)


FAMILIES = (
    Family(
        gpt,
        {name: {"layers": layers, "width": width, "heads": heads} for name, (layers, width, heads) in SIZES.items()},
        _tokens,
        task="language",
        pattern=r"gpt-(?P<layers>\d+)x(?P<width>\d+)",
    ),
)
