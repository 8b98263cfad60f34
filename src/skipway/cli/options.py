"""--option KEY=VALUE: what a model is built with, wherever a command names one."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from skipway.errors import SkipwayError

_HELP = (
    "An option of the model, such as width=8: an argument of the function that builds it; of hf:NAME a field of its "
    "configuration. Repeat it."
)

ModelOptions = Annotated[list[str] | None, typer.Option("--option", metavar="KEY=VALUE", help=_HELP)]


def parse_options(texts: Sequence[str] | None) -> dict[str, Any]:
    """KEY=VALUE, the values as Python writes them, or words.

    >>> parse_options(["width=8", "up=bilinear", "tied=false"])
    {'width': 8, 'up': 'bilinear', 'tied': False}
    """
    options: dict[str, Any] = {}
    for text in texts or ():
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise SkipwayError(f"--option {text!r} lacks its value: write --option width=8")
        try:
            options[key.strip()] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            options[key.strip()] = {"true": True, "false": False, "none": None}.get(value.strip(), value.strip())
    return options
