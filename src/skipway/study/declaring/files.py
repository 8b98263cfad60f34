"""Studies as files: TOML or YAML that declares one, the ones that come with the library, and a template."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from skipway.errors import SkipwayError
from skipway.study.declaring.declaration import Study

_BUILTIN = files("skipway.study.declaring") / "builtin"
_ENDINGS = (".toml", ".yaml", ".yml")


def builtin_names() -> list[str]:
    """The studies that come with the library.

    >>> "degradation" in builtin_names()
    True
    """
    return sorted(path.name.removesuffix(".toml") for path in _BUILTIN.iterdir() if path.name.endswith(".toml"))


def read_study(source: str | Path, changes: Mapping[str, Any] | None = None) -> Study:
    """The study that a file declares, or one of ours by name, with some values changed.

    Raises SkipwayError where there is no such file or study, and for what it declares wrongly, naming the key.

    >>> read_study("degradation", {"seeds": [0]}).seeds
    (0,)
    """
    text = str(source)
    if text in builtin_names():
        return Study(**{**_toml((_BUILTIN / f"{text}.toml").read_text(encoding="utf-8"), text), **(changes or {})})
    path = Path(text).expanduser()
    if path.suffix not in _ENDINGS:
        near = difflib.get_close_matches(text, builtin_names(), n=1)
        meant = f"; did you mean '{near[0]}'?" if near else "."
        raise SkipwayError(
            f"no study '{text}'{meant} Name a .toml or .yaml file, or one of {', '.join(builtin_names())} "
            "('skipway study list')"
        )
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SkipwayError(f"cannot read '{path}': {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise SkipwayError(f"'{path}' is not text") from None
    values = _toml(content, str(path)) if path.suffix == ".toml" else _yaml(content, str(path))
    try:
        return Study(**{"name": path.stem, **values, **(changes or {})})
    except SkipwayError as error:
        raise SkipwayError(f"{path}: {error}") from None


def template(name: str) -> str:
    """A commented declaration to start from."""
    return (_BUILTIN / "template.txt").read_text(encoding="utf-8").replace("NAME", name)


def describe_builtin(name: str) -> tuple[str, str]:
    """The question of a study of ours, and what is known about it."""
    values = _toml((_BUILTIN / f"{name}.toml").read_text(encoding="utf-8"), name)
    return str(values["question"]["text"]), str(values["about"])


def read_value(text: str) -> Any:
    """A value as TOML writes it; what is not TOML is a word.

    >>> read_value("[8, 14]"), read_value("rezero"), read_value("[none, rezero]")
    ([8, 14], 'rezero', ['none', 'rezero'])
    """
    try:
        return _toml(f"value = {text}", "")["value"]
    except SkipwayError:
        if text.startswith("[") and text.endswith("]") and "(" not in text:
            return [read_value(part.strip()) for part in text[1:-1].split(",") if part.strip()]
        return text


def _toml(content: str, where: str) -> dict[str, Any]:
    try:
        import tomllib  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]
    try:
        return tomllib.loads(content)
    except tomllib.TOMLDecodeError as error:
        raise SkipwayError(f"{where} is not TOML: {error}") from None


def _yaml(content: str, where: str) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(content)
    except yaml.YAMLError as error:
        first = " ".join(str(error).split())
        raise SkipwayError(f"{where} is not YAML: {first}") from None
    if not isinstance(values, dict):
        raise SkipwayError(f"{where} declares no study: it has to hold keys such as model and skip")
    return {str(key): value for key, value in values.items()}
