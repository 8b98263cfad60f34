"""Where an edit takes hold: an operation of a trace, told so that it is found again in every run of the model."""

from __future__ import annotations

from dataclasses import dataclass

from skipway.graph.ir import Call, Operation, Trace

# They compute nothing, and a connection makes do without some of them where no gradients are recorded.
_COPIES = ("alias", "clone", "copy")


@dataclass(frozen=True)
class Turn:
    """One call of a module below a host: which module, and how many of its calls in the same host call came before."""

    module: str
    number: int

    def __str__(self) -> str:
        return f"{self.module} (call {self.number})" if self.number else self.module


@dataclass(frozen=True)
class Place:
    """An operation found by watching only what the host's own code runs between two calls of other modules.

    `host` is the module whose code runs it, in its call `call` of `calls` in a run. Counted from the end of the call
    `after` (None: from the start), it is operation `step` of its name; `passed` are the operations known to come in
    between, and `before` is the call that follows (None: the host ends first).
    """

    host: str
    call: int
    calls: int
    operation: str
    step: int
    after: Turn | None
    before: Turn | None
    passed: tuple[str, ...]

    def __str__(self) -> str:
        since = f"after {self.after}" if self.after else "at its start"
        return f"{self.operation!r} {since} in {self.host or 'the model'}"


def place_of(trace: Trace, operation: Operation) -> Place:
    """The place of an operation of a trace."""
    host = trace.calls[operation.call]
    latest = None if operation.after is None else trace.calls[operation.after]
    # Modules made in the middle of a run cannot be watched: what they run counts as the host's own.
    children = [call for call in trace.calls[host.index + 1 :] if call.parent == host.index and "<" not in call.module]
    after = latest if latest in children else None
    since = host.start if after is None else after.stop
    step = operation.step
    if latest is not after and latest is not None:
        after = next((call for call in reversed(children) if call.stop <= latest.start), None)
        since = host.start if after is None else after.stop
        step += sum(other.site.operation == operation.site.operation for other in trace.operations[since : latest.stop])
    before = next((call for call in children if call.start > operation.index), None)
    passed = tuple(
        other.site.operation
        for other in trace.operations[since : operation.index]
        if other.call == host.index and other.name not in _COPIES
    )
    return Place(
        host=host.module,
        call=host.ordinal,
        calls=calls_of(trace, host.module),
        operation=operation.site.operation,
        step=step,
        after=None if after is None else turn(trace, host, after),
        before=None if before is None else turn(trace, host, before),
        passed=passed,
    )


def calls_of(trace: Trace, module: str) -> int:
    """How often a module was called in a run."""
    return sum(call.module == module for call in trace.calls)


def turn(trace: Trace, host: Call, call: Call) -> Turn:
    """Which call of its module, counted within a call of `host`, a call is."""
    earlier = sum(
        other.module == call.module and encloses(trace, host, other)
        for other in trace.calls[host.index + 1 : call.index]
    )
    return Turn(call.module, earlier)


def encloses(trace: Trace, outer: Call, inner: Call) -> bool:
    """Whether one call ran within another."""
    return any(call.index == outer.index for call in trace.enclosing(inner.index))
