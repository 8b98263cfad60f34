"""What a person may get wrong with a U-Net: each gives one clear sentence that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.slips import gives_one_sentence

import skipway as sw

pytestmark = pytest.mark.usefixtures("no_shape_checks")

wrong: Any = sw.models  # the same names, untyped: what follows is wrong on purpose


def shown(*shape: int, name: str = "unet", **options: Any) -> Callable[[], Any]:
    return lambda: wrong.create(name, **{"width": 2, **options})(torch.ones(shape))


def made(skip: Any = "concat", name: str = "unet", **options: Any) -> Callable[[], Any]:
    return lambda: wrong.create(name, skip, **options)


SLIPS: dict[str, tuple[Callable[[], Any], str]] = {
    "size that does not halve": (
        shown(1, 3, 350, 525, fit="error"),
        'images are 350 x 525; this U-Net needs multiples of 16: pad to 352 x 528, or build it with fit="pad"',
    ),
    "size of valid convolutions": (
        shown(1, 1, 570, 572, name="unet-2015", width=1, fit="error"),
        "images are 570 x 572; this U-Net needs sides of 16 k + 12: pad to 572 x 572, or build it with",
    ),
    "volume that does not halve": (
        shown(1, 3, 8, 9, 16, name="unet3d", levels=2, fit="error"),
        "volumes are 8 x 9 x 16; this U-Net needs multiples of 4: pad to 8 x 12 x 16",
    ),
    "small image": (
        shown(1, 3, 64, 15),
        "images are 64 x 15; this U-Net halves them 4 times: give at least 16 x 16",
    ),
    "small image for valid convolutions": (
        shown(1, 1, 64, 64, name="unet-2015", fit="crop"),
        "images are 64 x 64; this U-Net halves them 4 times: give at least 188 x 188",
    ),
    "one pixel": (shown(1, 1, 1, 9, name="unet-2015"), "give at least 2 x 2"),
    "short signal": (shown(1, 3, 7, name="unet1d"), "signals are 7; this U-Net halves them 4 times: give at least 16"),
    "other channels": (shown(1, 1, 16, 16), "takes images of shape [n, 3, h, w], not [1, 1, 16, 16]"),
    "image for a volume": (shown(1, 3, 16, 16, name="unet3d"), "takes volumes of shape [n, 3, d, h, w], not [1, 3, 16"),
    "unknown option": (made(bilinear=True), "no option of unet 'bilinear'"),
    "unknown skip": (made("concatenate"), "no skip 'concatenate'; did you mean 'concat'?"),
    "unknown skip of a level": (made(["concat", "add", "none", "none"]), "no skip 'add'"),
    "too few skips": (
        made(["concat", "none"]),
        "skip= has 2 entries for 4 levels: give one connection, or one a level from full resolution down",
    ),
    "no skip": (made(7), "skip= takes a name"),
    "identity between widths": (
        made(sw.Residual(shortcut=sw.Identity()), widths=[4, 8, 12], up="nearest"),
        "an identity shortcut cannot carry 8 channels into 12",
    ),
    "unknown block": (made(block="dobule"), "no block 'dobule'; did you mean 'double'?"),
    "unknown way up": (
        made(up="trilinear"),
        "no up 'trilinear'; did you mean 'bilinear'? allowed: transposed, bilinear",
    ),
    "unknown norm": (made(norm="rms"), "no norm 'rms'"),
    "unknown fit": (made(fit="padd"), "no fit 'padd'; did you mean 'pad'? allowed: pad, crop, error"),
    "no levels": (made(levels=0), "a U-Net halves its maps at least once, not levels=0"),
    "no width": (made(width=0), "a width of at least 1 for each level"),
    "one width": (made(widths=[64]), "a width of at least 1 for each level and one for the bottom, not [64]"),
    "two ways to say widths": (made(width=4, widths=[4, 8]), "width= and widths= say the same twice"),
    "four axes": (lambda: wrong.unet(dims=4), "a U-Net's maps have 1, 2 or 3 spatial axes, not dims=4"),
    "no classes": (made(num_classes=0), "num_classes and in_channels must be at least 1, not 0, 3"),
    "short skip where there is none": (made(short_skip="residual"), "double convolutions have no short skip: build"),
    "short skip that widens": (made(block="residual", short_skip="concat"), "a U-Net's blocks keep their width"),
    "dense as a short skip": (made(block="preactivation", short_skip="dense"), "a U-Net's blocks keep their width"),
    "valid residual blocks": (
        lambda: wrong.UNetPlan((4, 8), block="residual", valid=True),
        "valid convolutions shrink what a residual block adds to: use block='double'",
    ),
    "supervision of one level": (
        made(levels=1, deep_supervision=True),
        "deep supervision needs a level below the first",
    ),
    "supervision of valid maps": (
        lambda: wrong.UNet(wrong.UNetPlan((4, 8, 16), valid=True), deep_supervision=True),
        "deep supervision needs coarse maps that cover the image",
    ),
    "supervision of what is left out": (
        made("stochastic-depth", deep_supervision=True),
        "deep supervision needs every level's output, which stochastic depth of whole batches leaves out",
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_each_slip_gives_one_clear_sentence(slip: str) -> None:
    gives_one_sentence(*SLIPS[slip])
