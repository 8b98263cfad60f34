"""A dense block in evaluation: one buffer, norms folded into the convolutions before them, means before 1x1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.models.densenet_buffer import Block, Buffer

Statistics = Sequence[tuple[Tensor | None, Tensor | None]]


def run(block: Block, x: Tensor, weights: Sequence[Tensor], statistics: Statistics) -> Tensor:
    """The block's output by running statistics, one (mean, variance) a norm; no gradient flows through it."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        return _run(block, x, weights, statistics)


def _run(block: Block, x: Tensor, weights: Sequence[Tensor], statistics: Statistics) -> Tensor:
    layers, behind = block.split(weights)
    n, c, h, w = x.shape
    buffer = Buffer(block, n, h, w, c + sum(layer[-1].shape[0] for layer in layers))
    buffer.put(0, x)
    known = iter(statistics)
    for layer in layers:
        affine = _affine(block, layer[0], layer[1], *next(known))
        if block.bottleneck:
            factor, summand = _affine(block, layer[3], layer[4], *next(known))
            matrix = (layer[2].flatten(1) * factor.unsqueeze(1)).to(block.dtype)
            z = buffer.squeeze(matrix, affine, summand.to(block.dtype))
            value = F.conv2d(z, layer[5].to(block.dtype), padding=1)
        else:
            value = buffer.convolve(layer[2], affine)
        buffer.put(layer[0].shape[0], value)
    return buffer.leave(behind, _affine(block, behind[0], behind[1], *next(known)))


def _affine(block: Block, scale: Tensor, shift: Tensor, mean: Any, var: Any) -> tuple[Tensor, Tensor]:
    exact = torch.promote_types(block.dtype, torch.float32)
    factor = scale.to(exact) * (var.to(exact) + block.eps).rsqrt()
    return factor, torch.addcmul(shift.to(exact), mean.to(exact), factor, value=-1)
