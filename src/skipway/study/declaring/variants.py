"""`Variant` and `Trial`: one setting of a study's axes, and one training of it."""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skipway import connect
from skipway.connect import Kind, Plain
from skipway.errors import SkipwayError
from skipway.study.training.building import written_skip

# The skip of a network that is left as it is, where None cannot be written.
AS_BUILT = "as built"


@dataclass(frozen=True)
class Variant:
    """One setting of every axis: `settings` holds the value of each, `labels` what people call those that vary.

    `model` is the whole name of the network, `options` what is chosen beside it.
    """

    model: str
    skip: Any
    options: Mapping[str, Any]
    settings: Mapping[str, Any]
    labels: Mapping[str, str]

    @property
    def depth(self) -> int | None:
        """The depth that was asked for, where one was."""
        return self.settings.get("depth")

    @property
    def label(self) -> str:
        """What people call its connection."""
        return label(self.skip)

    @property
    def plain(self) -> bool:
        """Whether the network has no skips."""
        return is_plain(self.skip)

    @property
    def title(self) -> str:
        """The network, its connection, and the other axes that vary."""
        named = {"model", "skip", *_fields(str(self.settings["model"]))}
        others = [f"{name.replace('_', ' ')} {text}" for name, text in self.labels.items() if name not in named]
        return " ".join([self.model, *([] if self.skip is None else [self.label]), *others])


@dataclass(frozen=True)
class Trial:
    """One training run: a variant and a seed."""

    variant: Variant
    seed: int

    @property
    def title(self) -> str:
        return f"{self.variant.title} seed {self.seed}"


def make_variants(axes: Mapping[str, Sequence[Any]], options: Sequence[str]) -> Iterator[Variant]:
    """Every combination of the axes' values; `options` names those of them that are arguments of the model.

    The last axis varies fastest. A depth or a width that has no place in the model's name is an option too. Raises
    SkipwayError for a name that asks for what is not among the axes.
    """
    varying = [name for name, values in axes.items() if len(values) > 1]
    for values in itertools.product(*axes.values()):
        settings = dict(zip(axes, values, strict=True))
        labels = {name: label(settings[name]) for name in varying}
        pattern = str(settings["model"])
        fields = _fields(pattern)
        if missing := [name for name in fields if name not in settings]:
            raise SkipwayError(f"model '{pattern}' needs {missing[0]}: give {missing[0]}=[...], or write the number")
        chosen = [name for name in (*options, "depth", "width") if name in settings and name not in fields]
        yield Variant(
            model=pattern.format(**settings) if fields else pattern,
            skip=settings.get("skip"),
            options={name: settings[name] for name in chosen},
            settings=settings,
            labels=labels,
        )


def label(value: Any) -> str:
    """What people call a value of an axis: its name, or what is particular about it.

    >>> label("rezero"), label(connect.Residual(drop=0.5)), label(0.1), label(["concat", "none"])
    ('rezero', 'Residual(drop=0.5)', '0.1', 'concat + none')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return AS_BUILT
    if isinstance(value, (list, tuple)):
        return " + ".join(label(one) for one in value)
    if isinstance(value, bool) or not dataclasses.is_dataclass(value):
        return repr(value)
    chosen = [
        f"{field.name}={getattr(value, field.name)!r}"
        for field in dataclasses.fields(value)
        if getattr(value, field.name) != field.default
    ]
    return f"{type(value).__name__}({', '.join(chosen)})"


def connection(skip: Any) -> str:
    """A skip by what it is, whatever name it goes by."""
    if isinstance(skip, (list, tuple)):
        return f"[{', '.join(connection(one) for one in skip)}]"
    return AS_BUILT if skip is None else repr(connect.resolve(skip))


def is_plain(skip: str | Kind | Sequence[str | Kind] | None) -> bool:
    """Whether a skip is none."""
    if isinstance(skip, (list, tuple)):
        return all(is_plain(one) for one in skip)
    return skip is not None and isinstance(connect.resolve(skip), Plain)  # pyright: ignore[reportArgumentType]


def plain_value(value: Any) -> Any:
    """A value of an axis as JSON and TOML can hold it."""
    return value if isinstance(value, (bool, int, float)) else AS_BUILT if value is None else written_skip(value)


def _fields(pattern: str) -> list[str]:
    try:
        return [name for _, name, _, _ in string.Formatter().parse(pattern) if name]
    except ValueError:
        raise SkipwayError(
            f"model '{pattern}' has a brace without its partner; axes stand in braces, as in 'resnet{{depth}}'"
        ) from None
