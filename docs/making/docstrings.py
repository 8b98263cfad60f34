"""Docstrings as Markdown: their doctests become blocks of code, and functions go before the modules they hide."""

from __future__ import annotations

from typing import Any

import griffe


def fenced(text: str) -> str:
    r"""The same docstring with every doctest, its output included, between fences.

    >>> fenced("One line.\n\n>>> 1 + 1\n2\n\nMore.").splitlines()[2:6]
    ['```pycon', '>>> 1 + 1', '2', '```']
    """
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        if not inside and line.startswith(">>> "):
            inside = True
            lines.append("```pycon")
        elif inside and not line.strip():
            inside = False
            lines.append("```")
        lines.append(line)
    return "\n".join([*lines, "```"] if inside else lines)


class AsImported(griffe.Extension):
    """Shows packages as Python imports them, with fences around doctests, which Markdown would take for quotations."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None and ">>> " in obj.docstring.value:
            obj.docstring.value = fenced(obj.docstring.value)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for module in [pkg, *(one for one in pkg.modules.values() if one.is_init_module)]:
            hidden = [name for name, path in module.imports.items() if path == f"{module.path}.{name}.{name}"]
            # Everything that leads through a hidden module has to be found while it can be.
            for member in module.members.values():
                if isinstance(member, griffe.Alias) and member.target_path.startswith(pkg.path):
                    member.resolve_target()
            for name in hidden:
                function = module.members[name].members[name]
                module.members[name] = griffe.Alias(name, function, parent=module)
