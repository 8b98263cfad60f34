"""A dense block and the norm behind it as one function of autograd: one buffer holds every map that is kept.

Each layer reads the front of the buffer and writes its growth channels behind it, normalised: a channel's batch
statistics are the same for all that read it, whose norms differ in scale and shift alone. relu(norm(...)) is made
again wherever it is needed, a few rows at a time, in one scratch that stays in the processor's cache. Gradients
accumulate in one buffer of the same shape, and what batch norm subtracts from them is subtracted once a channel, when
its producer is reached. That concatenations need no memory: Pleiss et al. 2017 (arXiv:1707.06990).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

# Numbers in a scratch: what the cores' caches hold beside what is read and written.
_SCRATCH = 2**18
# Below this scale of a norm its gradient is summed up directly; above, it follows from that of the weights behind it.
_SMALL_SCALE = 0.03


@dataclass
class Block:
    """How a dense block runs, and behind its forward pass the batch statistics (mean and variance) of each norm.

    `bottleneck` says that layers hold two convolutions, `pools` that a transition follows rather than a bare norm,
    `keeps` that the bottleneck's output is kept for the backward pass. `dtype` is what maps are kept in.
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
    for layer in layers:
        scale, shift, weight = layer[:3]
        affine = buffer.affine(scale, shift)
        block.statistics.append((buffer.mean[: len(scale)], buffer.var[: len(scale)]))
        if not block.bottleneck:
            value = buffer.convolve(weight, affine)
        else:
            z = buffer.squeeze(weight.flatten(1).to(block.dtype), affine)
            mean, var = statistics(z)
            kept += [z, mean, var] if block.keeps else [mean, var]
            block.statistics.append((mean, var))
            value = F.conv2d(_activated(z, mean, var, layer, block.eps), layer[5].to(block.dtype), padding=1)
        buffer.write(weight.shape[1], value)
    out = buffer.leave(behind, buffer.affine(behind[0], behind[1]))
    block.statistics.append((buffer.mean, buffer.var))
    return out, [buffer.rows, buffer.var, *kept]


def _backward(
    block: Block, gradient: Tensor, x: Tensor, weights: Sequence[Tensor], kept: Sequence[Tensor]
) -> list[Tensor]:
    layers, behind = block.split(weights)
    n, _, h, w = x.shape
    buffer = Buffer(block, n, h, w, kept[0].shape[1], kept[0])
    back = _Gradients(buffer, kept[1])
    found: list[Tensor] = list(back.leave(behind, gradient))
    each = 3 if block.keeps else 2
    for k in reversed(range(block.layers)):
        layer = layers[k]
        scale, shift, weight = layer[:3]
        c, growth = weight.shape[1], layer[-1].shape[0]
        arriving = back.take(c, growth)
        if not block.bottleneck:
            found = [*back.through_images(scale, shift, weight, arriving), *found]
            continue
        *z, mean, var = kept[2 + k * each : 2 + (k + 1) * each]
        inner = z[0] if z else buffer.squeeze(weight.flatten(1).to(block.dtype), buffer.affine(scale, shift))
        back.forget()
        y = _activated(inner, mean, var, layer, block.eps)
        passed, into_weight, _ = torch.ops.aten.convolution_backward(
            arriving, y, layer[5].to(block.dtype), None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
        )
        passed = _last(passed)
        torch.ops.aten.threshold_backward.grad_input(passed, y, 0, grad_input=passed)
        del y
        deeper, into_scale, into_shift = torch.ops.aten.native_batch_norm_backward(
            passed, inner, layer[3], None, None, mean, (var + block.eps).rsqrt(), True, block.eps, [True, True, True]
        )
        del passed, inner
        first = back.through(scale, shift, weight, _rows(_last(deeper)))
        # What lives longer than its layer adds to the most that is held.
        del deeper, arriving
        found = [*first, into_scale, into_shift, into_weight.to(layer[5].dtype), *found]
    into_x = back.take(0, x.shape[1])
    return [into_x.to(x.dtype), *found]


class Buffer:
    """The maps of a block as rows of pixels, and mean and variance that the channels had before they were written."""

    def __init__(self, block: Block, n: int, h: int, w: int, channels: int, filled: Tensor | None = None) -> None:
        self.block, self.shape, self.count = block, (n, h, w), n * h * w
        self.exact = torch.promote_types(block.dtype, torch.float32)
        self.rows = torch.empty(self.count, channels, dtype=block.dtype) if filled is None else filled
        self.mean, self.var = torch.empty(2, channels, dtype=self.exact)
        # One scratch for relu(norm(...)), and where maps are kept in a lower precision its copy in that.
        self.scratch = torch.empty(0, dtype=self.exact)
        self.lower = torch.empty(0, dtype=block.dtype)

    def put(self, start: int, value: Tensor) -> None:
        """Put maps behind the channels that are there."""
        n, h, w = self.shape
        self.rows[:, start : start + value.shape[1]].view(n, h, w, -1).permute(0, 3, 1, 2).copy_(value)

    def write(self, start: int, value: Tensor) -> None:
        """Put maps behind the channels that are there, normalised by their statistics."""
        value = value.to(self.block.dtype)
        if not (value.is_contiguous() or value.is_contiguous(memory_format=torch.channels_last)):
            value = value.contiguous()
        mean, var = statistics(value)
        self.put(start, torch.native_batch_norm(value, None, None, mean, var, False, 0.0, self.block.eps)[0])
        channels = slice(start, start + value.shape[1])
        self.mean[channels], self.var[channels] = mean, var

    def affine(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """A norm of maps that are normalised already, as a factor and a summand."""
        return scale.to(self.exact), shift.to(self.exact)

    def chunks(self, channels: int) -> Iterator[slice]:
        """The pixels, in pieces that fit the cache."""
        step = max(64, _SCRATCH // channels)
        for start in range(0, self.count, step):
            yield slice(start, min(start + step, self.count))

    def images(self) -> Iterator[slice]:
        """The images, in pieces that fit the cache if one does."""
        n, h, w = self.shape
        step = max(1, _SCRATCH // (self.rows.shape[1] * h * w))
        for start in range(0, n, step):
            yield slice(start, min(start + step, n))

    def read(self, rows: slice, factor: Tensor, summand: Tensor) -> Tensor:
        """relu(norm(...)) of some pixels, exactly; the next reading overwrites it."""
        m, c = rows.stop - rows.start, len(factor)
        if self.scratch.numel() < m * c:
            self.scratch = torch.empty(m * c, dtype=self.exact)
        y = self.scratch[: m * c].view(m, c)
        source = self.rows[rows, :c]
        if source.dtype != self.exact:
            source = y.copy_(source)
        return torch.addcmul(summand, source, factor, out=y).relu_()

    def lowered(self, y: Tensor) -> Tensor:
        """What was read, in the precision of the maps; the next overwrites it."""
        if self.block.dtype == self.exact:
            return y
        if self.lower.numel() < y.numel():
            self.lower = torch.empty(y.numel(), dtype=self.block.dtype)
        return self.lower[: y.numel()].view(y.shape).copy_(y)

    def read_images(self, images: slice, factor: Tensor, summand: Tensor) -> Tensor:
        """relu(norm(...)) of some images, in the precision of the maps."""
        _, h, w = self.shape
        y = self.lowered(self.read(slice(images.start * h * w, images.stop * h * w), factor, summand))
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
            y[images] = F.conv2d(self.read_images(images, *affine), weight, padding=1)
        return y

    def leave(self, behind: Sequence[Tensor], affine: tuple[Tensor, Tensor]) -> Tensor:
        """What follows the block: the bare norm, or a transition, which takes its means before it convolves."""
        n, h, w = self.shape
        factor, summand = affine
        if not self.block.pools:
            y = torch.empty((n, len(factor), h, w), dtype=self.block.dtype, memory_format=torch.channels_last)
            _rows(y).copy_(torch.addcmul(summand, self.rows.to(self.exact), factor))
            return y
        matrix = behind[2].flatten(1).to(self.block.dtype).t()
        shape = (n, matrix.shape[1], h // 2, w // 2)
        out = torch.empty(shape, dtype=self.block.dtype, memory_format=torch.channels_last)
        for images in self.images():
            pooled = _rows(_last(F.avg_pool2d(self.read_images(images, factor, summand), 2)))
            torch.mm(pooled, matrix, out=_rows(out[images]))
        return out


class _Gradients:
    """The gradients of a buffer's maps, as sums over those that read them, and what batch norm subtracts from each."""

    def __init__(self, buffer: Buffer, var: Tensor) -> None:
        self.buffer, exact = buffer, buffer.exact
        self.block = buffer.block
        self.rows = torch.empty(buffer.rows.shape, dtype=exact)
        self.inverse = (var + self.block.eps).rsqrt()
        # Of the gradient by the normalised maps: its sum, and its product with them.
        self.sums, self.products = torch.zeros(2, buffer.rows.shape[1], dtype=exact)
        self.scratch = torch.empty(0, dtype=exact)
        self.lower = torch.empty(0, dtype=self.block.dtype)

    def take(self, start: int, width: int) -> Tensor:
        """The whole gradient of some channels, by what they were before they were normalised."""
        channels, (n, h, w) = slice(start, start + width), self.buffer.shape
        inverse = self.inverse[channels]
        share = inverse / -self.buffer.count
        maps = self.buffer.rows[:, channels].to(self.buffer.exact)
        g = torch.addcmul(share * self.sums[channels], self.rows[:, channels], inverse)
        g.addcmul_(maps, share * self.products[channels])
        return g.to(self.block.dtype).view(n, h, w, width).permute(0, 3, 1, 2)

    def forget(self) -> None:
        """Give the scratches back, where more room is needed than they take."""
        for held in (self, self.buffer):
            held.scratch, held.lower = held.scratch.new_empty(0), held.lower.new_empty(0)

    def through(self, scale: Tensor, shift: Tensor, weight: Tensor, arriving: Tensor) -> tuple[Tensor, ...]:
        """Back through a 1x1 convolution, ReLU and norm: by scale, shift and weight; the maps' goes to the sums."""
        matrix = weight.flatten(1).to(self.block.dtype)
        into_weight = None
        sums = _Sums(self, scale, shift)
        for rows in self.buffer.chunks(len(scale)):
            y = self.buffer.read(rows, *sums.affine)
            part = arriving[rows]
            into_weight = self._multiply(into_weight, part, self.buffer.lowered(y))
            sums.add(rows, self._product(part, matrix), y)
        assert into_weight is not None
        into_scale, into_shift = sums.close(into_weight, weight)
        return into_scale, into_shift, into_weight.view(weight.shape).to(weight.dtype)

    def through_images(self, scale: Tensor, shift: Tensor, weight: Tensor, arriving: Tensor) -> tuple[Tensor, ...]:
        """Back through a 3x3 convolution, ReLU and norm, likewise."""
        _, h, w = self.buffer.shape
        lower = weight.to(self.block.dtype)
        into_weight = torch.zeros(weight.shape, dtype=self.buffer.exact)
        sums = _Sums(self, scale, shift)
        for images in self.buffer.images():
            rows = slice(images.start * h * w, images.stop * h * w)
            y = self.buffer.read(rows, *sums.affine)
            given = self.buffer.lowered(y).view(-1, h, w, len(scale)).permute(0, 3, 1, 2)
            passed, part, _ = torch.ops.aten.convolution_backward(
                arriving[images], given, lower, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
            )
            into_weight += part
            sums.add(rows, _rows(_last(passed)).to(self.buffer.exact), y)
        into_scale, into_shift = sums.close(into_weight, weight)
        return into_scale, into_shift, into_weight.to(weight.dtype)

    def leave(self, behind: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        """Back through what follows the block; it is the first to reach the maps, and reaches all."""
        scale, shift = behind[:2]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if not self.block.pools:
            sums = _Sums(self, scale, shift, first=True, direct=True)
            passed = _rows(gradient)
            for rows in self.buffer.chunks(len(scale)):
                sums.add(rows, passed[rows].to(self.buffer.exact), None)
            return sums.close()
        _, h, w = self.buffer.shape
        weight = behind[2]
        matrix = weight.flatten(1).to(self.block.dtype)
        into_weight = None
        sums = _Sums(self, scale, shift, first=True)
        for images in self.buffer.images():
            rows = slice(images.start * h * w, images.stop * h * w)
            y = self.buffer.read(rows, *sums.affine)
            given = self.buffer.lowered(y).view(-1, h, w, len(scale)).permute(0, 3, 1, 2)
            part = _rows(gradient[images])
            pooled = _last(F.avg_pool2d(given, 2))
            into_weight = self._multiply(into_weight, part, _rows(pooled))
            spread = torch.ops.aten.avg_pool2d_backward(
                _image_of(self._product(part, matrix), pooled.shape),
                given.to(self.buffer.exact), [2, 2], [2, 2], [0, 0], False, True, None,
            )  # fmt: skip
            sums.add(rows, _rows(_last(spread)), y)
        assert into_weight is not None
        into_scale, into_shift = sums.close(into_weight, weight)
        return into_scale, into_shift, into_weight.view(weight.shape).to(weight.dtype)

    def _multiply(self, into: Tensor | None, arriving: Tensor, given: Tensor) -> Tensor:
        if into is None:
            return torch.mm(arriving.t(), given).to(self.buffer.exact)
        if into.dtype == given.dtype:
            return into.addmm_(arriving.t(), given)
        return into.add_(torch.mm(arriving.t(), given))

    def _product(self, arriving: Tensor, matrix: Tensor) -> Tensor:
        m, c = len(arriving), matrix.shape[1]
        if self.scratch.numel() < m * c:
            self.scratch = torch.empty(m * c, dtype=self.buffer.exact)
        y = self.scratch[: m * c].view(m, c)
        if arriving.dtype == self.buffer.exact:
            return torch.mm(arriving, matrix, out=y)
        if self.lower.numel() < m * c:
            self.lower = torch.empty(m * c, dtype=self.block.dtype)
        return y.copy_(torch.mm(arriving, matrix, out=self.lower[: m * c].view(m, c)))


class _Sums:
    """Back through relu(scale * normalised + shift), piece by piece of the pixels.

    With p the gradient in front of the ReLU, y what it put out and g the gradient there, the shift's gradient is the
    sum of p. As p (scale * normalised + shift) = g y, whose sum is that of weight times its gradient, the scale's is
    (sum of g y - shift * sum of p) / scale; for small scales, and where no weight is behind, it is summed directly.
    """

    def __init__(
        self, back: _Gradients, scale: Tensor, shift: Tensor, first: bool = False, direct: bool = False
    ) -> None:
        self.back, self.first, self.dtype = back, first, scale.dtype
        self.affine = self.scale, self.shift = back.buffer.affine(scale, shift)
        self.total = torch.zeros_like(self.scale)
        self.direct = torch.ones_like(scale, dtype=torch.bool) if direct else self.scale.abs() < _SMALL_SCALE
        self.moment = torch.zeros_like(self.scale) if direct or bool(self.direct.any()) else None

    def add(self, rows: slice, passed: Tensor, y: Tensor | None) -> None:
        """Take in the gradient of some pixels, which is overwritten where a ReLU stands before it."""
        back, c = self.back, len(self.scale)
        if y is not None:
            torch.ops.aten.threshold_backward.grad_input(passed, y, 0, grad_input=passed)
        self.total += passed.sum(0)
        if self.moment is not None:
            few = self.direct.nonzero().flatten()
            self.moment[few] += (passed[:, few] * back.buffer.rows[rows, :c][:, few]).sum(0)
        target = back.rows[rows, :c]
        if self.first:
            torch.mul(passed, self.scale, out=target)
        else:
            target.addcmul_(passed, self.scale)

    def close(self, into_weight: Tensor | None = None, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The gradients by scale and shift; what they say of the maps' goes to the sums there."""
        back, c = self.back, len(self.scale)
        into_scale = self.moment
        if into_weight is not None and weight is not None:
            joint = into_weight * weight.view_as(into_weight)
            product = joint.sum([axis for axis in range(joint.ndim) if axis != 1])
            derived = torch.addcmul(product, self.shift, self.total, value=-1).div_(self.scale)
            into_scale = derived if self.moment is None else torch.where(self.direct, self.moment, derived)
        assert into_scale is not None
        back.sums[:c].addcmul_(self.scale, self.total)
        back.products[:c].addcmul_(self.scale, into_scale)
        return into_scale.to(self.dtype), self.total.to(self.dtype)


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel over a batch, in at least single precision."""
    exact = torch.promote_types(x.dtype, torch.float32)
    if exact == x.dtype:
        return torch.batch_norm_update_stats(x, None, None, 1.0)
    mean, var = torch.zeros(2, x.shape[1], dtype=exact)
    return torch.batch_norm_update_stats(x, mean, var, 1.0)


def _activated(z: Tensor, mean: Tensor, var: Tensor, layer: Sequence[Tensor], eps: float) -> Tensor:
    """relu(norm(z)) of a bottleneck's output."""
    return torch.native_batch_norm(z, layer[3], layer[4], mean, var, False, 0.0, eps)[0].relu_()


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _rows(x: Tensor) -> Tensor:
    """Images in the layout of channels last as rows of pixels."""
    return x.permute(0, 2, 3, 1).flatten(0, 2)


def _image_of(rows: Tensor, shape: Sequence[int]) -> Tensor:
    n, c, h, w = shape
    return rows.view(n, h, w, c).permute(0, 3, 1, 2)
