"""SPEC on the command line: the ways to name a model, and running something on the model that is meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from skipway import outside
from skipway.cli.inputs import parse, told
from skipway.errors import SkipwayError
from skipway.graph.inputs import Example
from skipway.outside import Settings, Source

Result = TypeVar("Result")

FORMS = f"one of 'skipway models' (resnet56), {outside.FORMS}, or a .pt2 file"
_FILES = (".pt2", ".pt", ".pth", ".bin", ".safetensors", ".ckpt")
# What a model of this many parameters takes in float32, 1.2 GB, is allocated without asking.
_MODEST = 300_000_000


@dataclass(frozen=True)
class Wish:
    """What the command line asks for beside the SPEC."""

    inputs: Sequence[str] = ()
    skip: str | None = None
    weights: bool = False
    training: bool = False
    values: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def is_file(spec: str) -> bool:
    """Whether a SPEC names a file of an exported model, or of weights."""
    return Path(spec).suffix in _FILES


def find(spec: str, skip: str | None = None, weights: bool = False, options: Mapping[str, Any] | None = None) -> Source:
    """The source that a SPEC means; raises SkipwayError for what there is not, with the nearest of what there is."""
    options = options or {}
    colon = ":" in spec
    if skip is not None and (colon or is_file(spec)):
        raise SkipwayError(
            f"--skip is for our own families ('skipway models'); {spec} comes with the skips that it has"
        )
    if is_file(spec):
        from skipway.cli.exported import exported_source

        if options:
            raise SkipwayError(f"--option is for models that are built, and {spec} holds one as it is: leave it out")
        return exported_source(Path(spec))
    if not colon:
        return _own(spec, skip, weights, options)
    return outside.find(spec, Settings(options=options), weights)


def _own(name: str, skip: str | None, weights: bool, options: Mapping[str, Any]) -> Source:
    from skipway import models

    if weights:
        raise SkipwayError(f"published weights are those of torchvision, timm and the Hub, and {name} is our own")
    try:
        models.describe(name)
    except SkipwayError as error:
        if not str(error).startswith("no model"):
            raise
        raise SkipwayError(f"{error}; SPEC is {FORMS}{_meant(name)}") from None

    def build() -> nn.Module:
        return models.create(name, skip, **options)

    def examples(model: nn.Module, device: str) -> list[Example]:
        return [(models.example(name, model, device=device), {})]

    return Source(name, build, examples)


def _meant(name: str) -> str:
    """What to add where a name is no model, but that of a file of the user's own or of a function in one."""
    path = Path(name.removesuffix(".py") if name.endswith(".py") else name.replace(".", "/"))
    if not path.is_absolute() and path.name and path.with_suffix(".py").is_file():
        return f"; a function in {path.with_suffix('.py')} is {'.'.join(path.parts)}:its_name"
    if len(path.parts) > 1 and path.parent.with_suffix(".py").is_file():
        return f"; did you mean '{'.'.join(path.parent.parts)}:{path.name}'?"
    return ""


def run_on(spec: str, wish: Wish, action: Callable[..., Result], check: Callable[..., object] | None = None) -> Result:
    """Build the model that a SPEC means and return `action(model, *inputs)`.

    Where only the structure is wanted, the model is built on the meta device, without memory, if it runs there; where
    `wish.values` are wanted, only a model too large to be built without asking. Of the inputs that suggest themselves,
    those are taken on which `check`, or the action itself, succeeds.
    """
    source = find(spec, wish.skip, wish.weights, wish.options)
    light = _on_meta(source) if source.shapes_suffice and not wish.weights else None
    parameters = 0 if light is None else sum(parameter.numel() for parameter in light.parameters())
    if light is not None and (not wish.values or parameters > _MODEST):
        if wish.values:
            _say(f"{source.label} has {parameters:,} parameters: examined without their values, on the meta device")
        try:
            return _attempt(source, light, "meta", wish, action, check)
        except SkipwayError as error:
            if not _may_lie_at_meta(error):
                raise
            del light
            _say(
                f"{source.label} does not run on the meta device: building it for real ({4 * parameters / 1e9:,.1f} GB)"
            )
    _refuse_beyond_memory(source, parameters)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = source.built()
    return _attempt(source, model, "cpu", wish, action, check)


def _on_meta(source: Source) -> nn.Module | None:
    try:
        with torch.device("meta"):
            return source.build()
    except SkipwayError:
        raise
    except Exception:
        _say(f"{source.label} cannot be built on the meta device: building it for real")
        return None


def _may_lie_at_meta(error: SkipwayError) -> bool:
    # A slip in --input is the same on every device; an error of the model's own may come from the device.
    return error.__cause__ is not None


def _refuse_beyond_memory(source: Source, parameters: int) -> None:
    free = _free_memory()
    if free is not None and 4 * parameters > free:
        raise SkipwayError(
            f"{source.label} takes {4 * parameters / 1e9:,.1f} GB and {free / 1e9:,.1f} GB are free; "
            f"it does not run on the meta device either"
        )


def _free_memory() -> int | None:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _attempt(
    source: Source,
    model: nn.Module,
    device: str,
    wish: Wish,
    action: Callable[..., Result],
    check: Callable[..., object] | None,
) -> Result:
    if not isinstance(model, torch.fx.GraphModule):
        model.train(wish.training)
    if wish.inputs:
        args, kwargs = parse(wish.inputs, model, device)
        return action(model, *args, **kwargs)
    examples = source.examples(model, device)
    if not examples:
        raise SkipwayError(f"no inputs can be guessed for {source.label}: give them, as in --input 1x3x224x224")
    failure: SkipwayError | None = None
    for args, kwargs in examples:
        try:
            if check is not None:
                check(model, *args, **kwargs)
            result = action(model, *args, **kwargs)
        except SkipwayError as error:
            failure = failure or error
            continue
        if source.guessed:
            _say(f"no --input given: run on {told((args, kwargs))}")
        return result
    assert failure is not None
    raise SkipwayError(f"{failure}; these inputs were guessed: give others with --input") from failure.__cause__


def _say(text: str) -> None:
    print(f"skipway: {text}", file=sys.stderr)
