from typing import Any

import pytest

from skipway import models
from skipway.errors import SkipwayError
from skipway.study import Study
from skipway.study.tasks.problems import DataChoice, Problem, open_problem


@pytest.fixture(scope="module")
def problem() -> Problem:
    return open_problem(DataChoice("digits", limit=64))


def _costs(study: Study, problem: Problem) -> list[tuple[int, int]]:
    found = []
    for variant in study.variants():
        options: dict[str, Any] = {**study.sized(variant, problem), "num_classes": 10, "in_channels": 1}
        facts = models.describe(variant.model, variant.skip, **options)
        found.append((facts.parameters, facts.multiply_adds))
    return found


@pytest.mark.parametrize(("equal", "place"), [("parameters", 0), ("multiply-adds", 1)])
def test_networks_are_brought_to_one_size(problem: Problem, equal: str, place: int):
    study = Study(depth=[8, 20, 56], width=16, skip="residual", equal=equal, question={"compare": "depth"})
    costs = [cost[place] for cost in _costs(study, problem)]
    reference = models.describe("resnet8", "residual", width=16, num_classes=10, in_channels=1)
    assert costs[0] == (reference.parameters, reference.multiply_adds)[place]
    # A width of about 5 can be told from the next one only to a few per cent.
    assert all(abs(cost / costs[0] - 1) < 0.2 for cost in costs)
    widths = [study.sized(variant, problem)["width"] for variant in study.variants()]
    assert widths[0] == 16 > widths[1] > widths[2]


def test_no_whole_width_comes_nearer(problem: Problem):
    study = Study(depth=[8, 20], width=12, skip="residual", equal="parameters", question={"compare": "depth"})
    deep = study.variants()[1]
    width = study.sized(deep, problem)["width"]
    wanted = models.describe("resnet8", "residual", width=12, num_classes=10, in_channels=1).parameters

    def miss(width: int) -> int:
        facts = models.describe("resnet20", "residual", width=width, num_classes=10, in_channels=1)
        return abs(facts.parameters - wanted)

    assert miss(width) == min(miss(one) for one in range(1, 30))


def test_skips_with_parameters_of_their_own_are_made_up_for(problem: Problem):
    study = Study(model="resnet20", width=8, skip=["residual", "projection-everywhere"], equal="parameters")
    costs = [cost[0] for cost in _costs(study, problem)]
    plain = models.describe("resnet20", "projection-everywhere", width=8, num_classes=10, in_channels=1).parameters
    # Whole widths lie further apart than these two: a width less is not nearer, and none is chosen.
    assert plain > costs[0]
    assert abs(costs[1] - costs[0]) <= plain - costs[0]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("densenet-bc-40-12", "changes the width, which densenet-bc-40-12 has no option for: leave equal out"),
        ("tests.study.outside_nets:residual", "and tests.study.outside_nets:residual is from outside: leave equal out"),
        ("hf:ViTConfig", "and hf:ViTConfig is from outside: leave equal out"),
    ],
)
def test_a_model_without_a_width_is_refused_when_it_is_declared(model: str, said: str):
    with pytest.raises(SkipwayError, match=said):
        Study(model=model, skip=["residual", "none"], equal="parameters")
