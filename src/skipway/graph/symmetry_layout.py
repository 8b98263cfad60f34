"""Where the units of a tensor lie along its axes, and how reshaping, cutting and joining move them.

Both analyses, of permutations and of rescalings, share these: a `Store` says what it means that units are tied,
related, labelled or pinned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from skipway.graph.symmetry_units import Ids

# Grids of units larger than this are not spelled out: they are coarsened, which claims less.
LARGEST_GRID = 1 << 17


@runtime_checkable
class Store(Protocol):
    """What a rule may say about units; see `symmetry_units.Units`."""

    def fresh(self, shape: int | tuple[int, ...]) -> Ids: ...
    def blank(self, shape: tuple[int, ...], zero: bool) -> Ids: ...
    def unknown(self, shape: tuple[int, ...], operation: int, why: str) -> Ids: ...
    def tie(self, one: Ids, other: Ids) -> None: ...
    def relate(self, children: Ids, parents: Ids, at: Ids, free: bool = False) -> None: ...
    def label(self, ids: Ids, labels: Ids, operation: int, why: str) -> None: ...
    def pin(self, ids: Ids, operation: int, why: str) -> None: ...
    def take(self, source: Ids, made: Ids, positions: Ids) -> None: ...
    def slot(self, ids: Ids) -> None: ...
    def lost(self, ids: Ids) -> None: ...


@dataclass(frozen=True, slots=True, eq=False)
class Factor:
    """Units along some axes of a tensor: `ids` has one dimension for each of the (ascending) `axes`.

    `copies` is True where positions that hold the same unit hold the same number (after `expand` or `repeat`).
    """

    axes: tuple[int, ...]
    ids: Ids
    copies: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The units of a tensor. Along an axis in no factor the order stays; along a `uniform` one all are equal."""

    shape: tuple[int, ...]
    factors: tuple[Factor, ...] = ()
    uniform: frozenset[int] = frozenset()

    def at(self, axis: int) -> Factor | None:
        """The factor that has an axis."""
        return next((factor for factor in self.factors if axis in factor.axes), None)

    def loose(self) -> set[int]:
        """The axes along which the tensor varies and no unit lies."""
        taken = {axis for factor in self.factors for axis in factor.axes}
        return {
            axis for axis, size in enumerate(self.shape) if size > 1 and axis not in taken and axis not in self.uniform
        }

    def without(self, factors: Sequence[Factor]) -> Layout:
        return Layout(self.shape, tuple(factor for factor in self.factors if factor not in factors), self.uniform)


def spread(ids: Ids, axes: tuple[int, ...], onto: tuple[int, ...]) -> Ids:
    """Insert axes of size 1, so that `ids` along `axes` broadcasts against a grid along `onto`."""
    sizes = iter(ids.shape)
    return ids.reshape([next(sizes) if axis in axes else 1 for axis in onto])


def positions(shape: tuple[int, ...], axes: tuple[int, ...], which: set[int]) -> Ids:
    """The position along some of the axes of a grid, as one number."""
    sizes = [shape[axis] if axis in which else 1 for axis in axes]
    return np.arange(math.prod(sizes)).reshape(sizes)


def groups_of(factors: Sequence[Factor]) -> Iterator[tuple[tuple[int, ...], list[Factor]]]:
    """The factors that share axes, together, and those axes."""
    groups: list[tuple[set[int], list[Factor]]] = []
    for factor in factors:
        axes, members = set(factor.axes), [factor]
        for other in [group for group in groups if group[0] & axes]:
            axes |= other[0]
            members = other[1] + members
            groups.remove(other)
        groups.append((axes, members))
    for axes, members in groups:
        yield tuple(sorted(axes)), members


def merge(units: Store, layouts: Sequence[Layout], shape: tuple[int, ...], operation: int, why: str) -> Layout:
    """The layout of an element-wise function of tensors that broadcast to `shape`: units that meet are tied."""
    if len(layouts) == 1 and layouts[0].shape == shape:
        return layouts[0]
    aligned = [shifted(layout, len(shape) - len(layout.shape)) for layout in layouts]
    loose = set().union(*(layout.loose() for layout in aligned))
    made = []
    for axes, members in groups_of([factor for layout in aligned for factor in layout.factors]):
        found = cover(units, members, axes, shape, {axis for axis in axes if axis in loose}, operation, why)
        if found is not None:
            made.append(found)
    taken = {axis for factor in made for axis in factor.axes} | loose
    varied = {axis for layout in aligned for factor in layout.factors for axis in factor.axes}
    uniform = frozenset(
        axis for axis in range(len(shape)) if shape[axis] > 1 and axis not in taken and axis not in varied
    )
    return Layout(shape, tuple(made), uniform)


def shifted(layout: Layout, by: int) -> Layout:
    if not by:
        return layout
    factors = tuple(Factor(tuple(axis + by for axis in f.axes), f.ids, f.copies) for f in layout.factors)
    return Layout((1,) * by + layout.shape, factors, frozenset(axis + by for axis in layout.uniform))


def cover(
    units: Store,
    members: Sequence[Factor],
    axes: tuple[int, ...],
    shape: tuple[int, ...],
    loose: set[int],
    operation: int,
    why: str,
) -> Factor | None:
    """One factor along `axes` for several that meet there, and for the order that `loose` axes keep."""
    whole = [factor for factor in members if factor.axes == axes]
    parts = [factor for factor in members if factor.axes != axes]
    main = next((factor for factor in whole if not factor.copies), None)
    if main is None and whole and not parts and not loose:
        main = whole[0]
    grid = tuple(shape[axis] for axis in axes)
    if main is None:
        if math.prod(grid) > LARGEST_GRID:
            for factor in members:
                units.pin(factor.ids, operation, why)
            return None
        main = Factor(axes, units.fresh(grid))
    for factor in whole:
        if factor is main:
            continue
        if factor.copies == main.copies:
            units.tie(main.ids, factor.ids)
            if main.copies and not _same_copies(main.ids, factor.ids):
                main = Factor(axes, main.ids)
        else:
            below(units, main, factor)
    for factor in parts:
        below(units, main, factor)
    if loose:
        units.label(main.ids, positions(shape, axes, loose), operation, why)
    return main


def _same_copies(one: Ids, other: Ids) -> bool:
    """Whether two arrays of units repeat theirs at the same positions."""
    (_, first), (_, second) = (np.unique(ids, return_inverse=True) for ids in (one, other))
    pairs = np.unique(first.ravel() * one.size + second.ravel())
    return bool(len(pairs) == first.max(initial=-1) + 1 == second.max(initial=-1) + 1)


def below(units: Store, fine: Factor, coarse: Factor) -> None:
    """The units of one factor lie below those of another that has some of its axes."""
    at = np.arange(coarse.ids.size).reshape(coarse.ids.shape)
    units.relate(fine.ids, coarse.ids, spread(at, coarse.axes, fine.axes), free=coarse.copies)


def blocks(units: Store, ids: Ids, keep: tuple[int, ...]) -> Ids:
    """Units for the blocks that an array falls into along some of its dimensions, each above the units in its block."""
    rest = tuple(axis for axis in range(ids.ndim) if axis not in keep)
    kept = tuple(ids.shape[axis] for axis in keep)
    rows = ids.transpose(keep + rest).reshape(math.prod(kept), -1)
    _, number = np.unique(rows, axis=0, return_inverse=True)
    made = units.fresh(int(number.max(initial=-1)) + 1)[number.ravel()]
    units.relate(rows, made, np.arange(len(made))[:, None])
    return made.reshape(kept)


def reduce(units: Store, layout: Layout, dims: Sequence[int], keepdim: bool) -> Layout:
    """Fold axes by a function that does not mind their order (a sum, a mean, a norm)."""
    folded = {dim % len(layout.shape) for dim in dims} if layout.shape else set[int]()
    left = [axis for axis in range(len(layout.shape)) if keepdim or axis not in folded]
    number = {axis: index for index, axis in enumerate(left)}
    factors = []
    for factor in layout.factors:
        keep = tuple(index for index, axis in enumerate(factor.axes) if axis not in folded)
        if not keep:
            continue
        ids = factor.ids if len(keep) == len(factor.axes) else blocks(units, factor.ids, keep)
        factors.append(Factor(tuple(number[factor.axes[index]] for index in keep), ids, factor.copies))
    shape = tuple(1 if axis in folded else layout.shape[axis] for axis in left)
    return Layout(shape, tuple(factors), frozenset(number[axis] for axis in layout.uniform if axis not in folded))


def within(units: Store, layout: Layout, dims: Sequence[int]) -> Layout:
    """A function along some axes that keeps the shape and does not mind their order (a softmax, a normalisation)."""
    reduce(units, layout, dims, keepdim=True)
    return uncopied(layout)


def uncopied(layout: Layout) -> Layout:
    """The layout without the knowledge that positions of one unit hold the same number."""
    factors = tuple(Factor(factor.axes, factor.ids) for factor in layout.factors)
    return Layout(layout.shape, factors, layout.uniform)


def coarsen(units: Store, layout: Layout, factor: Factor, keep: Sequence[int], operation: int, why: str) -> Layout:
    """Let a factor's units move only in whole blocks along the axes `keep`; along its other axes the order stays."""
    kept = tuple(index for index, axis in enumerate(factor.axes) if axis in keep)
    rest = layout.without([factor])
    if not kept:
        units.pin(factor.ids, operation, why)
        return rest
    above = blocks(units, factor.ids, kept)
    others = {axis for axis in factor.axes if axis not in keep}
    units.label(factor.ids, positions(layout.shape, factor.axes, others), operation, why)
    made = Factor(tuple(factor.axes[index] for index in kept), above)
    return Layout(rest.shape, (*rest.factors, made), rest.uniform)


def only_along(units: Store, layout: Layout, axes: Sequence[int], operation: int, why: str) -> Layout:
    """Allow units to move along the given axes alone, each axis by itself."""
    for factor in layout.factors:
        keep = [axis for axis in factor.axes if axis in axes][:1]
        if keep != list(factor.axes):
            layout = coarsen(units, layout, factor, keep, operation, why)
    return layout


def permute(units: Store, layout: Layout, order: Sequence[int]) -> Layout:
    """Put axes in another order: axis `order[k]` becomes axis k."""
    order = [axis % len(order) for axis in order]
    number = {axis: index for index, axis in enumerate(order)}
    factors = []
    for factor in layout.factors:
        moved = [number[axis] for axis in factor.axes]
        turn = sorted(range(len(moved)), key=moved.__getitem__)
        ids = factor.ids
        if turn != list(range(len(moved))):
            ids = ids.transpose(turn)
            units.take(factor.ids, ids, np.arange(ids.size).reshape(factor.ids.shape).transpose(turn))
        factors.append(Factor(tuple(sorted(moved)), ids, factor.copies))
    shape = tuple(layout.shape[axis] for axis in order)
    return Layout(shape, tuple(factors), frozenset(number[axis] for axis in layout.uniform))


def take(units: Store, layout: Layout, axis: int, chosen: Ids, operation: int, why: str) -> Layout:
    """Keep the given positions of an axis, in their order."""
    factors = []
    for factor in layout.factors:
        if axis in factor.axes:
            dim = factor.axes.index(axis)
            ids = factor.ids.take(chosen, dim)
            units.take(factor.ids, ids, np.arange(factor.ids.size).reshape(factor.ids.shape).take(chosen, dim))
            if len(chosen) == 1:
                # A unit that is picked by itself is not like the others any more.
                ids = ids.squeeze(dim)
                if not ids.ndim:
                    units.pin(ids, operation, why)
                    continue
            axes = tuple(other for other in factor.axes if other != axis or len(chosen) > 1)
            factor = Factor(axes, ids, factor.copies)
        factors.append(factor)
    shape = (*layout.shape[:axis], len(chosen), *layout.shape[axis + 1 :])
    return Layout(shape, tuple(factors), layout.uniform)


def squeeze(layout: Layout, axis: int) -> Layout:
    """Drop an axis of size 1."""
    factors = tuple(Factor(tuple(a - (a > axis) for a in f.axes), f.ids, f.copies) for f in layout.factors)
    uniform = frozenset(other - (other > axis) for other in layout.uniform if other != axis)
    return Layout((*layout.shape[:axis], *layout.shape[axis + 1 :]), factors, uniform)


def expand(layout: Layout, shape: tuple[int, ...]) -> Layout:
    """Repeat axes of size 1 (and new leading ones), as `expand` does."""
    moved = shifted(layout, len(shape) - len(layout.shape))
    new = {axis for axis, size in enumerate(shape) if size > 1 and moved.shape[axis] == 1}
    return Layout(shape, moved.factors, moved.uniform | new)


def repeat(layout: Layout, axis: int, times: int, each: bool) -> Layout:
    """Repeat along an axis: the whole again and again, or `each` position in turn."""
    if times == 1:
        return layout
    factors = []
    for factor in layout.factors:
        if axis in factor.axes:
            dim = factor.axes.index(axis)
            ids = np.repeat(factor.ids, times, dim) if each else np.concatenate([factor.ids] * times, dim)
            once = factor.copies or len(np.unique(factor.ids)) == factor.ids.size
            factor = Factor(factor.axes, ids, copies=once)
        factors.append(factor)
    uniform = layout.uniform | {axis} if layout.shape[axis] == 1 else layout.uniform
    return Layout(
        (*layout.shape[:axis], layout.shape[axis] * times, *layout.shape[axis + 1 :]), tuple(factors), uniform
    )
