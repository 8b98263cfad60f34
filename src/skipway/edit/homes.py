"""Where the module that an edit brings is registered: under a name that is free, where nothing will iterate over it."""

from __future__ import annotations

from torch import nn


def home_for(root: nn.Module, path: str, taken: set[str]) -> tuple[str, str]:
    """The path of the module that may own a new one beside `path`, and the new one's name in it.

    A container would run or list what it owns, so another takes its place: the nearest around it, or else the first
    inside it. Names in `taken` (whole paths) are not free either.
    """
    around = path
    while _lists_children(root.get_submodule(around)) and around:
        around = around.rpartition(".")[0]
    if _lists_children(root.get_submodule(around)):
        inside = (name for name, module in root.get_submodule(path).named_modules() if not _lists_children(module))
        first = next(inside, None)
        around = path if first is None else f"{path}.{first}" if path else first
    home = root.get_submodule(around)
    number = 0
    while True:
        name = f"connection_{number}" if number else "connection"
        whole = f"{around}.{name}" if around else name
        if not hasattr(home, name) and whole not in taken:
            taken.add(whole)
            return around, name
        number += 1


def _lists_children(module: nn.Module) -> bool:
    """Whether a module is a container: `nn.Sequential` and its like can be iterated over."""
    return hasattr(type(module), "__iter__")
