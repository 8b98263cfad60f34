"""The keys of a study: which are axes, what each may hold, and what is said of a slip."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from skipway import connect
from skipway.errors import SkipwayError, check_number, check_whole, choose
from skipway.study.declaring.question import Question
from skipway.study.declaring.variants import AS_BUILT, plain_value
from skipway.study.training.building import read_skip
from skipway.study.training.recipe import OPTIMIZERS, PRECISIONS, SCHEDULES

# What may take several values, which are then compared; the last varies fastest.
AXES = (
    "data", "limit", "image_size", "crop", "length", "augment", "optimizer", "learning_rate", "schedule", "warm_up",
    "momentum", "weight_decay", "batch_size", "clip", "precision", "epochs", "steps", "seconds", "model", "width",
    "depth", "skip",
)  # fmt: skip
RECIPE = (
    "optimizer", "learning_rate", "schedule", "warm_up", "momentum", "weight_decay", "batch_size", "clip",
)  # fmt: skip
DATA = ("limit", "image_size", "crop", "length", "augment")
_WHOLE = {
    "depth": 1, "width": 1, "limit": 2, "image_size": 1, "crop": 1, "length": 1, "warm_up": 0, "batch_size": 2,
    "epochs": 1, "steps": 1,
}  # fmt: skip
_NUMBERS = {
    "learning_rate": ("above 0", lambda x: x > 0),
    "momentum": ("from 0 to below 1", lambda x: 0 <= x < 1),
    "weight_decay": ("0 or more", lambda x: x >= 0),
    "clip": ("above 0", lambda x: x > 0),
    "seconds": ("above 0", lambda x: x > 0),
}
_WORDS = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "augment": ("none", "standard")}


def choose_free(name: str) -> None:
    """Raise SkipwayError for an option that is a key of the study itself."""
    if name in AXES:
        raise SkipwayError(f"options.{name} is a key of its own: write {name} = ... outside of options")


def read(name: str, value: Any) -> Any:
    """One value of a key as a study holds it; raises SkipwayError, naming the key, for what it does not take."""
    if name == "skip":
        if value == AS_BUILT:
            return None
        if isinstance(value, (list, tuple)):
            return tuple(read(name, one) for one in value)
        value = read_skip(value) if isinstance(value, str) else value
        if value is not None:
            connect.resolve(value)
        return value
    if name in _WHOLE or name == "seeds":
        check_whole(name, value, _WHOLE.get(name, 0))
    elif name in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SkipwayError(f"{name} takes numbers, not {value!r}")
        allowed, holds = _NUMBERS[name]
        check_number(name, value, allowed, math.isfinite(value) and holds(value))
    elif name in _WORDS:
        choose(name, value, _WORDS[name])
    elif name == "model" and not isinstance(value, str):
        raise SkipwayError(f"model takes names, such as 'resnet{{depth}}', not {value!r}")
    return value


def plain_values(value: Any) -> Any:
    """A value, or any nest of them, as JSON and TOML can hold it."""
    if isinstance(value, Mapping):
        return {str(key): plain_values(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_values(one) for one in value]
    return plain_value(value)


def sentence(error: ValidationError) -> str:
    """What pydantic found first, with the key and the value."""
    first = error.errors()[0]
    if isinstance(raised := first.get("ctx", {}).get("error"), SkipwayError):
        return str(raised)
    # Of a key that takes several kinds of number, pydantic names the kind that it tried, too.
    key = ".".join(str(part) for part in first["loc"] if part not in ("float", "int"))
    if first["type"] == "extra_forbidden":
        try:
            choose("key of a question", key.removeprefix("question."), Question.model_fields)
        except SkipwayError as unknown:
            return str(unknown)
    if first["type"] == "literal_error":
        try:
            choose(key, first["input"], re.findall(r"'([^']*)'", first.get("ctx", {}).get("expected", "")))
        except SkipwayError as unknown:
            return str(unknown)
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{key} = {first['input']!r}: {message}"
