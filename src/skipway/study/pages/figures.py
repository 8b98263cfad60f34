"""The figures of a study's report: the asked quantity with its intervals, the curves, and the gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from skipway.report import Figure, Line, Panel
from skipway.study.answering.answer import Asked
from skipway.study.answering.differences import LEAST_SEEDS, LEVEL, bootstrap
from skipway.study.answering.summary import Spread
from skipway.study.records.record import Record

# More lines than this in one panel are not told apart by colour.
_COLOURS = 6
# The width of a name under an axis, in letters.
_SHORT = 14
_HELD_OUT = ("test_", "validation_")
# What is chosen and not measured.
_SETTINGS = ("learning_rate",)
# A loss that grows by more than this is shown by its powers of ten.
_WIDE = 50.0


@dataclass(frozen=True)
class Arrangement:
    """Which axis of a study the colours stand for, if any, and which axes each panel has a setting of."""

    colour: str | None
    levels: tuple[str, ...]
    panels: tuple[str, ...]

    @property
    def ordered(self) -> bool:
        """Whether the colours stand for a quantity."""
        return len(self.levels) > 1 and all(map(_is_number, self.levels))

    @property
    def names(self) -> list[str]:
        """The legend."""
        if self.colour is None:
            return [""]
        return [_level(self.colour, level) for level in self.levels]

    def split(self, records: Sequence[Record]) -> dict[str, list[list[Record]]]:
        """The records by panel, and in each panel by colour."""
        panels: dict[str, list[list[Record]]] = {}
        # Networks without skips stand first: they are what others are compared with.
        for record in sorted(records, key=lambda record: "skip" in self.panels and not record.plain):
            title = setting_title(record, self.panels)
            groups = panels.setdefault(title, [[] for _ in self.names])
            level = record.labels.get(self.colour or "", "")
            groups[self.levels.index(level) if self.colour is not None else 0].append(record)
        return panels


def arrange(records: Sequence[Record], colour: Iterable[str | None]) -> Arrangement:
    """The first of these axes that varies and has few levels gives the colours; all others are spread over panels."""
    varying = list(dict.fromkeys(name for record in records for name in record.labels))
    for name in colour:
        if name in varying:
            levels = _levels(records, name)
            if len(levels) <= _COLOURS or all(map(_is_number, levels)):
                return Arrangement(name, levels, tuple(one for one in varying if one != name))
    return Arrangement(None, ("",), tuple(varying))


def answer_figure(records: Sequence[Record], asked: Asked) -> Figure | None:
    """What is asked for, by the axis that it is followed along or by what is compared; None where nothing is known."""
    varying = list(dict.fromkeys(name for record in records for name in record.labels))
    along = asked.along if asked.along in varying else None
    compared = asked.compare if asked.compare in varying else None
    x_axis = along or compared or (varying[-1] if varying else None)
    arrangement = arrange(records, [compared if along else None])
    if along and arrangement.colour is None and compared:
        # Too many to be told apart by colour: under one another, in a panel for each place along the other axis.
        x_axis = compared
    panels_of = tuple(name for name in varying if name not in (x_axis, arrangement.colour))
    arrangement = Arrangement(arrangement.colour, arrangement.levels, panels_of)
    levels = _levels(records, x_axis) if x_axis is not None else ("",)
    factor, unit = scale("rounds" if asked.reach is not None else asked.measure)
    across = not all(map(_is_number, levels)) and (len(levels) > _COLOURS or max(map(len, levels)) > _SHORT)
    panels = []
    for title, groups in arrangement.split(records).items():
        lines = []
        for place, group in enumerate(groups):
            line = _interval_line(group, x_axis, levels, asked, factor, place)
            if any(y is not None for y in line.y):
                lines.append(line)
        panels.append(Panel(title, lines))
    if not any(panel.lines for panel in panels):
        return None
    seeds = len({record.seed for record in records})
    bar = f"; the bar is the {LEVEL:.0%} bootstrap interval of the mean over seeds" if seeds >= LEAST_SEEDS else ""
    return Figure(
        name=f"{asked.quantity} by {spaced(x_axis or 'variant')}".capitalize(),
        panels=panels,
        x_title=spaced(x_axis or ""),
        y_title=f"{asked.quantity}{unit}",
        colours=arrangement.names,
        weights=("",),
        marks="intervals",
        across=across,
        note=f"Small dots are single seeds, the large mark is their mean{bar}.",
    )


def curve_figures(records: Sequence[Record], asked: Asked) -> list[Figure]:
    """A figure for each quantity that was followed round by round, the one that is asked for first."""
    known = {name for record in records for name, values in record.curves.items() if values and name not in _SETTINGS}
    quantities = list(dict.fromkeys(_quantity(name) for name in [asked.measure, records[0].judge, *sorted(known)]))
    arrangement = arrange(records, [asked.along, asked.compare])
    figures = []
    for quantity in quantities:
        names = [name for name in (_training(quantity, known), _held_out(quantity, known)) if name is not None]
        if names:
            figures.append(_curves(records, arrangement, quantity, names))
    return figures


def gradient_figure(records: Sequence[Record], asked: Asked) -> Figure | None:
    """The gradient's norm by weight layer, of what is compared in one panel."""
    records = [record for record in records if record.first_gradients]
    if not records:
        return None
    arrangement = arrange(records, [asked.compare if asked.compare != "depth" else None])
    panels = []
    for title, groups in arrangement.split(records).items():
        lines = []
        for place, group in enumerate(groups):
            for weight, series in enumerate(
                ([r.first_gradients for r in group], [r.last_gradients for r in group]) if group else ()
            ):
                spreads = by_place(series, logarithmic=True)
                layers = list(range(1, len(spreads) + 1))
                lines.append(spread_line(layers, spreads, place, weight, labels=group[0].layers[: len(spreads)]))
        panels.append(Panel(title, lines))
    return Figure(
        name="Gradient norm by layer",
        panels=panels,
        x_title="weight layer, from the input",
        y_title="gradient norm",
        colours=arrangement.names,
        weights=("first step", "last step"),
        log_y=True,
    )


def spaced(name: str) -> str:
    """A name as people read it.

    >>> spaced("test_error")
    'test error'
    """
    return name.replace("_", " ")


def scale(measure: str) -> tuple[float, str]:
    """By what a measure is multiplied to be drawn, and the unit behind its name.

    >>> scale("test_error"), scale("loss")
    ((100.0, ', %'), (1.0, ''))
    """
    if measure.endswith("error"):
        return 100.0, ", %"
    if measure == "memory":
        return 2.0**-20, ", MiB"
    return (1.0, ", s") if measure.endswith("seconds") else (1.0, "")


def by_place(series: Sequence[Sequence[float | None]], logarithmic: bool) -> list[Spread | None]:
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


def spread_line(
    x: Sequence[int],
    spreads: Sequence[Spread | None],
    colour: int,
    weight: int,
    factor: float = 1.0,
    labels: Sequence[str] | None = None,
) -> Line:
    """A line of means, with the band from the lowest to the highest where there is one."""
    banded = any(spread is not None and spread.high > spread.low for spread in spreads)
    mean, low, high = (
        [None if spread is None else factor * getattr(spread, name) for spread in spreads]
        for name in ("mean", "low", "high")
    )
    return Line(x, mean, colour, weight, low if banded else None, high if banded else None, labels)


def _interval_line(
    group: Sequence[Record], axis: str | None, levels: Sequence[str], asked: Asked, factor: float, colour: int
) -> Line:
    points = []
    for level in levels:
        here = [record for record in group if axis is None or record.labels.get(axis) == level]
        values = [record.value(asked.measure, asked.at, asked.reach) for record in here]
        points.append([factor * value for value in values if value is not None])
    intervals = [bootstrap(values) if len(values) >= LEAST_SEEDS else None for values in points]
    bounded = any(intervals)
    return Line(
        x=[_x(level) for level in levels],
        y=[sum(values) / len(values) if values else None for values in points],
        colour=colour,
        weight=0,
        low=[None if one is None else one[0] for one in intervals] if bounded else None,
        high=[None if one is None else one[1] for one in intervals] if bounded else None,
        points=points if any(len(values) > 1 for values in points) else None,
    )


def _curves(records: Sequence[Record], arrangement: Arrangement, quantity: str, names: Sequence[str]) -> Figure:
    factor, unit = scale(quantity)
    panels = []
    for title, groups in arrangement.split(records).items():
        lines = []
        for place, group in enumerate(groups):
            for weight, name in enumerate(names):
                spreads = by_place([record.curves.get(name, []) for record in group], logarithmic=False)
                if spreads:
                    rounds = list(range(1, len(spreads) + 1))
                    lines.append(spread_line(rounds, spreads, place, weight, factor))
        lost = all(record.diverged is not None for group in groups for record in group)
        panels.append(Panel(f"{title} (diverged)" if lost else title, lines))
    drawn = [y for panel in panels for line in panel.lines for y in line.y if y is not None]
    every = records[0].recipe.get("every")
    return Figure(
        name=f"{spaced(quantity).capitalize()} by round" if every else f"{spaced(quantity).capitalize()} by epoch",
        panels=panels,
        x_title="epoch" if every is None else f"round of {every} steps",
        y_title=f"{spaced(quantity)}{unit}",
        colours=arrangement.names,
        weights=("training", "held out") if len(names) == 2 else ("",),
        palette="ordered" if arrangement.ordered else "kinds",
        log_y=bool(drawn) and min(drawn) > 0 and max(drawn) > _WIDE * min(drawn) and not quantity.endswith("error"),
    )


def _quantity(name: str) -> str:
    for part in ("train_", *_HELD_OUT):
        if name.startswith(part):
            return name.removeprefix(part)
    return name


def _training(quantity: str, known: Iterable[str]) -> str | None:
    # What the steps' loss says is measured while the network changes: the loss after the round says more.
    return next((name for name in (f"train_{quantity}", quantity) if name in known), None)


def _held_out(quantity: str, known: Iterable[str]) -> str | None:
    return next((f"{part}{quantity}" for part in _HELD_OUT if f"{part}{quantity}" in known), None)


def _levels(records: Sequence[Record], axis: str) -> tuple[str, ...]:
    levels = list(dict.fromkeys(record.labels.get(axis, "") for record in records))
    return tuple(sorted(levels, key=float)) if all(map(_is_number, levels)) else tuple(levels)


def _level(axis: str, text: str) -> str:
    return f"{text} layers" if axis == "depth" else f"{spaced(axis)} {text}" if _is_number(text) else text


def setting_title(record: Record, axes: Sequence[str]) -> str:
    parts = []
    for name in axes:
        text = record.labels.get(name, "")
        plain = name == "skip" and record.plain
        parts.append("plain (no skips)" if plain else _level(name, text) if name != "skip" else text)
    return ", ".join(parts)


def _x(level: str) -> float | int | str:
    if not _is_number(level):
        return level
    value = float(level)
    return int(value) if value.is_integer() else value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
