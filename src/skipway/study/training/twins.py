"""Plain and residual twins of networks that do not take a skip themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from skipway import edit
from skipway.connect import Kind, Plain, Residual, resolve
from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.graph.inputs import made

# Sides of an image that most networks for masks take, where the data do not say.
_SIDES = (64, 32, 224)
_ROWS, _TOKENS = 2, 16


def with_skip(
    network: nn.Module, skip: str | Kind | Sequence[str | Kind], label: str, task: str, offered: Mapping[str, Any]
) -> nn.Module:
    """The twin of a network that has this skip at every place where it has one, or where a block could carry one.

    "none" cuts the skips of a network, and "residual" leaves them; any other stands in their place. A network without
    skips is its own plain twin, and gets a skip past every block for any other. All its parameters keep their names
    and values. Skips from encoder to decoder and those that concatenate stay as they are. The network is traced on
    inputs such as the data of this task give. Raises SkipwayError where there is no place for the skip.

    >>> net = nn.Sequential(*[nn.Conv2d(3, 3, 1) for _ in range(4)])
    >>> residual = with_skip(net, "residual", "net", "classification", {"image_shape": [3, 8, 8]})
    >>> len(trace(residual, torch.ones(1, 3, 8, 8)).skips)
    2
    """
    if isinstance(skip, Sequence) and not isinstance(skip, str):
        raise SkipwayError(f"{label} takes one skip, not a list of {len(skip)}: a list is for the levels of a U-Net")
    kind = resolve(skip)
    graph = _traced(network, label, task, offered)
    short = [found for found in graph.skips if not found.long and found.kind != "concat"]
    try:
        if not short and graph.skips:
            what = "long skips" if all(found.long for found in graph.skips) else "skips that concatenate"
            raise SkipwayError(f"it has only {what}, which belong to its shape and stay: change them with skipway.edit")
        if kind == Plain():
            return edit.plain_twin(network, graph=graph, parameters="share") if short else network
        if not short:
            return edit.residual_twin(network, skip=skip, graph=graph, parameters="share")
        return network if kind == Residual() else edit.swap(network, short, skip, parameters="share")
    except SkipwayError as error:
        told = f"'{skip}'" if isinstance(skip, str) else repr(skip)
        raise SkipwayError(f"{label} has no twin with skip {told}: {error}") from error


def _traced(network: nn.Module, label: str, task: str, offered: Mapping[str, Any]) -> SkipGraph:
    modes = [(module, module.training) for module in network.modules()]
    failure: SkipwayError | None = None
    try:
        # As it is measured: what training draws and leaves out is no part of the network's skips.
        network.eval()
        for inputs in examples(network, task, offered):
            try:
                return trace(network, *inputs)
            except SkipwayError as error:
                failure = failure or error
    finally:
        for module, mode in modes:
            module.training = mode
    raise SkipwayError(f"{label} does not take these data: {str(failure).splitlines()[0]}") from failure


def examples(network: nn.Module, task: str, offered: Mapping[str, Any]) -> list[tuple[Tensor, ...]]:
    """Inputs of a network as the data of a task give them, the likeliest first, where its parameters lie."""
    first = next(network.parameters(), None)
    device = "cpu" if first is None else str(first.device)
    if task in ("classification", "segmentation"):
        channels = offered.get("in_channels", 3)
        shapes = [offered["image_shape"]] if "image_shape" in offered else [(channels, side, side) for side in _SIDES]
        return [(made((_ROWS, *shape), device),) for shape in shapes]
    tokens = made((_ROWS, min(_TOKENS, offered["length"])), device, torch.int64, offered["vocabulary"])
    if task != "translation":
        return [(tokens,)]
    target = made(tuple(tokens.shape), device, torch.int64, offered["target_vocabulary"])
    nothing = torch.zeros_like(tokens, dtype=torch.bool)
    return [(tokens, target, nothing, nothing.clone())]
