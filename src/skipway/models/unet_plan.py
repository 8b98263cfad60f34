"""The numbers that make one U-Net, and the arithmetic of the sizes of its maps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skipway.errors import SkipwayError, choose

Block = Literal["double", "residual", "preactivation", "dense"]
Up = Literal["transposed", "linear", "bilinear", "trilinear", "nearest"]
Norm = Literal["batch", "instance", "group", "layer", "none"]
Fit = Literal["pad", "crop", "error"]

INTERPOLATION = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class UNetPlan:
    """Widths of the encoder from full resolution to the bottom, and of what its levels are made.

    `valid` convolutions do not pad, as in 2015: every 3x3 takes a pixel off each border. `fit` says how the two maps of
    a level meet where their sizes differ, and with it what the output's size is: "pad" gives the size of the input,
    "crop" cuts the encoder's maps, "error" refuses sizes that do not halve evenly. Where maps are interpolated rather
    than up-sampled by a transposed convolution, a decoder block gives the width of the level above.

    Raises SkipwayError for numbers and names that make no U-Net.

    >>> UNetPlan(widths=(64, 128, 256, 512, 1024), valid=True, norm="none").output(572)
    388
    """

    widths: tuple[int, ...]
    dims: int = 2
    block: Block = "double"
    up: Up = "transposed"
    norm: Norm = "batch"
    valid: bool = False
    fit: Fit = "pad"

    def __post_init__(self) -> None:
        choose("block", self.block, ("double", "residual", "preactivation", "dense"))
        choose("up", self.up, ("transposed", INTERPOLATION[self.dims], "nearest"))
        choose("norm", self.norm, ("batch", "instance", "group", "layer", "none"))
        choose("fit", self.fit, ("pad", "crop", "error"))
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise SkipwayError(
                f"a U-Net needs a width of at least 1 for each level and one for the bottom, not {list(self.widths)}"
            )
        if self.valid and self.block != "double":
            raise SkipwayError(f"valid convolutions shrink what a {self.block} block adds to: use block='double'")

    @property
    def levels(self) -> int:
        """How often maps are halved, which is the number of long skips."""
        return len(self.widths) - 1

    @property
    def depth(self) -> int:
        """Weight layers on the longest path: down, through the bottom, up, and the head."""
        blocks = (2 * self.levels + 1) * (3 if self.block == "dense" else 2)
        return blocks + (self.levels if self.up == "transposed" else 0) + 1

    @property
    def crops(self) -> bool:
        """Whether the encoder's maps are cut to the decoder's; else the decoder's are padded to the encoder's."""
        return self.valid or self.fit == "crop"

    def decoder_width(self, level: int) -> int:
        """What the decoder's block at a level puts out."""
        return self.widths[level if self.up == "transposed" else max(level - 1, 0)]

    def upsampled_width(self, level: int) -> int:
        """What comes up to a level from below."""
        if self.up == "transposed":
            return self.widths[level]
        return self.widths[-1] if level == self.levels - 1 else self.decoder_width(level + 1)

    @property
    def shrinks(self) -> int:
        """What one block takes off the length of a map."""
        return 4 if self.valid else 0

    @property
    def unit(self) -> int:
        """Sizes that halve evenly all the way are `rest` more than a multiple of this."""
        return 2**self.levels

    @property
    def rest(self) -> int:
        return self.shrinks * (self.unit - 1) % self.unit

    @property
    def margin(self) -> int:
        """How much smaller than such an input the output is."""
        return self.shrinks * (3 * self.unit - 2)

    def even(self, size: int) -> int:
        """The nearest size from this one up that halves evenly, and leaves something."""
        size = max(size, self.margin + 1)
        return size + (self.rest - size) % self.unit

    def upsampled(self, size: int, level: int) -> int:
        """The length of what comes up to a level, from that of its encoder's map; nothing is left at 0 or less."""
        below = size // 2 - self.shrinks
        return 2 * (below if level == self.levels - 1 else self.decoded(below, level + 1))

    def decoded(self, size: int, level: int) -> int:
        """The length of the decoder's map at a level, from that of its encoder's map."""
        return (self.upsampled(size, level) if self.crops else size) - self.shrinks

    def output(self, size: int) -> int:
        """The length of the output of an input that is given to the net as it is; nothing is left at 0 or less."""
        return self.decoded(size - self.shrinks, 0)

    @property
    def least(self) -> int:
        """The smallest side that the net can take."""
        if self.valid and self.fit == "pad":
            return 2
        size = self.unit
        while self.output(size) < 1:
            size += 1
        return size
