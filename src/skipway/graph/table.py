"""A skip graph as a table, a data frame, JSON and a networkx graph."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from skipway.graph.ir import Operation, Ref
from skipway.graph.operations import weight_layers

if TYPE_CHECKING:
    from skipway.graph.skipgraph import SkipGraph
    from skipway.graph.skips import Skip

COLUMNS = ("site", "kind", "shortcut", "fewest", "most", "long", "gradient", "source_shape", "branch_shape", "shape")


def row(skip: Skip) -> dict[str, Any]:
    """One skip as plain values, one for each of `COLUMNS`."""
    return {
        "site": str(skip.site),
        "kind": skip.kind,
        "shortcut": skip.shortcut,
        "fewest": skip.span.fewest,
        "most": skip.span.most,
        "long": skip.long,
        "gradient": skip.gradient,
        "source_shape": skip.source_shape,
        "branch_shape": skip.branch_shape,
        "shape": skip.shape,
    }


def text(graph: SkipGraph) -> str:
    """The table that `print(graph)` shows: one line a skip, and a line above and below that sums up."""
    trace = graph.trace
    weights = sum(weight_layers(operation, trace) > 0 for operation in trace.operations)
    lines = [
        f"{trace.model}: {_count(len(graph.skips), 'skip')}, {_count(weights, 'weight layer')}, "
        f"{_count(len(trace.operations), 'operation')}"
    ]
    if graph.skips:
        head = ("", "site", "kind", "shortcut", "past", "from", "to", "length")
        body = [
            (
                str(skip.index),
                str(skip.site),
                skip.kind,
                skip.shortcut if skip.gradient else f"{skip.shortcut} (no gradient)",
                str(skip.span.most)
                if skip.span.fewest == skip.span.most
                else f"{skip.span.fewest} to {skip.span.most}",
                _shape(skip.source_shape),
                _shape(skip.shape),
                "long" if skip.long else "short",
            )
            for skip in graph.skips
        ]
        widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
        for line in (head, *body):
            cells = [
                cell.rjust(width) if column in (0, 4) else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
    lines += [f"note: {note}" for note in trace.notes]
    return "\n".join(lines)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _range(fewest: int, most: int) -> str:
    return str(most) if fewest == most else f"{fewest} to {most}"


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape) or "scalar"


def to_json(graph: SkipGraph, operations: bool) -> str:
    """The skips, and with `operations` the whole graph, as JSON."""
    trace = graph.trace
    content: dict[str, Any] = {
        "model": trace.model,
        "inputs": [_value(graph, index) for index in trace.inputs],
        "outputs": [
            {**_value(graph, index), "name": name}
            for index, name in zip(trace.outputs, trace.output_names, strict=True)
        ],
        "notes": list(trace.notes),
        "skips": [
            {
                "index": skip.index,
                **row(skip),
                "branch_modules": skip.branch_modules,
                "shortcut_modules": skip.shortcut_modules,
                "source": skip.source,
                "carried": skip.carried,
                "branches": skip.branches,
                "merge": skip.merge,
                "branch_operations": skip.branch_operations,
                "shortcut_operations": skip.shortcut_operations,
            }
            for skip in graph.skips
        ],
    }
    if operations:
        content["operations"] = [
            {
                "index": operation.index,
                "site": str(operation.site),
                "operands": operation.operands,
                "results": [_value(graph, index) for index in operation.results],
                "parameters": parameters(graph, operation),
                "arguments": _arguments(operation),
            }
            for operation in trace.operations
        ]
    return json.dumps(content, indent=2)


def _value(graph: SkipGraph, index: int) -> dict[str, Any]:
    value = graph.trace.values[index]
    return {"value": index, "name": value.name, "shape": value.shape, "dtype": str(value.dtype).removeprefix("torch.")}


def _arguments(operation: Operation) -> list[Any]:
    named = [f"{key}={_written(item)}" for key, item in operation.kwargs.items()]
    return [_written(item) for item in operation.args] + named


def _written(item: Any) -> str:
    if isinstance(item, Ref):
        return f"%{item.value}"
    if isinstance(item, (tuple, list)):
        return "(" + ", ".join(_written(part) for part in item) + ")"
    if isinstance(item, slice):
        return ":".join("" if part is None else _written(part) for part in (item.start, item.stop, item.step))
    return repr(item) if isinstance(item, str) else str(item)


def parameters(graph: SkipGraph, operation: Operation) -> list[str]:
    """The names of the parameters that enter an operation directly."""
    values = (graph.trace.values[index] for index in operation.operands)
    return [value.name for value in values if value.origin == "parameter"]


def to_frame(graph: SkipGraph) -> Any:
    """The skips as a pandas data frame, one row each."""
    import pandas

    return pandas.DataFrame([row(skip) for skip in graph.skips], columns=list(COLUMNS))


def to_networkx(graph: SkipGraph) -> Any:
    """The operations as a networkx directed graph: see `SkipGraph.to_networkx`."""
    import networkx

    trace = graph.trace
    merges: dict[int, list[int]] = {}
    for skip in graph.skips:
        merges.setdefault(skip.merge, []).append(skip.index)
    made = networkx.MultiDiGraph(model=trace.model)
    for index in trace.inputs:
        made.add_node(f"input {trace.values[index].name}", name="input", shape=trace.values[index].shape)
    for operation in trace.operations:
        made.add_node(
            operation.index,
            site=str(operation.site),
            name=operation.name,
            module=operation.site.module,
            shape=trace.values[operation.results[0]].shape,
            parameters=parameters(graph, operation),
            weight_layers=weight_layers(operation, trace),
            skips=merges.get(operation.index, []),
        )
        for position, (value, how) in enumerate(
            zip(operation.operands, graph.flow.passages[operation.index], strict=True)
        ):
            read = trace.values[value]
            if read.producer is not None:
                made.add_edge(read.producer, operation.index, value=value, operand=position, passage=how.name.lower())
            elif read.origin == "input":
                made.add_edge(f"input {read.name}", operation.index, value=value, operand=position,
                              passage=how.name.lower())  # fmt: skip
    return made
