"""What each operation says about permutations of units: sums, norms, linear maps, convolutions, products."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skipway.graph.ir import Operation, Trace
from skipway.graph.operations import ACTIVATIONS, RESAMPLERS, UPSAMPLERS
from skipway.graph.symmetry_joining import reshape
from skipway.graph.symmetry_layout import Factor, Layout, merge, permute, reduce, take, uncopied, within
from skipway.graph.symmetry_moves import Moves, flat, words
from skipway.graph.symmetry_units import Ids, Units

_ELEMENTWISE = (
    ACTIVATIONS
    | words(
        """add sub rsub mul div maximum minimum where lerp addcmul addcdiv masked_fill pow rpow fmax fmin hypot fmod
    remainder logaddexp neg sigmoid clamp heaviside floor_divide true_divide nan_to_num rsqrt sgn"""
    )
) - words("glu softmax log_softmax softmin gumbel_softmax sparsemax polar complex imag prelu rrelu")
_REDUCTIONS = words("""sum mean var std amax amin norm logsumexp prod vector_norm linalg_vector_norm linalg_norm nansum
    nanmean""")
_SOFTMAXES = words("softmax log_softmax softmin gumbel_softmax")


def einsum(
    walk: Moves, layouts: Sequence[Layout], letters: Sequence[Sequence[str]], out: Sequence[str], operation: Operation
) -> Layout:
    """A product of tensors summed over the letters that `out` lacks: units that are summed over together are tied."""
    names = list(out) + [name for name in dict.fromkeys(n for one in letters for n in one) if name not in out]
    sizes = dict.fromkeys(names, 1)
    for layout, mine in zip(layouts, letters, strict=True):
        for name, size in zip(mine, layout.shape, strict=True):
            sizes[name] = max(sizes[name], size)
    spread = []
    for layout, mine in zip(layouts, letters, strict=True):
        order = sorted(range(len(mine)), key=lambda k: names.index(mine[k]))
        turned = permute(walk.units, layout, order)
        at = [names.index(mine[k]) for k in order]
        shape = [1] * len(names)
        for place, size in zip(at, turned.shape, strict=True):
            shape[place] = size
        factors = tuple(Factor(tuple(at[a] for a in f.axes), f.ids, f.copies) for f in turned.factors)
        spread.append(Layout(tuple(shape), factors, frozenset(at[a] for a in turned.uniform)))
    why = f"{operation.name} with what keeps its order"
    whole = merge(walk.units, spread, tuple(sizes.values()), operation.index, why)
    return reduce(walk.units, whole, range(len(out), len(names)), keepdim=False)


class PermutationWalk(Moves):
    """The walk that asks which units may be permuted."""

    units: Units

    def __init__(self, trace: Trace):
        super().__init__(trace, Units())

    def _find(self, name: str):
        if name in _ELEMENTWISE:
            return self.elementwise
        if name in _REDUCTIONS:
            return self.folded
        if name in _SOFTMAXES:
            return self.on_softmax
        if name in RESAMPLERS or name in UPSAMPLERS:
            return self.resampled
        if name.startswith("conv") and name[-2:] in ("1d", "2d", "3d"):
            return self.convolved
        return super()._find(name)

    # Element by element, and along axes -------------------------------------------------------------------------

    def elementwise(self, operation: Operation) -> bool:
        layouts = [self.layout(index) for index in operation.operands]
        return len(operation.results) == 1 and self.together(operation, layouts)

    def on_prelu(self, operation: Operation) -> bool:
        x, weight = operation.operands
        if self.trace.values[weight].shape in ((1,), ()):
            return self.same(operation)
        rank = len(self.trace.values[x].shape)
        return self.together(operation, [self.layout(x), self.vector(weight, min(1, rank - 1), rank)])

    def on_glu(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        axis = operation.kwargs.get("dim", operation.args[1] if len(operation.args) > 1 else -1) % len(layout.shape)
        half = layout.shape[axis] // 2
        halves = [
            take(self.units, layout, axis, np.arange(half) + start, operation.index, "glu") for start in (0, half)
        ]
        return self.together(operation, halves)

    def folded(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dims = reduced_dims(operation, len(layout.shape))
        if dims is None or len(operation.operands) > 1:
            return False
        keepdim = len(self.shape(operation)) == len(layout.shape)
        made = reduce(self.units, layout, dims, keepdim)
        return made.shape == self.shape(operation) and self.result(operation, made)

    def on_var_mean(self, operation: Operation) -> bool:
        if not self.folded(operation):
            return False
        for index in operation.results:
            self.layouts[index] = self.layouts[operation.results[0]]
        return True

    on_std_mean = on_var_mean

    def on_max(self, operation: Operation) -> bool:
        if len(operation.operands) == 2:
            return self.elementwise(operation)
        if len(operation.results) == 1:
            return self.folded(operation)
        layout = self.layout(operation.operands[0])
        dims = reduced_dims(operation, len(layout.shape))
        if dims is None:
            return False
        # It tells where the largest stood, so what stands there must keep its order.
        self.layouts[operation.operands[0]] = self.fixed_along(operation, layout, dims, "tells where the largest stood")
        return self.folded(operation)

    on_min = on_max

    def on_softmax(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dims = reduced_dims(operation, len(layout.shape))
        return dims is not None and self.result(operation, within(self.units, layout, dims))

    def on_cumsum(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dims = reduced_dims(operation, len(layout.shape))
        return dims is not None and self.result(operation, self.fixed_along(operation, layout, dims, "sums in order"))

    on_cumprod = on_logcumsumexp = on_cumsum

    def resampled(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        spatial = next((int(letter) for letter in operation.name if letter in "123"), len(layout.shape) - 2)
        made = self.along(operation, layout, range(len(layout.shape) - spatial))
        if len(operation.operands) > 1:
            return False
        return self.result(operation, Layout(self.shape(operation), made.factors))

    # Norms ------------------------------------------------------------------------------------------------------

    def on_batch_norm(self, operation: Operation) -> bool:
        x = operation.operands[0]
        rank = len(self.trace.values[x].shape)
        layouts = [self.layout(x)]
        factor = layouts[0].at(1)
        for index in operation.operands[1:]:
            if self.is_raw(index) and (factor is None or factor.axes == (1,)):
                self.bind(
                    index, 0, None if factor is None else factor.ids, operation, "batch_norm of what keeps its order"
                )
            else:
                layouts.append(self.vector(index, 1, rank))
        return self.together(operation, layouts)

    on_instance_norm = on_batch_norm

    def on_layer_norm(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        sizes = operation.argument("normalized_shape")
        n = 1 if type(sizes) is int else len(sizes)
        layout = within(self.units, layout, range(-n, 0))
        return self.together(operation, [layout, *(self.layout(index) for index in operation.operands[1:])])

    on_rms_norm = on_layer_norm

    def on_normalize(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        dim = operation.argument("dim", 1)
        return self.result(operation, within(self.units, layout, flat((dim,))))

    def on_group_norm(self, operation: Operation) -> bool:
        layout = self.layout(operation.operands[0])
        n, c, *space = layout.shape
        groups = operation.argument("num_groups")
        split = reshape(self.units, layout, (n, groups, c // groups, *space), operation.index, "group_norm")
        within(self.units, split, range(2, len(split.shape)))
        layout = uncopied(layout)
        vectors = [self.vector(index, 1, len(layout.shape)) for index in operation.operands[1:]]
        return self.together(operation, [layout, *vectors])

    # Linear maps ------------------------------------------------------------------------------------------------

    def on_linear(self, operation: Operation) -> bool:
        x, weight = operation.operands[:2]
        layout = self.layout(x)
        last = len(layout.shape) - 1
        factor = layout.at(last)
        if self.is_raw(weight) and weight not in self.grids and (factor is None or factor.axes == (last,)):
            self.bind(weight, 1, None if factor is None else factor.ids, operation, "reads what keeps its order")
            made = self._with_rows(operation, layout, last, self.rows(weight, 0))
        else:
            lead = [f"b{k}" for k in range(last)]
            made = einsum(
                self, [layout, self.layout(weight)], [[*lead, "in"], ["out", "in"]], [*lead, "out"], operation
            )
        return self._biased(operation, made, operation.operands[2:], last)

    def _with_rows(self, operation: Operation, layout: Layout, axis: int, rows: Ids | None) -> Layout:
        """The layout of a linear map's output: the map's rows lie where its columns were read."""
        factors = tuple(f for f in layout.factors if axis not in f.axes)
        new = () if rows is None else (Factor((axis,), rows),)
        return Layout(self.shape(operation), (*factors, *new), layout.uniform - {axis})

    def _biased(self, operation: Operation, made: Layout, biases: Sequence[int], axis: int) -> bool:
        factor = made.at(axis)
        others = []
        for index in biases:
            if self.is_raw(index) and factor is not None and factor.axes == (axis,):
                self.bind(index, 0, factor.ids, operation, "added to what keeps its order")
            else:
                others.append(self.vector(index, axis, len(made.shape)))
        return self.together(operation, [made, *others])

    def convolved(self, operation: Operation) -> bool:
        x, weight = operation.operands[:2]
        turned, groups = "transpose" in operation.name, operation.argument("groups", 1)
        spatial = int(operation.name[-2])
        axis = len(self.trace.values[x].shape) - spatial - 1
        layout = self.along(operation, self.layout(x), range(axis + 1))
        factor = layout.at(axis)
        for kernel in range(2, 2 + spatial):
            if self.is_raw(weight):
                self.bind(weight, kernel, None, operation, "a kernel keeps its order")
        ids = None if factor is None else factor.ids
        if groups > 1:
            rows = self._grouped(operation, ids, layout.shape[axis], weight, groups, turned)
        elif self.is_raw(weight) and weight not in self.grids:
            self.bind(weight, 0 if turned else 1, ids, operation, "reads what keeps its order")
            rows = self.rows(weight, 1 if turned else 0)
        else:
            plain = self.along(operation, self.layout(weight), (0, 1))
            flat_weight = Layout(plain.shape[:2], plain.factors)
            column = Layout((layout.shape[axis],), () if ids is None else (Factor((0,), ids),))
            letters = ["in", "out"] if turned else ["out", "in"]
            made = einsum(self, [column, flat_weight], [["in"], letters], ["out"], operation)
            rows = made.factors[0].ids if made.factors else None
        made = self._with_rows(operation, layout, axis, rows)
        return self._biased(operation, made, operation.operands[2:], axis)

    def _grouped(
        self, operation: Operation, ids: Ids | None, channels: int, weight: int, groups: int, turned: bool
    ) -> Ids | None:
        """Grouped convolution: groups move as wholes, the units inside a group among themselves."""
        out = self.shape(operation)[-int(operation.name[-2]) - 1]
        n_in, n_out = channels // groups, out // groups
        why = "grouped convolution with what keeps its order"
        fixed = not self.is_raw(weight) or weight in self.layouts
        if fixed or (ids is None and channels > 1):
            self.pin(self.layout(weight), operation.index, why)
            if ids is not None:
                self.units.pin(ids, operation.index, why)
            if fixed:
                return None
        # Axis 0 runs over all units of one side, axis 1 over those of the other side inside one group.
        near, far = (channels, n_out) if turned else (out, n_in)
        rows = ids if turned else self.rows(weight, 0)
        if ids is None:
            if rows is not None:
                self.units.label(rows, np.arange(out) // n_out, operation.index, why)
            return rows
        if turned:
            self.bind(weight, 0, ids, operation, why)
        if n_in == 1 and n_out == 1:
            if not turned:
                assert rows is not None
                self.units.tie(rows, ids)
            return ids
        made = self.units.fresh(out) if turned else rows
        if weight in self.grids and turned:
            made = np.empty(out, np.int64)
            made[:] = self.grids[weight][1].reshape(groups, n_in, n_out)[:, 0].ravel()
        assert made is not None
        if n_in == 1:
            self.units.relate(made.reshape(groups, n_out), ids, np.arange(groups)[:, None])
        else:
            above = self.units.fresh(groups)
            self.units.relate(ids.reshape(groups, n_in), above, np.arange(groups)[:, None])
            self.units.relate(made.reshape(groups, n_out), above, np.arange(groups)[:, None])
        inner = (made if turned else ids).reshape(groups, far)
        grid = np.repeat(inner, near // groups, axis=0)
        if far > 1:
            if weight in self.grids:
                self.units.tie(self.grids[weight][1], grid)
            else:
                self.grids[weight] = ((0, 1), grid)
                self.bound.setdefault(weight, {})[1] = None
        return made

    def on_embedding(self, operation: Operation) -> bool:
        weight = operation.value("weight")
        if weight is None:
            return False
        layout = self.fixed_along(operation, self.layout(weight), [0], "rows are looked up by number")
        if self.is_raw(weight):
            self.bind(weight, 0, None, operation, "rows are looked up by number")
        shape = self.shape(operation)
        factors = [Factor((len(shape) - 1,), f.ids, f.copies) for f in layout.factors]
        return self.result(operation, Layout(shape, tuple(factors)))

    # Products ---------------------------------------------------------------------------------------------------

    def product(self, operation: Operation, one: Layout, other: Layout) -> Layout:
        """The matrix product of two tensors, with leading axes broadcast."""
        left = [f"b{k}" for k in range(len(one.shape) - 2, 0, -1)] + ["n", "k"][-min(2, len(one.shape)) :]
        right = [f"b{k}" for k in range(len(other.shape) - 2, 0, -1)] + (["k", "m"] if len(other.shape) > 1 else ["k"])
        lead = max(left[:-2], right[:-2], key=len)
        out = [*lead, *(name for name in ("n",) if name in left), *(name for name in ("m",) if name in right)]
        return einsum(self, [one, other], [left, right], out, operation)

    def on_matmul(self, operation: Operation) -> bool:
        one, other = (self.layout(index) for index in operation.operands)
        return self.result(operation, self.product(operation, one, other))

    on_bmm = on_mm = on_mv = on_dot = on_matmul

    def on_addmm(self, operation: Operation) -> bool:
        added, one, other = operation.operands
        # Raw weights are bound without making units of their own first, as in a linear layer.
        layout, columns = self.layout(one), self.layout(one).at(1)
        if self.is_raw(other) and operation.name == "addmm" and (columns is None or columns.axes == (1,)):
            self.bind(other, 0, None if columns is None else columns.ids, operation, "reads what keeps its order")
            made = self._with_rows(operation, layout, 1, self.rows(other, 1))
        else:
            made = self.product(operation, layout, self.layout(other))
        if len(self.trace.values[added].shape) == 1 and len(made.shape) == 2:
            return self._biased(operation, made, [added], 1)
        return self.together(operation, [made, self.layout(added)])

    on_baddbmm = on_addmm

    def on_einsum(self, operation: Operation) -> bool:
        equation = operation.args[0]
        if not isinstance(equation, str) or "->" not in equation:
            return False
        read, out = equation.replace(" ", "").split("->")
        layouts = [self.layout(index) for index in operation.operands]
        letters = []
        for mine, layout in zip(read.split(","), layouts, strict=True):
            missing = len(layout.shape) - len(mine.replace("...", ""))
            letters.append(_spelled(mine, missing))
            if len(set(letters[-1])) < len(letters[-1]):
                return False
        most = max((len([n for n in one if n.isdigit()]) for one in letters), default=0)
        return self.result(operation, einsum(self, layouts, letters, _spelled(out, most), operation))


def _spelled(letters: str, missing: int) -> list[str]:
    """An operand's letters, with numbers (counted from the right) for what an ellipsis stands for."""
    if "..." not in letters:
        return list(letters)
    before, after = letters.split("...")
    return [*before, *(str(k) for k in range(missing, 0, -1)), *after]


def reduced_dims(operation: Operation, rank: int) -> list[int] | None:
    """The axes that a reduction folds; None where they cannot be told."""
    place = 2 if operation.name in ("norm", "vector_norm", "linalg_vector_norm", "linalg_norm") else 1
    given = operation.args[place] if len(operation.args) > place else None
    given = operation.kwargs.get("dim", operation.kwargs.get("axis", given))
    if given is None or isinstance(given, bool):
        return list(range(rank))
    dims = flat((given,))
    return [dim % rank for dim in dims] if rank and all(type(dim) is int for dim in dims) else None
