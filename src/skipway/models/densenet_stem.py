"""The norm, ReLU and max pooling of a DenseNet's stem as one function of autograd, which keeps their input alone.

What they make of it is made again in the backward pass. Max pooling comes before the ReLU, which leaves the same
numbers of a quarter of the pixels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.models.densenet_buffer import normalised, variance

Statistics = list[tuple[Tensor, Tensor]]
# Size, stride and padding of the pooling.
POOL = 3, 2, 1


def run(x: Tensor, scale: Tensor, shift: Tensor, eps: float, statistics: Statistics) -> Tensor:
    """The pooled maps; mean and unbiased variance of the batch are appended to the statistics."""
    return cast("Tensor", _Stem.apply(x, scale, shift, eps, statistics))


class _Stem(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor, eps: float, statistics: Statistics) -> Tensor:
        y, mean, inverse = normalised(x, eps, scale, shift)
        statistics.append((mean, variance(inverse, eps, x.numel() // x.shape[1])))
        ctx.eps = eps
        ctx.save_for_backward(x, scale, shift, mean, inverse)
        return F.max_pool2d(y, *POOL).relu_()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, shift, mean, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            y = F.max_pool2d(F.relu(F.batch_norm(x, None, None, scale, shift, True, 0.0, ctx.eps)), *POOL)
            wanted = [tensor for tensor in (x, scale, shift) if tensor.requires_grad]
            found = iter(torch.autograd.grad(y, wanted, gradients[0], create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in (x, scale, shift)), None, None
        var = inverse.pow(-2).sub_(ctx.eps)
        y = torch.native_batch_norm(x, scale, shift, mean, var, False, 0.0, ctx.eps)[0]
        size, stride, padding = ([side, side] for side in POOL)
        pooled, places = torch.ops.aten.max_pool2d_with_indices(y, size, stride, padding)
        passed = torch.ops.aten.threshold_backward(gradients[0], pooled, 0)
        passed = torch.ops.aten.max_pool2d_with_indices_backward(
            passed, y, size, stride, padding, [1, 1], False, places
        )
        del y, pooled, places
        found = torch.ops.aten.native_batch_norm_backward(
            passed, x, scale, None, None, mean, inverse, True, ctx.eps, [True, True, True]
        )
        return *found, None, None
