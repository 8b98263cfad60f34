"""A study's declaration as TOML, from which it can be run again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def toml(values: Mapping[str, Any]) -> str:
    """Plain values as TOML: what is nested comes last, in tables of its own.

    >>> print(toml({"depth": [8, 14], "question": {"compare": "skip"}}))
    depth = [8, 14]
    <BLANKLINE>
    [question]
    compare = "skip"
    """
    lines = [f"{key} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)]
    for key, table in values.items():
        if isinstance(table, Mapping) and table:
            lines += ["", f"[{key}]", *(f"{name} = {_value(value)}" for name, value in table.items())]
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_value(one)}' for key, one in value.items())} }}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_value, value))}]"
    # JSON writes strings, numbers and truth as TOML does.
    return json.dumps(value, ensure_ascii=False)
