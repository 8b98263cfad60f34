"""Networks to train: ours by name, those of other libraries, or whatever a function of the user's own builds."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from skipway import connect, models, outside
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
    user's, who has the last word. `package.module:factory` is called with those arguments of either that it names;
    `hf:NAME`, `timm:NAME` and `torchvision:NAME` get them under the names that their libraries use, and for hf:NAME
    options are fields of the configuration. Of a model from outside that does not take a skip itself, `skip` makes a
    twin (`with_skip`). Raises SkipwayError for what there is not, and for a model of another task.
    """
    chosen = dict(options or {})
    if ":" in model:
        return _from_outside(model, outside.Settings(kind, offered, chosen, skip))
    family, settled = find(model)
    if family.task != kind:
        raise SkipwayError(
            f"{model} is for {_TOLD[family.task]} ({family.task}), and the data are {_TOLD[kind]}; "
            f"choose a model for {kind}, such as {_EXAMPLES[kind]}"
        )
    allowed = family.options(settled)
    known = {name: value for name, value in offered.items() if name in allowed}
    return models.create(model, skip=skip, **{**known, **chosen})


def tells_hidden(model: str, options: Mapping[str, Any] | None = None) -> bool:
    """Whether a model sees a text from both sides, and is to be trained on hidden characters of it.

    >>> tells_hidden("bert-mini"), tells_hidden("gpt-mini")
    (True, False)
    """
    if ":" in model:
        return outside.hides(model, options or {})
    return find(model)[0].task == "hidden language"


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
        values = [name for name in connect.__all__ if dataclasses.is_dataclass(getattr(connect, name))]
        kind = getattr(connect, choose("connection", node.func.id, values))
        for keyword in node.keywords:
            choose(f"argument of {node.func.id}", str(keyword.arg), inspect.signature(kind).parameters)
        named = {str(keyword.arg): _value(keyword.value) for keyword in node.keywords}
        return kind(*(_value(argument) for argument in node.args), **named)
    if isinstance(node, (ast.List, ast.Tuple)):
        return tuple(_value(element) for element in node.elts)
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"{ast.unparse(node)} is no value") from None


def _from_outside(model: str, settings: outside.Settings) -> nn.Module:
    assert settings.task is not None
    # A module may draw numbers when it is imported, which happens once: the same weights are drawn behind it each time.
    with torch.random.fork_rng(devices=[]):
        source = outside.find(model, settings)
    network = source.built()
    network = outside.answering(copy.deepcopy(network) if source.ready else network, settings.task)
    if settings.skip is None or source.takes_skip:
        return network
    # Importing it takes longer than importing torch.
    from skipway.study.training.twins import with_skip

    return with_skip(network, settings.skip, model, settings.task, settings.offered)
