"""Walking a trace with layouts: parameters, results and what every rule needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from skipway.graph.ir import Operation, Trace
from skipway.graph.symmetry_layout import Factor, Layout, Store, coarsen, merge, only_along
from skipway.graph.symmetry_units import Ids

# Units along some axes of a parameter.
Places = list[tuple[tuple[int, ...], Ids]]
# What a model hands out only to read it again itself is inside it: its units may move.
_STATES = ("past_key_values", "cache_params")


class Walk:
    """One pass over a trace that gives every value its layout.

    `bound` says which units lie along the axes of each parameter and running statistic that was read (None: the axis
    keeps its order), `grids` what depends on two of its axes at once, as the columns of a grouped convolution do.
    """

    def __init__(self, trace: Trace, units: Store):
        self.trace = trace
        self.units = units
        self.layouts: dict[int, Layout] = {}
        self.bound: dict[int, dict[int, Ids | None]] = {}
        self.grids: dict[int, tuple[tuple[int, ...], Ids]] = {}
        self._rules: dict[str, Callable[[Operation], bool]] = {}
        self.movable = {
            value.index for value in trace.values if value.origin == "parameter" and value.name in trace.parameters
        }
        for operation in trace.operations:
            if operation.name in ("batch_norm", "instance_norm"):
                for name in ("running_mean", "running_var"):
                    index = operation.value(name)
                    if index is not None and trace.values[index].origin == "buffer":
                        self.movable.add(index)

    def run(self) -> None:
        needed = self._needed()
        for operation in self.trace.operations:
            if not needed[operation.index]:
                for index in operation.results:
                    self.layouts[index] = Layout(self.trace.values[index].shape)
                continue
            rule = self._rules.get(operation.name)
            if rule is None:
                rule = self._rules[operation.name] = self._find(operation.name)
            if not rule(operation):
                self.unknown(operation)
            for index in operation.results:
                for factor in self.layouts[index].factors:
                    self.units.slot(factor.ids)
        for name, index in zip(self.trace.output_names, self.trace.outputs, strict=False):
            if not name.startswith(_STATES):
                self.pin(self.layout(index), -1, f"output {name}".strip())
        for _, held in self.addresses():
            for _, ids in held:
                self.units.slot(ids)

    def addresses(self) -> Iterator[tuple[int, Places]]:
        """Every parameter and running statistic that was read, with the units along its axes."""
        for index in sorted(self.bound):
            held: Places = []
            held += [((axis,), ids) for axis, ids in sorted(self.bound[index].items()) if ids is not None]
            held += [self.grids[index]] if index in self.grids else []
            yield index, held

    def _needed(self) -> list[bool]:
        """Which operations the outputs depend on."""
        wanted, needed = set(self.trace.outputs), [False] * len(self.trace.operations)
        for operation in reversed(self.trace.operations):
            if wanted.intersection(operation.results):
                needed[operation.index] = True
                wanted.update(operation.operands)
        return needed

    def _find(self, name: str) -> Callable[[Operation], bool]:
        return getattr(self, f"on_{name}", self.unhandled)

    def unhandled(self, operation: Operation) -> bool:
        return False

    # Values -----------------------------------------------------------------------------------------------------

    def layout(self, index: int) -> Layout:
        """The layout of a value; units of a parameter that were not asked for before are made now."""
        found = self.layouts.get(index)
        if found is not None:
            return found
        value = self.trace.values[index]
        if index not in self.movable:
            blank = value.origin == "constant" and value.name == "zeros"
            found = Layout(value.shape, (), frozenset(range(len(value.shape))) if blank else frozenset())
            self.layouts[index] = found
            return found
        if index in self.grids:
            self.units.pin(self.grids[index][1], -1, "a grouped weight that is read otherwise too")
        held = self.bound.setdefault(index, {})
        factors = []
        for axis, size in enumerate(value.shape):
            if axis not in held:
                held[axis] = self.units.fresh(size) if size > 1 else None
            ids = held[axis]
            if ids is not None:
                factors.append(Factor((axis,), ids))
        return Layout(value.shape, tuple(factors))

    def set(self, index: int, layout: Layout) -> bool:
        self.layouts[index] = layout
        return True

    def result(self, operation: Operation, layout: Layout) -> bool:
        """Give the operation's first result its layout; the others have no units."""
        for position, index in enumerate(operation.results):
            self.layouts[index] = layout if not position else Layout(self.trace.values[index].shape)
        return True

    def shape(self, operation: Operation, output: int = 0) -> tuple[int, ...]:
        return self.trace.values[operation.results[output]].shape

    def is_raw(self, index: int) -> bool:
        """Whether a value is a parameter or running statistic itself."""
        return index in self.movable

    def bind(self, index: int, axis: int, ids: Ids | None, operation: Operation, why: str) -> None:
        """Let an axis of a parameter hold these units (None: keep its order)."""
        if self.trace.values[index].shape[axis] == 1:
            return
        held = self.bound.setdefault(index, {})
        if axis not in held:
            held[axis] = ids
            return
        before = held[axis]
        if before is not None and ids is not None:
            self.units.tie(before, ids)
        elif before is not None:
            self.units.pin(before, operation.index, why)
        elif ids is not None:
            self.units.pin(ids, operation.index, why)

    def rows(self, index: int, axis: int) -> Ids | None:
        """The units along an axis of a parameter, made now if need be; None for an axis of size 1 or a fixed one."""
        size = self.trace.values[index].shape[axis]
        held = self.bound.setdefault(index, {})
        if axis not in held:
            held[axis] = self.units.fresh(size) if size > 1 else None
        return held[axis]

    def pin(self, layout: Layout, operation: int, why: str) -> None:
        for factor in layout.factors:
            self.units.pin(factor.ids, operation, why)

    def unknown(self, operation: Operation) -> bool:
        """What no rule is known for keeps all that it touches in order."""
        for index in operation.operands:
            self.pin(self.layout(index), operation.index, f"no rule for {operation.name}")
        for index in operation.results:
            self.layouts[index] = Layout(self.trace.values[index].shape)
        return True

    def fixed_along(self, operation: Operation, layout: Layout, axes: Sequence[int] | range, why: str) -> Layout:
        """Let no unit lie along these axes; what lay there keeps its order."""
        for factor in layout.factors:
            if any(axis in axes for axis in factor.axes):
                keep = [axis for axis in factor.axes if axis not in axes]
                layout = coarsen(self.units, layout, factor, keep, operation.index, why)
        return layout

    def vector(self, index: int, axis: int, rank: int) -> Layout:
        """A vector's layout as it broadcasts along one axis of a tensor of that rank."""
        before = self.layout(index)
        return Layout((1,) * axis + before.shape + (1,) * (rank - axis - 1),
                      tuple(Factor((axis,), f.ids, f.copies) for f in before.factors),
                      frozenset(axis for _ in before.uniform))  # fmt: skip

    def together(self, operation: Operation, layouts: Sequence[Layout], why: str = "") -> bool:
        """An element-wise function of several tensors."""
        why = why or f"{operation.name} with what keeps its order"
        return self.result(operation, merge(self.units, layouts, self.shape(operation), operation.index, why))

    def along(self, operation: Operation, layout: Layout, axes: Sequence[int], why: str = "") -> Layout:
        """The layout with units along the given axes alone."""
        return only_along(
            self.units, layout, axes, operation.index, why or f"{operation.name} mixes positions in order"
        )
