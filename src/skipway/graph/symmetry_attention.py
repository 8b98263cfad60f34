"""What attention says about permutations: heads move as wholes; inside one, queries with keys, and values."""

from __future__ import annotations

import numpy as np

from skipway.graph.ir import Operation, Ref
from skipway.graph.symmetry_joining import reshape
from skipway.graph.symmetry_layout import Factor, Layout, merge, repeat, within
from skipway.graph.symmetry_rules import PermutationWalk, einsum
from skipway.graph.symmetry_units import Ids


class AttentionWalk(PermutationWalk):
    """All rules for permutations, those of attention included."""

    def on_scaled_dot_product_attention(self, operation: Operation) -> bool:
        query, key, value = (self.layout(index) for index in operation.operands[:3])
        if operation.kwargs.get("enable_gqa") and key.shape[-3] != query.shape[-3]:
            axis, times = len(key.shape) - 3, query.shape[-3] // key.shape[-3]
            key, value = (repeat(one, axis, times, each=True) for one in (key, value))
        mask = [self.layout(index) for index in operation.operands[3:]]
        return self.result(operation, self._attend(operation, query, key, value, mask)[0])

    def _attend(
        self, operation: Operation, query: Layout, key: Layout, value: Layout, mask: list[Layout]
    ) -> tuple[Layout, Layout]:
        lead = [f"b{k}" for k in range(max(len(query.shape), len(key.shape)) - 2, 0, -1)]
        names = [lead[len(lead) - len(one.shape) + 2 :] for one in (query, key, value)]
        read = [[*names[0], "n", "e"], [*names[1], "m", "e"]]
        scores = einsum(self, [query, key], read, [*lead, "n", "m"], operation)
        if mask:
            scores = merge(self.units, [scores, *mask], scores.shape, operation.index, "a mask that keeps its order")
        scores = within(self.units, scores, [-1])
        read = [[*lead, "n", "m"], [*names[2], "m", "f"]]
        return einsum(self, [scores, value], read, [*lead, "n", "f"], operation), scores

    def on_multi_head_attention_forward(self, operation: Operation) -> bool:
        names = ("query", "key", "value")
        given = [operation.value(name) for name in names]
        packed, bias = operation.value("in_proj_weight"), operation.value("in_proj_bias")
        out_weight, out_bias = operation.value("out_proj_weight"), operation.value("out_proj_bias")
        heads = operation.argument("num_heads")
        mask = operation.kwargs.get("attn_mask")
        extras = [operation.value(name) for name in ("bias_k", "bias_v")]
        masked = self.trace.values[mask.value] if isinstance(mask, Ref) else None
        if masked is not None and (len(masked.shape) > 2 or masked.live):
            return False
        if out_weight is None or None in given or extras != [None, None]:
            return False
        if not all(self.is_raw(index) for index in (packed, bias, out_weight, out_bias) if index is not None):
            return False
        if any(operation.kwargs.get(name) is not None for name in ("static_k", "static_v")):
            return False
        layouts = [self.layout(index) for index in given if index is not None]
        width = layouts[0].shape[-1]
        rank = len(layouts[0].shape)
        columns: list[Ids | None] = []
        for layout in layouts:
            layout = self.along(operation, layout, range(rank))
            factor = layout.at(rank - 1)
            columns.append(None if factor is None else factor.ids)
        if operation.kwargs.get("use_separate_proj_weight"):
            separate = [operation.kwargs.get(f"{letter}_proj_weight") for letter in "qkv"]
            if not all(isinstance(weight, Ref) and self.is_raw(weight.value) for weight in separate):
                return False
            rows = []
            for weight, column in zip(separate, columns, strict=True):
                assert isinstance(weight, Ref)
                self.bind(weight.value, 1, column, operation, "reads what keeps its order")
                rows.append(self.rows(weight.value, 0))
        else:
            assert packed is not None
            all_rows = self.rows(packed, 0)
            assert all_rows is not None
            rows = [all_rows[k * width : (k + 1) * width] for k in range(3)]
            self._packed_columns(operation, packed, columns, width)
        if bias is not None:
            joined = np.concatenate([row for row in rows if row is not None])
            self.bind(bias, 0, joined, operation, "added to what keeps its order")
        parts = []
        for layout, row in zip(layouts, rows, strict=True):
            assert row is not None
            self.units.slot(row)
            projected = Layout((*layout.shape[:-1], width), (Factor((rank - 1,), row),))
            shape = (*layout.shape[:-1], heads, width // heads)
            parts.append(reshape(self.units, projected, shape, operation.index, "heads"))
        # Which of the leading axes is time and which is the batch says nothing about units: both keep their order.
        lead = ["b"] if rank == 3 else []
        weights = [*lead, "h", "t", "s"]
        scores = einsum(self, parts[:2], [["t", *lead, "h", "e"], ["s", *lead, "h", "e"]], weights, operation)
        read = [weights, ["s", *lead, "h", "f"]]
        out = einsum(self, [scores, parts[2]], read, ["t", *lead, "h", "f"], operation)
        joined = reshape(self.units, out, (*out.shape[:-2], width), operation.index, "heads")
        factor = joined.at(rank - 1)
        self.bind(out_weight, 1, None if factor is None else factor.ids, operation, "reads what keeps its order")
        made = self._with_rows(operation, joined, rank - 1, self.rows(out_weight, 0))
        self._biased(operation, made, [] if out_bias is None else [out_bias], rank - 1)
        if len(operation.results) > 1 and operation.kwargs.get("average_attn_weights") is False:
            self.layouts[operation.results[1]] = Layout(scores.shape, scores.factors)
        return True

    def _packed_columns(self, operation: Operation, packed: int, columns: list[Ids | None], width: int) -> None:
        """One weight holds the maps of queries, keys and values, which may read different streams."""
        first = columns[0]
        if all(column is first for column in columns) and packed not in self.grids:
            self.bind(packed, 1, first, operation, "reads what keeps its order")
            return
        why = "reads what keeps its order"
        known = [self.units.unknown((width,), operation.index, why) if c is None else c for c in columns]
        grid = np.concatenate([np.broadcast_to(column, (width, width)) for column in known])
        if packed in self.grids:
            self.units.tie(self.grids[packed][1], grid)
        elif 1 in self.bound.get(packed, {}):
            before = self.bound[packed][1]
            for column in known:
                if before is None:
                    self.units.pin(column, operation.index, "reads what keeps its order")
                else:
                    self.units.tie(before, column)
        else:
            self.grids[packed] = ((0, 1), grid)
            self.bound.setdefault(packed, {})[1] = None
