from typing import Any

import pytest

import skipway as sw
from skipway.connect import Kind, Residual, StochasticDepth
from skipway.errors import SkipwayError
from skipway.study import Study
from skipway.study.declaration import label


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"skip": ["rezro"]}, "no skip 'rezro'; did you mean 'rezero'"),
        ({"model": "resent{depth}"}, "no model 'resent20'; did you mean 'resnet20'"),
        ({"model": "resnet20"}, r"leaves no place for the depth; write 'resnet\{depth\}'"),
        ({"depth": [20, 57]}, "57"),
        ({"depth": []}, "depth is empty"),
        ({"depth": [20, 20]}, "depth names 20 twice"),
        ({"depth": [0]}, "depth takes whole numbers from 1, not 0"),
        ({"skip": "residual"}, r"skip takes a list, such as \['residual'\]"),
        ({"skip": ["residual", Residual()]}, "twice"),
        ({"seeds": [-1]}, "seeds takes whole numbers from 0, not -1"),
        ({"epochs": 0}, "epochs takes whole numbers from 1, not 0"),
        ({"batch_size": 1}, "batch_size takes whole numbers from 2"),
        ({"width": 0}, "width takes whole numbers from 1"),
        ({"samples": 1}, "samples takes whole numbers from 2"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"momentum": 1.0}, "momentum is 1.0; it must be from 0 to below 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; it must be 0 or more"),
        ({"data": "digit"}, "no data set 'digit'; did you mean 'digits'"),
    ],
)
def test_slips_are_caught_when_the_study_is_declared(changes: dict[str, Any], sentence: str):
    with pytest.raises(SkipwayError, match=sentence):
        Study(**changes)


def test_a_connection_that_a_family_refuses_is_refused_at_once():
    with pytest.raises(SkipwayError):
        Study(skip=["none", "concat"])


def test_trials_are_variants_times_seeds():
    study = sw.Study(depth=[8, 14], skip=["none", "rezero"], seeds=[3, 5])
    assert [(t.variant.depth, t.variant.label, t.seed) for t in study.trials()] == [
        (depth, skip, seed) for seed in (3, 5) for depth in (8, 14) for skip in ("none", "rezero")
    ]
    assert [variant.plain for variant in study.variants()] == [True, False, True, False]


def test_everything_that_determines_a_result_is_in_its_name():
    base = Study(depth=[8], seeds=[0])
    changed = [
        Study(depth=[14], seeds=[0]),
        Study(depth=[8], seeds=[1]),
        Study(depth=[8], seeds=[0], skip=["residual"]),
        Study(depth=[8], seeds=[0], model="preresnet{depth}")
        if "preresnet8" in sw.models.names()
        else Study(depth=[8], seeds=[0], skip=[Residual(drop=0.1)]),
        Study(depth=[8], seeds=[0], skip=[Residual(drop=0.25)]),
        *[
            Study(depth=[8], seeds=[0], **{name: value})
            for name, value in {
                "epochs": 2,
                "width": 4,
                "batch_size": 32,
                "learning_rate": 0.2,
                "momentum": 0.8,
                "weight_decay": 0.0,
            }.items()
        ],
    ]
    names = [study.identify(study.trials()[0], "data") for study in [base, *changed]]
    assert len(set(names)) == len(names)
    assert base.identify(base.trials()[0], "other data") not in names
    assert base.identify(base.trials()[0], "data").startswith("resnet8-none-seed-0-")


def test_a_name_and_the_value_it_means_are_one_trial_but_for_the_readable_part():
    by_name = Study(depth=[8], skip=["residual"], seeds=[0])
    by_value = Study(depth=[8], skip=[Residual()], seeds=[0])
    assert by_name.identify(by_name.trials()[0], "d")[-10:] == by_value.identify(by_value.trials()[0], "d")[-10:]


def test_the_number_of_seeds_or_depths_around_a_trial_does_not_change_it():
    small, large = Study(depth=[8], seeds=[1]), Study(depth=[8, 14], seeds=[0, 1], data="digits")
    trial = next(t for t in large.trials() if (t.variant.depth, t.variant.label, t.seed) == (8, "none", 1))
    assert small.identify(small.trials()[0], "d") == large.identify(trial, "d")


def test_labels_say_what_is_particular():
    assert label("residual") == "residual"
    assert label(Residual()) == "Residual()"
    assert label(Residual(drop=StochasticDepth(0.25))) == f"Residual(drop={StochasticDepth(0.25)!r})"


def test_a_connection_without_a_stable_repr_is_refused():
    class Own(Residual):
        __repr__ = object.__repr__

    own: Kind = Own()
    with pytest.raises(SkipwayError, match="shows a memory address for itself"):
        Study(skip=[own])


def test_a_study_is_a_value():
    assert Study() == Study()
    assert hash(Study(depth=[8])) == hash(Study(depth=(8,)))
    assert Study().declaration()["skip"]["none"] == "Plain(placement=None, reweight=None)"
