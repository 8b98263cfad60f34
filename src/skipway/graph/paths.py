"""The ensemble of paths that skip connections make of a network, counted exactly.

Every skip lets content pass through its branch or past it, so a network with n skips in a row is a sum over 2^n paths
(Veit, Wilber and Belongie 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks",
arXiv:1605.06431). With P_v(z) the polynomial whose coefficient of z^k is the number of paths of length k from the
inputs to v, and w(v) the length that v adds,

    P_v(z) = z^w(v) * sum over the operands u of v of P_u(z).

The polynomials are kept as single integers (z = 2^bits, with room enough for every coefficient), so that adding two
is one addition of integers and DenseNet-121's 2^58 paths take milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from skipway.errors import SkipwayError, choose
from skipway.graph.flow import Flow
from skipway.graph.ir import Operation, Trace
from skipway.graph.operations import Passage, weight_layers
from skipway.graph.skips import Skip

Unit = Literal["layer", "block"]


class Paths(Mapping[int, int]):
    """Numbers of paths by length: a mapping {length: exact number of paths}, shortest first.

    >>> paths = Paths({0: 1, 1: 2, 2: 1})
    >>> paths.total, paths.mean, paths.share(1, 2)
    (4, 1.0, 0.75)
    """

    def __init__(self, counts: Mapping[int, int], network: _Network | None = None):
        self._counts = {length: counts[length] for length in sorted(counts) if counts[length]}
        self._network = network

    def __getitem__(self, length: int) -> int:
        return self._counts[length]

    def __iter__(self) -> Iterator[int]:
        return iter(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    def __repr__(self) -> str:
        return f"Paths({self._counts})"

    @property
    def total(self) -> int:
        """The number of paths."""
        return sum(self._counts.values())

    @property
    def mean(self) -> float:
        """The mean length of a path; 0 where there is none."""
        total = self.total
        return sum(length * count for length, count in self._counts.items()) / total if total else 0.0

    @property
    def shortest(self) -> int:
        """The least length; raises SkipwayError where there is no path."""
        return self._ends()[0]

    @property
    def longest(self) -> int:
        """The greatest length; raises SkipwayError where there is no path."""
        return self._ends()[1]

    def _ends(self) -> tuple[int, int]:
        if not self._counts:
            raise SkipwayError("there is no path from the inputs to this output")
        return min(self._counts), max(self._counts)

    def share(self, fewest: int, most: int) -> float:
        """The share of the paths whose length lies between two lengths, both included."""
        inside = sum(count for length, count in self._counts.items() if fewest <= length <= most)
        total = self.total
        return inside / total if total else 0.0

    def distribution(self) -> dict[int, float]:
        """The share of the paths that each length has."""
        total = self.total
        return {length: count / total for length, count in self._counts.items()}

    def through(self, where: Skip | str) -> Paths:
        """The paths that take a skip's shortcut, or that pass any operation of a module named by its path."""
        network = self._whole()
        if isinstance(where, Skip):
            return Paths(network.over_edges(where.merge, (where.carried,), where))
        return Paths(network.through_module(where))

    def lost(self, skip: Skip) -> Paths:
        """The paths that go when the branches of a skip are removed, and only its shortcut is left: a lesion."""
        return Paths(self._whole().over_edges(skip.merge, skip.branches, skip))

    def _whole(self) -> _Network:
        if self._network is None:
            raise SkipwayError("only the paths of a whole graph can be asked what passes where: use graph.paths()")
        return self._network


@dataclass
class _Network:
    """The edges that paths may take, with the polynomials from the inputs (`ahead`) and to the output (`behind`)."""

    trace: Trace
    edges: dict[int, list[int]]
    lengths: dict[int, int]
    sources: set[int]
    target: int
    bits: int = 0
    ahead: dict[int, int] = field(default_factory=dict)
    behind: dict[int, int] = field(default_factory=dict)

    def fill(self) -> None:
        """Count the paths to find how much room a coefficient needs, then fill both polynomials of every value."""
        self.bits = 1
        totals = self._forward(frozenset(), lengths=False)
        self.bits = max(totals.values(), default=0).bit_length() + 1
        self.ahead = self._forward(frozenset(), lengths=True)
        self.behind = {self.target: 1}
        for value in sorted(self.edges, reverse=True):
            passed = self.behind.get(value, 0) << self.bits * self.lengths.get(value, 0)
            if passed:
                for operand in self.edges[value]:
                    self.behind[operand] = self.behind.get(operand, 0) + passed

    def _forward(self, blocked: frozenset[int], lengths: bool) -> dict[int, int]:
        ahead = {source: self._longer(1, source, lengths) for source in self.sources if source not in blocked}
        for value, operands in self.edges.items():
            if value not in blocked:
                passed = sum(ahead.get(operand, 0) for operand in operands)
                if passed:
                    ahead[value] = ahead.get(value, 0) + self._longer(passed, value, lengths)
        return ahead

    def _longer(self, polynomial: int, value: int, lengths: bool) -> int:
        return polynomial << self.bits * self.lengths.get(value, 0) if lengths else polynomial

    def counts(self, polynomial: int) -> dict[int, int]:
        """The coefficients of a polynomial by their powers."""
        found, length, mask = {}, 0, (1 << self.bits) - 1
        while polynomial:
            if polynomial & mask:
                found[length] = polynomial & mask
            polynomial >>= self.bits
            length += 1
        return found

    def all(self) -> dict[int, int]:
        """The paths from the inputs to the output, by length."""
        return self.counts(self.ahead.get(self.target, 0))

    def over_edges(self, merge: int, operands: tuple[int, ...], skip: Skip) -> dict[int, int]:
        """The paths that enter the merge of a skip by these operands."""
        if merge >= len(self.trace.operations) or self.trace.operations[merge].site != skip.site:
            raise SkipwayError(f"{skip.site} is no skip of this graph: take it from this graph's own .skips")
        result = self.trace.operations[merge].results[0]
        inside = _sums_inside(self.trace, self.edges, merge)
        passed = 0
        for value in operands:
            for reader in inside:
                for operand in self.edges.get(reader, ()):
                    if operand == value:
                        after = self.behind.get(result, 0) << self.bits * self.lengths.get(result, 0)
                        passed += self.ahead.get(value, 0) * after
        return self.counts(passed)

    def through_module(self, path: str) -> dict[int, int]:
        """The paths that pass an operation run by a module or its children."""
        known = {call.module for call in self.trace.calls}
        choose("module", path, sorted(known))
        inside = {
            result
            for call in self.trace.calls
            if call.module == path
            for operation in self.trace.operations[call.start : call.stop]
            for result in operation.results
        }
        around = self.counts(self._forward(frozenset(inside), lengths=True).get(self.target, 0))
        return {length: count - around.get(length, 0) for length, count in self.all().items()}


def _sums_inside(trace: Trace, edges: dict[int, list[int]], merge: int) -> list[int]:
    """The results of a merge and of the sums that only feed it, views and dropouts between them aside."""
    readers: dict[int, int] = {}
    for operands in edges.values():
        for operand in operands:
            readers[operand] = readers.get(operand, 0) + 1
    inside, waiting = [], [trace.operations[merge].results[0]]
    while waiting:
        value = waiting.pop()
        inside.append(value)
        for operand in edges.get(value, ()):
            while len(edges.get(operand, ())) == 1 and readers[operand] == 1:
                operand = edges[operand][0]
            made = trace.operation_of(operand)
            if made is not None and readers[operand] == 1 and made.name == "add":
                waiting.append(operand)
    return inside


def count_paths(
    trace: Trace, flow: Flow, skips: tuple[Skip, ...], by: Unit = "layer", output: str | int | None = None
) -> Paths:
    """The paths from all inputs to one output: see `SkipGraph.paths`."""
    choose("unit of length", by, ("layer", "block"))
    target = _target(trace, output)
    edges: dict[int, list[int]] = {}
    sources = {index for index in trace.inputs if trace.values[index].signal}
    lengths: dict[int, int] = {}
    merged = {skip.merge for skip in skips}
    for operation in trace.operations:
        operands = [
            value for value in flow.content(operation)
            if trace.values[value].signal and (operation.index, value) not in flow.cancelled
        ]  # fmt: skip
        if len(operands) > 1:
            operands = _distinct(operation, operands, flow, operation.index in merged)
        for result in operation.results:
            if trace.values[result].signal:
                if operands:
                    edges[result] = operands
                else:
                    # Looking up an input's rows in a table: the content begins here.
                    sources.add(result)
                if by == "layer":
                    lengths[result] = weight_layers(operation, trace)
    if by == "block":
        for skip in skips:
            for value in skip.branches:
                lengths[value] = 1
    network = _Network(trace, edges, lengths, sources, target)
    network.fill()
    return Paths(network.all(), network)


def _distinct(operation: Operation, operands: list[int], flow: Flow, merges: bool) -> list[int]:
    """The operands that are ways of their own: arithmetic on one signal (x - mean(x), a rotation) is one way."""
    joins = any(how in (Passage.SUM, Passage.CONCAT) for how in flow.passages[operation.index])
    if not joins:
        # Signals multiplied with one another, none of which is a mere weight: the last is what is weighted.
        return operands[-1:]
    if merges:
        return operands
    kept: list[int] = []
    for operand in operands:
        reach = flow.reach[operand]
        for other in kept:
            common = reach.all & flow.reach[other].all
            nearest = 1 << common.bit_length() - 1 if common else 0
            if nearest & reach.light & flow.reach[other].light:
                break
        else:
            kept.append(operand)
    return kept


def _target(trace: Trace, output: str | int | None) -> int:
    if output is None:
        arrays = [value for value in trace.outputs if trace.values[value].shape]
        return (arrays or list(trace.outputs))[0]
    if isinstance(output, int):
        if not -len(trace.outputs) <= output < len(trace.outputs):
            raise SkipwayError(f"there is no output {output}: the model has {len(trace.outputs)}, numbered from 0")
        return trace.outputs[output]
    choose("output", output, trace.output_names)
    return trace.outputs[trace.output_names.index(output)]
