"""Vision Transformers by name: torchvision's, and small ones for small images."""

from __future__ import annotations

from skipway.connect import Kind
from skipway.models.family import Family, Input
from skipway.models.gpt_sizes import heads_of
from skipway.models.transformer_layers import LayerPlan
from skipway.models.vit import ViT

# Layers, width, heads, pixels a side of a patch.
IMAGENET: dict[str, tuple[int, int, int, int]] = {
    "vit_b_16": (12, 768, 12, 16),
    "vit_b_32": (12, 768, 12, 32),
    "vit_l_16": (24, 1024, 16, 16),
    "vit_l_32": (24, 1024, 16, 32),
    "vit_h_14": (32, 1280, 16, 14),
}
# Layers, width, heads.
CIFAR: dict[str, tuple[int, int, int]] = {"vit_tiny": (12, 192, 3), "vit_mini": (6, 128, 4)}


def imagenet_vit(
    layers: int,
    width: int,
    heads: int,
    patch: int,
    skip: str | Kind = "residual",
    num_classes: int = 1000,
    in_channels: int = 3,
    image_size: int = 224,
    dropout: float = 0.0,
    placement: str = "pre-norm",
) -> ViT:
    """The Vision Transformers of the paper, base, large and huge, as torchvision has them.

    >>> import torch
    >>> with torch.device("meta"):
    ...     sum(p.numel() for p in imagenet_vit(12, 768, 12, 16).parameters())
    86567656
    """
    plan = LayerPlan(width, heads, 4, dropout, "gelu", placement, epsilon=1e-6)
    return ViT(plan, layers, image_size, patch, skip, num_classes, in_channels)


def small_vit(
    layers: int,
    width: int,
    heads: int | None = None,
    skip: str | Kind = "residual",
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    patch: int = 4,
    dropout: float = 0.0,
    placement: str = "pre-norm",
) -> ViT:
    """A Vision Transformer for small images; `heads` None makes them 64 wide, or narrower where that does not divide.

    >>> sum(p.numel() for p in small_vit(6, 128).parameters())
    1205898
    """
    plan = LayerPlan(width, heads_of(width) if heads is None else heads, 4, dropout, "gelu", placement, epsilon=1e-6)
    return ViT(plan, layers, image_size, patch, skip, num_classes, in_channels)


def _images(model: ViT) -> tuple[Input, ...]:
    return (Input((model.in_channels, model.image_size, model.image_size)),)


FAMILIES = (
    Family(
        imagenet_vit,
        {name: dict(zip(("layers", "width", "heads", "patch"), size, strict=True)) for name, size in IMAGENET.items()},
        _images,
    ),
    Family(
        small_vit,
        {name: dict(zip(("layers", "width", "heads"), size, strict=True)) for name, size in CIFAR.items()},
        _images,
        pattern=r"vit-(?P<layers>\d+)x(?P<width>\d+)",
    ),
)
