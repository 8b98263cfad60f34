"""The group of permutations that respects all that was said about units.

It has a simple form: permutations of a forest, in which the units below one parent that look alike may be exchanged. A
unit with two parents that cross (a query's row: its head, and the key's row it meets) is placed by the two. Whatever
does not fit that form is pinned, so that nothing is claimed that does not hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from skipway.graph.symmetry_units import Hash, Ids, Units, added, components, mixed, ranks

_DEEPEST = 64


@dataclass(frozen=True)
class Forest:
    """A group of permutations of units, as a forest whose alike siblings may be exchanged.

    `root` maps every unit to the one that stands for it; `parent` is -1 at the top; siblings of equal `look` form a
    class; units of equal `orbit` can be moved to one another. A unit with `pair[0] >= 0` does not move by itself: it is
    wherever its two coordinates are.
    """

    root: Ids
    parent: Ids
    look: Hash
    pair: tuple[Ids, Ids]
    depth: Ids
    atoms: Ids
    orbit: Hash

    def classes(self) -> tuple[list[Ids], Ids]:
        """The classes of at least two units that may be exchanged, and for each atom the number of its class or -1."""
        order = np.lexsort((self.look[self.atoms], self.parent[self.atoms]))
        atoms = self.atoms[order]
        number = np.full(len(self.root), -1)
        if not len(atoms):
            return [], number
        new = (self.parent[atoms][1:] != self.parent[atoms][:-1]) | (self.look[atoms][1:] != self.look[atoms][:-1])
        groups = [group for group in np.split(atoms, np.flatnonzero(new) + 1) if len(group) > 1]
        for index, group in enumerate(groups):
            number[group] = index
        return groups, number

    def random(self, generator: np.random.Generator) -> Ids:
        """A uniformly drawn element of the group: where each unit's representative moves."""
        moved = np.arange(len(self.root))
        for level in range(int(self.depth.max(initial=0)) + 1):
            atoms = self.atoms[self.depth[self.atoms] == level]
            parent = self.parent[atoms]
            goal = np.where(parent >= 0, moved[parent], -1)
            source = np.lexsort((generator.permutation(len(atoms)), self.look[atoms], goal))
            target = np.lexsort((self.look[atoms], parent))
            moved[atoms[source]] = atoms[target]
        return moved

    def address(self, ids: Ids) -> list[Ids]:
        """The atoms that place each entry of an array of units: its own, or the coordinates of a pair (-1 for none)."""
        at = self.root[ids.ravel()]
        first, second = self.pair[0][at], self.pair[1][at]
        paired = first >= 0
        if not paired.any():
            return [at]
        made = [np.where(paired, -1, at)]
        for coordinate in (first, second):
            inner = self.address(coordinate[paired])
            for part in inner:
                column = np.full(len(at), -1)
                column[paired] = part
                made.append(column)
        return made


def resolve(units: Units) -> Forest:
    """The group: which units are one, which lie below which, and which look alike."""
    return _Resolution(units).forest()


class _Resolution:
    def __init__(self, units: Units):
        self.units = units
        self.n = n = units.n
        self.root = components(n, units.ties)
        self.stuck = np.zeros(n, bool)
        self.merged = True
        self.pair = (np.full(n, -1), np.full(n, -1))
        self.batches: list[Ids] = []
        links = units.links
        self.child = np.concatenate([link[0] for link in links]) if links else np.zeros(0, np.int64)
        self.above = np.concatenate([link[1] for link in links]) if links else np.zeros(0, np.int64)

    def forest(self) -> Forest:
        # Every round merges parents, shortens links or removes children; the bound is a guard against endless rounds.
        for _ in range(_DEEPEST):
            if not self._round():
                break
        else:
            self._give_up(np.concatenate([self.child, self.above]))
        one, other = (np.where(side >= 0, self.root[side], -1) for side in self.pair)
        self.pair = (one, other)
        parent = np.full(self.n, -1)
        parent[self.child] = self.above
        depth = self._depths(parent)
        if depth.max(initial=0) >= _DEEPEST:
            self._give_up(np.concatenate([self.child, self.above]))
            parent[:], depth[:] = -1, 0
        colour = self._colours()
        paired = np.concatenate([*self.batches, np.zeros(0, np.int64)])
        colour = self._push_down(colour)
        present = np.zeros(self.n, bool)
        present[self.root] = True
        present[paired] = False
        atoms = np.flatnonzero(present)
        look, orbit = self._looks(colour, parent, depth, atoms)
        broken = self._broken(colour, orbit, paired)
        if len(broken):
            colour[broken] += mixed(broken, 77)
            look, orbit = self._looks(colour, parent, depth, atoms)
        return Forest(self.root, parent, look, self.pair, depth, atoms, orbit)

    def _links(self) -> None:
        """Links between representatives, each once, sorted by child and then by how many children the parent has."""
        self.child, self.above = self.root[self.child], self.root[self.above]
        apart = self.child != self.above
        keys = np.unique(self.child[apart] * self.n + self.above[apart]) if self.n else np.zeros(0, np.int64)
        self.child, self.above = np.divmod(keys, max(self.n, 1))
        self.size = np.bincount(self.above, minlength=self.n)
        order = np.lexsort((self.above, self.size[self.above], self.child))
        self.child, self.above = self.child[order], self.above[order]

    def _round(self) -> bool:
        self._links()
        if not len(self.child):
            return False
        if self._merge_equal_parents():
            return True
        if self.merged:
            self.merged = False
            if self._part_roles():
                return True
        return self._untangle()

    def _part_roles(self) -> bool:
        """Give up children that lie below two units of one family: which of the two plays which part is not kept.

        So it is with x x^T, whose entries lie below a row in one part and below a row in another.
        """
        links = self.units.links
        child, above = (self.root[np.concatenate([link[k] for link in links])] for k in (0, 1))
        start = np.concatenate([np.full(len(link[1]), link[1][0]) for link in links if len(link[1])])
        family = components(self.n, [(above, self.root[start])])
        child, above = np.divmod(np.unique(child * self.n + above), self.n)
        apart = child != above
        child, above = child[apart], above[apart]
        order = np.lexsort((family[above], child))
        child, above = child[order], above[order]
        again = np.flatnonzero((child[1:] == child[:-1]) & (family[above[1:]] == family[above[:-1]]))
        found = np.unique(np.concatenate([child[again], above[again], above[again + 1]]))
        if self.stuck[found].all():
            return False
        self._give_up(found)
        return True

    def _merge_equal_parents(self) -> bool:
        """Parents with the same children are one: what moves the children moves both."""
        parents = np.unique(self.above)
        known = added(self.above, mixed(self.child, 11), self.n)[parents]
        order = np.argsort(known, kind="stable")
        same = known[order][1:] == known[order][:-1]
        if not same.any():
            return False
        self.root = components(self.n, [(parents[order][1:][same], parents[order][:-1][same])], self.root)
        self.merged = True
        return True

    def _untangle(self) -> bool:
        """Give every child one parent: chains where parents nest, pairs where two cross, pins otherwise."""
        first, second = [], []
        for step in range(1, len(self.child)):
            same = self.child[step:] == self.child[:-step]
            if not same.any():
                break
            first.append(np.flatnonzero(same))
            second.append(np.flatnonzero(same) + step)
        if not first:
            return False
        a, b = np.concatenate(first), np.concatenate(second)
        small, large = self.above[a], self.above[b]
        keys, inverse, counts = np.unique(small * self.n + large, return_inverse=True, return_counts=True)
        nested = (counts == self.size[keys // self.n])[inverse]
        if nested.any():
            keep = np.ones(len(self.child), bool)
            keep[b[nested]] = False
            self.child = np.concatenate([self.child[keep], small[nested]])
            self.above = np.concatenate([self.above[keep], large[nested]])
            return True
        crossing = np.unique(self.child[a])
        counts = np.bincount(self.child, minlength=self.n)
        # The lowest first: a unit that others lie below is done when these are.
        below = ~np.isin(crossing, self.above)
        if not below.any():
            self._give_up(np.concatenate([crossing, self.above[np.isin(self.child, crossing)]]))
            return True
        crossing = crossing[below]
        two = crossing[counts[crossing] == 2]
        more = crossing[counts[crossing] > 2]
        if len(more):
            mine = np.isin(self.child, more)
            self._give_up(np.concatenate([more, self.above[mine]]))
            return True
        at = np.searchsorted(self.child, two)
        self._pair(two, self.above[at], self.above[at + 1])
        return True

    def _pair(self, children: Ids, first: Ids, second: Ids) -> None:
        """Children that lie at the crossings of two families: each gets its two coordinates, where the grid is full."""
        group = components(self.n, [(first, second)])
        edges = np.unique(first * self.n + second)
        block, n_edges = np.unique(group[edges // self.n], return_counts=True)
        rows, columns = np.unique(first), np.unique(second)
        n_rows, n_columns = (np.bincount(group[side], minlength=self.n)[block] for side in (rows, columns))
        full = n_edges == n_rows * n_columns
        if np.intersect1d(rows, columns).size:
            full[:] = False
        good = np.isin(group[first], block[full])
        if not good.all():
            self._give_up(np.concatenate([children[~good], first[~good], second[~good]]))
        kept = ~np.isin(self.child, children)
        self.child, self.above = self.child[kept], self.above[kept]
        self.pair[0][children[good]], self.pair[1][children[good]] = first[good], second[good]
        self.batches.append(children[good])
        if full.sum() > 1:
            self._keep_together(first[good], second[good])

    def _keep_together(self, first: Ids, second: Ids) -> None:
        """Coordinates of one grid move to coordinates of one grid: what stands above them gets a unit above it."""
        up = np.arange(self.n)
        single = np.bincount(self.child, minlength=self.n)[self.child] == 1
        up[self.child[single]] = self.above[single]
        members, place = np.unique(np.concatenate([first, second]), return_inverse=True)
        one, other = place[: len(first)], place[len(first) :]
        top, grid = members.copy(), members
        for _ in range(_DEEPEST):
            grid = components(self.n, [(top[one], top[other])])[top]
            higher = up[top]
            over = np.unique(np.stack([higher, grid])[:, higher != top], axis=1)[0]
            climbs = (higher != top) & ~np.isin(higher, over[1:][over[1:] == over[:-1]])
            if not climbs.any():
                break
            top[climbs] = higher[climbs]
        pairs = np.unique(np.stack([grid, top]), axis=1)
        grids, counts = np.unique(pairs[0], return_counts=True)
        several = grids[counts > 1]
        kept = np.isin(pairs[0], several)
        tops = self.n + np.searchsorted(several, pairs[0][kept])
        self._grow(len(several))
        self.child = np.concatenate([self.child, pairs[1][kept]])
        self.above = np.concatenate([self.above, tops])

    def _grow(self, more: int) -> None:
        self.root = np.concatenate([self.root, np.arange(self.n, self.n + more)])
        self.stuck = np.concatenate([self.stuck, np.zeros(more, bool)])
        self.pair = (
            np.concatenate([self.pair[0], np.full(more, -1)]),
            np.concatenate([self.pair[1], np.full(more, -1)]),
        )
        self.n += more

    def _give_up(self, units: Ids) -> None:
        """Pin units and all that they lie below, so that nothing more needs to be known about them."""
        stuck = self.stuck
        stuck[units] = True
        while True:
            climbs = stuck[self.child] & ~stuck[self.above]
            if not climbs.any():
                break
            stuck[self.above[climbs]] = True
        kept = ~stuck[self.child]
        self.child, self.above = self.child[kept], self.above[kept]

    def _depths(self, parent: Ids) -> Ids:
        depth = np.zeros(self.n, np.int64)
        at = parent.copy()
        while (at >= 0).any() and depth.max(initial=0) < _DEEPEST:
            depth[at >= 0] += 1
            at = np.where(at >= 0, parent[at], -1)
        return depth

    def _colours(self) -> Hash:
        """What is true of each unit by itself: where it stands, how often, and with which labels."""
        where, what = [], []
        number = 0
        for ids in self.units.slots.values():
            number += 1
            at = self.root[ids.ravel()]
            where.append(at)
            what.append(np.broadcast_to(mixed(number, 1), at.shape))
        for ids, labels in self.units.labels:
            number += 1
            at = self.root[ids]
            where.append(at)
            what.append(mixed(number, labels, self._ranks(at), 2))
        for source, made, positions in self.units.takes:
            number += 1
            before = self.root[source]
            rank = self._ranks(before)
            if np.ndim(rank):
                at = self.root[made]
                where.append(at)
                what.append(mixed(number, rank[positions], self._ranks(at), 3))
        for source, made, positions in self.units.copied:
            number += 1
            before = self.root[source]
            if len(np.unique(before)) < len(np.unique(source)):
                # Units that became one hold different numbers still: which of them it is must not change.
                known, first = np.unique(source, return_index=True)
                turn = np.argsort(first)
                which = np.empty(len(known), np.int64)
                which[turn] = ranks(self.root[known[turn]])
                part = which[np.searchsorted(known, source)]
                at = self.root[made]
                where += [before, at]
                what += [
                    mixed(number, part, self._ranks(before), 8),
                    mixed(number, part[positions], self._ranks(at), 9),
                ]
        at = np.unique(self.root[np.flatnonzero(self.stuck)])
        where.append(at)
        what.append(mixed(at, 4))
        return added(np.concatenate(where), np.concatenate(what), self.n)

    def _ranks(self, at: Ids) -> Any:
        return 0 if len(np.unique(at)) == len(at) else ranks(at)

    def _push_down(self, colour: Hash) -> Hash:
        """Let coordinates take the colours of what they place; the first batches lie lowest."""
        for batch in self.batches:
            for coordinate in self.pair:
                colour = colour + added(coordinate[batch], mixed(colour[batch], 5), self.n)
        return colour

    def _looks(self, colour: Hash, parent: Ids, depth: Ids, atoms: Ids) -> tuple[Hash, Hash]:
        """For each unit a hash of all that lies below it, and one of all that lies below and above."""
        look = colour.copy()
        for level in range(int(depth[atoms].max(initial=0)), -1, -1):
            here = atoms[depth[atoms] == level]
            look[here] = mixed(look[here], 6)
            if level:
                np.add.at(look, parent[here], mixed(look[here], 7))
        orbit = look.copy()
        for level in range(1, int(depth[atoms].max(initial=0)) + 1):
            here = atoms[depth[atoms] == level]
            orbit[here] = mixed(look[here], orbit[parent[here]])
        for batch in reversed(self.batches):
            orbit[batch] = mixed(orbit[self.pair[0][batch]], orbit[self.pair[1][batch]])
        return look, orbit

    def _broken(self, colour: Hash, orbit: Hash, paired: Ids) -> Ids:
        """Coordinates of pairs that look different though their coordinates look alike, or that are not told apart."""
        if not len(paired):
            return paired
        first, second = self.pair[0][paired], self.pair[1][paired]
        edges, edge = np.unique(first * self.n + second, return_inverse=True)
        content = added(edge, mixed(colour[paired]), len(edges))
        first, second = np.divmod(edges, self.n)
        kind = mixed(orbit[first], orbit[second])
        order = np.lexsort((content, kind))
        same = kind[order][1:] == kind[order][:-1]
        differ = same & (content[order][1:] != content[order][:-1])
        bad = np.isin(kind, kind[order][1:][differ])
        edge_of = np.full(self.n, -1)
        edge_of[paired] = edge
        for ids in self.units.slots.values():
            at = np.unique(self.root[ids.ravel()])
            mine = edge_of[at]
            mine, counts = np.unique(mine[mine >= 0], return_counts=True)
            bad[mine[counts > 1]] = True
        broken = np.unique(np.concatenate([first[bad], second[bad]]))
        while (self.pair[0][broken] >= 0).any():
            inner = self.pair[0][broken] >= 0
            broken = np.unique(np.concatenate([broken[~inner], *(side[broken[inner]] for side in self.pair)]))
        return broken
