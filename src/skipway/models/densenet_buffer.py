"""The buffer of a dense block: every map that is kept, normalised, and relu(norm(...)) of it made where it is needed.

A channel's batch statistics are the same for all that read it, whose norms differ in scale and shift alone. What norms
and ReLU make is made again wherever it is read, a few rows at a time, in one scratch that stays in the processor's
cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

# The most numbers in a scratch, the share of the buffer's that it has at most, and what it may have however small the
# buffer: small enough for the caches beside what is read and written, and for the memory; large enough that its pieces
# are few.
_SCRATCH, _SHARE, _LEAST = 2**21, 4, 2**19


@dataclass
class Block:
    """How a dense block runs, and behind its forward pass the batch's mean and unbiased variance for each norm.

    `bottleneck` says that layers hold two convolutions, `pools` that a transition follows rather than a bare norm,
    `keeps` that the bottleneck's output is kept for the backward pass. `dtype` is what maps are kept in and
    convolutions take; statistics, norms and the sums of gradients are in single precision at least.
    """

    layers: int
    bottleneck: bool
    pools: bool
    keeps: bool
    eps: float
    dtype: torch.dtype
    statistics: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    rows: int = 0

    def split(self, weights: Sequence[Tensor]) -> tuple[list[Sequence[Tensor]], Sequence[Tensor]]:
        """The weights of each layer, and of what stands behind them."""
        each = 6 if self.bottleneck else 3
        return [weights[k * each : (k + 1) * each] for k in range(self.layers)], weights[self.layers * each :]


class Buffer:
    """The maps of a block as rows of pixels, and what mean and inverse deviation those had that were put normalised."""

    def __init__(self, block: Block, n: int, h: int, w: int, channels: int, filled: Tensor | None = None) -> None:
        self.block, self.shape, self.count = block, (n, h, w), n * h * w
        self.exact = torch.promote_types(block.dtype, torch.float32)
        self.rows = torch.empty(self.count, channels, dtype=block.dtype) if filled is None else filled
        self.norms: list[tuple[Tensor, Tensor]] = []
        self._scratch = min(_SCRATCH, max(_LEAST, self.rows.numel() // _SHARE))
        # One scratch for relu(norm(...)), and where convolutions take a lower precision its copy in that.
        self.scratch = torch.empty(0, dtype=self.exact)
        self.lower = torch.empty(0, dtype=block.dtype)

    def put(self, start: int, value: Tensor) -> None:
        """Put maps behind the channels that are there."""
        n, h, w = self.shape
        self.rows[:, start : start + value.shape[1]].view(n, h, w, -1).permute(0, 3, 1, 2).copy_(value)

    def write(self, start: int, value: Tensor) -> None:
        """Put maps behind the channels that are there, normalised by their statistics."""
        value, mean, inverse = normalised(value.to(self.block.dtype), self.block.eps)
        self.put(start, value)
        self.norms.append((mean, inverse))

    def affine(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """A norm of maps that are normalised already, as a factor and a summand."""
        return scale.to(self.exact), shift.to(self.exact)

    def chunks(self, channels: int) -> Iterator[slice]:
        """The pixels, in pieces of about one size that fit the cache."""
        pieces = -(-self.count * channels // self._scratch)
        step = max(64, -(-self.count // pieces))
        for start in range(0, self.count, step):
            yield slice(start, min(start + step, self.count))

    def images(self) -> Iterator[slice]:
        """The images, in pieces that fit the cache if one does."""
        n, h, w = self.shape
        step = max(1, self._scratch // (self.rows.shape[1] * h * w))
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))

    def read(self, rows: slice, factor: Tensor, summand: Tensor) -> Tensor:
        """relu(norm(...)) of some pixels, exactly; the next reading overwrites it."""
        m, c = rows.stop - rows.start, len(factor)
        if self.scratch.numel() < m * c:
            self.scratch = torch.empty(m * c, dtype=self.exact)
        y = self.scratch.as_strided((m, c), (c, 1))
        source = self.rows[rows, :c]
        if source.dtype != self.exact:
            source = y.copy_(source)
        return torch.addcmul(summand, source, factor, out=y).relu_()

    def lowered(self, y: Tensor) -> Tensor:
        """What was read, in the precision that convolutions take; the next overwrites it."""
        if self.block.dtype == self.exact:
            return y
        if self.lower.numel() < y.numel():
            self.lower = torch.empty(y.numel(), dtype=self.block.dtype)
        return self.lower.as_strided(y.shape, y.stride()).copy_(y)

    def read_images(self, images: slice, factor: Tensor, summand: Tensor) -> Tensor:
        """relu(norm(...)) of some images, exactly; the next reading overwrites it."""
        _, h, w = self.shape
        y = self.read(slice(images.start * h * w, images.stop * h * w), factor, summand)
        return y.view(-1, h, w, len(factor)).permute(0, 3, 1, 2)

    def squeeze(self, matrix: Tensor, affine: tuple[Tensor, Tensor], summand: Tensor | None = None) -> Tensor:
        """The 1x1 convolution of relu(norm(...)), as a product of matrices; with a summand another ReLU follows."""
        n, h, w = self.shape
        z = torch.empty(self.count, len(matrix), dtype=self.block.dtype)
        for rows in self.chunks(matrix.shape[1]):
            y = self.lowered(self.read(rows, *affine))
            if summand is None:
                torch.mm(y, matrix.t(), out=z[rows])
            else:
                torch.addmm(summand, y, matrix.t(), out=z[rows]).relu_()
        return z.view(n, h, w, -1).permute(0, 3, 1, 2)

    def convolve(self, weight: Tensor, affine: tuple[Tensor, Tensor]) -> Tensor:
        """The 3x3 convolution of relu(norm(...))."""
        n, h, w = self.shape
        weight = weight.to(self.block.dtype)
        y = torch.empty((n, len(weight), h, w), dtype=self.block.dtype, memory_format=torch.channels_last)
        for images in self.images():
            y[images] = F.conv2d(self.lowered(self.read_images(images, *affine)), weight, padding=1)
        return y

    def leave(self, behind: Sequence[Tensor], affine: tuple[Tensor, Tensor]) -> Tensor:
        """What follows the block: the bare norm, or a transition, which takes its means before it convolves."""
        n, h, w = self.shape
        factor, summand = affine
        if not self.block.pools:
            y = torch.empty((n, len(factor), h, w), dtype=self.block.dtype, memory_format=torch.channels_last)
            rows_of(y).copy_(torch.addcmul(summand, self.rows.to(self.exact), factor))
            return y
        matrix = behind[2].flatten(1).to(self.block.dtype).t()
        shape = (n, matrix.shape[1], h // 2, w // 2)
        out = torch.empty(shape, dtype=self.block.dtype, memory_format=torch.channels_last)
        for images in self.images():
            pooled = F.avg_pool2d(self.read_images(images, factor, summand), 2).to(self.block.dtype)
            torch.mm(rows_of(last(pooled)), matrix, out=rows_of(out[images]))
        return out


def normalised(
    x: Tensor, eps: float, scale: Tensor | None = None, shift: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """norm(x) by the batch, with each channel's mean and inverse deviation in at least single precision."""
    if not (x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)):
        x = x.contiguous()
    if scale is None and x.dtype == torch.bfloat16:
        # Without weights in single precision it would round the statistics too.
        scale, shift = torch.ones(x.shape[1]), torch.zeros(x.shape[1])
    return torch.native_batch_norm(x, scale, shift, None, None, True, 0.0, eps)


def together(norms: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Means and inverse deviations of all channels one behind the other."""
    means, inverses = zip(*norms, strict=True)
    return torch.cat(means), torch.cat(inverses)


def variance(inverse: Tensor, eps: float, count: int) -> Tensor:
    """The unbiased variance of so many numbers, from (variance + eps)^(-1/2) of the biased one."""
    return inverse.pow(-2).sub_(eps).clamp_min_(0.0).mul_(count / (count - 1))


def last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def rows_of(x: Tensor) -> Tensor:
    """Images in the layout of channels last as rows of pixels."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def image_of(rows: Tensor, shape: Sequence[int]) -> Tensor:
    n, c, h, w = shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)
