"""Norms, scales and shifts into the linear maps before or behind them."""

from __future__ import annotations

from collections.abc import Callable

import torch

from skipway.edit.folding import algebra
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Fact, Node, Program
from skipway.graph.ir import Ref

LINEAR = ("convolution", "linear")


def fold_affine(program: Program) -> bool:
    """One pass over all affine operations and norms; True if any was moved or folded."""
    changed = False
    for node in list(program.nodes):
        if node.name == "affine" and not program.touches_pinned(node) and program.producer(node.result) is node:
            changed |= any(rule(program, node) for rule in _RULES)
        elif node.name == "norm" and program.producer(node.result) is node:
            changed |= _norm_into_readers(program, node)
    return changed


def channel_axis(node: Node, program: Program) -> int:
    """The axis of a linear map's output along which its bias lies."""
    return 1 if node.name == "convolution" else len(program.facts[node.result].shape) - 1


def fits(scale: Expression | None, shift: Expression | None, axis: int, wanted: int) -> bool:
    """Whether scale and shift lie along an axis, or are single numbers."""
    return axis == wanted or all(part is None or not part.shape for part in (scale, shift))


def outputs(node: Node) -> int:
    """How many channels a linear map puts out."""
    weight = node.args[1]
    if node.name == "convolution" and node.args[6]:
        return weight.shape[1] * node.args[8]
    return weight.shape[0]


def scale_and_shift(program: Program, node: Node, scale: Expression | None, shift: Expression | None) -> None:
    """Make a linear map put out scale * y + shift in place of y."""
    make, weight, bias = program.constants.make, node.args[1], node.args[2]
    transposed, groups = (node.args[6], node.args[8]) if node.name == "convolution" else (False, 1)
    if scale is not None:
        weight = make(algebra.scale_outputs, weight, scale, transposed, groups)
        if bias is not None:
            bias = make(torch.mul, bias, scale)
    if shift is not None:
        shift = make(algebra.spread, shift, outputs(node))
        bias = shift if bias is None else make(algebra.added, bias, shift)
    node.args = (node.args[0], weight, bias, *node.args[3:])


def absorbs(program: Program, value: int | None, axis: int | None) -> Node | None:
    """The linear map that made a value which nothing else reads, so that it can take on what follows it."""
    node = program.lone(value, *LINEAR)
    if node is None or (axis is not None and channel_axis(node, program) != axis):
        return None
    return node


def _axis(node: Node) -> int | None:
    """The axis of an affine operation, None where it has single numbers only."""
    _, scale, shift, axis = node.args
    return None if fits(scale, shift, -1, 0) else axis


def _into_producer(program: Program, node: Node) -> bool:
    source, scale, shift, _ = node.args
    linear = absorbs(program, source.value, _axis(node))
    if linear is None:
        return False
    scale_and_shift(program, linear, scale, shift)
    program.log.folded(node.site, _what(node), f"folded into {_where(linear)}")
    linear.results = node.results
    program.remove([node])
    return True


def _compose(program: Program, node: Node) -> bool:
    source, scale, shift, axis = node.args
    first = program.lone(source.value, "affine")
    if first is None:
        return False
    _, before, offset, other = first.args
    if None not in (_axis(node), _axis(first)) and axis != other:
        return False
    make = program.constants.make
    both = scale if before is None else before if scale is None else make(torch.mul, before, scale)
    if offset is not None:
        moved = offset if scale is None else make(torch.mul, offset, scale)
        shift = moved if shift is None else make(algebra.added, moved, shift)
    node.args = (first.args[0], both, shift, other if _axis(node) is None else axis)
    program.remove([first])
    return True


def _above_layout(program: Program, node: Node) -> bool:
    """Move above a change of layout or a mean, where a linear map may take it on.

    Means and what is the same for every position exchange, if the mean is over nothing but positions.
    """
    source, scale, shift, _ = node.args
    upper = program.lone(source.value, "permute", "reshape", "avg_pool", "mean")
    if upper is None or not _reaches_linear(program, source.value, _axis(node)):
        return False
    if upper.name == "avg_pool" and shift is not None and any(upper.args[3]) and upper.args[5]:
        return False
    axis = 0 if _axis(node) is None else _before(program, upper, node.args[3])
    fact = program.facts[upper.source or 0]
    between = program.new(Fact(fact.shape, fact.dtype, fact.device))
    node.args = (upper.args[0], scale, shift, axis)
    upper.args = (Ref(between), *upper.args[1:])
    upper.results, node.results = node.results, (between,)
    program.remove([node])
    program.insert_before(upper, node)
    return True


def _before(program: Program, node: Node, axis: int) -> int | None:
    """Which axis of an operation's operand an axis of its result was, if what lies along it passes."""
    if node.name == "permute":
        return node.args[1][axis]
    before, after = (program.facts[value].shape for value in (node.source or 0, node.result))
    if node.name == "reshape":
        return matching_axis(after, before, axis)
    if node.name == "mean":
        if not node.args[2]:
            axis = [place for place in range(len(before)) if place not in node.args[1]][axis]
        return None if axis in node.args[1] else axis
    return axis if node.name == "affine" or axis < 2 else None


def _reaches_linear(program: Program, value: int | None, axis: int | None) -> bool:
    """Whether a linear map, from which only movable operations lead here, can take on what lies along an axis."""
    while value is not None:
        node = program.lone(value)
        if node is None:
            return False
        if node.name in LINEAR:
            return axis is None or channel_axis(node, program) == axis
        if node.name not in ("permute", "reshape", "affine", "avg_pool", "mean"):
            return False
        if axis is not None:
            axis = _before(program, node, axis)
            if axis is None:
                return False
        value = node.source
    return False


def matching_axis(shape: tuple[int, ...], other: tuple[int, ...], axis: int) -> int | None:
    """The axis of `other` that is `axis` of `shape`, one being the other reshaped; None where it was split."""
    outside = 1
    for size in shape[:axis]:
        outside *= size
    passed = 1
    for place, size in enumerate(other):
        if passed == outside and size == shape[axis]:
            return place
        passed *= size
    return None


def _into_sum(program: Program, node: Node) -> bool:
    source, scale, shift, _ = node.args
    total = program.lone(source.value, "add")
    if total is None or len(set(total.reads)) != 2:
        return False
    parts = [absorbs(program, value, _axis(node)) for value in total.reads]
    if parts[0] is None or parts[1] is None:
        return False
    scale_and_shift(program, parts[0], scale, shift)
    scale_and_shift(program, parts[1], scale, None)
    total.results = node.results
    program.remove([node])
    program.log.folded(node.site, _what(node), f"folded into both sides of the sum before it, {_where(parts[0])} and "
                       f"{_where(parts[1])}")  # fmt: skip
    return True


def _into_pieces(program: Program, node: Node) -> bool:
    source, scale, shift, axis = node.args
    joined = program.lone(source.value, "cat")
    if joined is None or joined.args[1] != axis or not all(isinstance(part, Ref) for part in joined.args[0]):
        return False
    pieces = [absorbs(program, part.value, axis) for part in joined.args[0]]
    if any(piece is None for piece in pieces) or len(set(joined.reads)) != len(joined.reads):
        return False
    make, start = program.constants.make, 0
    for piece in pieces:
        assert piece is not None
        n = outputs(piece)
        cut = [None if part is None else make(_cut, part, start, n) for part in (scale, shift)]
        scale_and_shift(program, piece, *cut)
        start += n
    joined.results = node.results
    program.remove([node])
    program.log.folded(node.site, _what(node), "folded into what is concatenated before it")
    return True


def _cut(vector: torch.Tensor, start: int, n: int) -> torch.Tensor:
    return vector if vector.ndim == 0 else vector[start : start + n]


def takes_inputs(program: Program, reader: Node, value: int, axis: int | None, shift: Expression | None) -> str:
    """Why a linear map cannot take on scale and shift of what it reads; an empty string where it can."""
    if reader.name not in LINEAR or reader.source != value or reader.reads.count(value) > 1:
        return f"{reader.site} reads it, which is no linear map"
    wanted = 1 if reader.name == "convolution" else len(program.facts[value].shape) - 1
    if axis is not None and axis != wanted:
        return f"{_where(reader)} reads it along another axis"
    if reader.name == "convolution" and shift is not None and (any(reader.args[4]) or reader.args[6]):
        if not bool((shift.value == 0).all()):
            return f"the border of {_where(reader)} is padded with zeros, which its shift would change"
        program.constants.assume(shift, f"the shift before {_where(reader)} was zero")
    return ""


def scale_and_shift_inputs(
    program: Program, reader: Node, source: Ref, scale: Expression | None, shift: Expression | None
) -> None:
    """Make a linear map read `source` where it read scale * source + shift."""
    make, weight, bias = program.constants.make, reader.args[1], reader.args[2]
    transposed, groups = (reader.args[6], reader.args[8]) if reader.name == "convolution" else (False, 1)
    bordered = reader.name == "convolution" and (any(reader.args[4]) or transposed)
    if shift is not None and not bordered:
        bias = make(algebra.passed_shift, weight, shift, groups, bias)
    if scale is not None:
        weight = make(algebra.scale_inputs, weight, scale, transposed, groups)
    reader.args = (source, weight, bias, *reader.args[3:])
    program.changed()


def _into_readers(program: Program, node: Node) -> bool:
    source, scale, shift, _ = node.args
    readers = program.readers(node.result)
    if not readers or not program.free(node.result):
        return False
    if any(takes_inputs(program, reader, node.result, _axis(node), shift) for reader in readers):
        return False
    for reader in readers:
        scale_and_shift_inputs(program, reader, source, scale, shift)
    program.remove([node])
    program.log.folded(node.site, _what(node), f"folded into {', '.join(_where(reader) for reader in readers)}")
    return True


def where_below(program: Program, node: Node, axis: int, shift: Expression | None) -> int | None:
    """The axis behind a mean or a reshape of what lay along `axis` before it, None if it cannot be moved there.

    A shift stays what it is only where means are over whole windows.
    """
    if node.name not in ("mean", "avg_pool", "reshape") or program.touches_pinned(node):
        return None
    if node.name == "mean":
        if axis in node.args[1]:
            return None
        return axis if node.args[2] else axis - sum(place < axis for place in node.args[1])
    if node.name == "reshape":
        return matching_axis(program.facts[node.source or 0].shape, program.facts[node.result].shape, axis)
    return None if axis > 1 or (shift is not None and any(node.args[3]) and node.args[5]) else axis


def _below_pool(program: Program, node: Node) -> bool:
    """After the mean there is less to scale, and perhaps a linear map that takes it on."""
    source, scale, shift, axis = node.args
    pool = program.only_reader(node.result)
    if pool is None or pool.source != node.result:
        return False
    below = where_below(program, pool, axis, shift)
    if below is None:
        return False
    wanted = None if _axis(node) is None else below
    readers = program.readers(pool.result)
    if pool.name == "reshape" and (
        not readers or any(takes_inputs(program, reader, pool.result, wanted, shift) for reader in readers)
    ):
        return False
    after = program.facts[pool.result]
    between = program.new(Fact(after.shape, after.dtype, after.device))
    pool.args = (source, *pool.args[1:])
    node.args = (Ref(between), scale, shift, below)
    node.results, pool.results = pool.results, (between,)
    program.remove([node])
    program.insert_after(pool, node)
    return True


def _norm_into_readers(program: Program, node: Node) -> bool:
    x, kind, size, scale, shift, eps, axis = node.args
    readers = program.readers(node.result)
    if (scale is None and shift is None) or not readers or program.touches_pinned(node):
        return False
    if not program.free(node.result):
        return False
    if any(takes_inputs(program, reader, node.result, axis, shift) for reader in readers):
        return False
    for reader in readers:
        scale_and_shift_inputs(program, reader, Ref(node.result), scale, shift)
    node.args = (x, kind, size, None, None, eps, axis)
    program.log.folded(node.site, f"the scale and shift of {kind}", "folded into "
                       + ", ".join(_where(reader) for reader in readers))  # fmt: skip
    return True


def explain(program: Program) -> None:
    """Say of each affine operation that is left why it could not be folded."""
    for node in program.nodes:
        if node.name == "batch_norm":
            overwritten = "what it reads or makes is overwritten through another view"
            why = overwritten if program.touches_pinned(node) else "it takes its statistics from its input"
            program.log.left(node.site, "batch_norm", why)
        if node.name != "affine":
            continue
        producer = program.producer(node.source)
        readers = program.readers(node.result)
        _, scale, shift, _ = node.args
        if all(part is None or part.value.numel() == 1 for part in (scale, shift)):
            continue
        if producer is None:
            before = "it reads an input"
        elif producer.name in LINEAR:
            before = f"{_where(producer)} before it is read elsewhere too, or along another axis"
        else:
            before = f"{producer.name} comes before it"
        behind = next(
            (why for reader in readers if (why := takes_inputs(program, reader, node.result, _axis(node), shift))),
            "its result is returned",
        )
        program.log.left(node.site, _what(node), f"{before}, and {behind}")


def _what(node: Node) -> str:
    return {"batch_norm": "batch_norm", "batch_norm_": "batch_norm"}.get(
        node.site.operation, f"{node.site.operation.rstrip('_')} with a constant"
    )


def _where(node: Node) -> str:
    return node.site.module or str(node.site)


_RULES: tuple[Callable[[Program, Node], bool], ...] = (
    _into_producer,
    _compose,
    _above_layout,
    _into_sum,
    _into_pieces,
    _into_readers,
    _below_pool,
)
