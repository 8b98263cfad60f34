"""Widths that make networks of one comparison equally large, in parameters or in multiply-adds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from skipway.errors import SkipwayError
from skipway.models.registry import describe, find
from skipway.study.declaring.keys import read
from skipway.study.declaring.question import compared_axis
from skipway.study.declaring.variants import Variant
from skipway.study.tasks.problems import Problem

if TYPE_CHECKING:
    from skipway.study.declaring.declaration import Study

_WIDEST = 1 << 14


def check_equal(equal: str, model: str) -> None:
    """Raise SkipwayError for a model whose width is no option, or not known to be one."""
    if ":" in model:
        raise SkipwayError(
            f"equal = '{equal}' finds widths for the models of skipway, and {model} is from outside: leave equal out"
        )
    if "width" not in _options(model):
        raise SkipwayError(f"equal = '{equal}' changes the width, which {model} has no option for: leave equal out")


def equal_width(study: Study, variant: Variant, problem: Problem) -> int:
    """The width at which a variant costs what the one it is compared with does, as nearly as whole widths allow.

    A network's cost grows with its width, so the width is found by halving. Raises SkipwayError for models that differ
    too much for any width to make up for it.
    """
    reference = _reference(study, variant)
    wanted = _cost(study, reference, problem, reference.options.get("width"))
    if reference == variant and variant.options.get("width") is not None:
        return variant.options["width"]
    low, high = 1, 2
    while _cost(study, variant, problem, high) < wanted:
        low, high = high, 2 * high
        if high > _WIDEST:
            raise SkipwayError(f"no width up to {_WIDEST} gives {variant.title} the {study.equal} of {reference.title}")
    while high - low > 1:
        middle = (low + high) // 2
        if _cost(study, variant, problem, middle) < wanted:
            low = middle
        else:
            high = middle
    return min((low, high), key=lambda width: abs(_cost(study, variant, problem, width) - wanted))


def _reference(study: Study, variant: Variant) -> Variant:
    """The variant that differs in the compared axis alone, where it has its first value or the baseline's."""
    axis = compared_axis(study.question, study.axes())
    values = study.values(axis)
    baseline = study.question.baseline
    wanted = values[0] if baseline is None else read("skip", baseline) if axis == "skip" else baseline
    others = {name: value for name, value in variant.settings.items() if name != axis}
    for one in study.variants():
        if one.settings.get(axis) == wanted and all(one.settings[name] == value for name, value in others.items()):
            return one
    raise AssertionError("every variant has one at the baseline")


def _cost(study: Study, variant: Variant, problem: Problem, width: int | None) -> int:
    options: dict[str, Any] = dict(variant.options) if width is None else {**variant.options, "width": width}
    allowed = _options(variant.model)
    offered = {name: value for name, value in problem.offered.items() if name in allowed}
    if study.equal == "parameters":
        from skipway.models import create

        with torch.device("meta"):
            network = create(variant.model, skip=variant.skip, **{**offered, **options})
        return sum(parameter.numel() for parameter in network.parameters())
    return describe(variant.model, variant.skip, **{**offered, **options}).multiply_adds


def _options(model: str) -> list[str]:
    family, settled = find(model)
    return family.options(settled)
