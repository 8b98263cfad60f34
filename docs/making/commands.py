"""The page of the command line, from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer.main

from skipway.cli.app import app


def commands(command: Any = None, name: str = "skipway") -> Iterator[tuple[str, Any]]:
    """Every command with its whole name, those of groups included."""
    command = typer.main.get_command(app) if command is None else command
    if hasattr(command, "commands"):
        for part, inner in command.commands.items():
            yield from commands(inner, f"{name} {part}")
    else:
        yield name, command


def page() -> str:
    """The Markdown of the page."""
    lines = ["# The command line", "", "`skipway COMMAND --help` says the same in a terminal.", ""]
    for name, command in commands():
        lines += [f"## {name}", "", _plain(command.help), ""]
        lines += ["```text", " ".join([name, *(_usage(parameter) for parameter in _given(command))]), "```", ""]
        lines += ["| | | default |", "| --- | --- | --- |"]
        for parameter in command.params:
            if "--help" not in parameter.opts:
                lines.append(
                    f"| {_named(parameter)} | {_plain(getattr(parameter, 'help', None))} | {_default(parameter)} |"
                )
        lines.append("")
    return "\n".join(lines)


def _given(command: Any) -> list[Any]:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    return [*arguments, None]


def _usage(parameter: Any) -> str:
    if parameter is None:
        return "[OPTIONS]"
    name = parameter.metavar or parameter.name.upper()
    return name if parameter.required else f"[{name}]"


def _named(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        return f"`{parameter.metavar or parameter.name.upper()}`"
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    kind = parameter.metavar or ("" if isinstance(parameter.default, bool) else "VALUE")
    return f"{names} {kind}".strip().replace("|", "\\|")


def _default(parameter: Any) -> str:
    shown = getattr(parameter, "show_default", None)
    if isinstance(shown, str):
        return shown
    default = parameter.default
    if parameter.required or default in (None, False, (), [], "") or callable(default):
        return ""
    return f"`{default}`"


def _plain(text: str | None) -> str:
    text = re.sub(r"\[/?(bold|dim|italic|cyan|green)\]", "", text or "")
    # A vertical bar would end a cell of a table.
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n")).replace("|", "\\|")
