"""`Question`: what a study is asked, as part of its declaration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

At = Literal["last", "best", "mean"]
Rule = Literal["difference", "degradation"]


class Question(BaseModel):
    """What a study is asked: which axis is compared, by what, and how the numbers become an answer.

    `text` is the question in words. `compare` is the axis whose values are compared, each with `baseline`, and `along`
    the one that they are followed along (by default skips are compared, and depth is what they are followed along).
    `measure` is a curve or a measure of the records, such as "test_error", "train_loss", "seconds" or "memory" (by
    default what the task is judged by), or several of them, the most important first. It is taken `at` the last round,
    the best one, or as the mean over all, which is how early it is good; with `reach`, it is the first round at which
    the curve is as good as that. The rule "degradation" asks whether depth hurts the plain network's training error and
    whether skips repair it (by default that is asked where there are plain networks of several depths); "difference"
    compares.

    >>> Question(compare="skip", baseline="post-norm", measure="validation_loss").at
    'last'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str = ""
    compare: str | None = None
    baseline: Any = None
    along: str | None = None
    measure: str | Sequence[str] | None = None
    at: At = "last"
    reach: float | None = None
    rule: Rule | None = None


def compared_axis(question: Question, axes: Mapping[str, Sequence[Any]]) -> str:
    """The axis whose values are compared: the one that is asked for, else skips, else the first that varies.

    >>> compared_axis(Question(), {"depth": (8, 14), "skip": ("none",)})
    'depth'
    """
    varying = [name for name, values in axes.items() if len(values) > 1]
    return question.compare or ("skip" if "skip" in varying or not varying else varying[0])
