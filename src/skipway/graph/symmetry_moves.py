"""Operations that only move elements, whatever is asked about them: views, cuts, joins, paddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from skipway.graph.ir import Operation, Ref, Trace
from skipway.graph.operations import DROPOUTS
from skipway.graph.symmetry_joining import concatenate, pad_constant, reshape
from skipway.graph.symmetry_layout import Factor, Layout, expand, permute, repeat, squeeze, take
from skipway.graph.symmetry_units import Ids
from skipway.graph.symmetry_walk import Walk


def words(text: str) -> frozenset[str]:
    """The words of a text, as a set."""
    return frozenset(text.split())


RESHAPES = words(
    """view reshape flatten unflatten squeeze unsqueeze contiguous clone to type type_as float half bfloat16 double cpu
    cuda view_as reshape_as ravel alias _to_copy _unsafe_view detach data requires_grad lift_fresh positive atleast_1d
    atleast_2d atleast_3d"""
)
_EXPANDS = frozenset(("expand", "expand_as", "broadcast_to"))
_TURNS = words("permute transpose t T mT swapaxes swapdims movedim moveaxis adjoint")
_CUTS = words("chunk unsafe_chunk split unsafe_split split_with_sizes tensor_split")


class Moves(Walk):
    """A walk that knows how elements move."""

    def _find(self, name: str) -> Callable[[Operation], bool]:
        for names, rule in ((RESHAPES, self.reshaped), (_EXPANDS, self.expanded), (_TURNS, self.turned),
                            (_CUTS, self.cut), (DROPOUTS, self.same)):  # fmt: skip
            if name in names:
                return rule
        return super()._find(name)

    def same(self, operation: Operation) -> bool:
        return self.result(operation, self.layout(operation.operands[0]))

    def reshaped(self, operation: Operation) -> bool:
        before, shape = self.layout(operation.operands[0]), self.shape(operation)
        if np.prod(before.shape) != np.prod(shape) or (operation.name == "alias" and before.shape != shape):
            return False
        if operation.name == "alias" and len(operation.operands) > 1:
            return False
        return self.result(operation, reshape(self.units, before, shape, operation.index, operation.name))

    def expanded(self, operation: Operation) -> bool:
        return self.result(operation, expand(self.layout(operation.operands[0]), self.shape(operation)))

    def turned(self, operation: Operation) -> bool:
        before = self.layout(operation.operands[0])
        order = _turned(operation, len(before.shape))
        return order is not None and self.result(operation, permute(self.units, before, order))

    def on_repeat(self, operation: Operation) -> bool:
        before = self.layout(operation.operands[0])
        times = flat(operation.args[1:])
        if len(times) < len(before.shape) or not all(type(n) is int for n in times):
            return False
        layout = expand(before, (1,) * (len(times) - len(before.shape)) + before.shape)
        for axis, n in enumerate(times):
            layout = repeat(layout, axis, n, each=False)
        return layout.shape == self.shape(operation) and self.result(operation, layout)

    on_tile = on_repeat

    def on_repeat_interleave(self, operation: Operation) -> bool:
        before = self.layout(operation.operands[0])
        times = operation.kwargs.get("repeats", operation.args[1] if len(operation.args) > 1 else None)
        dim = operation.kwargs.get("dim", operation.args[2] if len(operation.args) > 2 else None)
        if type(times) is not int or type(dim) is not int:
            return False
        return self.result(operation, repeat(before, dim % len(before.shape), times, each=True))

    def cut(self, operation: Operation) -> bool:
        index = operation.operands[0]
        dim = operation.argument(
            "dim", operation.kwargs.get("dim", operation.args[2] if len(operation.args) > 2 else 0)
        )
        rank = len(self.trace.values[index].shape)
        start = 0
        for made in operation.results:
            size = self.trace.values[made].shape[dim % rank]
            self.set(made, self.part(operation, index, dim % rank, np.arange(start, start + size)))
            start += size
        return start == self.trace.values[index].shape[dim % rank]

    def part(self, operation: Operation, index: int, axis: int, chosen: Ids) -> Layout:
        """Some positions of an axis of a value."""
        before = self.layout(index)
        if not self.trace.values[index].fed and operation.name not in _CUTS:
            # Rows of a table that this pass does not read may matter in another: they stay.
            factor = before.at(axis)
            missing = np.setdiff1d(np.arange(before.shape[axis]), chosen)
            if factor is not None and len(missing):
                self.units.pin(
                    factor.ids.take(missing, factor.axes.index(axis)), operation.index, "not read in this pass"
                )
        return take(self.units, before, axis, chosen, operation.index, f"{operation.name} picks it")

    def on_unbind(self, operation: Operation) -> bool:
        index = operation.operands[0]
        axis = operation.argument("dim", 0) % len(self.trace.values[index].shape)
        for position, made in enumerate(operation.results):
            self.set(made, squeeze(self.part(operation, index, axis, np.array([position])), axis))
        return True

    def on_select(self, operation: Operation) -> bool:
        index = operation.operands[0]
        shape = self.trace.values[index].shape
        dim, chosen = operation.argument("dim"), operation.argument("index")
        if type(dim) is not int or type(chosen) is not int:
            return False
        axis = dim % len(shape)
        part = self.part(operation, index, axis, np.array([chosen % shape[axis]]))
        return self.result(operation, squeeze(part, axis))

    def on_narrow(self, operation: Operation) -> bool:
        index = operation.operands[0]
        dim, start, length = (operation.argument(name) for name in ("dim", "start", "length"))
        if not all(type(number) is int for number in (dim, start, length)):
            return False
        shape = self.trace.values[index].shape
        axis = dim % len(shape)
        return self.result(
            operation, self.part(operation, index, axis, np.arange(length) + start % max(shape[axis], 1))
        )

    def on_getitem(self, operation: Operation) -> bool:
        index = operation.operands[0]
        given = operation.args[1]
        given = given if isinstance(given, tuple) else (given,)
        if any(isinstance(one, (tuple, list, str)) for one in given) or not isinstance(operation.args[0], Ref):
            return False
        consumed = sum(_consumes(one, self.trace) for one in given)
        rank = len(self.trace.values[index].shape)
        if Ellipsis in given:
            where = given.index(Ellipsis)
            given = (*given[:where], *(slice(None),) * (rank - consumed), *given[where + 1 :])
        else:
            given = (*given, *(slice(None),) * (rank - consumed))
        layout = self.layout(index)
        axis, advanced = 0, []
        for one in given:
            if one is None:
                layout = reshape(
                    self.units, layout, (*layout.shape[:axis], 1, *layout.shape[axis:]), operation.index, "getitem"
                )
                axis += 1
            elif type(one) is int:
                chosen = np.array([one % layout.shape[axis]])
                layout = squeeze(self._slice(operation, index, layout, axis, chosen), axis)
            elif isinstance(one, slice):
                if any(isinstance(part, Ref) for part in (one.start, one.stop, one.step)):
                    return False
                chosen = np.arange(layout.shape[axis])[one]
                if len(chosen) < layout.shape[axis]:
                    layout = self._slice(operation, index, layout, axis, chosen)
                axis += 1
            elif isinstance(one, Ref):
                n = _consumes(one, self.trace)
                advanced.append((axis, n))
                axis += n
            else:
                return False
        if not advanced:
            return layout.shape == self.shape(operation) and self.result(operation, layout)
        return self._gathered(operation, layout, advanced)

    def _slice(self, operation: Operation, index: int, layout: Layout, axis: int, chosen: Ids) -> Layout:
        if layout is self.layouts.get(index) or self.is_raw(index):
            original = self.layout(index)
            if original.shape == layout.shape:
                return self.part(operation, index, axis, chosen)
        return take(self.units, layout, axis, chosen, operation.index, f"{operation.name} picks it")

    def _gathered(self, operation: Operation, layout: Layout, advanced: list[tuple[int, int]]) -> bool:
        """Indexing by tensors: their axes keep their order and become, side by side, those of the indices."""
        first, last = advanced[0][0], advanced[-1][0] + advanced[-1][1]
        if sum(n for _, n in advanced) != last - first:
            return False
        rest = [axis for axis in range(len(layout.shape)) if not first <= axis < last]
        layout = self.fixed_along(operation, layout, range(first, last), "indexed by a tensor")
        shape = self.shape(operation)
        moved = len(shape) - len(layout.shape)
        factors = []
        for factor in layout.factors:
            if not all(axis in rest for axis in factor.axes):
                return False
            factors.append(Factor(tuple(a if a < first else a + moved for a in factor.axes), factor.ids, factor.copies))
        return self.result(operation, Layout(shape, tuple(factors)))

    def on_index_select(self, operation: Operation) -> bool:
        before = self.layout(operation.operands[0])
        dim = operation.argument("dim")
        if type(dim) is not int:
            return False
        layout = self.fixed_along(operation, before, [dim % len(before.shape)], "indexed by a tensor")
        return self.result(operation, Layout(self.shape(operation), layout.factors))

    def on_cat(self, operation: Operation) -> bool:
        parts = [index for index in operation.operands if self.trace.values[index].shape != (0,)]
        dim = operation.argument(
            "dim", operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else 0)
        )
        layouts = [self.layout(index) for index in parts]
        axis = dim % len(layouts[0].shape)
        return self.result(
            operation, concatenate(self.units, layouts, axis, operation.index, "concatenated with what keeps its order")
        )

    def on_stack(self, operation: Operation) -> bool:
        shape = self.shape(operation)
        axis = operation.argument("dim", 0) % len(shape)
        one = (*shape[:axis], 1, *shape[axis + 1 :])
        layouts = [
            reshape(self.units, self.layout(index), one, operation.index, "stack") for index in operation.operands
        ]
        return self.result(operation, concatenate(self.units, layouts, axis, operation.index, "stack"))

    def on_pad(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        amounts, mode = operation.argument("pad"), operation.argument("mode", "constant")
        value = operation.argument("value", None)
        if not isinstance(amounts, tuple) or not all(type(n) is int for n in amounts):
            return False
        for pair in range(len(amounts) // 2):
            axis = len(layout.shape) - 1 - pair
            before, after = amounts[2 * pair], amounts[2 * pair + 1]
            if mode != "constant" and (before or after):
                layout = self.fixed_along(operation, layout, [axis], f"padding by {mode}")
                shape = (*layout.shape[:axis], layout.shape[axis] + before + after, *layout.shape[axis + 1 :])
                layout = Layout(shape, layout.factors, layout.uniform - {axis})
                continue
            if before < 0 or after < 0:
                chosen = np.arange(max(-before, 0), layout.shape[axis] - max(-after, 0))
                layout = take(self.units, layout, axis, chosen, operation.index, "cropping picks it")
            if before > 0 or after > 0:
                layout = pad_constant(self.units, layout, axis, max(before, 0), max(after, 0), zero=not value)
        return layout.shape == self.shape(operation) and self.result(operation, layout)

    on_constant_pad_nd = on_pad

    def on_roll(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dims = flat((operation.argument("dims", ()),))
        if not dims:
            return False
        return self.result(
            operation, self.fixed_along(operation, layout, [d % len(layout.shape) for d in dims], "roll")
        )

    def on_flip(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dims = flat(operation.args[1:]) or flat((operation.kwargs.get("dims", ()),))
        if not dims:
            return False
        return self.result(
            operation, self.fixed_along(operation, layout, [d % len(layout.shape) for d in dims], "flip")
        )

    def on_pixel_shuffle(self, operation: Operation) -> bool:
        before, shape = self.layout(operation.operands[0]), self.shape(operation)
        *lead, channels, height, width = before.shape
        factor, n = shape[-1] // width, len(lead)
        split = (*lead, channels // factor**2, factor, factor, height, width)
        layout = reshape(self.units, before, split, operation.index, "pixel_shuffle")
        layout = permute(self.units, layout, [*range(n + 1), n + 3, n + 1, n + 4, n + 2])
        return self.result(operation, reshape(self.units, layout, shape, operation.index, "pixel_shuffle"))

    def on_pixel_unshuffle(self, operation: Operation) -> bool:
        before, shape = self.layout(operation.operands[0]), self.shape(operation)
        *lead, channels, height, width = before.shape
        factor, n = width // shape[-1], len(lead)
        split = (*lead, channels, height // factor, factor, width // factor, factor)
        layout = reshape(self.units, before, split, operation.index, "pixel_unshuffle")
        layout = permute(self.units, layout, [*range(n + 1), n + 2, n + 4, n + 1, n + 3])
        return self.result(operation, reshape(self.units, layout, shape, operation.index, "pixel_unshuffle"))

    def on_channel_shuffle(self, operation: Operation) -> bool:
        before = self.layout(operation.operands[0])
        groups = operation.kwargs.get("groups", operation.args[1] if len(operation.args) > 1 else None)
        if type(groups) is not int or len(before.shape) < 3:
            return False
        channels = before.shape[1]
        chosen = np.arange(channels).reshape(groups, -1).T.ravel()
        return self.result(operation, take(self.units, before, 1, chosen, operation.index, "channel_shuffle"))

    on_native_channel_shuffle = on_channel_shuffle


def flat(items: Any) -> tuple[Any, ...]:
    """Nested tuples, laid out."""
    if not isinstance(items, (tuple, list, torch.Size)):
        return (items,)
    return tuple(part for item in items for part in flat(item))


def _consumes(index: Any, trace: Trace) -> int:
    if index is None or index is Ellipsis:
        return 0
    if isinstance(index, Ref) and trace.values[index.value].dtype in (torch.bool, torch.uint8):
        return len(trace.values[index.value].shape)
    return 1


def _turned(operation: Operation, rank: int) -> list[int] | None:
    name = operation.name
    order = list(range(rank))
    if name in ("t", "T", "mT", "adjoint"):
        if name == "T":
            return order[::-1]
        if rank >= 2:
            order[-1], order[-2] = order[-2], order[-1]
        return order
    given = [*flat(operation.args[1:]), *(part for item in operation.kwargs.values() for part in flat((item,)))]
    if not all(type(number) is int for number in given):
        return None
    if name == "permute":
        return [number % rank for number in given] if len(given) == rank else None
    if name in ("movedim", "moveaxis"):
        half = len(given) // 2
        source, goal = [n % rank for n in given[:half]], [n % rank for n in given[half:]]
        left = iter([axis for axis in order if axis not in source])
        return [source[goal.index(place)] if place in goal else next(left) for place in order]
    if len(given) != 2:
        return None
    one, other = given[0] % rank, given[1] % rank
    order[one], order[other] = order[other], order[one]
    return order
