"""Maps that are concatenated again and again, as in a DenseNet, kept in one buffer.

The maps of a dense block are the channels of one tensor; each is stored there once, and what concatenated the first k
of them reads a view of it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from skipway.edit.folding.program import Node, Program
from skipway.graph.ir import Ref


def share_buffers(program: Program, channels_last: bool) -> None:
    """Replace every family of concatenations, in which each repeats what another joined, by one buffer."""
    lists: dict[int, tuple[int, ...]] = {}
    cats: dict[int, Node] = {}
    for node in program.nodes:
        if node.name != "cat" or node.args[1] != 1 or len(program.facts[node.result].shape) != 4:
            continue
        if program.touches_pinned(node) or not all(isinstance(part, Ref) for part in node.args[0]):
            continue
        first, *rest = (part.value for part in node.args[0])
        lists[node.result] = (*lists.get(first, (first,)), *rest)
        cats[node.result] = node
    for result in sorted(lists, key=lambda value: -len(lists[value])):
        whole = lists.get(result)
        if whole is None:
            continue
        family = [other for other, parts in lists.items() if whole[: len(parts)] == parts]
        if len(family) > 1:
            _share(program, whole, {other: cats[other] for other in family}, lists, channels_last)
        for other in family:
            del lists[other]


def _share(
    program: Program,
    whole: tuple[int, ...],
    cats: dict[int, Node],
    lists: dict[int, tuple[int, ...]],
    channels_last: bool,
) -> None:
    fact = program.facts[whole[0]]
    widths = [program.facts[value].shape[1] for value in whole]
    shape = (fact.shape[0], sum(widths), *fact.shape[2:])
    buffer = program.new(type(fact)(shape, fact.dtype, fact.device))
    order = torch.channels_last if channels_last else torch.contiguous_format
    make = functools.partial(torch.empty, shape, dtype=fact.dtype, device=fact.device, memory_format=order)
    site = next(iter(cats.values())).site
    born = Node("buffer", make, (), (buffer,), site)
    first = min(whole, key=lambda value: _place(program, value))
    producer = program.producer(first)
    if producer is None:
        program.nodes.insert(0, born)
    else:
        program.insert_before(producer, born)
    program.changed()
    start = 0
    for value, width in zip(whole, widths, strict=True):
        done = program.new(program.facts[buffer])
        store = Node("store", _store, (Ref(buffer), Ref(value), start, width), (done,), site, {}, True)
        program.insert_after(program.producer(value) or born, store)
        program.pinned.add(done)
        start += width
    for result, node in cats.items():
        width = sum(widths[: len(lists[result])])
        node.name, node.function, node.args = "buffer_view", torch.narrow, (Ref(buffer), 1, 0, width)
        program.pinned.add(result)
    program.pinned.add(buffer)
    program.changed()
    program.log.folded(site, f"{len(cats)} concatenations", f"became views of one buffer of {shape[1]} channels")


def _place(program: Program, value: int) -> int:
    producer = program.producer(value)
    return next((place for place, node in enumerate(program.nodes) if node is producer), -1)


def _store(buffer: Tensor, part: Tensor, start: int, width: int) -> None:
    buffer.narrow(1, start, width).copy_(part)
