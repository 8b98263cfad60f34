"""Scales of units: unknown logarithms, what makes them equal, opposite or one, and what they are then."""

from __future__ import annotations

import numpy as np

from skipway.graph.symmetry_units import Ids, components

Solution = tuple[Ids, Ids, list[tuple[Ids, Ids, Ids]]]


class Scales:
    """Logarithms of scales, as unknowns 2, 4, 6, ... with their negatives 3, 5, 7, ...; 0 and 1 are the scale one."""

    def __init__(self) -> None:
        self.n = 2
        self._ties: list[tuple[Ids, Ids]] = [(np.array([0]), np.array([1]))]
        self._sums: list[tuple[Ids, Ids, Ids]] = []

    def fresh(self, shape: int | tuple[int, ...]) -> Ids:
        size = int(np.prod(shape))
        made = self.n + 2 * np.arange(size).reshape(shape)
        self.n += 2 * size
        return made

    def blank(self, shape: tuple[int, ...], zero: bool) -> Ids:
        return self.fresh(shape) if zero else np.zeros(shape, np.int64)

    def unknown(self, shape: tuple[int, ...], operation: int, why: str) -> Ids:
        return np.zeros(shape, np.int64)

    def tie(self, one: Ids, other: Ids) -> None:
        if one is not other:
            one, other = (np.ascontiguousarray(ids).ravel() for ids in np.broadcast_arrays(one, other))
            self._ties += [(one, other), (one ^ 1, other ^ 1)]

    def relate(self, children: Ids, parents: Ids, at: Ids, free: bool = False) -> None:
        """Units that cross others have the sum of several scales, which is not followed: they keep theirs."""
        self.pin(children, -1, "")
        self.pin(parents, -1, "")

    def label(self, ids: Ids, labels: Ids, operation: int, why: str) -> None:
        """Units that meet what has no scale have none either."""
        self.pin(ids, operation, why)

    def pin(self, ids: Ids, operation: int, why: str) -> None:
        self.tie(ids, np.zeros((), np.int64))

    def take(self, source: Ids, made: Ids, positions: Ids) -> None:
        """Positions do not matter to scales."""

    def slot(self, ids: Ids) -> None:
        """Nor does what stands beside them."""

    def lost(self, ids: Ids) -> None:
        """One scale that a whole tensor has is not followed."""
        self.pin(ids, -1, "")

    def add(self, total: Ids, one: Ids, other: Ids) -> None:
        """`total` = `one` + `other`, where `total` is known by nothing else."""
        total, one, other = np.broadcast_arrays(total, one, other)
        self._sums.append((total.ravel(), one.ravel(), other.ravel()))

    def resolve(self) -> tuple[Ids, list[tuple[Ids, Ids, Ids]]]:
        """What each unknown equals, and the sums that remain."""
        root = components(self.n, self._ties)
        while True:
            own = np.arange(0, self.n, 2)
            torn = own[(root[own] == root[own ^ 1]) & (root[own] != 0)]
            more = [(torn, np.zeros_like(torn)), (torn ^ 1, np.zeros_like(torn))] if len(torn) else []
            more += self._conflicts(root)
            if not more:
                return root, self._sums
            root = components(self.n, more, root)

    def _conflicts(self, root: Ids) -> list[tuple[Ids, Ids]]:
        """Totals that are totals twice, or terms too, or one: these are taken to be one, and their terms opposite."""
        if not self._sums:
            return []
        total, one, other = (np.concatenate([sums[k] for sums in self._sums]) for k in range(3))
        absolute = np.minimum(root, root[np.arange(self.n) ^ 1])
        known, counts = np.unique(absolute[total], return_counts=True)
        again = known[counts > 1]
        terms = np.concatenate([absolute[one], absolute[other]])
        bad = np.isin(absolute[total], np.concatenate([again, terms, [0]]))
        found = []
        for left, right in ((total, np.zeros_like(total)), (one, other ^ 1)):
            found += [(left[bad], right[bad]), (left[bad] ^ 1, right[bad] ^ 1)]
        apart = any((root[left] != root[right]).any() for left, right in found)
        return found if apart else []
