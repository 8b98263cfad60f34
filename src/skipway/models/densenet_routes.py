"""Which way a dense block runs: as one function over a shared buffer where that holds, else operation by operation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from skipway.connect.dense import DenseConnection
from skipway.models import densenet_function, densenet_inference, densenet_stem
from skipway.models.densenet_buffer import Block
from skipway.models.densenet_layers import DenseBlock, DenseLayer, Transition

Memory = Literal["shared", "recomputed", "plain"]
MEMORY = ("shared", "recomputed", "plain")

Pair = tuple[nn.BatchNorm2d, nn.Conv2d | None]
_TENSORS = (Tensor, nn.Parameter)
_STEM = (nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d)


def together(block: DenseBlock, behind: nn.Module, x: Tensor, memory: Memory) -> Tensor | None:
    """A dense block and what follows it in one, or None where only the plain way computes what the modules say."""
    if memory == "plain" or not alone(x):
        return None
    pairs = _pairs(block, behind)
    if pairs is None:
        return None
    norms = [norm for norm, _ in pairs]
    first = norms[0]
    if any(norm.eps != first.eps for norm in norms):
        return None
    weights = list(_weights(pairs))
    dtype = _precision(x, weights)
    if dtype is None:
        return None
    batch = [norm.training or norm.running_mean is None for norm in norms]
    layers = list(block)
    plan = Block(
        layers=len(layers), bottleneck=layers[0].conv2 is not None, pools=isinstance(behind, Transition),
        keeps=memory == "shared", eps=first.eps, dtype=dtype,
    )  # fmt: skip
    if all(batch):
        count = x.numel() // x.shape[1]
        if count < 2 or any(layer.dropout and layer.training for layer in layers):
            return None
        y = densenet_function.run(plan, x, weights)
        with torch.no_grad():
            _update(norms, plan.statistics)
        return y
    learns = torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights))
    if any(batch) or learns or not x.numel() or any(layer.dropout and layer.training for layer in layers):
        return None
    known = [(norm.running_mean, norm.running_var) for norm in norms]
    return densenet_inference.run(plan, x, weights, known)


def stem_together(modules: Sequence[nn.Module], x: Tensor, memory: Memory) -> Tensor | None:
    """The norm, ReLU and max pooling of a stem in one as it trains, or None likewise."""
    if memory == "plain" or not alone(x) or [type(module) for module in modules] != [*_STEM]:
        return None
    norm, relu, pool = cast("tuple[nn.BatchNorm2d, nn.ReLU, nn.MaxPool2d]", modules)
    expected = (*densenet_stem.POOL, 1, False, False)
    if (pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, pool.return_indices) != expected:
        return None
    count = x.numel() // x.shape[1]
    if not (_is_norm(norm) and norm.training and _untouched(relu) and _untouched(pool)) or count < 2:
        return None
    if _precision(x, (norm.weight, norm.bias)) is None:
        return None
    statistics: list[tuple[Tensor, Tensor]] = []
    y = densenet_stem.run(x, norm.weight, norm.bias, norm.eps, statistics)
    with torch.no_grad():
        _update([norm], statistics)
    return y


def alone(x: Tensor) -> bool:
    """Whether nobody but the caller sees what is computed of x, and it lies where the buffer pays."""
    return type(x) in _TENSORS and x.device.type == "cpu" and not _watched()


def _watched() -> bool:
    """Whether somebody looks at the operations, or rewrites them: compilers, tracers, transforms, modes, hooks."""
    return (
        torch.compiler.is_compiling()
        or torch._C._is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack() > 0
        or (
            torch._C._len_torch_function_stack() > 0
            # torch.device as a context only says where new tensors are made.
            and any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())
        )
        or bool(_has_any_global_hook())
    )


def _untouched(module: nn.Module) -> bool:
    """Whether calling a module runs its class's forward and nothing else."""
    own = module.__dict__
    return not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or "branch" in own
    )


def _pairs(block: DenseBlock, behind: nn.Module) -> list[Pair] | None:
    """The norms of a block and of what follows, in the order they run, each with the convolution behind it."""
    if type(block) is not DenseBlock or not _untouched(block):
        return None
    found: list[tuple[Any, Any, int]] = []
    for layer in block:
        if type(layer) is not DenseLayer or type(layer.connection) is not DenseConnection:
            return None
        if not (_untouched(layer) and _untouched(layer.connection)):
            return None
        if layer.conv2 is None:
            found.append((layer.norm1, layer.conv1, 3))
        else:
            found += [(layer.norm1, layer.conv1, 1), (layer.norm2, layer.conv2, 3)]
    if len({layer.conv2 is None for layer in block}) > 1:
        return None
    last: Any = behind
    if type(behind) is Transition:
        modules = list(behind)
        if not _untouched(behind) or len(modules) != 4:
            return None
        last, relu, convolution, pool = modules
        if type(relu) is not nn.ReLU or not _untouched(relu) or not _is_pool(pool):
            return None
        found.append((last, convolution, 1))
    if not _is_norm(last) or not all(_is_norm(norm) and _is_convolution(conv, kernel) for norm, conv, kernel in found):
        return None
    pairs: list[Pair] = [(norm, convolution) for norm, convolution, _ in found]
    return pairs if type(behind) is Transition else [*pairs, (last, None)]


def _is_norm(module: nn.Module | None) -> bool:
    return type(module) is nn.BatchNorm2d and module.weight is not None and _untouched(module)


def _is_convolution(module: nn.Module | None, kernel: int) -> bool:
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (kernel, kernel)
        and module.padding == (kernel // 2, kernel // 2)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.bias is None
        and module.padding_mode == "zeros"
        and _untouched(module)
    )


def _is_pool(module: nn.Module | None) -> bool:
    return (
        type(module) is nn.AvgPool2d
        and (module.kernel_size, module.stride, module.padding) == (2, 2, 0)
        and not module.ceil_mode
        and module.divisor_override is None
        and _untouched(module)
    )


def _weights(pairs: Sequence[Pair]) -> Iterator[Tensor]:
    return chain.from_iterable(
        (norm.weight, norm.bias) if convolution is None else (norm.weight, norm.bias, convolution.weight)
        for norm, convolution in pairs
    )


def _precision(x: Tensor, weights: Sequence[Tensor]) -> torch.dtype | None:
    """What the block's maps are computed in, or None for a mixture that only the plain way sorts out."""
    if any(type(weight) not in _TENSORS or weight.device.type != "cpu" for weight in weights):
        return None
    kinds = {weight.dtype for weight in weights}
    if torch.is_autocast_enabled("cpu"):
        lower = torch.get_autocast_dtype("cpu")
        return lower if lower == x.dtype == torch.bfloat16 and kinds == {torch.float32} else None
    return x.dtype if kinds == {x.dtype} and x.dtype in (torch.float32, torch.float64) else None


def _update(norms: Sequence[nn.BatchNorm2d], statistics: Sequence[tuple[Tensor, Tensor]]) -> None:
    """One step of the norms' running statistics, as they would make it themselves."""
    steps: dict[float, list[tuple[Tensor, Tensor, Tensor, Tensor]]] = {}
    for norm, (mean, var) in zip(norms, statistics, strict=True):
        if not (norm.training and norm.track_running_stats) or norm.running_mean is None or norm.running_var is None:
            continue
        momentum = norm.momentum
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if momentum is None:
                momentum = 1 / float(norm.num_batches_tracked)
        dtype = norm.running_mean.dtype
        step = (norm.running_mean, norm.running_var, mean.to(dtype), var.to(dtype))
        steps.setdefault(0.0 if momentum is None else momentum, []).append(step)
    # torch has these for all its optimizers and does not declare them.
    every: Any = torch
    for momentum, found in steps.items():
        means, variances, batch_means, batch_variances = (list(column) for column in zip(*found, strict=True))
        every._foreach_lerp_([*means, *variances], [*batch_means, *batch_variances], momentum)
