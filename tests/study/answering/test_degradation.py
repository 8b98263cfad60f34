import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.study.make import make_record

from skipway.study import Record
from skipway.study.answering.degradation import REPAIRED, degradation
from skipway.study.answering.summary import Spread, summarise

SKIPS = (
    "residual", "rezero", "skip-init", "layer-scale", "highway", "dense", "post-norm", "pre-norm",
)  # fmt: skip
Row = tuple[int, str, int, float, "dict[str, int] | None"]


@st.composite
def studies(draw: st.DrawFn) -> list[Row]:
    depths = draw(st.lists(st.integers(1, 40).map(lambda n: 6 * n + 2), min_size=1, max_size=4, unique=True))
    skips = draw(st.lists(st.sampled_from(["none", *SKIPS]), min_size=1, max_size=9, unique=True))
    seeds = draw(st.integers(1, 3))
    # Few distinct errors, so that ties, overlaps and equal means are common.
    errors = st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 0.55, 0.6, 0.9])
    ends = st.none() | st.just({"epoch": 1, "step": 3}) if draw(st.booleans()) else st.none()
    return [
        (depth, skip, seed, draw(errors), draw(ends)) for seed in range(seeds) for depth in depths for skip in skips
    ]


def _errors(records: list[Record], skip: str, depth: int) -> list[float]:
    return [r.value("train_error") or 0.0 for r in records if (r.skip, r.depth) == (skip, depth)]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


@given(studies())
def test_the_sentence_is_true_of_its_table(rows: list[Row]):
    records = [make_record(depth, skip, seed, train=train, diverged=ends) for depth, skip, seed, train, ends in rows]
    result = degradation(summarise(records))
    depths = sorted({record.depth or 0 for record in records})
    skips = {record.skip for record in records}
    if "none" not in skips:
        assert result.harm is None
        assert "no plain network" in result.sentence
        return
    if len(depths) < 2:
        assert result.harm is None
        assert f"one depth, {depths[0]}" in result.sentence
        return
    deep = _errors(records, "none", depths[-1])
    shallow = min((_errors(records, "none", depth) for depth in depths[:-1]), key=_mean)
    if _mean(shallow) > 0.95 * 0.9:
        assert result.harm is None
        assert (
            "no shallower plain network learned more than guessing gives, which is wrong in 90.0 %" in result.sentence
        )
        return
    begins = {"yes": "Yes: depth hurts", "unclear": "Not clearly:", "no": "No: depth does not hurt"}
    assert result.harm is not None
    assert result.sentence.startswith(begins[result.harm])
    # Means of equal numbers may differ in the last bit here; the answer never calls that a difference.
    if result.harm == "yes":
        assert min(deep) > max(shallow)
    elif result.harm == "unclear":
        assert _mean(deep) > _mean(shallow) - 1e-12
        assert min(deep) <= max(shallow)
    else:
        assert _mean(deep) <= _mean(shallow) + 1e-12
    assert set(result.repairs) == (skips - {"none"} if result.harm == "yes" else set())
    for skip, repair in result.repairs.items():
        ours = _errors(records, skip, depths[-1])
        own_shallow = min((_errors(records, skip, depth) for depth in depths[:-1]), key=_mean)
        left = _mean(ours) - _mean(own_shallow)
        lost = _mean(deep) - _mean(shallow)
        if repair in ("whole", "part"):
            assert max(ours) < min(deep)
        if repair == "whole":
            assert left <= REPAIRED * lost + 1e-12 or min(ours) <= max(own_shallow)
        if repair == "part":
            assert left > REPAIRED * lost - 1e-12
            assert min(ours) > max(own_shallow)
        if repair == "no":
            assert _mean(ours) >= _mean(deep) - 1e-12
    # Every number in the sentence stands in the table.
    table = {
        f"{100 * value:.1f}"
        for skip in skips
        for depth in depths
        for errors in [_errors(records, skip, depth)]
        for value in (_mean(errors), min(errors), max(errors))
    }
    for number in re.findall(r"\d+\.\d", result.sentence):
        assert number in table
    assert ("diverged" in result.sentence) <= any(record.diverged for record in records)
    assert ("one seed" in result.sentence) == (len({record.seed for record in records}) == 1)


def _sentence(*rows: tuple[int, str, list[float]]) -> str:
    records = [
        make_record(depth, skip, seed, train=error) for depth, skip, errors in rows for seed, error in enumerate(errors)
    ]
    return degradation(summarise(records)).sentence


def test_the_classic_result():
    assert _sentence(
        (20, "none", [0.0, 0.01]),
        (56, "none", [0.5, 0.6]),
        (20, "residual", [0.0, 0.0]),
        (56, "residual", [0.0, 0.002]),
    ) == (
        "Yes: depth hurts the plain network. Its training error rises from 0.5 % (0.0 to 1.0) at 20 layers to 55.0 % "
        "(50.0 to 60.0) at 56 layers. Skip 'residual' repairs it: 0.0 % at 20 layers, 0.1 % (0.0 to 0.2) at 56 layers."
    )


@pytest.mark.parametrize(
    ("residual", "words"),
    [
        ([0.2, 0.2], "Skip 'residual' repairs a part of it"),
        ([0.4, 0.55], "Skip 'residual' does not clearly repair it"),
        ([0.7, 0.8], "Skip 'residual' does not repair it"),
    ],
)
def test_repairs_that_fall_short(residual: list[float], words: str):
    rows = [(20, "none", [0.0, 0.01]), (56, "none", [0.5, 0.6]), (20, "residual", [0.0, 0.0])]
    assert words in _sentence(*rows, (56, "residual", residual))


def test_many_skips_are_counted_and_the_best_and_the_worst_are_told():
    plain = [(20, "none", [0.0, 0.01]), (56, "none", [0.5, 0.6])]
    shallow = [(20, skip, [0.0, 0.0]) for skip in SKIPS]
    deep = [0.0, 0.001, 0.002, 0.003, 0.004, 0.2, 0.3, 0.9]
    assert _sentence(*plain, *shallow, *((56, skip, [error] * 2) for skip, error in zip(SKIPS, deep, strict=True))) == (
        "Yes: depth hurts the plain network. Its training error rises from 0.5 % (0.0 to 1.0) at 20 layers to 55.0 % "
        "(50.0 to 60.0) at 56 layers. Of 8 skips, 5 repair it ('residual', 'rezero', 'skip-init', 'layer-scale' and 1 "
        "more), 2 repair a part of it ('dense', 'post-norm'), 1 does not repair it ('pre-norm'). Their training error "
        "is lowest with 'residual', 0.0 % at 56 layers, and highest with 'pre-norm', 90.0 % at 56 layers."
    )


def test_many_skips_with_nothing_to_repair():
    rows = [(depth, skip, [0.01 * number]) for number, skip in enumerate(("none", *SKIPS)) for depth in (20, 56)]
    told = _sentence(*rows)
    assert told.startswith("No: depth does not hurt the plain network here. Its training error goes from")
    assert "It was trained with 8 skips, too. Their training error is lowest with 'residual', 1.0 % at 56" in told
    assert "highest with 'pre-norm', 8.0 % at 56 layers. All this is one seed" in told


def test_a_deep_plain_network_that_is_no_worse_is_said_to_be_none():
    sentence = _sentence((20, "none", [0.1]), (56, "none", [0.1]), (20, "residual", [0.0]), (56, "residual", [0.2]))
    assert sentence.startswith("No: depth does not hurt the plain network here.")
    assert "repair" not in sentence
    assert "20.0 % at 56 layers" in sentence


def test_depth_is_measured_against_the_best_shallower_network():
    sentence = _sentence((8, "none", [0.3]), (20, "none", [0.1]), (56, "none", [0.2]))
    assert "from 10.0 % at 20 layers to 20.0 % at 56 layers" in sentence
    assert "no network with skips" in sentence


def test_a_diverged_trial_counts_as_wrong_throughout_and_is_named():
    records = [
        make_record(20, "none", 0, train=0.1),
        make_record(56, "none", 0, train=0.05, diverged={"epoch": 2, "step": 7}),
    ]
    summaries = summarise(records)
    assert summaries[1].train_error == Spread(1.0, 1.0, 1.0)
    assert summaries[1].diverged == 1
    assert "100.0 % at 56 layers, 1 of 1 seeds diverged" in degradation(summaries).sentence


def test_a_plain_connection_given_as_a_value_counts_as_plain():
    records = [make_record(depth, "Plain()", 0, train=error, plain=True) for depth, error in ((20, 0.1), (56, 0.4))]
    assert degradation(summarise(records)).harm == "yes"
