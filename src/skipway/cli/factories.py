"""Models of the user's own: `package.module:factory`, and files that torch.export wrote."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from skipway.cli.sources import Source, suggestion
from skipway.errors import SkipwayError
from skipway.graph.inputs import Example, guesses


def factory_source(module_name: str, attribute: str) -> Source:
    """`package.module:factory`: a module, or a function or class that makes one when it is called without arguments."""
    module = _module(module_name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(found).items() if callable(value) and not name.startswith("_")]
            raise SkipwayError(f"{module_name} has no {attribute!r}{suggestion(part, names)}")
        found = getattr(found, part)
    label = f"{module_name}:{attribute}"
    if not isinstance(found, nn.Module):
        _callable_without_arguments(found, label)

    def build() -> nn.Module:
        if isinstance(found, nn.Module):
            return found
        try:
            model = found()
        except SkipwayError:
            raise
        except Exception as error:
            raise SkipwayError(f"{label}() fails: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise SkipwayError(f"{label}() returns a {type(model).__name__}; it has to return a torch.nn.Module")
        return model

    return Source(label, build, guesses, shapes_suffice=False, guessed=True)


def _callable_without_arguments(found: Any, label: str) -> None:
    if not callable(found):
        raise SkipwayError(
            f"{label} is a {type(found).__name__}; it has to be a torch.nn.Module or a function that makes one"
        )
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    if needed:
        raise SkipwayError(
            f"{label} needs arguments ({', '.join(needed)}): name a function that takes none, "
            f"such as def build(): return {found.__name__}({', '.join(f'{name}=...' for name in needed)})"
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


def exported_source(path: Path) -> Source:
    """A `.pt2` file that torch.export.save wrote, with the example inputs that it keeps."""
    if path.suffix != ".pt2":
        raise SkipwayError(
            f"{path.name} holds weights, not a model: write one with "
            f"torch.export.save(torch.export.export(model, inputs), '{path.stem}.pt2'), "
            f"or name the function that builds it as package.module:function"
        )
    if not path.is_file():
        others = [one.name for one in path.parent.glob("*.pt2")] if path.parent.is_dir() else []
        raise SkipwayError(f"there is no file {str(path)!r}{suggestion(path.name, others) if others else ''}")
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise SkipwayError(f"{path.name} is no file that torch.export.save wrote: {error}") from error

    def examples(model: nn.Module, device: str) -> list[Example]:
        kept = program.example_inputs
        return [] if kept is None else [(tuple(kept[0]), dict(kept[1]))]

    return Source(path.name, program.module, examples, shapes_suffice=False)
