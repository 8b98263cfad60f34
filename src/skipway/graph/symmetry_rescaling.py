"""Rescalings: which units may be multiplied by a positive number that the weights around them take back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from skipway.graph.ir import Operation, Ref, Trace
from skipway.graph.operations import RESAMPLERS, UPSAMPLERS
from skipway.graph.symmetry_layout import Factor, Layout, groups_of, reduce, repeat, shifted
from skipway.graph.symmetry_moves import Moves
from skipway.graph.symmetry_rules import reduced_dims
from skipway.graph.symmetry_scales import Scales, Solution
from skipway.graph.symmetry_units import Ids

_HOMOGENEOUS = frozenset(("relu", "leaky_relu", "abs", "neg")) | RESAMPLERS | UPSAMPLERS


class ScaleWalk(Moves):
    """The walk that asks which units may be rescaled."""

    units: Scales

    def __init__(self, trace: Trace):
        super().__init__(trace, Scales())

    def solution(self) -> Solution:
        """The free unknowns, what every unknown equals, and the sums by which some follow from others."""
        root, sums = self.units.resolve()
        absolute = np.minimum(root, root[np.arange(self.units.n) ^ 1])
        placed = [ids.ravel() for _, held in self.addresses() for _, ids in held]
        terms = [part for total, one, other in sums for part in (one, other)]
        seen = np.unique(absolute[np.concatenate([*placed, *terms, np.zeros(1, np.int64)])])
        totals = np.concatenate([absolute[total] for total, _, _ in sums]) if sums else np.zeros(0, np.int64)
        free = seen[(seen != 0) & ~np.isin(seen, totals)]
        return free, root, sums

    def values(
        self, free: Ids, chosen: NDArray[np.float64], root: Ids, sums: Sequence[tuple[Ids, Ids, Ids]]
    ) -> NDArray[np.float64]:
        """The logarithm of every unknown, when the free ones are chosen."""
        known = np.zeros(self.units.n)
        known[free], known[free ^ 1] = chosen, -chosen
        absolute = np.minimum(root, root[np.arange(self.units.n) ^ 1])
        sign = np.where(root <= root[np.arange(self.units.n) ^ 1], 1.0, -1.0)
        whole = known[absolute] * sign
        for total, one, other in sums:
            amount = whole[one] + whole[other]
            known[absolute[total]] = amount * sign[total]
        return known[absolute] * sign

    # Rules ------------------------------------------------------------------------------------------------------

    def _find(self, name: str):
        if name in _HOMOGENEOUS and name not in ("lp_pool1d", "lp_pool2d", "lp_pool3d"):
            return self.homogeneous
        if name in ("add", "sub", "rsub"):
            return self.added
        if name in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"):
            return self.normed
        if name.startswith("conv") and name[-2:] in ("1d", "2d", "3d"):
            return self.convolved
        return super()._find(name)

    def homogeneous(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        if len(operation.operands) > 1:
            return False
        if operation.name in RESAMPLERS or operation.name in UPSAMPLERS:
            spatial = next((int(letter) for letter in operation.name if letter in "123"), len(layout.shape) - 2)
            for factor in layout.factors:
                if factor.axes[-1] >= len(layout.shape) - spatial:
                    return False
        return self.result(operation, Layout(self.shape(operation), layout.factors))

    def on_prelu(self, operation: Operation) -> bool:
        self.pin(self.layout(operation.operands[1]), operation.index, "prelu")
        return self.same(operation)

    def added(self, operation: Operation) -> bool:
        numbers = [one for one in (*operation.args[:2], operation.kwargs.get("other", 0)) if not isinstance(one, Ref)]
        if any(numbers):
            return False
        live = [
            i
            for i in operation.operands
            if self.trace.values[i].origin != "constant" or self.trace.values[i].name != "zeros"
        ]
        shape = self.shape(operation)
        aligned = [shifted(self.layout(i), len(shape) - len(self.trace.values[i].shape)) for i in live]
        self._alike(operation, aligned)
        return self.together(operation, aligned)

    def _alike(self, operation: Operation, layouts: Sequence[Layout], beside: int | None = None) -> None:
        """Pin scales that not all of some tensors have, but for those along the axis on which they lie side by side."""
        for axes, members in groups_of([factor for layout in layouts for factor in layout.factors]):
            mine = [any(factor in layout.factors for factor in members) for layout in layouts]
            if beside not in axes and not all(mine):
                for factor in members:
                    self.units.pin(factor.ids, operation.index, "joined with what has no scale")

    def on_cat(self, operation: Operation) -> bool:
        layouts = [self.layout(i) for i in operation.operands if self.trace.values[i].shape != (0,)]
        dim = operation.argument("dim", operation.args[1] if len(operation.args) > 1 else 0)
        self._alike(operation, layouts, beside=dim % len(layouts[-1].shape))
        return super().on_cat(operation)

    def on_stack(self, operation: Operation) -> bool:
        self._alike(operation, [self.layout(index) for index in operation.operands])
        return super().on_stack(operation)

    def on_mul(self, operation: Operation) -> bool:
        if len(operation.operands) == 1:
            return isinstance(operation.args[0], Ref) and self.same(operation)
        one, other = operation.operands
        layouts = [self.layout(one), self.layout(other)]
        shape = self.shape(operation)
        if operation.name == "div":
            if layouts[1].factors:
                return False
        elif not self.trace.values[one].fed:
            layouts.reverse()
            one, other = other, one
        aligned = [shifted(layout, len(shape) - len(layout.shape)) for layout in layouts]
        if not aligned[0].factors or not aligned[1].factors:
            factors = tuple(factor for layout in aligned for factor in layout.factors)
            return self.result(operation, Layout(shape, factors))
        learned = not self.trace.values[other].fed
        made = []
        for axes, members in groups_of([*aligned[0].factors, *aligned[1].factors]):
            if len(members) == 1:
                made.append(members[0])
                continue
            if len(members) > 2 or members[0].axes != members[1].axes:
                return False
            first, second = (next(f for f in layout.factors if f.axes == axes) for layout in aligned)
            product = self.units.fresh(first.ids.shape)
            if learned:
                # The parameter makes up for what comes in and what goes out.
                self.units.add(second.ids, product, first.ids ^ 1)
            else:
                self.units.add(product, first.ids, second.ids)
            made.append(Factor(axes, product))
        return self.result(operation, Layout(shape, tuple(made)))

    on_div = on_mul

    def on_sum(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dims = reduced_dims(operation, len(layout.shape))
        if dims is None or len(operation.results) > 1 or len(operation.operands) > 1:
            return False
        for factor in layout.factors:
            if all(axis in dims for axis in factor.axes):
                self.units.pin(factor.ids, operation.index, "summed over")
        made = reduce(self.units, layout, dims, len(self.shape(operation)) == len(layout.shape))
        return made.shape == self.shape(operation) and self.result(operation, made)

    on_mean = on_amax = on_amin = on_sum

    def normed(self, operation: Operation) -> bool:
        x = operation.operands[0]
        rank = len(self.trace.values[x].shape)
        self.pin(self.layout(x), operation.index, operation.name)
        sizes = operation.argument("normalized_shape", (0,))
        last = operation.name in ("layer_norm", "rms_norm")
        weight, bias = operation.value("weight"), operation.value("bias")
        simple = not last or type(sizes) is int or len(sizes) == 1
        learned = [index for index in (weight, bias) if index is not None]
        if weight is None or not simple or not all(self.is_raw(index) for index in learned):
            for index in learned:
                self.pin(self.layout(index), operation.index, operation.name)
            return self.result(operation, Layout(self.shape(operation)))
        axis = rank - 1 if last else 1
        return self._biased(operation, Layout(self.shape(operation)), axis, self.rows(weight, 0), bias)

    def on_linear(self, operation: Operation) -> bool:
        x, weight = operation.operands[:2]
        axis = len(self.trace.values[x].shape) - 1
        rows = self._contract(operation, x, axis, weight, 0, 1)
        bias = operation.operands[2] if len(operation.operands) > 2 else None
        return self._biased(operation, self._passed(operation, x, axis), axis, rows, bias)

    def on_addmm(self, operation: Operation) -> bool:
        added, x, weight = operation.operands
        if len(self.trace.values[added].shape) != 1:
            return False
        rows = self._contract(operation, x, 1, weight, 1, 0)
        return self._biased(operation, self._passed(operation, x, 1), 1, rows, added)

    def convolved(self, operation: Operation) -> bool:
        x, weight = operation.operands[:2]
        turned, groups = "transpose" in operation.name, operation.argument("groups", 1)
        spatial = int(operation.name[-2])
        axis = len(self.trace.values[x].shape) - spatial - 1
        bias = operation.operands[2] if len(operation.operands) > 2 else None
        if groups > 1:
            rows = self._grouped(operation, x, axis, weight, groups, turned)
        else:
            rows = self._contract(operation, x, axis, weight, *((1, 0) if turned else (0, 1)))
        if self.is_raw(weight):
            for kernel in range(2, 2 + spatial):
                self.bind(weight, kernel, None, operation, "kernel")
        return self._biased(operation, self._passed(operation, x, axis), axis, rows, bias)

    def _passed(self, operation: Operation, x: int, axis: int) -> Layout:
        """What stays of an input's scales beside the axis that a linear map reads."""
        factors = tuple(factor for factor in self.layout(x).factors if axis not in factor.axes)
        for factor in factors:
            self.units.pin(factor.ids, operation.index, "a linear map with a bias")
        return Layout(self.shape(operation))

    def _contract(self, operation: Operation, x: int, axis: int, weight: int, out: int, into: int) -> Ids | None:
        """Let the weight's columns take back the scales of what it reads; the scales of its rows are free."""
        factor = self.layout(x).at(axis)
        if factor is not None and factor.axes != (axis,):
            self.units.pin(factor.ids, operation.index, "read in parts")
            factor = None
        back = None if factor is None else factor.ids ^ 1
        if self.is_raw(weight) and weight not in self.grids:
            self.bind(weight, into, back, operation, "reads what has no scale")
            return self.rows(weight, out)
        layout = self.layout(weight)
        columns, rows = layout.at(into), layout.at(out)
        if columns is not None and columns.axes == (into,) and back is not None:
            self.units.tie(columns.ids, back)
        else:
            for one in (columns, factor):
                if one is not None:
                    self.units.pin(one.ids, operation.index, "read in parts")
        if rows is not None and rows.axes != (out,):
            self.units.pin(rows.ids, operation.index, "read in parts")
            rows = None
        return None if rows is None else rows.ids

    def _grouped(self, operation: Operation, x: int, axis: int, weight: int, groups: int, turned: bool) -> Ids | None:
        factor = self.layout(x).at(axis)
        if turned or not self.is_raw(weight) or weight in self.bound or (factor is not None and factor.axes != (axis,)):
            for layout in (self.layout(x), self.layout(weight)):
                self.pin(layout, operation.index, "grouped convolution")
            return None
        rows = self.rows(weight, 0)
        self.bound[weight][1] = None
        if factor is not None and rows is not None:
            columns = (factor.ids ^ 1).reshape(groups, -1)
            self.grids[weight] = ((0, 1), np.repeat(columns, len(rows) // groups, axis=0))
        return rows

    def _biased(self, operation: Operation, made: Layout, axis: int, rows: Ids | None, bias: int | None) -> bool:
        layout = made if rows is None else Layout(made.shape, (*made.factors, Factor((axis,), rows)))
        if bias is not None:
            if self.is_raw(bias):
                self.bind(bias, 0, rows, operation, "added to what has no scale")
            elif rows is not None:
                other = self.vector(bias, axis, len(made.shape)).at(axis)
                self.units.tie(rows, np.zeros((), np.int64) if other is None else other.ids)
            else:
                self.pin(self.layout(bias), operation.index, "added to what has no scale")
        return self.result(operation, layout)

    def on_embedding(self, operation: Operation) -> bool:
        weight = operation.value("weight")
        if weight is None or not self.is_raw(weight):
            return False
        self.bind(weight, 0, None, operation, "rows are looked up by number")
        rank = len(self.shape(operation))
        return self._biased(operation, Layout(self.shape(operation)), rank - 1, self.rows(weight, 1), None)

    def on_matmul(self, operation: Operation) -> bool:
        one, other = operation.operands
        if not self.trace.values[other].fed and len(self.trace.values[other].shape) == 2:
            axis = len(self.trace.values[one].shape) - 1
            rows = self._contract(operation, one, axis, other, 1, 0)
            return self._biased(operation, self._passed(operation, one, axis), axis, rows, None)
        self.pin(self.layout(one), operation.index, "a product of signals")
        layout = shifted(self.layout(other), len(self.shape(operation)) - len(self.trace.values[other].shape))
        return self._weighted(operation, layout, len(layout.shape) - 2)

    on_bmm = on_mm = on_matmul

    def _weighted(self, operation: Operation, layout: Layout, summed: int) -> bool:
        """Sums over one axis with weights that have no scale keep the scales along the others."""
        shape = self.shape(operation)
        kept = []
        for factor in layout.factors:
            fits = all(shape[axis] == size for axis, size in zip(factor.axes, factor.ids.shape, strict=True))
            if summed in factor.axes or not fits:
                self.units.pin(factor.ids, operation.index, "a product of signals")
            else:
                kept.append(factor)
        return self.result(operation, Layout(shape, tuple(kept)))

    def on_scaled_dot_product_attention(self, operation: Operation) -> bool:
        for index in (*operation.operands[:2], *operation.operands[3:]):
            self.pin(self.layout(index), operation.index, "attention weights")
        layout = self.layout(operation.operands[2])
        axis = len(layout.shape) - 3
        if operation.kwargs.get("enable_gqa") and axis >= 0:
            layout = repeat(layout, axis, self.shape(operation)[axis] // layout.shape[axis], each=True)
        return self._weighted(operation, layout, len(layout.shape) - 2)

    def on_multi_head_attention_forward(self, operation: Operation) -> bool:
        query, packed, bias = (operation.value(name) for name in ("query", "in_proj_weight", "in_proj_bias"))
        out_weight, out_bias = operation.value("out_proj_weight"), operation.value("out_proj_bias")
        alike = all(operation.value(name) == query for name in ("key", "value"))
        if query is None or packed is None or out_weight is None or not alike or packed in self.bound:
            return False
        if not all(self.is_raw(index) for index in (packed, bias, out_weight, out_bias) if index is not None):
            return False
        if operation.value("bias_k") is not None:
            return False
        axis = len(self.shape(operation)) - 1
        width = self.shape(operation)[axis]
        factor = self.layout(query).at(axis)
        self.bind(packed, 1, None if factor is None else factor.ids ^ 1, operation, "reads what has no scale")
        values = self.units.fresh(width)
        rows = np.concatenate([np.zeros(2 * width, np.int64), values])
        for index in (packed, bias):
            if index is not None:
                self.bind(index, 0, rows, operation, "queries and keys")
        self.bind(out_weight, 1, values ^ 1, operation, "reads what has no scale")
        for index in operation.results[1:]:
            self.layouts[index] = Layout(self.trace.values[index].shape)
        return self._biased(operation, self._passed(operation, query, axis), axis, self.rows(out_weight, 0), out_bias)
