"""The rule of the classic question: does depth hurt plain networks on their training set, and do skips repair it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from skipway.study.answering.summary import Summary

QUESTION = "Does depth hurt the plain network on the training set, and does the skip repair it?"
# What remains of the harm under a skip, as a share of the plain network's, up to which it counts as repaired.
REPAIRED = 0.05
# What a network that learned anything gets right beyond guessing, as a share of what there is to get.
LEARNED = 0.05
# Skips that are told one by one; of more, the answer counts those that do the same, and names as many of each.
_TOLD, _NAMED = 3, 4
RULE = (
    "The deepest network is compared with the shallower one of the same kind that has the lowest mean training error. "
    "Depth hurts where the mean over seeds is higher and every seed of the deepest network is worse than every seed of "
    "the shallower one; where the seeds overlap, the answer is that it is not clear. "
    "A skip repairs the harm where, at the greatest depth, each of its seeds is better than every plain one, and "
    f"what it loses itself by depth is within its seeds or at most {REPAIRED:.0%} of what the plain network loses. "
    "A diverged trial counts as 100 % error. Where the shallower network itself does hardly better than guessing, "
    "there is nothing to compare."
)

Harm = Literal["yes", "unclear", "no"]
Repair = Literal["whole", "part", "unclear", "no"]


@dataclass(frozen=True)
class Degradation:
    """The question's answer: `harm` done by depth to the plain network, `repairs` by skip, and both in words.

    `harm` is None where the study cannot tell.
    """

    harm: Harm | None
    repairs: dict[str, Repair]
    sentence: str


def degradation(summaries: Sequence[Summary]) -> Degradation:
    """Answer the question by `RULE`, from nothing but the table."""
    by_skip: dict[str, list[Summary]] = {}
    for summary in sorted(summaries, key=lambda summary: summary.depth or 0):
        by_skip.setdefault(summary.skip, []).append(summary)
    plain = next((rows for rows in by_skip.values() if rows[0].plain), None)
    if plain is None:
        return Degradation(None, {}, "This study cannot answer: it has no plain network (skip 'none') to compare with.")
    if len(plain) < 2:
        only = plain[0].depth
        return Degradation(None, {}, f"This study cannot answer: it has one depth, {only}, and the question needs two.")
    shallow, deep = _ends(plain)
    if shallow.guessing is not None and shallow.train_error.mean > (1 - LEARNED) * shallow.guessing:
        return Degradation(None, {}, _nothing_learned(shallow, shallow.guessing))
    harm = _harm(shallow, deep)
    words = [_harm_words(harm, shallow, deep)]
    skips = {skip: rows for skip, rows in by_skip.items() if not rows[0].plain}
    repairs: dict[str, Repair] = {}
    if harm == "yes":
        repairs = {skip: _repair(shallow, deep, rows) for skip, rows in skips.items()}
    if len(skips) <= _TOLD:
        words += [_skip_words(skip, rows, repairs.get(skip)) for skip, rows in skips.items()]
    else:
        words += _counted(skips, repairs)
    if not skips:
        words.append("The study has no network with skips to compare with.")
    if all(summary.seeds == 1 for summary in summaries):
        words.append("All this is one seed: there is no spread to judge it by.")
    return Degradation(harm, repairs, " ".join(words))


def _nothing_learned(shallow: Summary, guessing: float) -> str:
    return (
        "This study cannot answer: no shallower plain network learned more than guessing gives, which is wrong in "
        f"{100 * guessing:.1f} % of cases; the best has {_at(shallow)}. Train for longer, or at another learning rate."
    )


def _ends(rows: Sequence[Summary]) -> tuple[Summary, Summary]:
    return min(rows[:-1], key=lambda row: row.train_error.mean), rows[-1]


def _harm(shallow: Summary, deep: Summary) -> Harm:
    if deep.train_error.mean <= shallow.train_error.mean:
        return "no"
    return "yes" if deep.train_error.low > shallow.train_error.high else "unclear"


def _repair(shallow: Summary, deep: Summary, rows: Sequence[Summary]) -> Repair:
    ours = rows[-1].train_error
    if ours.mean >= deep.train_error.mean:
        return "no"
    if ours.high >= deep.train_error.low:
        return "unclear"
    own_shallow, own_deep = _ends(rows)
    if _harm(own_shallow, own_deep) != "yes":
        return "whole"
    left = own_deep.train_error.mean - own_shallow.train_error.mean
    return "whole" if left <= REPAIRED * (deep.train_error.mean - shallow.train_error.mean) else "part"


def _harm_words(harm: Harm, shallow: Summary, deep: Summary) -> str:
    lead = {
        "yes": "Yes: depth hurts the plain network. Its training error rises",
        "unclear": "Not clearly: the plain network's mean training error rises, but its seeds overlap,",
        "no": "No: depth does not hurt the plain network here. Its training error goes",
    }[harm]
    return f"{lead} from {_at(shallow)} to {_at(deep)}."


# What one skip does, and what several do.
_REPAIRS: dict[Repair, tuple[str, str]] = {
    "whole": ("repairs it", "repair it"),
    "part": ("repairs a part of it", "repair a part of it"),
    "unclear": ("does not clearly repair it", "do not clearly repair it"),
    "no": ("does not repair it", "do not repair it"),
}


def _skip_words(skip: str, rows: Sequence[Summary], repair: Repair | None) -> str:
    shallow, deep = _ends(rows)
    numbers = f"{_at(shallow)}, {_at(deep)}"
    return f"With skip '{skip}': {numbers}." if repair is None else f"Skip '{skip}' {_REPAIRS[repair][0]}: {numbers}."


def _counted(skips: Mapping[str, Sequence[Summary]], repairs: Mapping[str, Repair]) -> list[str]:
    """How many skips do what, and between which errors they lie at their greatest depth."""
    told = []
    for repair, (one, several) in _REPAIRS.items():
        if names := [f"'{skip}'" for skip, found in repairs.items() if found == repair]:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            told.append(f"{len(names)} {one if len(names) == 1 else several} ({', '.join(names[:_NAMED])}{more})")
    ordered = sorted((_ends(rows)[1] for rows in skips.values()), key=lambda row: row.train_error.mean)
    best, worst = ordered[0], ordered[-1]
    return [
        f"Of {len(skips)} skips, {', '.join(told)}." if told else f"It was trained with {len(skips)} skips, too.",
        f"Their training error is lowest with '{best.skip}', {_at(best)}, and highest with '{worst.skip}', "
        f"{_at(worst)}.",
    ]


def _at(summary: Summary) -> str:
    diverged = f", {summary.diverged} of {summary.seeds} seeds diverged" if summary.diverged else ""
    return f"{summary.train_error.percent()} at {summary.depth} layers{diverged}"
