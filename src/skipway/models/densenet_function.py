"""A dense block and the norm behind it as one function of autograd: one buffer holds every map that is kept.

Each layer reads the front of the buffer and writes its growth channels behind it, normalised: a channel's batch
statistics are the same for all that read it, whose norms differ in scale and shift alone. relu(norm(...)) is made
again wherever it is needed, a few rows at a time, in one scratch that stays in the processor's cache. Gradients
accumulate in one buffer of the same shape, and what batch norm subtracts from them is subtracted once a channel, when
its producer is reached. That concatenations need no memory: Pleiss et al. 2017 (arXiv:1707.06990).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.models import densenet_bottleneck
from skipway.models.densenet_buffer import Block, Buffer, last, normalised, rows_of, together, variance
from skipway.models.densenet_gradients import Gradients


def run(block: Block, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The block's output. `weights` are, layer by layer, scale and shift of a norm and the convolution behind it."""
    return cast("Tensor", _Shared.apply(block, x, *weights))


def composed(block: Block, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The same in the operations of the equation, which can be differentiated as often as one likes."""
    layers, behind = block.split(weights)
    maps = [x]
    for layer in layers:
        y = torch.cat(maps, 1)
        for scale, shift, weight in zip(layer[::3], layer[1::3], layer[2::3], strict=True):
            y = F.relu(F.batch_norm(y, None, None, scale, shift, True, 0.0, block.eps))
            y = F.conv2d(y, weight, padding=weight.shape[-1] // 2)
        maps.append(y)
    y = F.batch_norm(torch.cat(maps, 1), None, None, behind[0], behind[1], True, 0.0, block.eps)
    return F.avg_pool2d(F.conv2d(F.relu(y), behind[2]), 2) if block.pools else y


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, block: Block, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.block, ctx.device_type = block, x.device.type
        ctx.autocast = torch.is_autocast_enabled(x.device.type)
        with torch.autocast(x.device.type, enabled=False):
            out, kept = _forward(block, x, weights)
        ctx.save_for_backward(x, *weights, *kept)
        ctx.given = 1 + len(weights)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        saved = ctx.saved_tensors
        x, *weights = saved[: ctx.given]
        if not torch.is_grad_enabled():
            with torch.autocast(ctx.device_type, enabled=False):
                return None, *_backward(ctx.block, gradients[0], x, weights, saved[ctx.given :])
        with torch.autocast(ctx.device_type, ctx.block.dtype if ctx.autocast else None, enabled=ctx.autocast):
            out = composed(ctx.block, x, weights)
        wanted = [tensor for tensor in (x, *weights) if tensor.requires_grad]
        found = iter(torch.autograd.grad(out, wanted, gradients[0], create_graph=True))
        return None, *(next(found) if tensor.requires_grad else None for tensor in (x, *weights))


def _forward(block: Block, x: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    layers, behind = block.split(weights)
    n, c, h, w = x.shape
    buffer = Buffer(block, n, h, w, c + sum(layer[-1].shape[0] for layer in layers))
    buffer.write(0, x)
    kept: list[Tensor] = []
    inner: list[tuple[Tensor, Tensor]] = []
    for layer in layers:
        scale, shift, weight = layer[:3]
        affine = buffer.affine(scale, shift)
        if not block.bottleneck:
            value = buffer.convolve(weight, affine)
        else:
            z = buffer.squeeze(weight.flatten(1).to(block.dtype), affine)
            y, mean, inverse = normalised(z, block.eps, layer[3], layer[4])
            inner.append((mean, inverse))
            if block.keeps:
                kept.append(z)
            del z
            value = F.conv2d(y.relu_(), layer[5].to(block.dtype), padding=1)
            del y
        buffer.write(weight.shape[1], value)
    out = buffer.leave(behind, buffer.affine(behind[0], behind[1]))
    outer, second = together(buffer.norms), together(inner) if inner else ()
    block.statistics = _statistics(block, layers, buffer.count, *outer, *second)
    # Those of the bottlenecks in one tensor each: whatever is kept for the backward pass costs time of its own.
    return out, [buffer.rows, outer[1], *second, *kept]


def _statistics(
    block: Block, layers: Sequence[Sequence[Tensor]], count: int, mean: Tensor, inverse: Tensor, *inner: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """The batch's mean and unbiased variance for each norm, in the order in which they run."""
    var = variance(inverse, block.eps, count)
    widths = [len(layer[3]) for layer in layers] if inner else []
    second = [part.split(widths) for part in (inner[0], variance(inner[1], block.eps, count))] if inner else []
    found: list[tuple[Tensor, Tensor]] = []
    for k, layer in enumerate(layers):
        channels = len(layer[0])
        found.append((mean[:channels], var[:channels]))
        if second:
            found.append((second[0][k], second[1][k]))
    return [*found, (mean, var)]


def _backward(
    block: Block, gradient: Tensor, x: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    layers, behind = block.split(weights)
    n, _, h, w = x.shape
    buffer = Buffer(block, n, h, w, kept[0].shape[1], kept[0])
    back = Gradients(buffer, kept[1], [*(layer[0] for layer in layers), behind[0]])
    found: list[Tensor] = list(back.leave(behind, gradient))
    inner = densenet_bottleneck.statistics(block, layers, *kept[2:4]) if block.bottleneck else []
    for k in reversed(range(block.layers)):
        layer = layers[k]
        scale, shift, weight = layer[:3]
        arriving = back.take(weight.shape[1], layer[-1].shape[0])
        if not block.bottleneck:
            found = [*back.through_images(scale, shift, weight, arriving), *found]
            continue
        if block.keeps:
            z = kept[4 + k]
        else:
            z = buffer.squeeze(weight.flatten(1).to(block.dtype), buffer.affine(scale, shift))
            back.forget()
        deeper, *second = densenet_bottleneck.through(block, layer, z, inner[k], arriving)
        del z
        first = back.through(scale, shift, weight, rows_of(last(deeper)))
        # What lives longer than its layer adds to the most that is held.
        del deeper, arriving
        found = [*first, *second, *found]
    into_x = back.take(0, x.shape[1])
    return [into_x.to(x.dtype), *found]
