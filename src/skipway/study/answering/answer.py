"""What a study's numbers say to its question, with how sure that is."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skipway.errors import choose
from skipway.study.answering.degradation import QUESTION, Harm, Repair, degradation
from skipway.study.answering.degradation import RULE as DEGRADATION_RULE
from skipway.study.answering.differences import LEAST_SEEDS, LEVEL, Comparison, chance, compare
from skipway.study.answering.summary import Spread, summarise
from skipway.study.declaring.question import compared_axis
from skipway.study.declaring.variants import label
from skipway.study.records.measures import written
from skipway.study.records.record import Record
from skipway.study.training.building import read_skip

if TYPE_CHECKING:
    from skipway.study.declaring.declaration import Study

# More alternatives than these are counted in the answer, and told one by one in the table.
_TOLD = 4
_WORDS = {
    "better": "is better than",
    "worse": "is worse than",
    "unclear": "is not clearly different from",
    "too few seeds": "is not to be told from",
    "diverged": "diverged, unlike",
}
_COUNTED = {
    "better": "better",
    "worse": "worse",
    "diverged": "diverged",
    "unclear": "not clearly different",
    "too few seeds": "not to be told apart",
}
DIFFERENCE_RULE = (
    f"Each value is compared with the baseline seed by seed, where everything else is the same. The interval is the "
    f"{LEVEL:.0%} percentile bootstrap of the mean difference over seeds. A difference is claimed where there are "
    f"{LEAST_SEEDS} seeds at least and the interval leaves zero out; with fewer there are not enough seeds to say. Few "
    "seeds are weak evidence: where there is no difference, all of n seeds still fall on one side in 2 / 2^n of the "
    "cases, which is 25 % for 3 seeds, 6 % for 5 and 3 % for 6. Comparisons are not corrected for their number. A "
    "diverged trial counts as 100 % error."
)


@dataclass(frozen=True)
class Asked:
    """A study's question with everything settled that it left open.

    `baseline` is a label of the compared axis; `others` are judged by too, behind `measure`.
    """

    text: str
    compare: str
    baseline: str
    along: str | None
    measure: str
    others: tuple[str, ...]
    at: str
    reach: float | None
    rule: str

    @property
    def quantity(self) -> str:
        """What is compared, in words."""
        name = self.measure.replace("_", " ")
        if self.reach is not None:
            return f"rounds until {name} is {written(self.measure, self.reach)}"
        return {"last": name, "best": f"best {name}", "mean": f"mean {name} over the training"}[self.at]


@dataclass(frozen=True)
class Answer:
    """What a study found: `sentence` says it, `rule` how it was judged, `comparisons` hold the numbers.

    For the question of degradation `harm` is what depth does to the plain network and `repairs` what each skip does
    about it; they are None and empty for others, and where the study cannot tell.
    """

    asked: Asked
    sentence: str
    rule: str
    comparisons: tuple[Comparison, ...]
    harm: Harm | None = None
    repairs: Mapping[str, Repair] | None = None


def ask(study: Study, records: Sequence[Record]) -> Asked:
    """Settle what a study's question leaves open; raises SkipwayError for a measure that no record has."""
    question, axis, axes = study.question, compared_axis(study.question, study.axes()), study.axes()
    values = axes.get(axis, (None,))
    baseline = label(values[0])
    if question.baseline is not None:
        baseline = label(read_skip(question.baseline) if axis == "skip" else question.baseline)
    along = question.along
    if along is None and len(axes.get("depth", ())) > 1 and axis != "depth":
        along = "depth"
    plain = any(record.plain for record in records)
    classic = axis == "skip" and along == "depth" and plain and question.measure is None and _has_train_error(records)
    rule = question.rule or ("degradation" if classic else "difference")
    wanted = [question.measure] if isinstance(question.measure, str) else list(question.measure or ())
    measure, *others = wanted or ["train_error" if rule == "degradation" else records[0].judge]
    for name in (measure, *others):
        choose("measure of this study", name, {name: None for r in records for name in (*r.curves, *r.measures)})
    text = question.text or (
        QUESTION
        if rule == "degradation"
        else f"What does {axis.replace('_', ' ')} do to the {measure.replace('_', ' ')}?"
    )
    return Asked(text, axis, baseline, along, measure, tuple(others), question.at, question.reach, rule)


def answer(study: Study, records: Sequence[Record]) -> Answer:
    """Answer a study's question, from nothing but its records."""
    asked = ask(study, records)
    turns = [asked, *(dataclasses.replace(asked, measure=name, at="last", reach=None) for name in asked.others)]
    found_by = [tuple(compare(records, one.compare, one.baseline, one.measure, one.at, one.reach)) for one in turns]
    comparisons = tuple(itertools.chain.from_iterable(found_by))
    if asked.rule == "degradation":
        found = degradation(summarise(records))
        return Answer(asked, found.sentence, DEGRADATION_RULE, comparisons, found.harm, found.repairs)
    sentences = [_sentence(one, found, records) for one, found in zip(turns, found_by, strict=True)]
    return Answer(asked, "\n".join(sentences), DIFFERENCE_RULE, comparisons)


def _has_train_error(records: Sequence[Record]) -> bool:
    return all("train_error" in record.curves for record in records)


def _sentence(asked: Asked, comparisons: Sequence[Comparison], records: Sequence[Record]) -> str:
    if not comparisons:
        known = [value for r in records if (value := r.value(asked.measure, asked.at, asked.reach)) is not None]
        told = f": its {asked.quantity} is {Spread.of(known).text(_unit(asked))}" if known else ""
        return f"There is nothing to compare: {asked.compare.replace('_', ' ')} has one value{told}."
    by_value: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        by_value.setdefault(comparison.value, []).append(comparison)
    seeds = max(comparison.seeds for comparison in comparisons)
    if all(comparison.verdict == "too few seeds" for comparison in comparisons):
        lead, trail = f"Not enough seeds to say: {seeds} of the {LEAST_SEEDS} that a difference takes at least. ", ""
    else:
        lead = ""
        trail = (
            f" ({seeds} seeds: where there is no difference, {100 * chance(seeds):.0f} % of such comparisons show one.)"
        )
    told = _counted(asked, by_value) if len(by_value) > _TOLD else _each(asked, by_value)
    return f"{lead}Judged by {asked.quantity}: {told}{trail}"


def _each(asked: Asked, by_value: Mapping[str, Sequence[Comparison]]) -> str:
    parts = [_told(asked, value, found) for value, found in by_value.items()]
    return " ".join(part if not place else part[0].upper() + part[1:] for place, part in enumerate(parts))


def _told(asked: Asked, value: str, found: Sequence[Comparison]) -> str:
    name, baseline = _named(asked, value), _named(asked, asked.baseline)
    verdicts = {comparison.verdict for comparison in found}
    if len(found) == 1:
        return f"{name} {_WORDS[found[0].verdict]} {baseline}: {_numbers(asked, found[0])}."
    if len(verdicts) == 1:
        ends = "; ".join(f"{_numbers(asked, one)} at {_where(one)}" for one in (found[0], found[-1]))
        return f"{name} {_WORDS[found[0].verdict]} {baseline} everywhere: {ends}."
    each = "; ".join(f"at {_where(one)} it {_WORDS[one.verdict]} it ({_numbers(asked, one)})" for one in found)
    return f"{name} against {baseline} depends on where: {each}."


def _counted(asked: Asked, by_value: Mapping[str, Sequence[Comparison]]) -> str:
    parts, left = [], len(by_value)
    for verdict, words in _COUNTED.items():
        names = [value for value, found in by_value.items() if all(one.verdict == verdict for one in found)]
        left -= len(names)
        if names:
            shown = ", ".join(_named(asked, one) for one in names[:_TOLD])
            more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
            parts.append(f"{len(names)} {words} ({shown}{more})")
    if left:
        parts.append(f"{left} better in some places and not in others")
    return f"of {len(by_value)} alternatives to {_named(asked, asked.baseline)}: {'; '.join(parts)}."


def _numbers(asked: Asked, one: Comparison) -> str:
    if one.ours is None or one.theirs is None:
        return f"{one.seeds} seeds have both numbers"
    unit = _unit(asked)
    told = f"{written(unit, one.ours.mean)} against {written(unit, one.theirs.mean)}"
    if one.difference is None or one.low is None or one.high is None or one.seeds < LEAST_SEEDS:
        return told
    interval = f"{_signed(unit, one.low)} to {_signed(unit, one.high)}"
    return f"{told}, {_signed(unit, one.difference)} ({interval}){' points' if unit.endswith('error') else ''}"


def _unit(asked: Asked) -> str:
    return "rounds" if asked.reach is not None else asked.measure


def _signed(measure: str, value: float) -> str:
    text = f"{100 * abs(value):.1f}" if measure.endswith("error") else written(measure, abs(value))
    return f"{'-' if value < 0 else '+'}{text}"


def _where(one: Comparison) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {text}" for name, text in one.where.items()) or "the one setting"


def _named(asked: Asked, value: str) -> str:
    return f"'{value}'" if asked.compare in ("skip", "model", "data", "optimizer") else f"{asked.compare} {value}"
