"""Errors a user can act on: what was wrong, what is allowed, what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any

# More names than this nobody reads in an error.
_READABLE = 50


class SkipwayError(ValueError):
    """A slip of the user's that skipway caught at its boundary; the message says how to fix it."""


class MissingExtra(SkipwayError, ImportError):
    """A part that only some users need is not installed; the message names the extra that brings it."""


def choose(
    kind: str, name: object, allowed: Iterable[str], where: str = "", aliases: Mapping[str, str] | None = None
) -> str:
    """Return `name` if it is one of `allowed`; otherwise raise with the nearest match and what is allowed.

    Of many names it shows a few; `where` says where all of them are listed. `aliases` are words that people use for
    some of the names: they are no names, but tell which one is meant.

    >>> choose("skip", "rezero", ["residual", "rezero"])
    'rezero'
    """
    options = list(allowed)
    if isinstance(name, str) and name in options:
        return name
    near = difflib.get_close_matches(str(name), options, n=3)
    word = "".join(letter for letter in str(name).lower() if letter.isalnum())
    if (meant := (aliases or {}).get(word)) is not None:
        near = [meant, *(one for one in near if one != meant)]
    suggestion = f"did you mean '{near[0]}'? " if near else ""
    if len(options) > _READABLE:
        shown = near[1:] or options[:3]
        listed = f"{', '.join(shown)} and {len(options) - len(shown)} more" + (f" ({where})" if where else "")
    else:
        listed = ", ".join(options) or "none"
    raise SkipwayError(f"no {kind} {name!r}; {suggestion}allowed: {listed}")


def check_whole(name: str, value: Any, least: int) -> None:
    """Raise SkipwayError unless a value is a whole number, `least` at the least."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise SkipwayError(f"{name} takes whole numbers from {least}, not {value!r}")


def check_number(name: str, value: float, allowed: str, holds: bool) -> None:
    """Raise SkipwayError where a number is not what is allowed, or not finite."""
    if not holds or not math.isfinite(value):
        raise SkipwayError(f"{name} is {value}; it must be {allowed}")


def missing_extra(package: str, extra: str, purpose: str) -> MissingExtra:
    """The error for an optional package that is absent, to be raised where it is first needed."""
    return MissingExtra(f"{purpose} needs the package '{package}': pip install 'skipway[{extra}]'")
