"""Back through a dense block: the gradients of its buffer's maps, and what batch norm subtracts from each.

Gradients accumulate in one buffer of the maps' shape. What batch norm subtracts from them is subtracted once a channel,
when its producer is reached.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.models.densenet_buffer import Buffer, image_of, last, rows_of

# Below this scale of a norm its gradient is summed up directly; above, it follows from that of the weights behind it.
_SMALL_SCALE = 0.03


class Gradients:
    """The gradients of a buffer's maps, as sums over those that read them, and what batch norm subtracts from each."""

    def __init__(self, buffer: Buffer, inverse: Tensor, scales: Sequence[Tensor]) -> None:
        self.buffer, exact = buffer, buffer.exact
        self.block = buffer.block
        self.rows = torch.empty(buffer.rows.shape, dtype=exact)
        self.inverse, self._share = inverse, inverse / -buffer.count
        self.some_small = bool(torch.cat(tuple(scales)).abs().min() < _SMALL_SCALE)
        # Of the gradient by the normalised maps: its sum, and its product with them.
        self.sums, self.products = torch.zeros(2, buffer.rows.shape[1], dtype=exact)
        self.scratch = torch.empty(0, dtype=exact)
        self.lower = torch.empty(0, dtype=self.block.dtype)

    def take(self, start: int, width: int) -> Tensor:
        """The whole gradient of some channels, by what they were before they were normalised."""
        channels, (n, h, w) = slice(start, start + width), self.buffer.shape
        share = self._share[channels]
        g = torch.addcmul(share * self.sums[channels], self.rows[:, channels], self.inverse[channels])
        g.addcmul_(self.buffer.rows[:, channels].to(self.buffer.exact), share * self.products[channels])
        return g.to(self.block.dtype).view(n, h, w, width).permute(0, 3, 1, 2)

    def forget(self) -> None:
        """Give the scratches back, where more room is needed than they take."""
        for held in (self, self.buffer):
            held.scratch, held.lower = held.scratch.new_empty(0), held.lower.new_empty(0)

    def through(self, scale: Tensor, shift: Tensor, weight: Tensor, arriving: Tensor) -> tuple[Tensor, ...]:
        """Back through a 1x1 convolution, ReLU and norm: by scale, shift and weight; the maps' goes to the sums."""
        matrix = weight.flatten(1).to(self.block.dtype)
        into_weight = None
        sums = Sums(self, scale, shift)
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
        sums = Sums(self, scale, shift)
        for images in self.buffer.images():
            rows = slice(images.start * h * w, images.stop * h * w)
            y = self.buffer.read(rows, *sums.affine)
            given = self.buffer.lowered(y).view(-1, h, w, len(scale)).permute(0, 3, 1, 2)
            passed, part, _ = torch.ops.aten.convolution_backward(
                arriving[images], given, lower, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False]
            )
            into_weight += part
            sums.add(rows, rows_of(last(passed)).to(self.buffer.exact), y)
        into_scale, into_shift = sums.close(into_weight, weight)
        return into_scale, into_shift, into_weight.to(weight.dtype)

    def leave(self, behind: Sequence[Tensor], gradient: Tensor) -> tuple[Tensor, ...]:
        """Back through what follows the block; it is the first to reach the maps, and reaches all."""
        scale, shift = behind[:2]
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if not self.block.pools:
            sums = Sums(self, scale, shift, first=True, direct=True)
            passed = rows_of(gradient)
            for rows in self.buffer.chunks(len(scale)):
                sums.add(rows, passed[rows].to(self.buffer.exact), None)
            return sums.close()
        _, h, w = self.buffer.shape
        weight = behind[2]
        matrix = weight.flatten(1).to(self.block.dtype)
        into_weight = None
        sums = Sums(self, scale, shift, first=True)
        for images in self.buffer.images():
            rows = slice(images.start * h * w, images.stop * h * w)
            y = self.buffer.read(rows, *sums.affine)
            part = rows_of(gradient[images])
            pooled = last(F.avg_pool2d(image_of(y, (-1, len(scale), h, w)), 2))
            into_weight = self._multiply(into_weight, part, rows_of(pooled).to(self.block.dtype))
            passed = image_of(self._product(part, matrix).mul_(0.25), pooled.shape)
            sums.add(rows, rows_of(_spread(passed, image_of(y, (-1, len(scale), h, w)))), None)
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
        y = self.scratch.as_strided((m, c), (c, 1))
        if arriving.dtype == self.buffer.exact:
            return torch.mm(arriving, matrix, out=y)
        if self.lower.numel() < m * c:
            self.lower = torch.empty(m * c, dtype=self.block.dtype)
        return y.copy_(torch.mm(arriving, matrix, out=self.lower.as_strided((m, c), (c, 1))))


def _spread(x: Tensor, y: Tensor) -> Tensor:
    """Back through a ReLU and the mean over 2 x 2 pixels: x at each of the four where y, what the ReLU put out, is not
    zero; y is overwritten. Where an odd side left a row or column over there is nothing."""
    i, j = x.shape[2:]
    y[:, :, 2 * i :], y[:, :, :, 2 * j :] = 0, 0
    four = y[:, :, : 2 * i, : 2 * j].unflatten(3, (j, 2)).unflatten(2, (i, 2))
    spread = x[:, :, :, None, :, None].expand_as(four)
    torch.ops.aten.threshold_backward.grad_input(spread, four, 0, grad_input=four)
    return y


class Sums:
    """Back through relu(scale * normalised + shift), piece by piece of the pixels.

    With p the gradient in front of the ReLU, y what it put out and g the gradient there, the shift's gradient is the
    sum of p. As p (scale * normalised + shift) = g y, whose sum is that of weight times its gradient, the scale's is
    (sum of g y - shift * sum of p) / scale; for small scales, and where no weight is behind, it is summed directly.
    """

    def __init__(
        self, back: Gradients, scale: Tensor, shift: Tensor, first: bool = False, direct: bool = False
    ) -> None:
        self.back, self.first, self.dtype = back, first, scale.dtype
        self.affine = self.scale, self.shift = back.buffer.affine(scale, shift)
        self.total: Tensor | None = None
        self.direct = self.moment = None
        if direct or back.some_small:
            self.direct = torch.ones_like(scale, dtype=torch.bool) if direct else self.scale.abs() < _SMALL_SCALE
            self.moment = torch.zeros_like(self.scale)

    def add(self, rows: slice, passed: Tensor, y: Tensor | None) -> None:
        """Take in the gradient of some pixels, which is overwritten where a ReLU, which put out y, is yet to come."""
        back, c = self.back, len(self.scale)
        if y is not None:
            torch.ops.aten.threshold_backward.grad_input(passed, y, 0, grad_input=passed)
        total = passed.sum(0)
        self.total = total if self.total is None else self.total.add_(total)
        if self.moment is not None and self.direct is not None:
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
        assert self.total is not None
        if into_weight is not None and weight is not None:
            joint = into_weight * weight.view_as(into_weight)
            product = joint.sum([axis for axis in range(joint.ndim) if axis != 1])
            derived = torch.addcmul(product, self.shift, self.total, value=-1).div_(self.scale)
            into_scale = derived
            if self.moment is not None and self.direct is not None:
                into_scale = torch.where(self.direct, self.moment, derived)
        assert into_scale is not None
        back.sums[:c].addcmul_(self.scale, self.total)
        back.products[:c].addcmul_(self.scale, into_scale)
        return into_scale.to(self.dtype), self.total.to(self.dtype)
