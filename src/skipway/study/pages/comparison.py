"""Two studies on one page: what was declared differently, and what that did to the variants that both have."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skipway.errors import SkipwayError
from skipway.report import Cell, Page, Section, Table
from skipway.study.answering.answer import DIFFERENCE_RULE, Asked
from skipway.study.answering.differences import Comparison, compare
from skipway.study.answering.summary import by_variant
from skipway.study.pages.cells import address, differences_table
from skipway.study.pages.figures import answer_figure, curve_figures, gradient_figure
from skipway.study.records.record import Record

if TYPE_CHECKING:
    from skipway.study.running.results import Results

# The axis that tells the two studies apart.
AXIS = "study"
_WORDS = {
    "better": "better",
    "worse": "worse",
    "diverged": "diverged",
    "unclear": "not clearly different",
    "too few seeds": "not to be told apart, with too few seeds",
}


def comparison_page(first: Results, second: Results, target: Path) -> Page:
    """The page of two studies; raises SkipwayError where they share no variant or no measure."""
    names = _names(first, second)
    records, left_out = _together(first, second, names)
    asked = _asked(first, second, names, records)
    comparisons = compare(records, AXIS, names[0], asked.measure, asked.at, asked.reach)
    drawn = [answer_figure(records, asked), differences_table(asked, comparisons)]
    gradients = gradient_figure(records, asked)
    # Of both studies in one panel.
    curves = curve_figures(records, dataclasses.replace(asked, along=None))
    others = f" {'; '.join(left_out)}." if left_out else ""
    return Page(
        title=f"Studies compared: {names[0]} and {names[1]}",
        question=f"What is different in '{names[1]}', and what does it do to the {asked.quantity}?",
        answer=_sentence(asked, names, comparisons),
        subject=f"{len(comparisons)} variants are in both.{others}",
        sections=[
            Section("What was found", DIFFERENCE_RULE, [item for item in drawn if item is not None]),
            Section(
                "What was declared differently",
                "Whatever is not listed is the same in both.",
                [_differences(first, second, names)],
            ),
            Section("What each study answers", "", [_answers(first, second, names, target)]),
            *([Section("Training curves", _BAND, curves)] if curves else []),
            *([Section("Gradient norm by layer", _BAND, [gradients])] if gradients is not None else []),
        ],
    )


_BAND = "Mean over seeds, with a band from the lowest seed to the highest, of the variants that both studies have."


def _names(first: Results, second: Results) -> tuple[str, str]:
    """What tells the studies apart: their names, else their folders."""
    for one, other in (
        (first.study.name, second.study.name),
        (first.folder.name, second.folder.name),
        (str(first.folder), str(second.folder)),
    ):
        if one != other:
            return one, other
    return f"{first.study.name} (first)", f"{second.study.name} (second)"


def _together(first: Results, second: Results, names: tuple[str, str]) -> tuple[list[Record], list[str]]:
    """The records of the variants that both have, with the study as one more axis, and what is said of the others."""
    common = [name for name in _axes(first.records) if name in _axes(second.records)]
    groups = [_by_key(results.records, common) for results in (first, second)]
    shared = [key for key in groups[0] if key in groups[1]]
    if not shared:
        raise SkipwayError(
            f"'{first.folder}' and '{second.folder}' have no variant in common: the same model, connection and options"
        )
    records, varying = [], [name for name in common if len({dict(key[-1])[name] for key in shared}) > 1]
    for name, found in zip(names, groups, strict=True):
        for key in shared:
            for record in found[key]:
                labels = {axis: record.labels[axis] for axis in varying}
                if not varying and len(shared) > 1:
                    labels = {"model": record.model, "skip": record.skip}
                records.append(dataclasses.replace(record, labels={**labels, AXIS: name}))
    told = []
    for name, found in zip(names, groups, strict=True):
        if alone := len(found) - len(shared):
            told.append(f"'{name}' has {alone} more")
    return records, told


def _axes(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.labels))


def _by_key(records: Sequence[Record], common: Sequence[str]) -> dict[tuple[Any, ...], list[Record]]:
    """The records of each variant by what it is; of those that only an axis of one study tells apart, the first."""
    found: dict[tuple[Any, ...], list[Record]] = {}
    for group in by_variant(records):
        one = group[0]
        labels = tuple((name, one.labels[name]) for name in common)
        options = json.dumps(one.options, sort_keys=True, default=repr)
        found.setdefault((one.model, one.connection, options, labels), group)
    return found


def _asked(first: Results, second: Results, names: tuple[str, str], records: Sequence[Record]) -> Asked:
    for asked in (first.answer.asked, second.answer.asked):
        known = [
            any(record.value(asked.measure, asked.at, asked.reach) is not None for record in records
                if record.labels[AXIS] == name)
            for name in names
        ]  # fmt: skip
        if all(known):
            along = asked.along if asked.along in records[0].labels else None
            return dataclasses.replace(asked, compare=AXIS, baseline=names[0], along=along, rule="difference")
    raise SkipwayError(
        f"'{first.folder}' and '{second.folder}' measured nothing in common: {first.answer.asked.measure} is asked for "
        f"in one, {second.answer.asked.measure} in the other"
    )


def _sentence(asked: Asked, names: tuple[str, str], comparisons: Sequence[Comparison]) -> str:
    counted = Counter(one.verdict for one in comparisons)
    told = ", ".join(f"{counted[verdict]} {words}" for verdict, words in _WORDS.items() if counted[verdict])
    return f"Judged by {asked.quantity}, of {len(comparisons)} variants in '{names[1]}' against '{names[0]}': {told}."


def _differences(first: Results, second: Results, names: tuple[str, str]) -> Table:
    one, other = (_flat(results.study.declaration()) for results in (first, second))
    for flat, results in ((one, first), (other, second)):
        flat["data fingerprint"] = ", ".join(dict.fromkeys(str(r.data["fingerprint"]) for r in results.records))
        for name in dict.fromkeys(name for record in results.records for name in record.versions):
            flat[f"version of {name}"] = ", ".join(
                dict.fromkeys(str(r.versions[name]) for r in results.records if name in r.versions)
            )
    keys = [key for key in dict.fromkeys([*one, *other]) if one.get(key) != other.get(key) and key != "name"]
    rows = [[key, one.get(key, "–"), other.get(key, "–")] for key in keys]
    return Table(["key", *names], rows or [["nothing", "–", "–"]], "What was declared differently")


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        else:
            found[f"{before}{key}"] = value if isinstance(value, str) else json.dumps(value, default=repr)
    return found


def _answers(first: Results, second: Results, names: tuple[str, str], target: Path) -> Table:
    rows = [
        [
            Cell(name, link=address(results.folder, "report.html", target)) if _has_page(results) else name,
            results.answer.asked.text,
            results.answer.sentence,
        ]
        for name, results in zip(names, (first, second), strict=True)
    ]
    return Table(["study", "question", "answer"], rows, "Answers")


def _has_page(results: Results) -> bool:
    return (results.folder / "report.html").exists()
