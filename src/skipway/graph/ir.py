"""What a trace is made of: values, operations, module calls and the sites that name them.

A trace is a directed acyclic graph in the order in which the model ran:

* a `Value` is one tensor as it stood at one moment. An in-place operation makes a new value of the tensor it changed,
  so `x` before and after `x += y` are two values, and every reader points at the one it really saw;
* an `Operation` is one call of a torch function. It reads values, carries its other arguments as they were written
  (`dim=1`, `groups=32`, the sizes of a `view`) and makes values;
* a `Call` is one call of a module: the operations between its `start` and `stop`, its children's included;
* a `Site` names an operation in words that hold from run to run and in an edited copy of the model.

Everything is a plain frozen record that holds no tensor: a trace keeps no activation and no model alive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from skipway.errors import SkipwayError
from skipway.graph.signatures import SIGNATURES

_SITE = re.compile(r"(?P<module>[^:@]*)(?:@(?P<call>\d+))?:(?P<operation>[^:]+?)(?::(?P<ordinal>\d+))?")


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """Where an operation stands: which module ran it, what it is, and which of its kind it was in that call.

    `ordinal` counts the operations of the same name that the module's own code (not its children's) ran before this
    one in the same call. `call` tells apart the calls of a module that ran several times. In-place operations end in
    an underscore, however they were written: `out += x`, `out.add_(x)` and `torch.add(out, x, out=out)` are all `add_`.

    >>> str(Site("layer1.0", "add_"))
    'layer1.0:add_:0'
    >>> Site.parse("layer1.0@2:add_:1")
    Site(module='layer1.0', operation='add_', ordinal=1, call=2)
    """

    module: str
    operation: str
    ordinal: int = 0
    call: int = 0

    def __str__(self) -> str:
        again = f"@{self.call}" if self.call else ""
        return f"{self.module}{again}:{self.operation}:{self.ordinal}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that `str(site)` wrote; raises SkipwayError for anything else."""
        match = _SITE.fullmatch(text)
        if match is None:
            raise SkipwayError(
                f"{text!r} is not a site; a site reads 'module:operation:ordinal', as in 'layer1.0:add_:0'"
            )
        return cls(match["module"], match["operation"], int(match["ordinal"] or 0), int(match["call"] or 0))


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands in an operation's arguments where a tensor was: the index of the value that was read."""

    value: int


@dataclass(frozen=True, slots=True)
class Value:
    """One tensor as it stood at one moment.

    `origin` is "operation" for what the trace computed, otherwise "input", "parameter", "buffer" or "constant" (made of
    nothing that was traced); `name` is the input's, parameter's or buffer's name. `producer` and `output` say which
    operation made it and as which of its results.

    `fed` says that the value depends on the model's inputs, `live` that a gradient could reach it from a float input
    or a parameter through floating-point values. What is both is called a signal: it is what skips carry. A value that
    is live without being fed is computed from parameters alone (a learned position, a standardised weight); one that
    is not live is a size, an index, a mask or a fixed table.
    """

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    origin: str
    name: str = ""
    producer: int | None = None
    output: int = 0
    fed: bool = False
    live: bool = False

    @property
    def signal(self) -> bool:
        """Whether it depends on the inputs and could carry a gradient."""
        return self.fed and self.live


@dataclass(frozen=True, slots=True)
class Operation:
    """One call of a torch function, named as people name it: `conv2d`, `batch_norm`, `add`, `cat`.

    `name` has no in-place underscore (`inplace` says that); `args` and `kwargs` are the arguments as they were given,
    with a `Ref` where a tensor was. `operands` are the values read, in the order in which they appear there (an
    in-place operation reads the old value of what it changes); `results` are the values made. `call` is the index of
    the module call whose own code ran it. `gradient` is False where autograd would record nothing: under `no_grad`,
    and for `detach` and `.data`. `after` is the call that ended last in that code before (None: none yet), and `step`
    the number of operations of the same name that the code ran since: with them an operation is found again by
    watching only what lies between two calls.
    """

    index: int
    site: Site
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    call: int
    inplace: bool = False
    gradient: bool = True
    after: int | None = None
    step: int = 0

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by name, whether it was given by position or by keyword; a `Ref` where it was a tensor.

        >>> site = Site("", "flatten")
        >>> Operation(0, site, "flatten", (Ref(0), 1), {}, (0,), (1,), call=0).argument("start_dim", 0)
        1
        """
        if name in self.kwargs:
            return self.kwargs[name]
        names = SIGNATURES.get(self.name, ())
        if name in names and names.index(name) < len(self.args):
            return self.args[names.index(name)]
        return default

    def value(self, name: str) -> int | None:
        """The index of the value given for an argument, or None where that argument is no tensor."""
        given = self.argument(name)
        return given.value if isinstance(given, Ref) else None


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module: `graph.operations[start:stop]`, its children's operations included.

    `ordinal` counts the calls of the same module; `parent` is the index of the call around it (None for the model
    itself); `kind` is the class's name. `given` and `returned` are the tensors that it took and gave back, in the order
    in which its arguments and its result hold them: indices of values, -1 for what the trace does not keep.
    """

    index: int
    module: str
    kind: str
    ordinal: int
    parent: int | None
    training: bool
    start: int
    stop: int
    given: tuple[int, ...] = ()
    returned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trace:
    """The whole record of one forward pass, in the order in which it ran.

    `inputs`, `outputs` are indices of values (outputs in the order in which the model's result holds them) and
    `output_names` says where in that result each stood (`"logits"`, `"[0]"`). `notes` are sentences about what could
    not be seen. `parameters` maps the names of the model's parameters to their shapes, used or not.
    """

    model: str
    values: tuple[Value, ...]
    operations: tuple[Operation, ...]
    calls: tuple[Call, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    output_names: tuple[str, ...]
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def operation_of(self, value: int) -> Operation | None:
        """The operation that made a value, or None for an input, a parameter, a buffer or a constant."""
        producer = self.values[value].producer
        return None if producer is None else self.operations[producer]

    def readers(self) -> list[list[int]]:
        """For each value, the operations that read it, in order; a reader that reads it twice is listed twice."""
        readers: list[list[int]] = [[] for _ in self.values]
        for operation in self.operations:
            for value in operation.operands:
                readers[value].append(operation.index)
        return readers

    def enclosing(self, call: int | None) -> Iterator[Call]:
        """A call and those around it, innermost first."""
        while call is not None:
            found = self.calls[call]
            yield found
            call = found.parent
