"""Networks to train: ours by name, or whatever a function of the user's own builds."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from skipway import connect, models
from skipway.connect import Kind
from skipway.errors import SkipwayError, choose
from skipway.models.registry import find

_TOLD = {
    "classification": "images in classes",
    "segmentation": "images with masks",
    "language": "a text",
    "hidden language": "a text",
    "translation": "pairs of lines",
}
_EXAMPLES = {
    "classification": "resnet20",
    "segmentation": "unet",
    "language": "gpt-mini",
    "hidden language": "bert-mini",
    "translation": "transformer",
}


def build_network(
    model: str,
    kind: str,
    offered: Mapping[str, Any],
    skip: str | Kind | Sequence[str | Kind] | None = None,
    options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The network that `model` names, for a task of this kind.

    `offered` is what the data settle, such as num_classes: a network takes of it what it knows. `options` are the
    user's, who has the last word. `package.module:factory` is called with those arguments of either that it names.
    Raises SkipwayError for what there is not, and for a model of another task.
    """
    chosen = dict(options or {})
    if ":" in model:
        return _from_factory(model, kind, offered, skip, chosen)
    family, settled = find(model)
    if family.task != kind:
        raise SkipwayError(
            f"{model} is for {_TOLD[family.task]} ({family.task}), and the data are {_TOLD[kind]}; "
            f"choose a model for {kind}, such as {_EXAMPLES[kind]}"
        )
    allowed = family.options(settled)
    known = {name: value for name, value in offered.items() if name in allowed}
    return models.create(model, skip=skip, **{**known, **chosen})


def written_skip(skip: Any) -> Any:
    """A skip as plain values, from which `read_skip` makes it again.

    >>> written_skip(connect.Residual(drop=0.5)) == repr(connect.Residual(drop=0.5))
    True
    """
    if skip is None or isinstance(skip, str):
        return skip
    if isinstance(skip, Sequence):
        return [written_skip(one) for one in skip]
    return repr(skip)


def read_skip(written: Any) -> Any:
    """What `written_skip` wrote: a name, a value such as "Residual(drop=0.5)", or a list of them.

    Raises SkipwayError for what is neither a name nor such a value.

    >>> read_skip("Residual(drop=0.5)") == connect.Residual(drop=0.5)
    True
    """
    if written is None:
        return None
    if isinstance(written, (list, tuple)):
        return [read_skip(one) for one in written]
    if "(" not in written:
        return written
    try:
        return _value(ast.parse(written, mode="eval").body)
    except (SyntaxError, ValueError, TypeError) as error:
        raise SkipwayError(
            f"no skip {written!r}: {error}; write a name, or a value such as Residual(drop=0.5)"
        ) from error


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        kind = getattr(connect, choose("connection", node.func.id, connect.__all__))
        named = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
        return kind(*(_value(argument) for argument in node.args), **named)
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_value(element) for element in node.elts)
    return ast.literal_eval(node)


def _from_factory(model: str, kind: str, offered: Mapping[str, Any], skip: Any, options: dict[str, Any]) -> nn.Module:
    factory = _named(model)
    if isinstance(factory, nn.Module):
        if options or skip is not None:
            raise SkipwayError(f"{model} is a network already: skip and options are for functions that build one")
        return copy.deepcopy(factory)
    if not callable(factory):
        raise SkipwayError(f"{model} is a {type(factory).__name__}; it has to be a function that builds a network")
    parameters = inspect.signature(factory).parameters
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if skip is not None:
        options["skip"] = skip
    if not anything:
        for option in options:
            choose(f"argument of {model}", option, parameters)
    given = {name: value for name, value in offered.items() if name in parameters} | options
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in given
    ]
    if missing:
        raise SkipwayError(
            f"{model} needs {', '.join(missing)}: give --option {missing[0]}=...; "
            f"data for {kind} offer {', '.join(offered)}"
        )
    try:
        network = factory(**given)
    except SkipwayError:
        raise
    except Exception as error:
        raise SkipwayError(f"{model} fails: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise SkipwayError(f"{model} returns a {type(network).__name__}; it has to return a torch.nn.Module")
    return network


def _named(model: str) -> Any:
    module_name, _, attribute = model.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise SkipwayError(f"cannot import {model}: {error}; write package.module:factory") from error
    return found
