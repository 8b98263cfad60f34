"""Linear maps that are summed or run one after another, as one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from skipway.edit.folding import algebra
from skipway.edit.folding.affine import LINEAR
from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Node, Program
from skipway.graph.ir import Ref


@dataclass(frozen=True)
class _Part:
    """One summand that can become part of a convolution: nodes to drop, kernel, bias and how far its taps reach."""

    nodes: tuple[Node, ...]
    kind: str
    weight: Expression | None
    bias: Expression | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    window: tuple[int, ...]


def fold_sums(program: Program) -> bool:
    """Merge summands that read the same value; True if any were."""
    for node in list(program.nodes):
        if node.name == "add" and program.producer(node.result) is node and not program.touches_pinned(node):
            inside = program.only_reader(node.result)
            if (inside is None or inside.name != "add") and _merge(program, node):
                return True
    return False


def _leaves(program: Program, total: Node) -> tuple[list[int], list[Node]]:
    """The summands of nested sums, and the additions that make it up."""
    leaves: list[int] = []
    nodes = [total]
    for value in total.reads:
        inner = program.lone(value, "add")
        if inner is None or total.reads.count(value) > 1:
            leaves.append(value)
        else:
            more, additions = _leaves(program, inner)
            leaves += more
            nodes += additions
    return leaves, nodes


def _merge(program: Program, total: Node) -> bool:
    leaves, additions = _leaves(program, total)
    for anchor in leaves:
        node = program.lone(anchor, *LINEAR)
        if node is None or not _plain(node):
            continue
        parts = {value: _part(program, value, node) for value in leaves if leaves.count(value) == 1}
        found = {value: part for value, part in parts.items() if part is not None}
        if len(found) < 2 or not _pays(node, list(found.values())):
            continue
        merged = _merged(program, node, list(found.values()))
        rest = [value for value in leaves if value not in found]
        _rebuild(program, total, additions, found, merged, rest, node)
        return True
    return False


def _plain(node: Node) -> bool:
    return node.name == "linear" or not (node.args[6] or any(size != 1 for size in node.args[5]))


def _part(program: Program, value: int, anchor: Node) -> _Part | None:
    """A summand in terms of the anchor's input, stride and groups."""
    source = anchor.source
    dims = len(anchor.args[1].shape) - 2
    ones, zeros = (1,) * dims, (0,) * dims
    conv = anchor.name == "convolution"
    stride, groups = (anchor.args[3], anchor.args[8]) if conv else ((), 1)
    fact, made = program.facts[source or 0], program.facts[anchor.result]
    square = fact.shape == made.shape
    if program.facts[value].shape != made.shape:
        return None
    node = program.lone(value, *LINEAR)
    if node is not None and node.name == anchor.name and node.source == source and _plain(node):
        if not conv:
            return _Part((node,), "linear", node.args[1], node.args[2], (), (), ())
        if node.args[3] == stride and node.args[8] == groups:
            window = tuple(node.args[1].shape[2:])
            return _Part((node,), "convolution", node.args[1], node.args[2], stride, node.args[4], window)
        return None
    if not square and not (conv and fact.shape[1] == made.shape[1]):
        return None
    pool = program.lone(value, "avg_pool")
    if pool is not None and conv and pool.source == source and pool.args[2] == stride and pool.args[5]:
        return _Part((pool,), "mean", None, None, stride, pool.args[3], pool.args[1])
    if not square or any(size != 1 for size in stride):
        return None
    if value == source:
        return _Part((), "identity", None, None, ones, zeros, ones)
    scaled = program.lone(value, "affine")
    if scaled is not None and scaled.source == source:
        axis = 1 if conv else len(fact.shape) - 1
        if scaled.args[3] == axis or all(part is None or not part.shape for part in scaled.args[1:3]):
            return _Part((scaled,), "identity", scaled.args[1], scaled.args[2], ones, zeros, ones)
    return None


def _pays(anchor: Node, parts: list[_Part]) -> bool:
    """Whether one kernel costs no more than the kernels it replaces, a pass over memory each counted as one tap."""
    if anchor.name == "linear":
        return True
    before, after = _reach(parts)
    merged = math.prod(low + high + 1 for low, high in zip(before, after, strict=True))
    dense = anchor.args[8] == 1
    taps = [math.prod(part.window) if part.kind == "convolution" or not dense else 1 for part in parts]
    return merged <= sum(taps) + len(parts) - 1


def _reach(parts: list[_Part]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """How many positions before and after its own the farthest taps lie."""
    before = tuple(max(sides) for sides in zip(*(part.padding for part in parts), strict=True))
    ends = [[k - 1 - p for k, p in zip(part.window, part.padding, strict=True)] for part in parts]
    return before, tuple(max(0, *sides) for sides in zip(*ends, strict=True))


def _merged(program: Program, anchor: Node, parts: list[_Part]) -> tuple[Any, ...]:
    make, like = program.constants.make, anchor.args[1]
    groups = anchor.args[8] if anchor.name == "convolution" else 1
    before, after = _reach(parts) if anchor.name == "convolution" else ((), ())
    kernels, biases = [], []
    for part in parts:
        kernel = part.weight
        if part.kind == "identity":
            kernel = make(algebra.identity_kernel, part.weight, like, groups)
        elif part.kind == "mean":
            kernel = make(algebra.mean_kernel, like.shape[0], groups, part.window, like)
        assert kernel is not None
        first = tuple(b - p for b, p in zip(before, part.padding, strict=True))
        last = tuple(a - (k - 1 - p) for a, k, p in zip(after, part.window, part.padding, strict=True))
        kernels.append(make(algebra.embedded, kernel, first, last) if any((*first, *last)) else kernel)
        if part.bias is not None:
            biases.append(make(algebra.spread, part.bias, like.shape[0]))
    weight = make(algebra.added, *kernels)
    bias = make(algebra.added, *biases) if biases else None
    if anchor.name == "linear":
        return (anchor.args[0], weight, bias)
    return (anchor.args[0], weight, bias, anchor.args[3], before, *anchor.args[5:])


def _rebuild(
    program: Program, total: Node, additions: list[Node], found: dict[int, _Part], args: tuple[Any, ...],
    rest: list[int], anchor: Node,
) -> None:  # fmt: skip
    """Put the merged map and the remaining additions in the place of the sum."""
    what = ", ".join(sorted(part.nodes[0].name if part.nodes else "identity" for part in found.values()))
    program.log.folded(total.site, f"the sum of {what}", f"folded into {anchor.site.module or anchor.site}")
    result, fact = total.result, program.facts[total.result]
    value = program.new(fact) if rest else result
    nodes = [Node(anchor.name, anchor.function, args, (value,), anchor.site)]
    for place, other in enumerate(rest):
        out = result if place == len(rest) - 1 else program.new(fact)
        nodes.append(Node("add", torch.add, (Ref(value), Ref(other)), (out,), total.site))
        value = out
    program.insert_before(total, *nodes)
    program.remove([*additions, *(node for part in found.values() for node in part.nodes)])


def fold_chains(program: Program) -> bool:
    """Run two linear maps that follow each other as one, where that costs no more; True if any were."""
    for node in list(program.nodes):
        if node.name not in (*LINEAR, "avg_pool") or program.touches_pinned(node):
            continue
        first = program.lone(node.source, *LINEAR)
        if first is None or node.reads.count(first.result) > 1:
            continue
        if node.name == "avg_pool":
            args = _pooled(program, first, node)
        else:
            args = _chained(program, first, node) if first.name == node.name else None
        if args is None:
            continue
        made = Node(first.name, first.function, args, node.results, first.site)
        program.insert_before(node, made)
        program.remove([first, node])
        program.log.folded(node.site, node.name, f"joined with {first.site.module or first.site} before it")
        return True
    return False


def _chained(program: Program, first: Node, second: Node) -> tuple[Any, ...] | None:
    make, (one, two) = program.constants.make, (first.args[1], second.args[1])
    if first.name == "linear":
        if math.prod(one.shape) + math.prod(two.shape) < one.shape[1] * two.shape[0]:
            return None
        return (first.args[0], make(algebra.chained, one, two), _bias(program, first, second))
    if first.args[6] or second.args[6] or first.args[8] != 1 or second.args[8] != 1:
        return None
    small_first = all(size == 1 for size in (*one.shape[2:], *first.args[3]))
    small_second = all(size == 1 for size in two.shape[2:]) and not any(second.args[4])
    if small_first and second.args[5] == (1,) * len(second.args[5]):
        # Zeros that are padded after a bias are not what the bias would have put there.
        if any(second.args[4]) and first.args[2] is not None:
            return None
        stride, dilation = second.args[3], second.args[5]
        padding = tuple(a + b for a, b in zip(first.args[4], second.args[4], strict=True))
    elif small_second:
        stride = tuple(a * b for a, b in zip(first.args[3], second.args[3], strict=True))
        padding, dilation = first.args[4], first.args[5]
    else:
        return None
    if _work(program, first) + _work(program, second) < _work(program, second) / math.prod(two.shape) * (
        one.shape[1] * two.shape[0] * max(math.prod(one.shape[2:]), math.prod(two.shape[2:]))
    ):
        return None
    weight, bias = make(algebra.chained, one, two), _bias(program, first, second)
    return (first.args[0], weight, bias, stride, padding, dilation, False, first.args[7], 1)


def _work(program: Program, node: Node) -> int:
    """Multiplications of a convolution."""
    return math.prod(node.args[1].shape) * math.prod(program.facts[node.result].shape[2:])


def _bias(program: Program, first: Node, second: Node) -> Expression | None:
    if first.args[2] is None:
        return second.args[2]
    return program.constants.make(algebra.passed_shift, second.args[1], first.args[2], 1, second.args[2])


def _pooled(program: Program, first: Node, pool: Node) -> tuple[Any, ...] | None:
    """A 1x1 convolution and an average pool as one convolution, only on the way to a sum with others of its kind."""
    if first.name != "convolution" or first.args[6] or first.args[8] != 1:
        return None
    if any(size != 1 for size in (*first.args[1].shape[2:], *first.args[3])) or not pool.args[5]:
        return None
    reader = program.only_reader(pool.result)
    if reader is None or reader.name != "add" or (any(pool.args[3]) and first.args[2] is not None):
        return None
    siblings = [program.lone(value, "convolution") for value in reader.reads if value != pool.result]
    if not any(s is not None and tuple(s.args[1].shape[2:]) >= pool.args[1] for s in siblings):
        return None
    make, weight = program.constants.make, first.args[1]
    mean = make(algebra.mean_kernel, weight.shape[0], 1, pool.args[1], weight)
    padding = tuple(a + b for a, b in zip(first.args[4], pool.args[3], strict=True))
    return (first.args[0], make(algebra.chained, weight, mean), first.args[2], pool.args[2], padding, *first.args[5:])
