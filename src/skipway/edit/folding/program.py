"""A straight-line program: what one run of a model computed from its inputs, open to rewriting."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from skipway.edit.folding.constants import Constants, Expression
from skipway.edit.folding.report import Log
from skipway.graph.ir import Ref, Site
from skipway.graph.signatures import SIGNATURES


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of a value: its shape, type and place, and the strides it had when it was recorded."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    strides: tuple[int, ...] = ()


@dataclass(slots=True, eq=False)
class Node:
    """One call: `results = function(*args, **kwargs)`, with a `Ref` for a value and an `Expression` for a constant.

    `name` is what the call is known as; the names of `normalize` promise the arguments listed there, `normal` that the
    promise is kept. `writes` says that the function overwrites its first argument, `many` that it returns several
    tensors; `overwriting` is a form of it that takes its second argument first, and overwrites it.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    results: tuple[int, ...]
    site: Site
    kwargs: dict[str, Any] = field(default_factory=dict)
    writes: bool = False
    many: bool = False
    normal: bool = False
    overwriting: Callable[..., Any] | None = None

    @property
    def result(self) -> int:
        return self.results[0]

    @property
    def reads(self) -> list[int]:
        """The values read, as often as they stand in the arguments."""
        return refs_in((self.args, self.kwargs))

    @property
    def source(self) -> int | None:
        """The value given as first argument, if that is one."""
        return self.args[0].value if self.args and isinstance(self.args[0], Ref) else None

    def become(self, name: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        """Take on a normal form."""
        self.name, self.function, self.args, self.kwargs = name, function, args, {}
        self.writes, self.normal = False, True

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in torch's signature, however it was given."""
        if name in self.kwargs:
            return self.kwargs[name]
        names = SIGNATURES.get(self.name, ())
        return self.args[names.index(name)] if name in names and names.index(name) < len(self.args) else default


class Program:
    """Nodes in the order in which they run, from inputs to outputs.

    `pinned` values lie in memory that several values share and something writes to: nodes that touch them stay as they
    were recorded, in their order.
    """

    def __init__(self, constants: Constants, log: Log) -> None:
        self.constants, self.log = constants, log
        self.nodes: list[Node] = []
        self.facts: list[Fact] = []
        self.inputs: list[int] = []
        self.outputs: list[Ref | Expression] = []
        self.pinned: set[int] = set()
        self._readers: dict[int, list[Node]] | None = None
        self._producers: dict[int, Node] = {}

    def copied(self) -> Program:
        """Another with the same nodes, free to be rewritten."""
        other = Program(self.constants, self.log.copied())
        other.nodes = [replace(node) for node in self.nodes]
        other.facts, other.inputs, other.outputs = list(self.facts), list(self.inputs), list(self.outputs)
        other.pinned = set(self.pinned)
        return other

    def new(self, fact: Fact) -> int:
        """A new value."""
        self.facts.append(fact)
        return len(self.facts) - 1

    def changed(self) -> None:
        self._readers = None

    def _index(self) -> dict[int, list[Node]]:
        if self._readers is None:
            self._readers = {}
            self._producers = {}
            for node in self.nodes:
                for value in node.reads:
                    self._readers.setdefault(value, []).append(node)
                for value in node.results:
                    self._producers[value] = node
        return self._readers

    def readers(self, value: int) -> list[Node]:
        """The nodes that read a value; one that reads it twice is listed twice."""
        return self._index().get(value, [])

    def producer(self, value: int | None) -> Node | None:
        """The node that makes a value, None for an input."""
        self._index()
        return None if value is None else self._producers.get(value)

    @property
    def output_values(self) -> set[int]:
        return {output.value for output in self.outputs if isinstance(output, Ref)}

    def free(self, value: int) -> bool:
        """Whether a value lies in memory of its own and is no output, so that it need not exist."""
        return value not in self.pinned and value not in self.output_values

    def only_reader(self, value: int) -> Node | None:
        """The node that alone reads a free value."""
        readers = self.readers(value)
        return readers[0] if len(readers) == 1 and self.free(value) else None

    def lone(self, value: int | None, *names: str) -> Node | None:
        """The producer of a value that is read once and is free, if it has one of these names."""
        if value is None or self.only_reader(value) is None:
            return None
        node = self.producer(value)
        if node is None or (names and node.name not in names) or self.touches_pinned(node):
            return None
        return node

    def touches_pinned(self, node: Node) -> bool:
        return bool(self.pinned) and not self.pinned.isdisjoint((*node.reads, *node.results))

    def substitute(self, old: int, new: Any) -> None:
        """Let everything that reads `old` read `new`, a Ref or an Expression."""
        for node in self.readers(old):
            node.args = swapped(node.args, old, new)
            node.kwargs = swapped(node.kwargs, old, new)
        self.outputs = [new if isinstance(output, Ref) and output.value == old else output for output in self.outputs]
        self.changed()

    def remove(self, nodes: Iterable[Node]) -> None:
        gone = set(map(id, nodes))
        self.nodes = [node for node in self.nodes if id(node) not in gone]
        self.changed()

    def insert_before(self, place: Node, *nodes: Node) -> None:
        at = next(index for index, node in enumerate(self.nodes) if node is place)
        self.nodes[at:at] = nodes
        self.changed()

    def insert_after(self, place: Node, *nodes: Node) -> None:
        at = next(index for index, node in enumerate(self.nodes) if node is place)
        self.nodes[at + 1 : at + 1] = nodes
        self.changed()

    def bypass(self, node: Node, source: Any) -> None:
        """Remove a node of one result and let its readers read `source` instead."""
        self.remove([node])
        self.substitute(node.result, source)

    def prune(self) -> list[Node]:
        """Remove the nodes whose results nobody reads; returns them."""
        needed = set(self.output_values)
        kept, gone = [], []
        for node in reversed(self.nodes):
            if needed.isdisjoint(node.results) and not (node.writes and self.touches_pinned(node)):
                gone.append(node)
            else:
                needed.update(node.reads)
                kept.append(node)
        self.nodes = kept[::-1]
        self.changed()
        return gone[::-1]


def words(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


def refs_in(item: Any) -> list[int]:
    if isinstance(item, Ref):
        return [item.value]
    if type(item) in (tuple, list):
        return [value for part in item for value in refs_in(part)]
    if isinstance(item, dict):
        return [value for part in item.values() for value in refs_in(part)]
    if isinstance(item, slice):
        return [value for part in (item.start, item.stop, item.step) for value in refs_in(part)]
    return []


def swapped(item: Any, old: int, new: Any) -> Any:
    if isinstance(item, Ref):
        return new if item.value == old else item
    if type(item) in (tuple, list):
        return type(item)([swapped(part, old, new) for part in item])
    if isinstance(item, dict):
        return {key: swapped(part, old, new) for key, part in item.items()}
    if isinstance(item, slice):
        return slice(*(swapped(part, old, new) for part in (item.start, item.stop, item.step)))
    return item
