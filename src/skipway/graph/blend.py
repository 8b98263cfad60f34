"""Skips written as a blend, y = s + t * (v - s): one skip whose shortcut s is subtracted again along its branch."""

from __future__ import annotations

from dataclasses import replace

from skipway.graph.flow import Flow
from skipway.graph.ir import Operation, Trace
from skipway.graph.measure import Found
from skipway.graph.operations import Passage, scaling


def join_blends(trace: Trace, flow: Flow, found: list[Found]) -> list[Found]:
    """Make one skip of the sum and the difference that a blend is written with.

    t says what it is: a signal makes it a gate, a number or a learned scale a scaled sum. Noise only switches v on and
    off (stochastic depth); where v is itself s plus a branch, that sum is the skip and the blend around it none. The
    operands that cancel are noted in `flow.cancelled`.
    """
    by_merge = {one.merge: one for one in found}
    dropped: set[int] = set()
    blended: dict[int, str] = {}
    for one in found:
        operation = trace.operations[one.merge]
        for branch in one.branches if operation.name in ("add", "sub") else ():
            difference, factor = _difference(trace, flow, branch)
            inner = by_merge.get(difference.index) if difference is not None else None
            if difference is None or inner is None or one.carried not in difference.operands:
                continue
            dropped.add(inner.merge)
            flow.cancelled.add((inner.merge, one.carried))
            (other,) = {value for value, _ in flow.carried(difference)} - {one.carried} or {one.carried}
            if factor == "noise" and any(_within(flow, trace, sum_, other, one) for sum_ in found):
                dropped.add(one.merge)
                flow.cancelled.add((one.merge, one.carried))
            elif factor != "noise":
                blended[one.merge] = factor
    return [
        replace(one, blend=blended.get(one.merge, ""), level=1 if blended.get(one.merge) == "gate" else one.level)
        for one in found
        if one.merge not in dropped
    ]


def _difference(trace: Trace, flow: Flow, value: int) -> tuple[Operation | None, str]:
    """The difference that a value is a multiple of, and what multiplies it: "gate", "scale" or "noise"."""
    factor = "scale"
    made = trace.operation_of(value)
    while made is not None and made.name not in ("sub", "rsub"):
        content = flow.content(made)
        ways = {how for _, how in flow.carried(made)}
        if len(content) != 1 or not ways <= {Passage.SAME, Passage.SCALE, Passage.GATE}:
            return None, ""
        if Passage.GATE in ways:
            factor = "gate"
        elif Passage.SCALE in ways and scaling(made, trace) == "noise":
            factor = "noise"
        made = trace.operation_of(content[0])
    return made, factor


def _within(flow: Flow, trace: Trace, inner: Found, value: int, outer: Found) -> bool:
    """Whether the skip `inner` lies on the way from the source of `outer` to `value`."""
    result = trace.operations[inner.merge].results[0]
    return inner.source == outer.source and bool(flow.reach[value].all >> result & 1)
