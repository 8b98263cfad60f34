"""Turning a program into one Python function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Node, Program, words
from skipway.graph.ir import Ref
from skipway.graph.sites import tensors_in

# What these return lies in memory that nothing else uses.
_FRESH = words(
    """convolution linear affine add clamp relu gelu silu hardswish sigmoid tanh leaky_relu hardtanh hardsigmoid elu mul
    sub div batch_norm layer_norm group_norm cat addcmul fused_convolution fused_linear clone zeros_like norm mean
    avg_pool scaled_dot_product_attention add_constant max_pool2d matmul bmm softmax exp rsqrt pow sum winograd"""
)
FRESH = _FRESH | {f"plain_{name}" for name in _FRESH}
# Overwriting forms of what makes a new tensor of its first argument's shape.
_IN_PLACE: dict[Any, Callable[..., Any]] = {
    torch.relu: torch.relu_,
    torch.sigmoid: torch.sigmoid_,
    torch.tanh: torch.tanh_,
    torch.add: torch.Tensor.add_,
    torch.mul: torch.Tensor.mul_,
    torch.nn.functional.hardtanh: torch.nn.functional.hardtanh_,
    torch.nn.functional.leaky_relu: torch.nn.functional.leaky_relu_,
}

Packer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Code:
    """A program made ready to run: `run(slots, *inputs)` gives the tuple of outputs.

    `slots` says of each constant that the code reads its number and how the backend wants it packed; `source` is the
    Python text.
    """

    run: Callable[..., tuple[Tensor, ...]]
    slots: tuple[tuple[int, Packer | None], ...]
    source: str
    operations: int


def generate(program: Program, packers: dict[tuple[int, int], Packer]) -> Code:
    """Write a program as a Python function; `packers` are by the identity of a node and the place of its argument.

    Values are dropped after their last use. An overwriting operation runs on a copy unless nothing else can see what it
    overwrites, and elementwise operations overwrite their operand where that is so.
    """
    writer = _Writer(program, packers)
    lines = [f"def run(c{''.join(f', v{value}' for value in program.inputs)}):"]
    for index, node in enumerate(program.nodes):
        lines += [f"    {line}" for line in writer.lines(index, node)]
    results = "".join(f"{writer.text(output, None)}, " for output in program.outputs)
    lines.append(f"    return ({results})")
    source = "\n".join(lines)
    exec(compile(source, "<folded>", "exec"), writer.names)
    return Code(writer.names["run"], tuple(writer.slots), source, len(program.nodes))


class _Writer:
    def __init__(self, program: Program, packers: dict[tuple[int, int], Packer]) -> None:
        self.program, self.packers = program, packers
        self.names: dict[str, Any] = {"tensors_in": tensors_in, "nan": float("nan"), "inf": float("inf")}
        self.slots: list[tuple[int, Packer | None]] = []
        self._named: dict[int, str] = {}
        self._kept: list[Any] = []
        self._slot_of: dict[tuple[int, int], int] = {}
        self._last: dict[int, int] = dict.fromkeys(program.output_values, len(program.nodes))
        self._group: dict[int, list[int]] = {value: [value] for value in range(len(program.facts))}
        for index, node in enumerate(program.nodes):
            for value in node.reads:
                self._last[value] = max(index, self._last.get(value, -1))
            # What is not known to return memory of its own may return a view of what it reads.
            sharing = node.reads if node.name not in FRESH else [node.source] if node.writes else []
            for value in sharing:
                for result in node.results:
                    if value is not None:
                        self._join(value, result)

    def _join(self, one: int, other: int) -> None:
        if self._group[one] is not self._group[other]:
            joined = self._group[one] + self._group[other]
            for value in joined:
                self._group[value] = joined

    def lines(self, index: int, node: Node) -> list[str]:
        function, args = node.function, node.args
        lines = []
        first = args[0] if args else None
        if node.writes and not (isinstance(first, Ref) and first.value in self.program.pinned):
            if not self._overwritable(first, index):
                lines.append(f"v{node.result} = {self.text(first, None)}.clone()")
                args = (_Name(f"v{node.result}"), *args[1:])
        elif (function in _IN_PLACE or node.overwriting is not None) and len(node.results) == 1:
            function, args = self._in_place(function, args, index, node)
        name = self.name_of(function, getattr(function, "__name__", "f"))
        given = [self.text(arg, (id(node), place)) for place, arg in enumerate(args)]
        given += [f"{key}={self.text(value, None)}" for key, value in node.kwargs.items()]
        call = f"{name}({', '.join(given)})"
        if node.writes:
            lines.append(call)
            if node.result not in self._last:
                return lines
            source = args[0].text if isinstance(args[0], _Name) else self.text(args[0], None)
            lines.append(f"v{node.result} = {source}")
        elif node.many:
            lines.append(f"{''.join(f'v{value}, ' for value in node.results)} = tensors_in({call})")
        else:
            lines.append(f"v{node.result} = {call}")
        dead = [value for value in dict.fromkeys((*node.reads, *node.results)) if self._last.get(value, index) <= index]
        if dead:
            lines.append(f"del {', '.join(f'v{value}' for value in dead)}")
        return lines

    def _overwritable(self, item: Any, index: int) -> bool:
        """Whether a value's memory was made by the program and is read by nothing after this node."""
        if not isinstance(item, Ref):
            return False
        producer = self.program.producer(item.value)
        if producer is None or (producer.name not in FRESH and not producer.writes):
            return False
        return all(self._last.get(value, -1) <= index for value in self._group[item.value])

    def _in_place(self, function: Any, args: tuple[Any, ...], index: int, node: Node) -> tuple[Any, tuple[Any, ...]]:
        result = self.program.facts[node.result]

        def fits(item: Any) -> bool:
            if not self._overwritable(item, index) or item.value in self.program.pinned:
                return False
            fact = self.program.facts[item.value]
            return (fact.shape, fact.dtype) == (result.shape, result.dtype) and node.reads.count(item.value) == 1

        if node.overwriting is not None:
            # What a convolution put out has the layout in which the next one wants to store.
            maker = self.program.producer(args[1].value)
            if fits(args[1]) and maker is not None and maker.name == node.name:
                return node.overwriting, (args[1], args[0], *args[2:])
            return function, args
        if fits(args[0]):
            return _IN_PLACE[function], args
        if function in (torch.add, torch.mul) and len(args) == 2 and not node.kwargs and fits(args[1]):
            return _IN_PLACE[function], (args[1], args[0])
        return function, args

    def name_of(self, item: Any, base: str) -> str:
        if id(item) not in self._named:
            base = "".join(letter if letter.isalnum() else "_" for letter in base)
            name = base if base not in self.names and base not in ("run", "c") else f"{base}_{len(self.names)}"
            self.names[name] = item
            self._named[id(item)] = name
            self._kept.append(item)
        return self._named[id(item)]

    def text(self, item: Any, place: tuple[int, int] | None) -> str:
        if isinstance(item, _Name):
            return item.text
        if isinstance(item, Ref):
            return f"v{item.value}"
        if isinstance(item, Expression):
            return f"c[{self._slot(item, place)}]"
        if item is None or type(item) in (bool, int, float, str):
            return repr(item)
        if type(item) is tuple:
            return f"({''.join(f'{self.text(part, None)}, ' for part in item)})"
        if type(item) is list:
            return f"[{', '.join(self.text(part, None) for part in item)}]"
        if type(item) is dict:
            return f"{{{', '.join(f'{key!r}: {self.text(part, None)}' for key, part in item.items())}}}"
        if isinstance(item, slice):
            return f"slice({', '.join(self.text(part, None) for part in (item.start, item.stop, item.step))})"
        return self.name_of(item, "k")

    def _slot(self, expression: Expression, place: tuple[int, int] | None) -> int:
        number = self.program.constants.index(expression)
        packer = None if place is None else self.packers.get(place)
        key = (number, id(packer))
        if key not in self._slot_of:
            self._slot_of[key] = len(self.slots)
            self.slots.append((number, packer))
        return self._slot_of[key]


@dataclass(frozen=True)
class _Name:
    text: str
