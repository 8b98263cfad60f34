"""The named U-Nets: for images, signals and volumes, with interpolation, and the one of 2015."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from skipway.connect import Kind
from skipway.errors import SkipwayError
from skipway.models.family import Family, Input
from skipway.models.unet import UNet
from skipway.models.unet_plan import Block, Fit, Norm, UNetPlan, Up


def unet(
    skip: str | Kind | Sequence[str | Kind] = "concat",
    num_classes: int = 1,
    in_channels: int = 3,
    dims: int = 2,
    levels: int = 4,
    width: int | None = None,
    widths: Sequence[int] | None = None,
    block: Block = "double",
    short_skip: str | Kind | None = None,
    up: Up = "transposed",
    norm: Norm = "batch",
    fit: Fit = "pad",
    deep_supervision: bool = False,
    checkpointing: bool = False,
) -> UNet:
    """The U-Net whose convolutions pad: by default milesial/Pytorch-UNet, weight for weight.

    `levels` is how often maps are halved, `width` that of the first level (None: 64, or 32 for volumes), which doubles
    at each; `widths` gives all of them, the bottom last. `skip` is one connection or one a level from full resolution
    down, `short_skip` the one inside blocks that have one. Raises SkipwayError for what makes no U-Net.

    >>> sum(p.numel() for p in unet().parameters())
    31037633
    """
    plan = UNetPlan(_widths(levels, width, widths, dims, up), dims, block, up, norm, fit=fit)
    return UNet(plan, skip, num_classes, in_channels, short_skip, deep_supervision, checkpointing)


def unet_2015(
    skip: str | Kind | Sequence[str | Kind] = "concat",
    num_classes: int = 2,
    in_channels: int = 1,
    levels: int = 4,
    width: int = 64,
    fit: Fit = "pad",
    checkpointing: bool = False,
) -> UNet:
    """The U-Net as published: convolutions that do not pad, biases, no norms (Ronneberger 2015, arXiv:1505.04597).

    fit="pad" mirrors the border of an image, as the paper does, and gives logits of its size; fit="crop" takes it as it
    is, 572 x 572 to 388 x 388.

    >>> sum(p.numel() for p in unet_2015().parameters())
    31030658
    """
    plan = UNetPlan(_widths(levels, width, None, 2, "transposed"), norm="none", valid=True, fit=fit)
    return UNet(plan, skip, num_classes, in_channels, checkpointing=checkpointing)


def _widths(levels: int, width: int | None, widths: Sequence[int] | None, dims: int, up: Up) -> tuple[int, ...]:
    if dims not in (1, 2, 3):
        raise SkipwayError(f"a U-Net's maps have 1, 2 or 3 spatial axes, not dims={dims}")
    if widths is not None:
        if width is not None:
            raise SkipwayError("width= and widths= say the same twice: give the first width, or all of them")
        return tuple(widths)
    if levels < 1:
        raise SkipwayError(f"a U-Net halves its maps at least once, not levels={levels}")
    first = (32 if dims == 3 else 64) if width is None else width
    # What is interpolated keeps its width on the way up, so the bottom is no wider than the level above.
    return tuple(first * 2 ** (level if up == "transposed" else min(level, levels - 1)) for level in range(levels + 1))


def _input(*space: int) -> partial[tuple[Input, ...]]:
    return partial(_inputs, space)


def _inputs(space: tuple[int, ...], model: UNet) -> tuple[Input, ...]:
    return (Input((model.in_channels, *space)),)


FAMILIES = (
    Family(partial(unet, dims=2), {"unet": {}}, _input(64, 64), "concat", "segmentation"),
    Family(partial(unet, dims=2, up="bilinear"), {"unet-bilinear": {}}, _input(64, 64), "concat", "segmentation"),
    Family(partial(unet, dims=1), {"unet1d": {}}, _input(256), "concat", "segmentation"),
    Family(partial(unet, dims=3), {"unet3d": {}}, _input(32, 32, 32), "concat", "segmentation"),
    Family(unet_2015, {"unet-2015": {}}, _input(36, 36), "concat", "segmentation"),
)
