"""Units and what was said about them.

A unit is what a permutation moves: a channel, a hidden neuron, a head, a group. Rules (in `symmetry_rules`) make units
and say how they hang together; `symmetry_forest` finds the group of permutations that respects all of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Hash = NDArray[np.uint64]


def mixed(*parts: Any) -> Hash:
    """A 64-bit hash of whole numbers, element by element (SplitMix64's finaliser)."""
    total = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            total = (
                total * np.uint64(0x9E3779B97F4A7C15)
                + np.asarray(part).astype(np.uint64)
                + np.uint64(0x632BE59BD9B4E019)
            )
            total = (total ^ (total >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            total = (total ^ (total >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total = total ^ (total >> np.uint64(31))
    return np.asarray(total)


def added(where: Ids, what: Hash, n: int) -> Hash:
    total = np.zeros(n, np.uint64)
    np.add.at(total, where, what)
    return total


def ranks(ids: Ids) -> Ids:
    """Which occurrence of its number each entry of a flat array is: 0 for the first, in order."""
    order = np.argsort(ids, kind="stable")
    ordered = ids[order]
    fresh = np.r_[True, ordered[1:] != ordered[:-1]] if len(ids) else np.zeros(0, bool)
    starts = np.maximum.accumulate(np.where(fresh, np.arange(len(ids)), 0)) if len(ids) else order
    found = np.empty(len(ids), np.int64)
    found[order] = np.arange(len(ids)) - starts
    return found


def components(n: int, pairs: list[tuple[Ids, Ids]], root: Ids | None = None) -> Ids:
    """The smallest number in the class of each of 0..n-1 when the given pairs are made equal."""
    root = np.arange(n) if root is None else root.copy()
    if not pairs:
        return root
    one = np.concatenate([pair[0] for pair in pairs])
    other = np.concatenate([pair[1] for pair in pairs])
    while True:
        one, other = root[one], root[other]
        apart = one != other
        if not apart.any():
            return root
        one, other = one[apart], other[apart]
        np.minimum.at(root, np.maximum(one, other), np.minimum(one, other))
        while True:
            shorter = root[root]
            if (shorter == root).all():
                break
            root = shorter


class Units:
    """Everything the rules said about units, in the order in which they said it.

    An array of units is an axis (or several) of a tensor. A permutation of units moves the k-th position that holds a
    unit to the k-th position that holds the unit's image; what is recorded here is what makes that one and the same
    permutation in all tensors.
    """

    def __init__(self) -> None:
        self.n = 0
        self.ties: list[tuple[Ids, Ids]] = []
        self.links: list[tuple[Ids, Ids]] = []
        self.labels: list[tuple[Ids, Ids]] = []
        self.takes: list[tuple[Ids, Ids, Ids]] = []
        self.copied: list[tuple[Ids, Ids, Ids]] = []
        self.slots: dict[int, Ids] = {}
        self.reasons: list[tuple[Ids, int, str]] = []

    def fresh(self, shape: int | tuple[int, ...]) -> Ids:
        """New units, free as yet."""
        size = int(np.prod(shape))
        made = np.arange(self.n, self.n + size).reshape(shape)
        self.n += size
        return made

    def blank(self, shape: tuple[int, ...], zero: bool) -> Ids:
        """Units of positions that all hold the same number, such as padding."""
        return self.fresh(shape)

    def unknown(self, shape: tuple[int, ...], operation: int, why: str) -> Ids:
        """Units of positions that keep their order."""
        made = self.fresh(shape)
        self.pin(made, operation, why)
        return made

    def slot(self, ids: Ids) -> None:
        """An axis of some tensor holds these units: a permutation must take that set of units to itself."""
        self.slots.setdefault(id(ids), ids)

    def lost(self, ids: Ids) -> None:
        """One unit that a whole tensor holds: it says nothing about the order of positions."""

    def tie(self, one: Ids, other: Ids) -> None:
        """Units that are one and the same, index by index."""
        if one is not other:
            self.ties.append((one.ravel(), other.ravel()))

    def relate(self, children: Ids, parents: Ids, at: Ids, free: bool = False) -> None:
        """Each child moves to a child of the unit to which its parent moves; child k lies below `parents[at[k]]`.

        With `free` it does not matter to which of several positions of one and the same parent it goes: all of them
        hold the same number.
        """
        children, at = np.broadcast_arrays(children, at)
        children, at, parents = children.ravel(), at.ravel(), parents.ravel()
        self.links.append((children, parents[at]))
        (self.copied if free else self.takes).append((parents, children, at))

    def label(self, ids: Ids, labels: Ids, operation: int, why: str) -> None:
        """Units may only be exchanged where their labels agree."""
        ids, labels = np.broadcast_arrays(ids, labels)
        self.labels.append((ids.ravel(), labels.ravel()))
        self.reasons.append((ids.ravel(), operation, why))

    def pin(self, ids: Ids, operation: int, why: str) -> None:
        """Units that stay where they are."""
        flat = ids.ravel()
        self.labels.append((flat, np.arange(len(flat))))
        self.reasons.append((flat, operation, why))

    def take(self, source: Ids, made: Ids, positions: Ids) -> None:
        """`made` holds what `source` holds at `positions` (flat indices)."""
        self.takes.append((source.ravel(), made.ravel(), positions.ravel()))
