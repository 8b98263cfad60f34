"""The report of a study: the answer, the tables, the curves and the gradients behind it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from skipway.report import Facts, Figure, Line, Page, Panel, Section, Table
from skipway.study.measures import written
from skipway.study.records import Record
from skipway.study.summary import Spread

if TYPE_CHECKING:
    import skipway.study.results


def study_page(results: skipway.study.results.Results, target: Path) -> str:
    """The page as HTML; links to the records are relative to `target`, where it will lie."""
    records = results.records
    first = records[0]
    subject = f"{first.data['name']}: {len(records)} trials."
    return Page(
        title=results.study.name,
        question=results.answer.asked.text,
        answer=results.answer.sentence,
        subject=subject,
        sections=[
            Section(
                "Networks",
                "Errors after the last epoch, measured in evaluation mode: mean over seeds, and from the lowest to the "
                "highest seed. Seconds are those of one trial.",
                [_networks(results)],
            ),
            Section(
                "Training curves",
                "Error by epoch, mean over seeds; the band runs from the lowest to the highest seed. Networks without "
                "skips stand first, and all panels share one scale.",
                [_curves(records)],
            ),
            Section(
                "Gradient norm by layer",
                "Norm of the training loss's gradient in each weight layer, from the input to the output, at the first "
                "and at the last step: geometric mean over seeds, with the band from the lowest to the highest.",
                [_gradients(records)],
            ),
            Section("Trials", "", [_trials(results, target)]),
            Section("How the answer is found", results.answer.rule),
            Section("Recipe", _recipe_text(), [_recipe(first), _versions(records)]),
        ],
    ).html()


def _networks(results: skipway.study.results.Results) -> Table:
    shown = results.shown_measures()
    rows = [
        [
            summary.model,
            summary.skip,
            f"{summary.seeds} ({summary.diverged} diverged)" if summary.diverged else str(summary.seeds),
            *(summary.values[name].text(name) if name in summary.values else "" for name in shown),
        ]
        for summary in results.summaries
    ]
    return Table(["model", "skip", "seeds", *(name.replace("_", " ") for name in shown)], rows)


def _trials(results: skipway.study.results.Results, target: Path) -> Table:
    rows, links = [], []
    for record in results.records:
        value = record.value(record.judge)
        outcome = [written(record.judge, value) if value is not None else ""]
        if record.diverged is not None:
            outcome = [f"diverged in epoch {record.diverged['epoch']}"]
        rows.append([record.model, record.skip, str(record.seed), *outcome, "record"])
        path = results.folder.absolute() / "trials" / f"{record.id}.json"
        links.append(quote(Path(os.path.relpath(path, target.absolute().parent)).as_posix()))
    columns = ["model", "skip", "seed", results.records[0].judge.replace("_", " "), "raw data"]
    return Table(columns, rows, links=links, compact=True)


def _curves(records: Sequence[Record]) -> Figure:
    depths = sorted({record.depth or 0 for record in records})
    panels = []
    titles = _skip_titles(records)
    plain = {record.skip for record in records if record.plain}
    for skip in sorted(titles, key=lambda skip: skip not in plain):
        lines = []
        for place, depth in enumerate(depths):
            group = [record for record in records if (record.skip, record.depth or 0) == (skip, depth)]
            for weight, curves in enumerate(
                ([r.curves.get("train_error", []) for r in group], [r.curves.get("test_error", []) for r in group])
            ):
                spreads = _by_place(curves, logarithmic=False)
                epochs = list(range(1, len(spreads) + 1))
                lines.append(_line(epochs, spreads, place, weight, factor=100.0))
        panels.append(Panel(titles[skip], lines))
    return Figure(
        name="Training curves",
        panels=panels,
        x_title="epoch",
        y_title="error, %",
        colours=[f"{depth} layers" for depth in depths],
        weights=("training", "test"),
        palette="ordered",
    )


def _gradients(records: Sequence[Record]) -> Figure:
    titles = _skip_titles(records)
    panels = []
    for model in _in_order(record.model for record in records):
        lines = []
        for place, skip in enumerate(titles):
            group = [record for record in records if (record.skip, record.model) == (skip, model)]
            steps = [r.first_gradients for r in group], [r.last_gradients for r in group]
            for weight, norms in enumerate(steps):
                spreads = _by_place(norms, logarithmic=True)
                layers = list(range(1, len(spreads) + 1))
                lines.append(_line(layers, spreads, place, weight, labels=group[0].layers[: len(spreads)]))
        panels.append(Panel(model, lines))
    return Figure(
        name="Gradient norm by layer",
        panels=panels,
        x_title="weight layer, from the input",
        y_title="gradient norm",
        colours=list(titles.values()),
        weights=("first step", "last step"),
        log_y=True,
    )


def _recipe_text() -> str:
    return (
        "Every trial is trained alike: SGD with momentum under a one-cycle learning rate, cross-entropy, images "
        "normalised by channel, no augmentation. A seed decides the initial weights and the order of the images, "
        "the same for every network; the same seed gives the same numbers again on the same machine."
    )


def _recipe(record: Record) -> Facts:
    names = {"epochs": "epochs", "batch_size": "batch size", "learning_rate": "highest learning rate"}
    names |= {"momentum": "momentum", "weight_decay": "weight decay", "width": "width of the first stage"}
    facts = {shown: str(record.recipe[name]) for name, shown in names.items() if record.recipe.get(name) is not None}
    return Facts({**facts, "data fingerprint": str(record.data["fingerprint"])})


def _versions(records: Sequence[Record]) -> Facts:
    # Trials of one study may have been trained on different days, with what was installed then.
    return Facts({name: ", ".join(_in_order(r.versions[name] for r in records)) for name in records[0].versions})


def _skip_titles(records: Sequence[Record]) -> dict[str, str]:
    """What the panels call each skip of the study, in the study's order."""
    return {record.skip: "plain (no skips)" if record.plain else record.skip for record in records}


def _in_order(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _by_place(series: Sequence[Sequence[float | None]], logarithmic: bool) -> list[Spread | None]:
    """The spread over series at every place, None where no series has a number there."""
    spreads: list[Spread | None] = []
    for place in range(max((len(values) for values in series), default=0)):
        here = [values[place] for values in series if place < len(values)]
        known = [value for value in here if value is not None and (value > 0 or not logarithmic)]
        if not known:
            spreads.append(None)
        elif logarithmic:
            mean = math.exp(sum(math.log(value) for value in known) / len(known))
            spreads.append(Spread(mean, min(known), max(known)))
        else:
            spreads.append(Spread.of(known))
    return spreads


def _line(
    x: Sequence[int],
    spreads: Sequence[Spread | None],
    colour: int,
    weight: int,
    factor: float = 1.0,
    labels: Sequence[str] | None = None,
) -> Line:
    banded = any(spread is not None and spread.high > spread.low for spread in spreads)
    mean, low, high = (
        [None if spread is None else factor * getattr(spread, name) for spread in spreads]
        for name in ("mean", "low", "high")
    )
    return Line(x, mean, colour, weight, low if banded else None, high if banded else None, labels)
