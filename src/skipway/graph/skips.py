"""Finding skip connections: where two ways out of one tensor meet again and only one of them does work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from skipway.graph.blend import join_blends
from skipway.graph.flow import Flow
from skipway.graph.ir import Site, Trace
from skipway.graph.measure import Found, Region, is_scaled, regions, shortcut_name
from skipway.graph.operations import Passage
from skipway.graph.search import Search

KINDS = ("add", "scaled add", "multi-branch", "gate", "concat")
SHORTCUTS = ("identity", "scaled", "activation", "padding", "pool", "upsample", "norm", "projection")


class Span(NamedTuple):
    """How many weight layers a skip bypasses: on the branch's shortest way and on its longest."""

    fewest: int
    most: int


@dataclass(frozen=True)
class Skip:
    """One skip connection: from the tensor `source`, past its branches, to the operation at `site` that merges them.

    `kind` says how they merge: "add"; "scaled add", where the branch or the shortcut is multiplied by a number or a
    learned scale; "multi-branch", where several branches are added to one shortcut; "gate", where the shortcut is
    multiplied by a signal (highway); "concat". `shortcut` says what the way past the branches does: nothing
    ("identity", also where it takes a part), "scaled", "activation", "padding", "pool", "upsample", "norm" or
    "projection". A concatenation of several earlier tensors is one skip for each of them.

    `span` counts the weight layers bypassed. `long` is True from encoder to decoder: the branch goes down and comes up
    again in resolution, or encloses several other skips. `gradient` is False where the shortcut passes a `detach` or
    `no_grad`. `source`, `carried` (the operand of the merge that is the shortcut) and `branches` (those that are
    branches) are indices of the values of `trace`, `merge` and the `*_operations` of its operations; the `*_modules`
    are the outermost modules that lie wholly inside.
    """

    index: int
    site: Site
    kind: str
    shortcut: str
    span: Span
    long: bool
    gradient: bool
    source: int
    carried: int
    branches: tuple[int, ...]
    merge: int
    branch_operations: tuple[int, ...]
    branch_modules: tuple[str, ...]
    shortcut_operations: tuple[int, ...]
    shortcut_modules: tuple[str, ...]
    source_shape: tuple[int, ...]
    branch_shape: tuple[int, ...]
    shape: tuple[int, ...]
    trace: Trace = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.site} ({self.kind}, {self.shortcut}, past {self.span.fewest} to {self.span.most} weight layers)"


def find_skips(trace: Trace) -> tuple[tuple[Skip, ...], Flow]:
    """The skips of a trace, in the order of their merges, and the flow that they were found with.

    An operation that joins signals (a sum, a concatenation, a write into a slice) merges a skip when one operand, the
    shortcut, carries some earlier tensor past at most a scale, a pool, a norm or one linear projection, and another
    operand, the branch, reaches that same tensor only past more work than that: parameters of any kind or a mixing of
    positions. The nearest such tensor is the source. Left out are joins whose result only weights others (attention
    logits, gates) unless the whole skip lies inside the weighting, differences with a branch that has no parameters
    (centring), shortcuts that only spread a condition over positions, and concatenations along positions.
    """
    flow = Flow(trace)
    search = Search(trace, flow)
    for operation in trace.operations:
        flow.advance(operation, search.visit(operation))
    found = sorted(join_blends(trace, flow, search.accepted()), key=lambda skip: (skip.merge, skip.carried))
    pairs = [
        (one, region) for one, region in zip(found, regions(trace, flow, found), strict=True)
        if region.resampled or not (one.level == 4 or (one.level == 3 and search.concatenates(one)))
    ]  # fmt: skip
    skips = tuple(_describe(index, trace, flow, one, region) for index, (one, region) in enumerate(pairs))
    return _mark_long(trace, skips, [region for _, region in pairs]), flow


def _describe(index: int, trace: Trace, flow: Flow, found: Found, region: Region) -> Skip:
    merge = trace.operations[found.merge]
    result, branch = merge.results[0], next(iter(found.branches))
    shortcut = shortcut_name(trace, flow, region.shortcut, found.level)
    shortcut = "scaled" if found.blend and shortcut == "identity" else shortcut
    if Passage.CONCAT in flow.passages[merge.index]:
        kind = "concat"
    elif found.level == 1 or merge.name == "lerp":
        kind = "gate"
    elif len(found.branches) > 1:
        kind = "multi-branch"
    elif shortcut == "scaled" or is_scaled(trace, flow, merge, region, found.branches):
        kind = "scaled add"
    else:
        kind = "add"
    return Skip(
        index=index,
        site=merge.site,
        kind=kind,
        shortcut=shortcut,
        span=Span(region.fewest, region.most),
        long=region.resampled,
        gradient=all(trace.operations[number].gradient for number in (*region.shortcut, found.merge)),
        source=found.source,
        carried=found.carried,
        branches=found.branches,
        merge=found.merge,
        branch_operations=region.branch,
        branch_modules=region.branch_modules,
        shortcut_operations=region.shortcut,
        shortcut_modules=region.shortcut_modules,
        source_shape=trace.values[found.source].shape,
        branch_shape=trace.values[branch].shape,
        shape=trace.values[result].shape,
        trace=trace,
    )


def _mark_long(trace: Trace, skips: tuple[Skip, ...], spans: list[Region]) -> tuple[Skip, ...]:
    """Skips whose branch encloses at least two other added skips are long too."""
    added = [(skip.merge, skip.source) for skip in skips if skip.kind != "concat"]
    marked = []
    for skip, region in zip(skips, spans, strict=True):
        inside = set(region.branch)
        start = trace.values[skip.source].producer
        enclosed = {
            merge for merge, source in added
            if merge in inside and (trace.values[source].producer in inside or trace.values[source].producer == start)
        } - {skip.merge}  # fmt: skip
        marked.append(replace(skip, long=True) if len(enclosed) >= 2 and not skip.long else skip)
    return tuple(marked)
