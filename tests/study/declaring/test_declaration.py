import json
from typing import Any

import pytest

import skipway as sw
from skipway.connect import Kind, Residual, StochasticDepth
from skipway.errors import SkipwayError
from skipway.study import Study
from skipway.study.declaring.variants import label
from skipway.study.tasks.problems import DataChoice, Problem, open_problem


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"skip": ["rezro"]}, "no skip 'rezro'; did you mean 'rezero'"),
        ({"model": "resent{depth}"}, "no model 'resent20'; did you mean 'resnet20'"),
        ({"model": "resnet20", "depth": [20, 56]}, r"leaves no place for the depth; write 'resnet\{depth\}'"),
        ({"depth": [20, 57]}, "57"),
        ({"depth": []}, "depth is empty"),
        ({"depth": [20, 20]}, "depth names 20 twice"),
        ({"depth": [0]}, "depth takes whole numbers from 1, not 0"),
        ({"seeds": 3}, r"seeds takes a list, such as \[3\]"),
        ({"depht": [8]}, "no key of a study 'depht'; did you mean 'depth'"),
        ({"question": {"compair": "skip"}}, "no key of a question 'compair'; did you mean 'compare'"),
        ({"question": {"at": "lst"}}, "no question.at 'lst'; did you mean 'last'"),
        ({"question": ["Why?"]}, "question takes a sentence, or a table such as"),
        ({"question": {"compare": "skp"}}, "no axis to compare 'skp'; did you mean 'skip'"),
        ({"question": {"compare": "skip", "along": "skip"}}, "compares skip along itself"),
        ({"question": {"baseline": "rezero"}}, "the baseline 'rezero' is not among the values of skip"),
        ({"skip": ["Residual(dorp=0.5)"]}, "no argument of Residual 'dorp'; did you mean 'drop'"),
        ({"skip": ["Residul(drop=0.5)"]}, "no connection 'Residul'; did you mean 'Residual'"),
        ({"skip": ["Residual(scale=a.b())"]}, r"a\.b\(\) is no value; write a name, or a value such as"),
        ({"optimizer": "adam"}, "no optimizer 'adam'; did you mean 'adamw'"),
        ({"learning_rate": "high"}, "learning_rate takes numbers, not 'high'"),
        ({"epochs": 2, "steps": 10}, "epochs and steps say the same thing twice"),
        ({"equal": "parameter"}, "no equal 'parameter'; did you mean 'parameters'"),
        ({"logger": "tensorbord"}, "no logger 'tensorbord'; did you mean 'tensorboard'"),
        ({"strategy": "fspd"}, "no strategy 'fspd'; did you mean 'fsdp'"),
        ({"held_out": "some"}, "held_out = 'some': input should be a valid number"),
        ({"languages": ["en"]}, r"languages takes two, from and to, such as \[\"en\", \"de\"\], not"),
        ({"languages": "en"}, "languages takes two, from and to"),
        ({"probes": ["gradient"]}, "no probe of a study 'gradient'; did you mean 'gradients'"),
        ({"probes": [{"name": "landscape", "step": 3}]}, "no argument of the probe 'landscape' 'step'"),
        ({"options": {"depth": [8]}}, "options.depth is a key of its own"),
        ({"options": {"squeze": 4}}, "no option of resnet20 'squeze'; did you mean 'squeeze'"),
        ({"experiment": "identiy"}, "no experiment 'identiy'"),
        ({"model": "resnet{depth"}, r"model 'resnet\{depth' has a brace without its partner"),
        ({"model": "resnet{width}"}, r"needs width: give width=\[\.\.\.\]"),
        ({"skip": ["residual", Residual()]}, "twice"),
        ({"seeds": [-1]}, "seeds takes whole numbers from 0, not -1"),
        ({"epochs": 0}, "epochs takes whole numbers from 1, not 0"),
        ({"batch_size": 1}, "batch_size takes whole numbers from 2"),
        ({"width": 0}, "width takes whole numbers from 1"),
        ({"limit": 1}, "limit takes whole numbers from 2"),
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


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(DataChoice("digits", limit=64))


def test_everything_that_determines_a_result_is_in_its_name(problem: Problem):
    base = Study(depth=[8], seeds=[0])
    changed = [
        Study(depth=[14], seeds=[0]),
        Study(depth=[8], seeds=[1]),
        Study(depth=[8], seeds=[0], skip=["residual"]),
        Study(depth=[8], seeds=[0], model="preresnet{depth}"),
        Study(depth=[8], seeds=[0], skip=[Residual(drop=0.1)]),
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
                "augment": "standard",
                "optimizer": "adamw",
                "options": {"zero_init": True},
                "seconds": 1.0,
            }.items()
        ],
    ]
    names = [study.identify(study.trials()[0], problem) for study in [base, *changed]]
    assert len(set(names)) == len(names)
    assert base.identify(base.trials()[0], open_problem(DataChoice("digits", limit=65))) not in names
    assert base.identify(base.trials()[0], problem).startswith("resnet8-none-seed-0-")


def test_a_name_and_the_value_it_means_are_one_trial_but_for_the_readable_part(problem: Problem):
    by_name = Study(depth=[8], skip=["residual"], seeds=[0])
    by_value = Study(depth=[8], skip=[Residual()], seeds=[0])
    assert (
        by_name.identify(by_name.trials()[0], problem)[-10:] == by_value.identify(by_value.trials()[0], problem)[-10:]
    )


def test_the_number_of_seeds_or_depths_around_a_trial_does_not_change_it(problem: Problem):
    small, large = Study(depth=[8], seeds=[1]), Study(depth=[8, 14], seeds=[0, 1], data="digits")
    trial = next(t for t in large.trials() if (t.variant.depth, t.variant.label, t.seed) == (8, "none", 1))
    assert small.identify(small.trials()[0], problem) == large.identify(trial, problem)


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
    assert Study(depth=[8]) == Study(depth=(8,))
    assert Study() != Study(seeds=[1])


@pytest.mark.parametrize(
    "study",
    [
        Study(),
        Study(model="resnet20", skip=[None, "residual"], learning_rate=[0.1, 0.01], seeds=[0]),
        Study(model="unet", skip=[["concat", "none", "none", "none"], "concat"], width=[4, 8]),
        Study(model="gpt-{depth}x{width}", depth=[1, 2], width=16, skip=["pre-norm", Residual(drop=0.5)], steps=10),
        Study(probes=["gradients", {"name": "landscape", "steps": 5}], question={"text": "Why?", "baseline": "none"}),
        Study(skip=["none", "as built"], seeds=[0], question={"compare": "skip", "baseline": "as built"}),
        Study(skip=["none", "as built"], width=4, equal="parameters", question={"baseline": "as built"}),
    ],
)
def test_a_study_comes_back_from_what_it_declares(study: Study):
    again = Study(**json.loads(json.dumps(study.declaration())))
    assert [trial.title for trial in again.trials()] == [trial.title for trial in study.trials()]
    assert again.declaration() == study.declaration()
    assert again.question == study.question


def test_a_changed_study_keeps_what_was_not_changed_and_is_checked_again():
    study = Study(depth=[8, 14], seeds=[0, 1], question={"compare": "skip"}, epochs=2)
    smaller = study.changed(depth=[8], seeds=[0])
    assert smaller == Study(depth=[8], seeds=[0], question={"compare": "skip"}, epochs=2)
    assert study.values("depth") == (8, 14)
    with pytest.raises(SkipwayError, match="epochs and steps say the same thing twice"):
        study.changed(steps=10)


def test_axes_vary_from_the_last_and_name_what_varies():
    study = Study(model="resnet{depth}", depth=[8, 14], skip=["none"], learning_rate=[0.1, 0.01], seeds=[0])
    assert [(v.model, v.labels) for v in study.variants()] == [
        ("resnet8", {"learning_rate": "0.1", "depth": "8"}),
        ("resnet14", {"learning_rate": "0.1", "depth": "14"}),
        ("resnet8", {"learning_rate": "0.01", "depth": "8"}),
        ("resnet14", {"learning_rate": "0.01", "depth": "14"}),
    ]
    assert study.variants()[0].title == "resnet8 none learning rate 0.1"
    study = Study(model="resnet8", skip="none", options={"zero_init": [True, False]})
    assert [v.options for v in study.variants()] == [{"zero_init": True}, {"zero_init": False}]


def test_depth_is_left_out_where_the_model_settles_it():
    assert [v.model for v in Study(model="vgg11-cifar", skip=["none"]).variants()] == ["vgg11-cifar"]
