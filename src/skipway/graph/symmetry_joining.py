"""Layouts of reshaped, concatenated and padded tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from skipway.graph.symmetry_layout import (
    LARGEST_GRID,
    Factor,
    Layout,
    Store,
    below,
    coarsen,
    cover,
    groups_of,
    merge,
    only_along,
    spread,
)


def axis_groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[range, range]]:
    """The shortest runs of axes that a reshape turns into one another."""
    groups = []
    i = j = 0
    while i < len(old) or j < len(new):
        start = (i, j)
        one = other = 1
        if i < len(old):
            one, i = old[i], i + 1
        if j < len(new):
            other, j = new[j], j + 1
        while one != other:
            if one < other:
                one, i = one * old[i], i + 1
            else:
                other, j = other * new[j], j + 1
        groups.append((range(start[0], i), range(start[1], j)))
    return groups


def reshape(units: Store, layout: Layout, shape: tuple[int, ...], operation: int, why: str) -> Layout:
    """Read the elements, in their order, into another shape."""
    if layout.shape == shape:
        return layout
    if math.prod(shape) == 0:
        return only_along(units, Layout(shape), (), operation, why)
    groups = axis_groups(layout.shape, shape)
    group_of = {axis: number for number, (before, _) in enumerate(groups) for axis in before}
    for factor in layout.factors:
        # A unit at many positions is spelled out at each of them: where these are too many, whole blocks move.
        involved = {group_of[axis] for axis in factor.axes}
        if len(involved) > 1 and math.prod(layout.shape[a] for g in involved for a in groups[g][0]) > LARGEST_GRID:
            first = groups[group_of[factor.axes[0]]][0]
            layout = coarsen(units, layout, factor, list(first), operation, why)
    uniform = set[int]()
    for before, after in groups:
        varied = [axis for axis in before if layout.shape[axis] > 1]
        if varied and all(axis in layout.uniform for axis in varied):
            uniform.update(axis for axis in after if shape[axis] > 1)
    moved = [(factor, _spelled(factor, layout, shape, groups, uniform)) for factor in layout.factors]
    for old, new in moved:
        if not new.axes:
            units.lost(old.ids)
    made = []
    for _, members in groups_of([new for _, new in moved if new.axes]):
        old = [one for one, new in moved if new in members]
        whole = members[0] if len(members) == 1 else None
        if whole is None:
            crossing = _crossed(units, old, layout, operation, why)
            whole = None if crossing is None else _spelled(crossing, layout, shape, groups, uniform)
        if whole is not None:
            made.append(whole)
    return Layout(shape, tuple(made), frozenset(uniform))


def _crossed(units: Store, factors: Sequence[Factor], layout: Layout, operation: int, why: str) -> Factor | None:
    """New units for the crossings of units of several kinds, which a reshape brings onto one axis."""
    axes = tuple(sorted({axis for factor in factors for axis in factor.axes}))
    grid = tuple(layout.shape[axis] for axis in axes)
    if math.prod(grid) > LARGEST_GRID:
        for factor in factors:
            units.pin(factor.ids, operation, why)
        return None
    fine = Factor(axes, units.fresh(grid))
    for factor in factors:
        below(units, fine, factor)
    return fine


def _spelled(
    factor: Factor, layout: Layout, shape: tuple[int, ...], groups: list[tuple[range, range]], uniform: set[int]
) -> Factor:
    """A factor at every position of the axes that are reshaped with its own, without axes that it does not need."""
    involved = [(before, after) for before, after in groups if any(axis in before for axis in factor.axes)]
    before = tuple(axis for old, _ in involved for axis in old)
    axes = tuple(axis for _, new in involved for axis in new)
    ids = np.broadcast_to(spread(factor.ids, factor.axes, before), tuple(layout.shape[axis] for axis in before))
    ids = ids.reshape([shape[axis] for axis in axes])
    added = [axis for axis in before if axis not in factor.axes and layout.shape[axis] > 1]
    once = factor.copies or len(np.unique(factor.ids)) == factor.ids.size
    copies = once and all(axis in layout.uniform for axis in added) if added else factor.copies
    for axis in axes:
        dim = axes.index(axis)
        first = ids.take([0], dim)
        if (ids == first).all():
            if ids.shape[dim] > 1 and copies:
                uniform.add(axis)
            ids = first.squeeze(dim)
            axes = axes[:dim] + axes[dim + 1 :]
    ids = np.ascontiguousarray(ids)
    return Factor(axes, ids, copies and len(np.unique(ids)) < ids.size)


def concatenate(units: Store, parts: Sequence[Layout], axis: int, operation: int, why: str) -> Layout:
    """Put tensors beside each other along an axis."""
    rank = len(parts[0].shape)
    total = sum(part.shape[axis] for part in parts)
    shape = tuple(total if a == axis else size for a, size in enumerate(parts[0].shape))
    joined = {axis}
    while True:
        touching = [f for part in parts for f in part.factors if joined & set(f.axes)]
        wider = joined.union(*(f.axes for f in touching))
        if wider == joined:
            break
        joined = wider
    across = [
        Layout(_with(part.shape, axis, 1), tuple(f for f in part.factors if not joined & set(f.axes)),
               part.uniform - {axis} if axis in part.uniform else part.uniform)
        for part in parts
    ]  # fmt: skip
    if not touching:
        found = merge(units, across, _with(shape, axis, 1), operation, why)
        return Layout(shape, found.factors, found.uniform - {axis})
    axes = tuple(sorted(joined))
    hidden = [Layout(_with_all(part.shape, axes), part.factors, part.uniform) for part in across]
    rest = merge(units, hidden, _with_all(shape, axes), operation, why)
    pieces = []
    for part in parts:
        members = [f for f in part.factors if joined & set(f.axes)]
        loose = {a for a in axes if a in part.loose()}
        grid = tuple(part.shape[a] for a in axes)
        if not members:
            ids = units.unknown(grid, operation, why) if loose else units.blank(grid, zero=False)
            pieces.append(ids)
            continue
        found = cover(units, members, axes, part.shape, loose, operation, why)
        pieces.append(units.unknown(grid, operation, why) if found is None else found.ids)
    ids = np.concatenate(pieces, axes.index(axis))
    for piece in pieces:
        units.slot(piece)
    if len(axes) > 1:
        whole = np.arange(ids.size).reshape(ids.shape)
        start = 0
        for piece in pieces:
            stop = start + piece.shape[axes.index(axis)]
            units.take(ids, piece, whole.take(np.arange(start, stop), axes.index(axis)))
            start = stop
    assert rank == len(shape)
    return Layout(shape, (*rest.factors, Factor(axes, ids)), rest.uniform - joined)


def _with(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _with_all(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(1 if a in axes else size for a, size in enumerate(shape))


def pad_constant(units: Store, layout: Layout, axis: int, before: int, after: int, zero: bool) -> Layout:
    """Put positions of one and the same number around an axis."""
    shape = _with(layout.shape, axis, layout.shape[axis] + before + after)
    factors = []
    for factor in layout.factors:
        if axis in factor.axes:
            dim = factor.axes.index(axis)
            grids = [_with(factor.ids.shape, dim, n) for n in (before, after)]
            blanks = [units.blank(grid, zero) for grid in grids]
            ids = np.concatenate([blanks[0], factor.ids, blanks[1]], dim)
            for blank in blanks:
                units.slot(blank)
            if factor.ids.ndim > 1:
                inside = (
                    np.arange(ids.size).reshape(ids.shape).take(np.arange(before, before + layout.shape[axis]), dim)
                )
                units.take(ids, factor.ids, inside)
            factor = Factor(factor.axes, ids)
        factors.append(factor)
    return Layout(shape, tuple(factors), layout.uniform - {axis})
