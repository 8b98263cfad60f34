"""The report of a study: the answer with its uncertainty, how it was found, and every number behind it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skipway.report import Cell, Code, Facts, Page, Section, Table
from skipway.study.answering.summary import by_variant, summarise
from skipway.study.pages.cells import address, differences_table, quantity_cell
from skipway.study.pages.declared import toml
from skipway.study.pages.figures import answer_figure, curve_figures, gradient_figure, spaced
from skipway.study.pages.networks import networks_section
from skipway.study.pages.probes import probes_sections
from skipway.study.records.measures import written
from skipway.study.records.record import Record

if TYPE_CHECKING:
    from skipway.study.running.results import Results

_RECIPE = (
    "optimizer", "learning_rate", "schedule", "warm_up", "momentum", "weight_decay", "batch_size", "accumulate", "clip",
    "precision", "epochs", "steps", "seconds", "every",
)  # fmt: skip


def study_page(results: Results, target: Path) -> Page:
    """The page of a study; links to the records are relative to `target`, where it will lie."""
    records, asked = results.records, results.answer.asked
    gradients = gradient_figure(records, asked)
    return Page(
        title=f"Study: {results.study.name}",
        question=asked.text,
        answer=results.answer.sentence,
        subject=_subject(results),
        sections=[
            _found(results),
            Section(
                "Variants",
                "Numbers after the last round: the mean over seeds and, where seeds differ, the lowest and the "
                "highest. Each seed leads to its record.",
                [_variants(results, target)],
            ),
            *(
                [
                    Section(
                        "Training curves",
                        "What was measured after each round, in evaluation mode: the mean over seeds, with a band from "
                        "the lowest seed to the highest. All panels of a figure share one scale.",
                        figures,
                    )
                ]
                if (figures := curve_figures(records, asked))
                else []
            ),
            *(
                [
                    Section(
                        "Gradient norm by layer",
                        "Norm of the training loss's gradient in each weight layer, from the input to the output, at "
                        "the first and at the last step: geometric mean over seeds, with a band from the lowest to the "
                        "highest.",
                        [gradients],
                    )
                ]
                if gradients is not None
                else []
            ),
            *probes_sections(results, target),
            *networks_section(results),
            Section("Trials", _outcome(results), [_trials(results, target), *_failed(results)]),
            Section("How the answer is found", results.answer.rule),
            Section("How it was done", _done(results), _recipe(results)),
        ],
    )


def _subject(results: Results) -> str:
    first, about = results.records[0], results.study.about
    told = []
    for data in {record.data["fingerprint"]: record.data for record in results.records}.values():
        sizes = [f"{_count(data[part])} {words}" for part, words in _PARTS if part in data]
        shape = data.get("shape")
        pixels = f", {' x '.join(map(str, shape[1:]))} pixels" if shape else ""
        classes = f", {data['classes']} classes" if "classes" in data else ""
        told.append(f"{Path(data['name']).name}: {' and '.join(sizes)}{pixels}{classes}.")
    variants, seeds = len(by_variant(results.records)), len({record.seed for record in results.records})
    trials = f"{_plural(len(results.records), 'trial')}: {_plural(variants, 'variant')}, {_plural(seeds, 'seed')}"
    rounds = max(record.rounds for record in results.records)
    length = f", {_plural(rounds, round_name(first))} each" if rounds else ""
    return "\n".join(part for part in (f"{' '.join(told)} {trials}{length}.", about) if part)


_PARTS = (("train", "training examples"), ("test", "test examples"), ("held_out", "held out"))


def round_name(record: Record) -> str:
    """What a round of a trial is."""
    every = record.recipe.get("every")
    return "epoch" if every is None else f"round of {every} steps"


def _found(results: Results) -> Section:
    answer = results.answer
    figure = answer_figure(results.records, answer.asked)
    tables = [differences_table(answer.asked, answer.comparisons)] if answer.comparisons else []
    text = (
        f"{answer.asked.quantity.capitalize()}: every {spaced(answer.asked.compare)} against "
        f"'{answer.asked.baseline}', seed by seed."
    )
    return Section("What was found", text, [*([figure] if figure is not None else []), *tables])


def _axes(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(name for record in records for name in record.labels))


def _columns(records: Sequence[Record]) -> list[str]:
    """The columns that say which variant a row is: the network, and every axis that varies and is not in its name."""
    return ["model", *(name for name in _axes(records) if name != "model")]


def _named(record: Record, columns: Sequence[str]) -> list[str]:
    return [record.model if name == "model" else record.labels.get(name, "") for name in columns]


def _variants(results: Results, target: Path) -> Table:
    shown, asked = results.shown_measures(), results.answer.asked.measure
    columns = _columns(results.records)
    largest = max((s.values[asked].high for s in results.summaries if asked in s.values), default=0.0)
    rows: list[list[str | Cell]] = []
    for group in by_variant(results.records):
        summary = summarise(group)[0]
        cells = [quantity_cell(name, summary.values.get(name)) for name in shown]
        if asked in shown and asked in summary.values and largest > 0:
            place = shown.index(asked)
            bar = summary.values[asked].mean / (1.0 if asked.endswith("error") else largest)
            cells[place] = dataclasses.replace(cells[place], bar=bar)
        links = [
            (f"{record.seed}{' (diverged)' if record.diverged else ''}",
             address(results.folder, f"trials/{record.id}.json", target))
            for record in group
        ]  # fmt: skip
        rows.append([*_named(group[0], columns), Cell("", links=links), *cells])
    return Table([*map(spaced, columns), "seeds", *map(spaced, shown)], rows, "Variants")


def _trials(results: Results, target: Path) -> Table:
    shown, columns = results.shown_measures(), _columns(results.records)
    rows: list[list[str | Cell]] = []
    for record in results.records:
        values = [(name, record.value(name)) for name in shown]
        cells = [Cell("–") if value is None else Cell(written(name, value), value) for name, value in values]
        ended = f"diverged in round {record.diverged['epoch']}" if record.diverged else "finished"
        link = address(results.folder, f"trials/{record.id}.json", target)
        rows.append([*_named(record, columns), str(record.seed), Cell(ended, link=link), *cells])
    return Table([*map(spaced, columns), "seed", "record", *map(spaced, shown)], rows, "Trials", compact=True)


def _failed(results: Results) -> list[Table]:
    if not results.failed:
        return []
    return [Table(["trial", "why it failed"], [list(one) for one in results.failed], "Trials that failed")]


def _outcome(results: Results) -> str:
    lost = sum(record.diverged is not None for record in results.records)
    missing = len(results.study.trials()) - len(results.records) - len(results.failed)
    parts = [f"{_plural(len(results.records), 'trial')} finished"]
    parts += [f"{lost} of them diverged"] if lost else []
    parts += [f"{len(results.failed)} failed"] if results.failed else []
    parts += [f"{missing} not run yet"] if missing > 0 else []
    return f"{', '.join(parts)}."


def _done(results: Results) -> str:
    return (
        "Every trial is trained alike but for the axes that vary, which stand in its row of the tables. A seed decides "
        "the initial weights and the order of the examples, the same for every network; the same seed gives the same "
        "numbers again on the same machine. What varies between trials is listed with all its values."
    )


def _recipe(results: Results) -> list[Facts | Code]:
    records = results.records
    facts = {spaced(name): _listed(record.recipe.get(name) for record in records) for name in _RECIPE}
    facts |= {"data fingerprint": _listed(record.data["fingerprint"] for record in records)}
    # Trials of one study may have been trained on different days, with what was installed then.
    names = dict.fromkeys(name for record in records for name in record.versions)
    versions = {spaced(name): _listed(record.versions.get(name) for record in records) for name in names}
    return [
        Facts({name: text for name, text in facts.items() if text}),
        Facts(versions),
        Code(toml(results.study.declaration()), "The study as it was declared"),
    ]


def _listed(values: Iterable[object]) -> str:
    return ", ".join(dict.fromkeys(_shown(value) for value in values if value is not None))


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(len(value)) if isinstance(value, list) else str(value)


def _plural(count: int, word: str) -> str:
    return f"{count} {word if count == 1 else word.replace('round ', 'rounds ', 1) if ' ' in word else word + 's'}"
