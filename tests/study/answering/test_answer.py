from typing import Any

import pytest
from tests.study.make import make_record

from skipway.errors import SkipwayError
from skipway.study import Record, Study
from skipway.study.answering.answer import answer


def _records(errors: dict[str, list[float]], depth: int = 20) -> list[Record]:
    return [
        make_record(depth, skip, seed, test=error, labels={"skip": skip})
        for skip, values in errors.items()
        for seed, error in enumerate(values)
    ]


def _study(skips: list[str], **changes: Any) -> Study:
    return Study(**{"model": "resnet20", "skip": skips, **changes})


def test_a_clear_difference_is_claimed_with_its_interval_and_what_chance_makes_of_it():
    found = answer(
        _study(["residual", "rezero"]),
        _records({"residual": [0.10, 0.12, 0.11], "rezero": [0.05, 0.06, 0.07]}),
    )
    assert found.sentence == (
        "Judged by test error: 'rezero' is better than 'residual': 6.0 % against 11.0 %, -5.0 (-6.0 to -4.0) points. "
        "(3 seeds: where there is no difference, 25 % of such comparisons show one.)"
    )
    assert [comparison.verdict for comparison in found.comparisons] == ["better"]
    assert (found.harm, found.repairs) == (None, None)


def test_two_seeds_are_not_enough_to_say():
    found = answer(_study(["residual", "rezero"]), _records({"residual": [0.1, 0.1], "rezero": [0.0, 0.0]}))
    assert found.sentence.startswith("Not enough seeds to say: 2 of the 3 that a difference takes at least.")


def test_seeds_that_disagree_make_no_difference():
    found = answer(_study(["residual", "rezero"]), _records({"residual": [0.1, 0.2, 0.1], "rezero": [0.2, 0.1, 0.1]}))
    assert "'rezero' is not clearly different from 'residual'" in found.sentence


def test_many_alternatives_are_counted():
    names = ["residual", "rezero", "skipinit", "layerscale", "highway", "none"]
    errors = {name: [0.1 + 0.1 * place + 0.001 * seed for seed in range(3)] for place, name in enumerate(names)}
    found = answer(_study(names), _records(errors))
    assert "of 5 alternatives to 'residual': 5 worse ('rezero', 'skipinit', 'layerscale', 'highway' and 1 more)." in (
        found.sentence
    )


def test_what_depends_on_depth_is_told_depth_by_depth():
    study = Study(depth=[8, 14], skip=["residual", "rezero"], question={"measure": "test_error"})
    records = [
        make_record(depth, skip, seed, test=error + 0.01 * seed)
        for depth, skip, error in ((8, "residual", 0.1), (8, "rezero", 0.2), (14, "residual", 0.4), (14, "rezero", 0.1))
        for seed in range(3)
    ]
    said = answer(study, records).sentence
    assert "'rezero' against 'residual' depends on where: at depth 8 it is worse than it" in said
    assert "at depth 14 it is better than it (11.0 % against 41.0 %, -30.0" in said


def test_the_baseline_and_the_measure_are_those_asked_for():
    question = {"baseline": "rezero", "measure": "train_loss", "at": "mean"}
    records = [
        make_record(20, skip, seed, labels={"skip": skip}, curves={"test_error": [0.5], "train_loss": [value, 1.0]})
        for skip, value in (("residual", 3.0), ("rezero", 1.0))
        for seed in range(3)
    ]
    found = answer(_study(["residual", "rezero"], question=question), records)
    assert found.asked.baseline == "rezero"
    assert (
        "Judged by mean train loss over the training: 'residual' is worse than 'rezero': 2 against 1" in found.sentence
    )


def test_how_soon_is_counted_in_rounds():
    records = [
        make_record(20, skip, seed, labels={"skip": skip}, curves={"test_error": errors})
        for skip, errors in (("residual", [0.5, 0.3, 0.1]), ("rezero", [0.1, 0.1, 0.1]))
        for seed in range(3)
    ]
    study = _study(["residual", "rezero"], question={"measure": "test_error", "reach": 0.2})
    said = answer(study, records).sentence
    assert "Judged by rounds until test error is 20.0 %: 'rezero' is better than 'residual': 1 against 3, -2" in said


def test_the_classic_question_is_asked_where_it_can_be():
    records = [make_record(depth, skip, seed) for depth in (20, 56) for skip in ("none", "residual") for seed in (0, 1)]
    assert answer(Study(), records).asked.rule == "degradation"
    assert answer(Study(question={"measure": "test_error"}), records).asked.rule == "difference"
    assert answer(Study(depth=[20]), [r for r in records if r.depth == 20]).asked.rule == "difference"


def test_one_variant_is_nothing_to_compare():
    records = [make_record(20, "residual", seed, labels={}) for seed in range(2)]
    said = answer(_study(["residual"]), records).sentence
    assert said == "There is nothing to compare: skip has one value: its test error is 10.0 %."


def test_a_measure_that_no_record_has_is_named_with_the_nearest():
    study = _study(["residual", "rezero"], question={"measure": "test_eror"})
    with pytest.raises(SkipwayError, match="no measure of this study 'test_eror'; did you mean 'test_error'"):
        answer(study, _records({"residual": [0.1], "rezero": [0.2]}))


def test_several_measures_are_answered_one_by_one():
    records = _records({"residual": [0.10, 0.12, 0.11], "rezero": [0.05, 0.06, 0.07]})
    found = answer(_study(["residual", "rezero"], question={"measure": ["seconds", "test_error"]}), records)
    first, second = found.sentence.splitlines()
    assert first.startswith("Judged by seconds: 'rezero' is not clearly different from 'residual': 1.5 s against 1.5 s")
    assert second.startswith("Judged by test error: 'rezero' is better than 'residual'")
    assert [comparison.measure for comparison in found.comparisons] == ["seconds", "test_error"]
