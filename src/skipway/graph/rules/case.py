"""A case: one trace of a model with all that the rules ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from skipway.graph.ir import Call, Operation, Site, Trace
from skipway.graph.operations import Passage, has_parameters
from skipway.graph.rules.observe import Gradients, Responses
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import Skip

ADDED = ("add", "scaled add", "multi-branch")
NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})
_ALONG = frozenset({Passage.SAME, Passage.SCALE, Passage.ACTIVATION, Passage.NORM})


@dataclass(frozen=True)
class Case:
    """One trace of a model, in one mode, with what was measured on the way.

    `training` is the mode of this trace. `other` is the trace in the other mode, where it could be made, and `failure`
    says why not. `responses` and `gradients` are there where data and a loss were given. `strangers` are the kinds of
    the modules that ran, could learn and are not the model's. All these stand in the case of the model's own mode
    alone, so that what needs them is looked at once.
    """

    model: nn.Module
    graph: SkipGraph
    training: bool
    other: SkipGraph | None = None
    failure: tuple[Site, str] | None = None
    responses: Responses | None = None
    gradients: Gradients | None = None
    strangers: tuple[str, ...] = ()

    @property
    def trace(self) -> Trace:
        return self.graph.trace

    @property
    def skips(self) -> tuple[Skip, ...]:
        return self.graph.skips

    @cached_property
    def added(self) -> tuple[Skip, ...]:
        """The skips whose merge is a sum without a gate."""
        return tuple(skip for skip in self.skips if skip.kind in ADDED and not self._is_step_of_gate(skip))

    def _is_step_of_gate(self, skip: Skip) -> bool:
        """Whether this is the difference in x + g (v - x), which is a gate written another way."""
        merge = self.trace.operations[skip.merge]
        readers = self.next(merge.results[0]) if merge.name in ("sub", "rsub") else []
        return any(how == Passage.GATE for reader in readers for _, how in self.ways(reader))

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules(remove_duplicate=False))

    @cached_property
    def readers(self) -> list[list[int]]:
        return self.trace.readers()

    @cached_property
    def merges(self) -> set[int]:
        """The operations in which skips are added."""
        return {skip.merge for skip in self.added}

    @cached_property
    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.model.named_parameters(remove_duplicate=False))

    def kind_of(self, module: str) -> str:
        """The name of the class of a module."""
        return type(self.modules[module]).__name__ if module in self.modules else "module"

    def call_of(self, operation: Operation) -> Call:
        return self.trace.calls[operation.call]

    def ways(self, operation: Operation) -> list[tuple[int, Passage]]:
        """The operands whose content an operation passes on, each with how."""
        return self.graph.flow.carried(operation)

    def back(self, value: int, through: frozenset[Passage]) -> Iterator[Operation]:
        """The operations that a value has just come through one after another, the last first, and the one before them.

        Only ways in `through` of a single signal are followed; the last operation yielded is the first that is no such
        way.
        """
        while (operation := self.trace.operation_of(value)) is not None:
            yield operation
            ways = self.ways(operation)
            if len(ways) != 1 or ways[0][1] not in through:
                return
            value = ways[0][0]

    def last(self, value: int) -> Operation | None:
        """The operation that made a value, but for views, dropouts and changes of type."""
        made = None
        for made in self.back(value, frozenset({Passage.SAME})):
            ways = self.ways(made)
            if len(ways) != 1 or ways[0][1] != Passage.SAME:
                return made
        return None if made is None or self.ways(made)[0][1] == Passage.SAME else made

    def next(self, value: int) -> list[Operation]:
        """The operations that use the content of a value, past views, dropouts and changes of type."""
        found: list[Operation] = []
        waiting, seen = [value], set[int]()
        while waiting:
            current = waiting.pop(0)
            for index in self.readers[current]:
                operation = self.trace.operations[index]
                ways = self.ways(operation)
                if index in seen or all(operand != current for operand, _ in ways):
                    continue
                seen.add(index)
                if len(ways) == 1 and ways[0][1] == Passage.SAME:
                    waiting += operation.results
                else:
                    found.append(operation)
        return found

    def between(self, skip: Skip) -> tuple[Skip, list[Operation]] | None:
        """The skip whose sum this one's source comes from, and the operations that lie on the path between them.

        None where something else lies between: a weight layer, a pool, another input.
        """
        path: list[Operation] = []
        for operation in self.back(skip.source, _ALONG):
            if operation.index in self.merges:
                before = [one for one in self.added if one.merge == operation.index]
                return before[-1], path
            path.append(operation)
        return None

    def is_norm(self, operation: Operation) -> bool:
        """Whether an operation normalises, or is part of a norm that is written out in a module called a norm."""
        ways = {how for _, how in self.ways(operation)}
        if Passage.NORM in ways:
            return True
        written_out = "norm" in self.call_of(operation).kind.lower()
        return written_out and not ways & {Passage.SUM, Passage.CONCAT, Passage.WEIGHT, Passage.PRODUCT}

    def is_weight(self, operation: Operation) -> bool:
        return any(how == Passage.WEIGHT for _, how in self.ways(operation))

    def has_weights(self, skip: Skip) -> bool:
        """Whether the branch of a skip is more than arithmetic: some parameter enters it."""
        return any(has_parameters(self.trace.operations[index], self.trace) for index in skip.branch_operations)

    def parameter_names(self, operation: Operation) -> list[str]:
        """The parameters that enter an operation, past views and changes of type."""
        names = []
        for value in operation.operands:
            if self.trace.values[value].fed or not self.trace.values[value].live:
                continue
            for made in self.back(value, frozenset({Passage.SAME, Passage.SCALE})):
                value = made.operands[0] if made.operands else value
            if self.trace.values[value].origin == "parameter":
                names.append(self.trace.values[value].name)
        return names

    def parameters(self, operation: Operation) -> list[Tensor]:
        """The tensors of those parameters, where they are the model's and hold numbers."""
        found = [self._parameters[name] for name in self.parameter_names(operation) if name in self._parameters]
        return [tensor for tensor in found if tensor.device.type != "meta"]

    def weight(self, operation: Operation) -> tuple[str, Tensor] | None:
        """The matrix or kernel of a weight layer, and its name."""
        for name in self.parameter_names(operation):
            tensor = self._parameters.get(name)
            if tensor is not None and tensor.ndim > 1 and tensor.device.type != "meta":
                return name, tensor
        return None


def layer_name(module: str) -> str:
    """How a sentence names a module: by its path, or "the model" for the model itself."""
    return module or "the model"


def times(n: int, one: str, many: str = "") -> str:
    """A count with its noun: "1 sum", "3 sums"."""
    return f"{n} {one if n == 1 else many or one + 's'}"
