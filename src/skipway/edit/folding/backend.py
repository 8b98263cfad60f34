"""What the machine offers beyond plain operations: layouts, packed weights, a convolution with all that follows it.

The fused calls are oneDNN's, under private names of torch. They are tried on a small example when they are first
wanted, and where they are missing or wrong the plain operations stay.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skipway.edit.folding.code import Packer
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Node, Program, words
from skipway.graph.ir import Ref

# What oneDNN applies to an output before it is stored, by our names: its name and what it is told.
_UNARY: dict[str, Callable[[Node], tuple[str, list[Any], str]]] = {
    "relu": lambda node: ("relu", [], ""),
    "sigmoid": lambda node: ("sigmoid", [], ""),
    "tanh": lambda node: ("tanh", [], ""),
    "silu": lambda node: ("swish", [], ""),
    "hardswish": lambda node: ("hardswish", [], ""),
    "hardsigmoid": lambda node: ("hardsigmoid", [], ""),
    "hardtanh": lambda node: ("hardtanh", [node.args[1], node.args[2]], ""),
    "leaky_relu": lambda node: ("leaky_relu", [node.args[1]], ""),
    "gelu": lambda node: ("gelu", [], node.kwargs.get("approximate", "none")),
}
_TYPES = (torch.float32, torch.bfloat16)


@functools.cache
def fused_calls() -> bool:
    """Whether torch has oneDNN's fused convolutions and linear maps, and they compute what they should."""
    try:
        generator = torch.Generator().manual_seed(0)
        shapes = ((1, 2, 4, 4), (3, 2, 3, 3), (1, 3, 4, 4))
        x, weight, other = (torch.randn(shape, generator=generator) for shape in shapes)
        bias, matrix = torch.ones(3), weight.flatten(1)[:, :4].contiguous()
        packed = pack_convolution(weight, [1, 1], [1, 1], [1, 1], 1, [1, 2, 4, 4])
        one = _ops()._convolution_pointwise.default(x, packed, bias, [1, 1], [1, 1], [1, 1], 1, "relu", [], "")
        two = _ops()._convolution_pointwise.binary(
            x, other, weight, bias, [1, 1], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], None
        )
        three = _ops()._linear_pointwise.default(x, _pack_linear(matrix, 8), bias, "relu", [], "")
        kept = other.contiguous(memory_format=torch.channels_last)
        _ops()._convolution_pointwise_.binary(
            kept, x, weight, bias, [1, 1], [1, 1], [1, 1], 1, "add", 1.0, "relu", [], None
        )
        plain = F.conv2d(x, weight, bias, padding=1)
        summed = (plain + other).relu()
        pairs = ((one, plain.relu()), (two, summed), (kept, summed), (three, F.linear(x, matrix, bias).relu()))
        return all(torch.allclose(found, wanted, atol=1e-5) for found, wanted in pairs)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False


def _ops() -> Any:
    return torch.ops.mkldnn


def pack_convolution(
    weight: Tensor, padding: list[int], stride: list[int], dilation: list[int], groups: int, shape: list[int]
) -> Tensor:
    return _ops()._reorder_convolution_weight(weight, padding, stride, dilation, groups, shape)


def _pack_linear(weight: Tensor, rows: int) -> Tensor:
    return _ops()._reorder_linear_weight(weight.contiguous(), rows)


def fuse(program: Program, channels_last: bool) -> dict[tuple[int, int], Packer]:
    """Put each convolution and linear map together with the sum and the activation behind it.

    The fused convolution runs with channels last whatever it is given: where that is not wanted, it is not used.
    Returns how their weights are to be packed, by node and place.
    """
    packers: dict[tuple[int, int], Packer] = {}
    if not fused_calls():
        return packers
    for node in list(program.nodes)[::-1]:
        if node.name in (("convolution", "linear") if channels_last else ("linear",)) and _served(program, node):
            (_fuse_convolution if node.name == "convolution" else _fuse_linear)(program, node, packers)
    return packers


def _served(program: Program, node: Node) -> bool:
    fact = program.facts[node.result]
    if fact.device.type != "cpu" or fact.dtype not in _TYPES or 0 in fact.shape or program.touches_pinned(node):
        return False
    if fact.dtype == torch.bfloat16 and not _ops()._is_mkldnn_bf16_supported():
        return False
    source = program.facts[node.source] if node.source is not None else None
    if source is None or source.dtype != fact.dtype or 0 in source.shape:
        return False
    if node.name == "linear":
        # A few rows are bound by reading the weight, which the plain call does as well.
        return len(fact.shape) >= 2 and math.prod(fact.shape[:-1]) >= 4
    return len(fact.shape) == 4 and not node.args[6]


def _followers(program: Program, node: Node) -> tuple[Node | None, Node | None]:
    """The sum that alone reads a node's result, and the activation that alone reads that."""
    total = program.only_reader(node.result)
    if total is None or total.name != "add" or program.touches_pinned(total) or len(set(total.reads)) != 2:
        total = None
    else:
        producers = [program.producer(value) for value in total.reads]
        places = {id(other): place for place, other in enumerate(program.nodes)}
        # Of two convolutions that are summed, the one that runs last takes on the sum.
        if any(
            other is not None and other.name == node.name and places[id(other)] > places[id(node)]
            and program.only_reader(other.result) for other in producers
        ):  # fmt: skip
            total = None
    if total is None and program.only_reader(node.result) is not None:
        activation = program.only_reader(node.result)
    else:
        activation = program.only_reader(total.result) if total is not None else None
    if activation is None or activation.name not in _UNARY or program.touches_pinned(activation):
        activation = None
    return total, activation


def _fuse_convolution(program: Program, node: Node, packers: dict[tuple[int, int], Packer]) -> None:
    x, weight, bias, stride, padding, dilation, _, _, groups = node.args
    total, activation = _followers(program, node)
    if total is not None and activation is not None and activation.name != "relu":
        activation = None
    windows = [list(padding), list(stride), list(dilation), groups]
    shape = list(program.facts[x.value].shape)
    pack = functools.partial(
        pack_convolution, padding=windows[0], stride=windows[1], dilation=windows[2], groups=groups, shape=shape
    )
    if total is None:
        how = _UNARY[activation.name](activation) if activation is not None else ("none", [], "")
        args, function, place = (x, weight, bias, *windows, *how), _ops()._convolution_pointwise.default, 1
        overwriting = None
    else:
        other = next(part for part in total.args if part != Ref(node.result))
        unary = None if activation is None else "relu"
        args = (x, other, weight, bias, *windows, "add", 1.0, unary, [], None)
        function, place, overwriting = _ops()._convolution_pointwise.binary, 2, _ops()._convolution_pointwise_.binary
    _put(program, node, "fused_convolution", function, args, [total, activation], packers, place, pack, overwriting)


def _fuse_linear(program: Program, node: Node, packers: dict[tuple[int, int], Packer]) -> None:
    x, weight, bias = node.args
    total, activation = _followers(program, node)
    rows = math.prod(program.facts[node.result].shape[:-1])
    pack = functools.partial(_pack_linear, rows=rows)
    if total is not None:
        other = next(part for part in total.args if part != Ref(node.result))
        args, function, place = (x, other, weight, bias, "add"), _ops()._linear_pointwise.binary, 2
        activation = None
    else:
        how = _UNARY[activation.name](activation) if activation is not None else ("none", [], "")
        args, function, place = (x, weight, bias, *how), _ops()._linear_pointwise.default, 1
    _put(program, node, "fused_linear", function, args, [total, activation], packers, place, pack)


def _put(
    program: Program, node: Node, name: str, function: Any, args: tuple[Any, ...], followers: list[Node | None],
    packers: dict[tuple[int, int], Packer], place: int, pack: Packer, overwriting: Any = None,
) -> None:  # fmt: skip
    behind = [follower for follower in followers if follower is not None]
    last = behind[-1] if behind else node
    made = Node(name, function, args, last.results, node.site, overwriting=overwriting)
    program.insert_after(last, made)
    program.remove([node, *behind])
    packers[id(made), place] = pack
    if behind:
        program.log.folded(behind[-1].site, " and ".join(follower.name for follower in behind),
                           f"run in one call with {node.site.module or node.site}")  # fmt: skip


_CONVOLUTIONS = words("convolution fused_convolution winograd")
_KEEPS_LAYOUT = words(
    """convolution fused_convolution relu affine add mul clamp sigmoid silu hardswish hardtanh leaky_relu gelu avg_pool
    max_pool2d cat tanh hardsigmoid layout interpolate"""
)


def lay_out(program: Program) -> None:
    """Let convolutions of images run with channels last, inputs and weights."""
    make, last = program.constants.make, torch.channels_last
    known: set[int] = set()
    for node in list(program.nodes):
        image = len(program.facts[node.result].shape) == 4
        if node.name in _CONVOLUTIONS and image and not program.touches_pinned(node):
            source = node.args[0]
            if source.value not in known:
                fact = program.facts[source.value]
                moved = program.new(fact)
                program.insert_before(node, Node("layout", _channels_last, (source,), (moved,), node.site))
                node.args = (Ref(moved), *node.args[1:])
                known.add(moved)
                program.changed()
            node.args = tuple(
                make(torch.Tensor.contiguous, part, memory_format=last)
                if isinstance(part, Expression) and len(part.shape) == 4 else part
                for part in node.args
            )  # fmt: skip
            known.add(node.result)
        elif (
            image
            and node.name in _KEEPS_LAYOUT
            and all(value in known for value in node.reads if len(program.facts[value].shape) == 4)
            and any(len(program.facts[value].shape) == 4 for value in node.reads)
        ):
            known.add(node.result)
    program.changed()


def restore_layout(program: Program) -> None:
    """Give images that are returned the layout that the model gave them."""
    for place, output in enumerate(program.outputs):
        if not isinstance(output, Ref) or program.producer(output.value) is None or output.value in program.pinned:
            continue
        fact = program.facts[output.value]
        likeness = torch.empty_strided(fact.shape, fact.strides, device="meta") if len(fact.shape) == 4 else None
        if likeness is not None and likeness.is_contiguous():
            function: Any = torch.Tensor.contiguous
        elif likeness is not None and likeness.is_contiguous(memory_format=torch.channels_last):
            function = _channels_last
        else:
            continue
        value = program.new(fact)
        program.nodes.append(Node("layout", function, (output,), (value,), program.nodes[-1].site))
        program.outputs[place] = Ref(value)
    program.changed()


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def lower_precision(program: Program, dtype: torch.dtype) -> None:
    """Compute in another floating-point type: inputs and constants are rounded to it, results keep their own."""
    own = {output.value: program.facts[output.value] for output in program.outputs if isinstance(output, Ref)}
    for value, fact in enumerate(program.facts):
        if fact.dtype.is_floating_point and value not in program.inputs:
            program.facts[value] = type(fact)(fact.shape, dtype, fact.device, fact.strides)

    def rounded(item: Any) -> Any:
        if isinstance(item, Expression) and item.dtype.is_floating_point:
            return program.constants.make(torch.Tensor.to, item, dtype)
        if isinstance(item, (tuple, list)) and type(item) in (tuple, list):
            return type(item)([rounded(part) for part in item])
        return item

    for node in program.nodes:
        node.args = rounded(node.args)
        node.kwargs = {key: rounded(part) for key, part in node.kwargs.items()}
    for value in program.inputs:
        fact = program.facts[value]
        if fact.dtype.is_floating_point and (readers := program.readers(value)):
            low = program.new(type(fact)(fact.shape, dtype, fact.device, fact.strides))
            program.substitute(value, Ref(low))
            program.insert_before(readers[0], Node("to", torch.Tensor.to, (Ref(value), dtype), (low,), readers[0].site))
    for place, output in enumerate(program.outputs):
        if isinstance(output, Ref) and output.value in own and own[output.value].dtype.is_floating_point:
            value = program.new(own[output.value])
            node = Node("to", torch.Tensor.to, (output, own[output.value].dtype), (value,), program.nodes[-1].site)
            program.nodes.append(node)
            program.outputs[place] = Ref(value)
    program.changed()
