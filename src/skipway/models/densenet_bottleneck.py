"""Back through the second half of a dense layer: norm, ReLU and 3x3 convolution of the bottleneck's output.

Where that output is made again for the sake of memory, this goes a few images and rows at a time and in place too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from skipway.models.densenet_buffer import Block, last, rows_of

# The numbers that are gone through at once where memory is to be saved.
_PIECE = 2**18


class Statistics(NamedTuple):
    """Of the bottleneck's output before its norm; the inverse is that of the standard deviation, with eps."""

    mean: Tensor
    inverse: Tensor
    var: Tensor


def statistics(block: Block, layers: Sequence[Sequence[Tensor]], means: Tensor, inverses: Tensor) -> list[Statistics]:
    """Those of each layer, from those of all one behind the other."""
    widths = [len(layer[3]) for layer in layers]
    every = means, inverses, inverses.pow(-2).sub_(block.eps)
    return [Statistics(*parts) for parts in zip(*(part.split(widths) for part in every), strict=True)]


def through(
    block: Block, layer: Sequence[Tensor], z: Tensor, known: Statistics, arriving: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients by the bottleneck's output z, whose statistics are given, and by scale, shift and weight."""
    mean, inverse, _ = known
    passed, into_weight = _convolution(block, layer, z, known, arriving)
    if not block.keeps:
        return *_norm(passed, z, layer[3], mean, inverse), into_weight
    backward = torch.ops.aten.native_batch_norm_backward
    found = backward(passed, z, layer[3], None, None, mean, inverse, True, block.eps, [True, True, True])
    return *found, into_weight


def _convolution(
    block: Block, layer: Sequence[Tensor], z: Tensor, known: Statistics, arriving: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients by norm(z), of the ReLU behind it, and by the weight of the convolution behind that."""
    weight = layer[5].to(block.dtype)
    n, pieces = len(z), 1 if block.keeps else -(-z.numel() // _PIECE)
    step = -(-n // pieces)
    passed = torch.empty_like(z) if step < n else None
    into_weight = None
    for start in range(0, n, step):
        images = slice(start, start + step)
        y = torch.native_batch_norm(z[images], layer[3], layer[4], known.mean, known.var, False, 0.0, block.eps)[0]
        g, part, _ = torch.ops.aten.convolution_backward(
            arriving[images], y.relu_(), weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        g = last(g)
        torch.ops.aten.threshold_backward.grad_input(g, y, 0, grad_input=g if passed is None else passed[images])
        part = part.to(layer[5].dtype)
        into_weight = part if into_weight is None else into_weight.add_(part)
        if passed is None:
            passed = g
    assert passed is not None
    assert into_weight is not None
    return passed, into_weight


def _norm(passed: Tensor, z: Tensor, scale: Tensor, mean: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Back through a batch norm in place: by z, scale and shift."""
    p, rows = rows_of(passed), rows_of(z)
    count, c = p.shape
    pieces = [slice(start, start + _PIECE // c + 1) for start in range(0, count, _PIECE // c + 1)]
    into_shift, product = torch.zeros(2, c, dtype=mean.dtype)
    for piece in pieces:
        into_shift += p[piece].sum(0)
        product += (rows[piece] - mean).mul_(p[piece]).sum(0)
    factor = scale * inverse
    slope = factor * inverse.square() * product / -count
    level = factor * into_shift / -count - slope * mean
    for piece in pieces:
        moved = torch.addcmul(level, rows[piece].to(mean.dtype), slope)
        p[piece] = moved.addcmul_(p[piece].to(mean.dtype), factor)
    return passed, product.mul_(inverse), into_shift
