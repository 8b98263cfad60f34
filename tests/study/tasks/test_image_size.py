"""Networks that are built for images of one size are built for the size that the data have."""

from __future__ import annotations

from typing import Any

import pytest

from skipway.study.tasks.problems import DataChoice, open_problem
from skipway.study.training.building import build_network


@pytest.mark.parametrize(
    ("model", "options"), [("highway-4", {}), ("vit-1x16", {"patch": 4}), ("resnet8", {"width": 4})]
)
def test_every_family_takes_images_of_the_data(model: str, options: dict[str, Any]) -> None:
    problem = open_problem(DataChoice("digits", limit=8))
    network = build_network(model, "classification", problem.offered, options=options)
    images: Any = problem.task
    pixels = images.images.train_images[:2]
    assert network(images.normalise(pixels)).shape == (2, 10)


def test_the_user_has_the_last_word() -> None:
    problem = open_problem(DataChoice("digits", limit=8))
    network: Any = build_network("highway-4", "classification", problem.offered, options={"image_size": 12})
    assert network.plan.image_size == 12
