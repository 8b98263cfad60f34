"""Models of the user's own: `package.module:factory`."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from skipway.errors import SkipwayError, choose
from skipway.graph.inputs import guesses
from skipway.outside.sources import Settings, Source, suggestion


def factory_source(module_name: str, attribute: str, settings: Settings) -> Source:
    """`package.module:factory`: a function or class that makes a module, or a module.

    A function is called with what it names of what the data settle, and with the user's options.
    """
    found: Any = _module(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
            raise SkipwayError(f"{module_name} has no {attribute!r}{suggestion(part, names)}")
        found = getattr(found, part)
    label = f"{module_name}:{attribute}"
    if isinstance(found, nn.Module):
        if settings.options:
            raise SkipwayError(f"{label} is a network already: options are for functions that build one")
        return Source(label, lambda: found, guesses, shapes_suffice=False, guessed=True, ready=True)
    if not callable(found):
        raise SkipwayError(
            f"{label} is a {type(found).__name__}; it has to be a torch.nn.Module or a function that makes one"
        )
    arguments = _arguments(found, label, settings)

    def build() -> nn.Module:
        try:
            model = found(**arguments)
        except SkipwayError:
            raise
        except Exception as error:
            told = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            raise SkipwayError(f"{label}({told}) fails: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise SkipwayError(f"{label}() returns a {type(model).__name__}; it has to return a torch.nn.Module")
        return model

    return Source(label, build, guesses, shapes_suffice=False, guessed=True, takes_skip="skip" in arguments)


def written_in(module_name: str) -> str | None:
    """A hash of the file that a module is written in, where there is one."""
    path = getattr(_module(module_name), "__file__", None)
    return None if path is None else hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]


def _arguments(factory: Callable[..., Any], label: str, settings: Settings) -> dict[str, Any]:
    """What a function is called with; raises SkipwayError for options that it does not take, and for what it lacks."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return dict(settings.options)
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    named = {name for name, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    arguments = {name: value for name, value in settings.offered.items() if name in named} | dict(settings.options)
    if not anything:
        for option in settings.options:
            choose(f"argument of {label}", option, named)
    if settings.skip is not None and (anything or "skip" in named):
        arguments["skip"] = settings.skip
    needed = [name for name in named if parameters[name].default is inspect.Parameter.empty]
    if missing := [name for name in parameters if name in needed and name not in arguments]:
        raise SkipwayError(f"{label} needs arguments ({', '.join(missing)}): {_remedy(factory, missing, settings)}")
    return arguments


def _remedy(factory: Any, missing: list[str], settings: Settings) -> str:
    if settings.task is not None:
        return f"give --option {missing[0]}=...; data for {settings.task} offer {', '.join(settings.offered)}"
    return (
        f"give --option {missing[0]}=..., or name a function that takes none, such as "
        f"def build(): return {factory.__name__}({', '.join(f'{name}=...' for name in missing)})"
    )


def _module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name != missing and not name.startswith(f"{missing}."):
            raise SkipwayError(f"importing {name} fails: it needs {missing}, which is not installed") from error
        parent, _, last = missing.rpartition(".")
        paths = list(sys.modules[parent].__path__) if parent and hasattr(sys.modules.get(parent), "__path__") else None
        siblings = [found.name for found in pkgutil.iter_modules(paths)]
        raise SkipwayError(
            f"there is no module {missing!r} to import from {Path.cwd()}{suggestion(last, siblings)}"
        ) from None
    except SkipwayError:
        raise
    except Exception as error:
        raise SkipwayError(f"importing {name} fails: {type(error).__name__}: {error}") from error
