"""`Summary`: the trials of one variant together, every number with its spread over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipway.study.records.measures import written
from skipway.study.records.record import Record


@dataclass(frozen=True)
class Spread:
    """A number over seeds: its mean, and the lowest and highest."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        # The mean of equal numbers is that number: rounding must not put it outside of low and high.
        low, high = min(values), max(values)
        return cls(min(max(sum(values) / len(values), low), high), low, high)

    def percent(self) -> str:
        """Mean and, where seeds differ, range, in per cent.

        >>> Spread(0.5, 0.25, 0.75).percent()
        '50.0 % (25.0 to 75.0)'
        """
        span = f" ({100 * self.low:.1f} to {100 * self.high:.1f})" if self.high > self.low else ""
        return f"{100 * self.mean:.1f} %{span}"

    def text(self, measure: str) -> str:
        """Mean and, where seeds differ, range, as people write the measure.

        >>> Spread(1.5, 1.25, 1.75).text("loss"), Spread(2.0, 2.0, 2.0).text("seconds")
        ('1.5 (1.25 to 1.75)', '2.0 s')
        """
        if measure.endswith("error"):
            return self.percent()
        span = f" ({written(measure, self.low)} to {written(measure, self.high)})" if self.high > self.low else ""
        return f"{written(measure, self.mean)}{span}"


@dataclass(frozen=True)
class Summary:
    """A variant over its seeds: `values` holds every curve's last number and every measure that a seed knows.

    `guessing` is the error of naming one of the data's classes by chance, None where there are none.
    """

    labels: Mapping[str, str]
    model: str
    depth: int | None
    skip: str
    plain: bool
    seeds: int
    diverged: int
    guessing: float | None
    values: Mapping[str, Spread]

    @property
    def train_error(self) -> Spread:
        return self.values["train_error"]


def summarise(records: Sequence[Record]) -> list[Summary]:
    """The trials of each variant together, in the order in which variants first appear."""
    return [
        Summary(
            labels=group[0].labels,
            model=group[0].model,
            depth=group[0].depth,
            skip=group[0].skip,
            plain=group[0].plain,
            seeds=len(group),
            diverged=sum(record.diverged is not None for record in group),
            guessing=1 - 1 / classes if (classes := group[0].data.get("classes")) else None,
            values=_spreads(group),
        )
        for group in by_variant(records)
    ]


def by_variant(records: Sequence[Record]) -> list[list[Record]]:
    """The records of each variant, in the order in which variants first appear."""
    groups: dict[tuple[object, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.model, record.skip, *record.labels.items()), []).append(record)
    return list(groups.values())


def _spreads(group: Sequence[Record]) -> dict[str, Spread]:
    names = dict.fromkeys(name for record in group for name in (*record.curves, *record.measures))
    known = {
        name: [value for record in group if (value := record.value(name)) is not None]
        for name in names
    }  # fmt: skip
    return {name: Spread.of(values) for name, values in known.items() if values}
