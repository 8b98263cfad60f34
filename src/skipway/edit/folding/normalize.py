"""One name and one order of arguments for what the rules know, however the model wrote it.

| name | arguments | function |
| --- | --- | --- |
| convolution | x, weight, bias, stride, padding, dilation, transposed, output_padding, groups | `torch.convolution` |
| linear | x, weight, bias | `F.linear` |
| affine | x, scale, shift, axis: `scale * x + shift`, vectors along `axis` or single numbers | |
| add | x, y of equal shapes | `torch.add` |
| relu | x | `torch.relu` |
| reshape | x, shape | `torch.reshape` |
| permute | x, axes | `torch.permute` |
| avg_pool | x, window, stride, padding, whether borders count | `avg_pool2d` and its kin |
| mean | x, axes, keepdim | `torch.mean` |
| norm | x, kind, further arguments, scale, shift, axis: `layer_norm`, `group_norm`, `rms_norm` | |
| cat | tensors, axis | `torch.cat` |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from skipway.edit.folding import algebra
from skipway.edit.folding.arithmetic import arithmetic, negated
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Fact, Node, Program, words
from skipway.graph.ir import Ref

_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_RESHAPES = frozenset(["view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as"])
_SAME = words(
    "contiguous detach data to clone type_as float double half bfloat16 positive alias cpu cuda type expand expand_as "
    "broadcast_to"
)
_ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}


NORMAL = words(
    """convolution linear affine add relu reshape permute avg_pool mean norm cat clamp hardtanh leaky_relu gelu sigmoid
    tanh silu hardswish hardsigmoid fused_convolution fused_linear layout store buffer buffer_view addcmul"""
)


def normalize(program: Program) -> None:
    """Rewrite every node that the rules know into its normal form; what changes nothing is removed."""
    for node in list(program.nodes):
        if program.touches_pinned(node) or len(node.results) != 1:
            continue
        rewrite = _REWRITES.get(node.name)
        if rewrite is not None:
            rewrite(program, node)
        elif node.name in _RESHAPES:
            _reshape(program, node)
        elif node.name in _SAME:
            _same(program, node)
        elif node.name in _ACTIVATIONS and node.source is not None:
            node.become(node.name, _ACTIVATIONS[node.name], (node.args[0],))
    for node in program.nodes:
        if node.name in NORMAL and not node.normal:
            node.name = f"plain_{node.name}"


def _fact(program: Program, value: int) -> Fact:
    return program.facts[value]


def _tuple(item: Any, n: int) -> tuple[int, ...] | None:
    if isinstance(item, int):
        return (item,) * n
    if isinstance(item, (tuple, list)) and len(item) in (1, n) and all(isinstance(part, int) for part in item):
        return tuple(item) if len(item) == n else tuple(item) * n
    return None


def _constant(item: Any) -> bool:
    return item is None or isinstance(item, Expression)


def _convolution(program: Program, node: Node) -> None:
    dims, transposed = int(node.name[-2]), "transpose" in node.name
    x, weight, bias = (node.argument(name) for name in ("input", "weight", "bias"))
    if not isinstance(x, Ref) or len(_fact(program, x.value).shape) != dims + 2:
        return
    if not isinstance(weight, Expression) or not _constant(bias):
        return
    stride, dilation = (_tuple(node.argument(name, 1), dims) for name in ("stride", "dilation"))
    padding = node.argument("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same" and dilation is not None:
        reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        padding = tuple(r // 2 for r in reach) if all(r % 2 == 0 for r in reach) else None
    padding = _tuple(padding, dims)
    extra = _tuple(node.argument("output_padding", 0), dims)
    if stride is None or dilation is None or padding is None or extra is None:
        return
    args = (x, weight, bias, stride, padding, dilation, transposed, extra, int(node.argument("groups", 1)))
    node.become("convolution", torch.convolution, args)


def _linear(program: Program, node: Node) -> None:
    x, weight, bias = (node.argument(name) for name in ("input", "weight", "bias"))
    if isinstance(x, Ref) and isinstance(weight, Expression) and _constant(bias) and len(weight.shape) == 2:
        node.become("linear", F.linear, (x, weight, bias))


def _addmm(program: Program, node: Node) -> None:
    bias, x, weight = (node.argument(name) for name in ("input", "mat1", "mat2"))
    if set(node.kwargs) - {"mat1", "mat2", "input"} or not isinstance(x, Ref) or not isinstance(weight, Expression):
        return
    if isinstance(bias, Expression) and bias.shape == weight.shape[1:]:
        node.become("linear", F.linear, (x, program.constants.make(torch.t, weight), bias))


def _matmul(program: Program, node: Node) -> None:
    if len(node.args) != 2 or node.kwargs or not isinstance(node.args[0], Ref):
        return
    x, weight = node.args
    if isinstance(weight, Expression) and len(weight.shape) == 2 and len(_fact(program, x.value).shape) >= 2:
        node.become("linear", F.linear, (x, program.constants.make(torch.t, weight), None))


def _batch_norm(program: Program, node: Node) -> None:
    x, mean, variance, weight, bias = (
        node.argument(name) for name in ("input", "running_mean", "running_var", "weight", "bias")
    )
    if node.argument("training", False) or not isinstance(x, Ref):
        return
    if not isinstance(mean, Expression) or not isinstance(variance, Expression):
        return
    if not _constant(weight) or not _constant(bias):
        return
    make = program.constants.make
    scale = make(algebra.norm_scale, weight, variance, float(node.argument("eps", 1e-5)))
    shift = make(algebra.norm_shift, bias, mean, scale)
    node.become("affine", algebra.affine, (x, scale, shift, 1))


def _relu(program: Program, node: Node) -> None:
    if node.source is not None and _fact(program, node.result).dtype.is_floating_point:
        node.become("relu", torch.relu, (node.args[0],))


def _hardtanh(program: Program, node: Node) -> None:
    if node.source is None:
        return
    low, high = (0.0, 6.0) if node.name == "relu6" else (-1.0, 1.0)
    names = ("input", "min", "max") if node.name in ("clamp", "clip") else ("input", "min_val", "max_val")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    low, high = given.get(names[1], low), given.get(names[2], high)
    if node.name in ("clamp", "clip") and (low, high) == (0, None):
        _relu(program, node)
    elif isinstance(low, (int, float)) and isinstance(high, (int, float)):
        if node.name in ("clamp", "clip") and not (names[1] in given and names[2] in given):
            return
        node.become("hardtanh", F.hardtanh, (node.args[0], float(low), float(high)))


def _leaky(program: Program, node: Node) -> None:
    if node.source is not None:
        slope = node.args[1] if len(node.args) > 1 else node.kwargs.get("negative_slope", 0.01)
        node.become("leaky_relu", F.leaky_relu, (Ref(node.source), float(slope)))


def _gelu(program: Program, node: Node) -> None:
    if node.source is not None:
        approximate = dict(enumerate(node.args)).get(1, node.kwargs.get("approximate", "none"))
        node.become("gelu", F.gelu, (node.args[0],))
        node.kwargs = {"approximate": approximate}


def _reshape(program: Program, node: Node) -> None:
    if node.source is None or (node.name == "view" and any(isinstance(arg, torch.dtype) for arg in node.args)):
        return
    shape = _fact(program, node.result).shape
    if shape == _fact(program, node.source).shape:
        program.bypass(node, node.args[0])
    else:
        node.become("reshape", torch.reshape, (node.args[0], shape))


def _permute(program: Program, node: Node) -> None:
    if node.source is None:
        return
    ndim = len(_fact(program, node.source).shape)
    axes = list(range(ndim))
    if node.name in ("t", "T", "mT"):
        if ndim >= 2:
            axes[-1], axes[-2] = axes[-2], axes[-1]
        if node.name == "T" and ndim > 2:
            axes = list(range(ndim))[::-1]
    elif node.name in ("transpose", "swapaxes", "swapdims"):
        given = [*node.args[1:], *node.kwargs.values()]
        if len(given) != 2 or not all(isinstance(part, int) for part in given):
            return
        one, other = given
        axes[one], axes[other] = axes[other], axes[one]
    else:
        given: Any = node.kwargs.get("dims", node.args[1:])
        given = given[0] if len(given) == 1 and isinstance(given[0], (tuple, list)) else given
        axes = [axis % ndim for axis in given]
    if axes == list(range(ndim)):
        program.bypass(node, node.args[0])
    else:
        node.become("permute", torch.permute, (node.args[0], tuple(axes)))


def _same(program: Program, node: Node) -> None:
    if node.source is None:
        return
    before, after = _fact(program, node.source), _fact(program, node.result)
    if (before.shape, before.dtype, before.device) == (after.shape, after.dtype, after.device):
        program.bypass(node, node.args[0])


def _copied(program: Program, node: Node) -> None:
    """What is written over a whole tensor is its value from then on."""
    if not node.writes or len(node.args) != 2 or not isinstance(node.args[1], Ref):
        return
    before, after = _fact(program, node.args[1].value), _fact(program, node.result)
    if (before.shape, before.dtype, before.device) == (after.shape, after.dtype, after.device):
        program.bypass(node, node.args[1])


def _avg_pool(program: Program, node: Node) -> None:
    dims = int(node.name[-2])
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    window = _tuple(given.get("kernel_size"), dims)
    if node.source is None or window is None or given.get("ceil_mode") or given.get("divisor_override"):
        return
    stride = given.get("stride")
    stride = window if stride is None or stride == () or stride == [] else _tuple(stride, dims)
    padding = _tuple(given.get("padding", 0), dims)
    if stride is None or padding is None or len(_fact(program, node.source).shape) != dims + 2:
        return
    counts = bool(given.get("count_include_pad", True)) or not any(padding)
    node.become("avg_pool", _POOLS[dims], (node.args[0], window, stride, padding, False, counts))


def _global_pool(program: Program, node: Node) -> None:
    dims = int(node.name[-2])
    if node.source is None or len(_fact(program, node.source).shape) != dims + 2:
        return
    if _fact(program, node.result).shape[2:] == (1,) * dims:
        node.become("mean", torch.mean, (node.args[0], tuple(range(2, dims + 2)), True))


def _mean(program: Program, node: Node) -> None:
    names = ("input", "dim", "keepdim")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    axes = given.get("dim")
    if node.source is None or set(given) - set(names) or axes is None:
        return
    ndim = len(_fact(program, node.source).shape)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if axes:
        node.become("mean", torch.mean, (node.args[0], tuple(axis % ndim for axis in axes), bool(given.get("keepdim"))))


def _norm(program: Program, node: Node) -> None:
    x, weight, bias = (node.argument(name) for name in ("input", "weight", "bias"))
    if not isinstance(x, Ref) or not _constant(weight) or not _constant(bias):
        return
    ndim = len(_fact(program, x.value).shape)
    eps = node.argument("eps", None if node.name == "rms_norm" else 1e-5)
    if node.name == "group_norm":
        node.become("norm", norm, (x, "group_norm", node.argument("num_groups"), weight, bias, eps, 1))
        return
    shape = node.argument("normalized_shape")
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    if len(shape) == 1:
        node.become("norm", norm, (x, node.name, shape, weight, bias, eps, ndim - 1))


def norm(x: Any, kind: str, size: Any, scale: Any, shift: Any, eps: float | None, axis: int) -> Any:
    """A norm over positions of the input itself."""
    if kind == "group_norm":
        return torch.group_norm(x, size, scale, shift, eps)  # pyright: ignore[reportArgumentType]
    if kind == "rms_norm":
        return F.rms_norm(x, size, scale, eps)
    return F.layer_norm(x, size, scale, shift, eps)  # pyright: ignore[reportArgumentType]


def _cat(program: Program, node: Node) -> None:
    tensors = node.args[0] if node.args else node.kwargs.get("tensors")
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    result = _fact(program, node.result)
    if not isinstance(tensors, (tuple, list)) or not isinstance(dim, int) or "out" in node.kwargs:
        return
    shapes = [_fact(program, t.value).shape if isinstance(t, Ref) else t.shape for t in tensors]
    kept = [tensor for tensor, shape in zip(tensors, shapes, strict=True) if math.prod(shape)]
    if any(len(shape) != len(result.shape) for shape in shapes if math.prod(shape)):
        return
    types = {_fact(program, t.value).dtype if isinstance(t, Ref) else t.dtype for t in tensors}
    if len(kept) == 1 and isinstance(kept[0], Ref) and types == {result.dtype}:
        program.bypass(node, kept[0])
    elif types == {result.dtype}:
        node.become("cat", torch.cat, (tuple(kept), dim % len(result.shape)))


_REWRITES: dict[str, Callable[[Program, Node], None]] = {
    **{f"conv{d}d": _convolution for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _convolution for d in (1, 2, 3)},
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("matmul", "mm"), _matmul),
    "batch_norm": _batch_norm,
    **dict.fromkeys(("add", "sub", "rsub", "mul", "div"), arithmetic),
    "neg": negated,
    "copy": _copied,
    "relu": _relu,
    **dict.fromkeys(("hardtanh", "relu6", "clamp", "clip"), _hardtanh),
    "leaky_relu": _leaky,
    "gelu": _gelu,
    **dict.fromkeys(("permute", "transpose", "swapaxes", "swapdims", "t", "T", "mT"), _permute),
    **{f"avg_pool{d}d": _avg_pool for d in (1, 2, 3)},
    **{f"adaptive_avg_pool{d}d": _global_pool for d in (1, 2, 3)},
    "mean": _mean,
    **dict.fromkeys(("layer_norm", "group_norm", "rms_norm"), _norm),
    "cat": _cat,
}
