"""Differences between variants, seed by seed, with what chance makes of so few seeds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skipway.study.answering.summary import Spread, by_variant
from skipway.study.records.measures import better
from skipway.study.records.record import Record

Verdict = Literal["better", "worse", "unclear", "too few seeds", "diverged"]
# With fewer there is no telling a difference from chance.
LEAST_SEEDS = 3
LEVEL = 0.95
# Up to so many seeds every resample is counted, above that many are drawn.
_COUNTED, _DRAWN = 6, 10_000


@dataclass(frozen=True)
class Comparison:
    """A value of the compared axis against the baseline's, where the other axes are as `where` says.

    `difference` is the mean over seeds of ours less theirs, `low` and `high` bound it (bootstrap over seeds); they are
    None where no seed has both numbers. `seeds` have both.
    """

    where: Mapping[str, str]
    value: str
    baseline: str
    measure: str
    seeds: int
    ours: Spread | None
    theirs: Spread | None
    difference: float | None
    low: float | None
    high: float | None
    verdict: Verdict


def bootstrap(values: Sequence[float], level: float = LEVEL) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean (Efron 1979): what resampling the values with replacement gives.

    For up to six values every resample is counted, so that the interval is exact; above, 10,000 are drawn, always the
    same ones.

    >>> bootstrap([1.0, 1.0, 1.0]), bootstrap([0.0, 3.0])
    ((1.0, 1.0), (0.0, 3.0))
    """
    known, n = np.asarray(values, dtype=float), len(values)
    if n <= _COUNTED:
        places = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        places = np.random.default_rng(0).integers(n, size=(_DRAWN, n))
    means = known[places].mean(axis=1)
    # The resamples are all there is: between two of them lies nothing to interpolate to.
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def chance(seeds: int) -> float:
    """How often differences of so many seeds all fall on one side where there is none (sign test, two-sided).

    >>> chance(3), chance(6)
    (0.25, 0.03125)
    """
    return min(1.0, 2.0 ** (1 - seeds))


def compare(
    records: Sequence[Record], axis: str, baseline: str, measure: str, at: str = "last", reach: float | None = None
) -> list[Comparison]:
    """Every value of an axis against the baseline, wherever all other axes agree, seed by seed."""
    groups = by_variant(records)
    found: list[Comparison] = []
    for group in groups:
        labels = group[0].labels
        where = {name: text for name, text in labels.items() if name != axis}
        if labels.get(axis) == baseline:
            continue
        other = [
            one
            for one in groups
            if one[0].labels.get(axis) == baseline
            and all(one[0].labels.get(name) == text for name, text in where.items())
        ]
        if other:
            found.append(_compare(group, other[0], where, labels.get(axis, ""), baseline, measure, at, reach))
    return found


def _compare(
    group: Sequence[Record],
    other: Sequence[Record],
    where: Mapping[str, str],
    value: str,
    baseline: str,
    measure: str,
    at: str,
    reach: float | None,
) -> Comparison:
    ours, theirs = ({record.seed: record.value(measure, at, reach) for record in part} for part in (group, other))
    pairs = [
        (mine, its)
        for seed, mine in ours.items()
        if mine is not None and (its := theirs.get(seed)) is not None
    ]  # fmt: skip
    differences = [mine - its for mine, its in pairs]
    low, high = bootstrap(differences) if differences else (None, None)
    return Comparison(
        where,
        value,
        baseline,
        measure,
        len(pairs),
        _spread(ours.values()),
        _spread(theirs.values()),
        sum(differences) / len(differences) if differences else None,
        low,
        high,
        _verdict(group, other, low, high, len(pairs), "lowest" if reach is not None else better(measure)),
    )


def _spread(values: object) -> Spread | None:
    known = [value for value in values if value is not None]  # pyright: ignore[reportGeneralTypeIssues]
    return Spread.of(known) if known else None


def _verdict(
    group: Sequence[Record],
    other: Sequence[Record],
    low: float | None,
    high: float | None,
    seeds: int,
    good: str,
) -> Verdict:
    lost, their_lost = (sum(record.diverged is not None for record in part) for part in (group, other))
    if lost == len(group) and their_lost < len(other):
        return "diverged"
    if low is None or high is None or seeds < LEAST_SEEDS:
        return "too few seeds"
    if low <= 0 <= high:
        return "unclear"
    return "better" if (high < 0) == (good == "lowest") else "worse"
