"""The gradient by path length, exactly: the sum over all paths of each length, and single paths drawn at random.

Let G_v(z) be the polynomial whose coefficient of z^k is the sum, over all paths from v to the loss that pass k
branches, of the gradient that comes back along the path. With J_uv the derivative along the piece of network from one
cut u to the next cut v that no other cut interrupts, and w(v) = 1 where v is what a branch gives to its merge, else 0,

    G_u(z) = sum over v of z^w(v) * J_uv^T G_v(z).

It is the backward pass with polynomials in place of numbers, so it holds for any network, and at z = 1 it is the
ordinary gradient. n skips in a row take n (n + 1) / 2 passes back through a branch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from torch import Tensor

from skipway.graph import SkipGraph
from skipway.probe.edges import ways_out
from skipway.probe.paths_cut import Cuts

# Gradients at one place, by the length of the paths that they came along, or by the number of a single path.
Gradients = dict[int, Tensor]
_LOSS = -1


def gradient_by_length(cuts: Cuts, graph: SkipGraph) -> dict[int, Gradients]:
    """For each beginning of the signal, the gradient of the loss by number of branches passed."""
    branches = {value for skip in graph.skips for value in skip.branches}
    return _sweep(cuts, [0], lambda value, length: length + (value in branches), lambda value, to, length: True)


def gradient_along(cuts: Cuts, graph: SkipGraph, paths: Sequence[frozenset[int]]) -> dict[int, Gradients]:
    """For each beginning, the gradient along single paths, for skips in series.

    Each path takes the branches of a set of skips, and the shortcuts of all others.
    """
    of_branch = {value: skip.index for skip in graph.skips for value in skip.branches}
    of_source = {skip.source: skip.index for skip in graph.skips}

    def leave(value: int, path: int) -> int | None:
        skip = of_branch.get(value)
        return path if skip is None or skip in paths[path] else None

    def enter(value: int, to: int, path: int) -> bool:
        skip = of_source.get(to)
        return skip is None or (of_branch.get(value) == skip) == (skip in paths[path])

    return _sweep(cuts, range(len(paths)), leave, enter)


def _sweep(
    cuts: Cuts, keys: Sequence[int], leave: Callable[[int, int], int | None], enter: Callable[[int, int, int], bool]
) -> dict[int, Gradients]:
    """Send gradients back from cut to cut, each under a key.

    `leave(value, key)` is the key under which one is sent on from a value, None if it ends there, and
    `enter(value, to, key)` whether what was sent from a value counts at the one it comes to.
    """
    found: dict[int, Gradients] = {}
    for value, gradient in cuts.push_loss().items():
        kept = {key: gradient for key in keys if enter(_LOSS, value, key)}
        if kept:
            found[value] = kept
    for value in sorted(cuts.made, reverse=True):
        here = found.get(value) if value in cuts.starts else found.pop(value, None)
        sent = {
            key: gradient for old, gradient in (here or {}).items() if (key := leave(value, old)) is not None
        }  # fmt: skip
        for to, parts in cuts.push(value, list(sent.values())).items():
            there = found.setdefault(to, {})
            for key, part in zip(sent, parts, strict=True):
                if enter(value, to, key):
                    there[key] = there[key] + part if key in there else part
    return {value: found[value] for value in cuts.starts if found.get(value)}


def in_series(graph: SkipGraph) -> bool:
    """Whether the skips follow one another, each from a source that it alone reads: none nested or side by side."""
    end = -1
    for skip in sorted(graph.skips, key=lambda skip: skip.merge):
        if skip.source < end or "elsewhere" in ways_out(graph, skip).values():
            return False
        end = graph.trace.operations[skip.merge].results[0]
    return bool(graph.skips)


def draw_paths(n: int, draws: int, seed: int) -> list[frozenset[int]]:
    """For each length from 0 to n, `draws` random sets of that many of n skips: those whose branch the path takes."""
    generator = random.Random(seed)
    return [frozenset(generator.sample(range(n), length)) for length in range(n + 1) for _ in range(draws)]
