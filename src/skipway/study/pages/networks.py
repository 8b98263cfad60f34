"""The networks of a study: the drawing of each, traced without memory, and what its skips make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.report import Cell, Drawing, Section, Table
from skipway.report.tables import number
from skipway.study.declaring.variants import Variant
from skipway.study.records.record import Record
from skipway.study.training.building import build_network
from skipway.study.training.determinism import Undrawn
from skipway.study.training.twins import examples

if TYPE_CHECKING:
    from skipway.study.running.results import Results

# A page with more drawings is slow to open, and nobody looks at them all.
_DRAWN = 12
_LARGEST = 300_000


def networks_section(results: Results) -> list[Section]:
    """Each distinct network once, drawn and counted; nothing for experiments that build networks of their own."""
    if results.study.experiment != "train":
        return []
    architectures = _architectures(results)
    graphs: dict[str, SkipGraph] = {}
    refused = []
    for title, (record, variant) in list(architectures.items())[:_DRAWN]:
        try:
            graphs[title] = _traced(record, variant)
        except Exception as error:  # Whatever a network of the user's own does without memory, the report goes on.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            refused.append(f"{title} cannot be drawn here: {reason}.")
    drawings = [_drawing(title, graph) for title, graph in graphs.items()]
    text = "Each network as it is traced: what its skips bypass, and how many ways lead through it."
    if len(architectures) > _DRAWN:
        text += f" Of {len(architectures)} networks, the first {_DRAWN} are shown."
    if refused:
        text = " ".join([text, *refused])
    tables = [_facts(graphs)] if graphs else []
    return [Section("Networks", text, [*tables, *(one for one in drawings if one is not None)])]


def _architectures(results: Results) -> dict[str, tuple[Record, Variant]]:
    """The trials whose networks differ, by what they are called."""
    known = {(variant.model, *variant.labels.items()): variant for variant in results.study.variants()}
    found: dict[str, tuple[Record, Variant]] = {}
    seen: set[str] = set()
    for record in results.records:
        variant = known.get((record.model, *record.labels.items()))
        what = f"{record.model} {record.connection} {record.options} {record.data.get('shape')}"
        if variant is None or what in seen:
            continue
        seen.add(what)
        named = [f"{name.replace('_', ' ')} {value}" for name, value in record.options.items() if name in record.labels]
        title = ", ".join([record.model, "plain" if record.plain else record.skip, *named])
        found[title if title not in found else f"{title} ({len(found)})"] = (record, variant)
    return found


def _traced(record: Record, variant: Variant) -> SkipGraph:
    offered = _offered(record)
    with torch.device("meta"):
        with Undrawn():
            network = build_network(record.model, record.task, offered, variant.skip, record.options).eval()
        failure: SkipwayError | None = None
        for inputs in examples(network, record.task, offered):
            try:
                return trace(network, *inputs)
            except SkipwayError as error:
                failure = failure or error
    raise failure or SkipwayError("there is no example of its inputs")


def _offered(record: Record) -> Mapping[str, Any]:
    """What the data settled for a network, as far as the record tells."""
    data = record.data
    offered: dict[str, Any] = {"length": data.get("length", 16)}
    if "shape" in data:
        channels, height, width = data["shape"]
        offered |= {"in_channels": channels, "image_size": height, "image_shape": [channels, height, width]}
    if "channels" in data:
        offered |= {"in_channels": data["channels"]}
    if "classes" in data:
        offered |= {"num_classes": data["classes"]}
    elif "values" in data:
        offered |= {"num_classes": 1 if len(data["values"]) == 2 else len(data["values"])}
    if "characters" in data:
        offered |= {"vocabulary": len(data["characters"]) + (record.task == "hidden language")}
    elif "vocabulary" in data:
        offered |= {"vocabulary": data["vocabulary"], "target_vocabulary": data["vocabulary"]}
    return offered


def _drawing(title: str, graph: SkipGraph) -> Drawing | None:
    svg = graph.draw().svg()
    return Drawing(title, svg, f"{title}: {_skips(graph)}.") if len(svg) <= _LARGEST else None


def _skips(graph: SkipGraph) -> str:
    count = len(graph.skips)
    return "no skips" if not count else f"{count} skip{'' if count == 1 else 's'}"


def _facts(graphs: Mapping[str, SkipGraph]) -> Table:
    rows: list[Sequence[str | Cell]] = []
    for title, graph in graphs.items():
        paths = graph.paths()
        shortest, longest = (paths.shortest, paths.longest) if len(paths) else (None, None)
        order = graph.symmetry().log10_order
        rows.append([
            title, number(len(graph.skips)), _power(_log10(paths.total)), number(shortest),
            number(round(paths.mean, 1)), number(longest), _power(order),
        ])  # fmt: skip
    columns = [
        "network", "skips", "paths", "shortest, in layers", "mean length", "longest",
        "permutations that change nothing",
    ]  # fmt: skip
    return Table(columns, rows, "Networks")


def _power(exponent: float) -> Cell:
    """A number that is given by its power of ten."""
    if not math.isfinite(exponent):
        return Cell("–")
    if exponent < 6:
        return number(round(10**exponent))
    return Cell(f"10^{exponent:.1f}", exponent)


def _log10(count: int) -> float:
    # A count may be too large for a float.
    text = str(count)
    return math.log10(int(text[:15])) + max(0, len(text) - 15) if count else -math.inf
