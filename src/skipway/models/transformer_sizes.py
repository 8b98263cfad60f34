"""Transformers by name: the base and big models of 2017, and a small one for small machines."""

from __future__ import annotations

from skipway.connect import Kind
from skipway.models.family import Family, Input
from skipway.models.gpt_sizes import heads_of
from skipway.models.positions import PositionKind
from skipway.models.transformer import Transformer
from skipway.models.transformer_layers import Activation, LayerPlan

# Layers of either stack, width, heads.
SIZES: dict[str, tuple[int, int, int]] = {
    "transformer": (6, 512, 8),
    "transformer-big": (6, 1024, 16),
    "transformer-mini": (3, 128, 4),
}


def transformer(
    layers: int,
    width: int,
    heads: int | None = None,
    skip: str | Kind = "residual",
    vocabulary: int = 37000,
    target_vocabulary: int | None = None,
    length: int = 512,
    dropout: float = 0.1,
    decoder_layers: int | None = None,
    positions: PositionKind = "sinusoidal",
    tied: bool = True,
    activation: Activation = "relu",
    placement: str = "post-norm",
    final_norm: bool | None = None,
) -> Transformer:
    """The encoder-decoder of 2017 with these layers in either stack, norms behind the sums unless `placement` says so.

    `heads` None makes them 64 wide, or narrower where that does not divide. `vocabulary` is by default that of the
    paper's English-German model, shared by both sides.

    >>> sum(p.numel() for p in transformer(3, 128, vocabulary=1000).parameters())
    1516544
    """
    plan = LayerPlan(width, heads_of(width) if heads is None else heads, 4, dropout, activation, placement)
    below = layers if decoder_layers is None else decoder_layers
    return Transformer(plan, vocabulary, target_vocabulary, layers, below, skip, length, positions, tied, final_norm)


def _pairs(model: Transformer) -> tuple[Input, ...]:
    return (
        Input((min(model.length, 32),), below=model.vocabulary),
        Input((min(model.length, 24),), below=model.target_vocabulary),
    )


FAMILIES = (
    Family(
        transformer,
        {name: {"layers": layers, "width": width, "heads": heads} for name, (layers, width, heads) in SIZES.items()},
        _pairs,
        task="translation",
        pattern=r"transformer-(?P<layers>\d+)x(?P<width>\d+)",
    ),
)
