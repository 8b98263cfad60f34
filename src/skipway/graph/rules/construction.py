"""Rules about how a model is put together: that it runs, that its layers are its own, that both modes agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from skipway.graph.ir import Operation, Site, Trace
from skipway.graph.rules.case import Case, layer_name, times
from skipway.graph.rules.registry import Found, rule
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import Skip

FORWARD_FAILS = "forward-fails"
# How a trace names a parameter of no module.
UNREGISTERED = "(unregistered)"
_TORCH = str(Path(torch.__file__).parent)
_TORCH_DICTS = frozenset(vars(nn.Module()))


@rule(
    FORWARD_FAILS,
    "error",
    remedy="Correct the forward method at the place named, or the inputs; until then nothing else can be looked at.",
    source="the exception that was raised",
)
def forward_fails(case: Case) -> Iterator[Found]:
    """A forward pass that raises an exception: an undefined name, a missing attribute, shapes that do not fit.

    A warning where it fails in the mode that the model is not in. Silent where both modes run, and where training
    mode only lacks a larger batch.
    """
    if case.failure is not None:
        yield Found(*case.failure, "warning")


@rule(
    "unregistered-layers",
    "error",
    remedy="Hold modules in nn.ModuleList or nn.ModuleDict, tensors in nn.Parameter or nn.ParameterList attributes.",
    source="torch.nn.Module: only attributes that are modules or parameters are registered",
)
def unregistered_layers(case: Case) -> Iterator[Found]:
    """Layers that run and could learn, but that parameters() misses: held in plain lists or dicts, or in closures.

    The optimiser does not train them, `.to()` does not move them and `state_dict` does not save them. Silent for
    layers that are frozen, that are registered elsewhere in the model, or that do not run.
    """
    registered = {name for name, _ in case.model.named_parameters(remove_duplicate=False)}
    missed = {
        value.index: value for value in case.trace.values
        if value.origin == "parameter" and value.name not in registered
    }  # fmt: skip
    readers = [operation for operation in case.trace.operations if any(value in missed for value in operation.operands)]
    if not readers:
        return
    containers = list(_containers(case.model))
    for path, attribute, kind, tensors in containers:
        n = sum(tensor.numel() for tensor in tensors)
        below = [operation.site for operation in readers if operation.site.module.startswith(path)]
        yield Found(
            (below or [readers[0].site])[0],
            f"{layer_name(path)} keeps layers in a plain {kind}, '{attribute}': the optimiser will not train their "
            f"{n:,} parameters in {times(len(tensors), 'tensor')}, nor will state_dict() save them.",
        )
    alone = any(value.name == UNREGISTERED for value in missed.values())
    if not containers and (case.strangers or alone):
        names = ", ".join(case.strangers) or times(len(missed), "tensor")
        yield Found(
            readers[0].site,
            f"{names} run in the model but are not registered in it: the optimiser will not train them, nor will "
            "state_dict() save them.",
            also=tuple(operation.site for operation in readers[1:]),
        )


@contextmanager
def meeting_strangers(model: nn.Module) -> Iterator[dict[str, None]]:
    """Collects the kinds of the modules that run here, have something to learn, and are not the model's."""
    known = {id(module) for module in model.modules()}
    met: dict[str, None] = {}

    def meet(module: nn.Module, args: Any) -> None:
        if id(module) not in known and any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            met[type(module).__name__] = None

    handle = register_module_forward_pre_hook(meet)
    try:
        yield met
    finally:
        handle.remove()


def _containers(model: nn.Module) -> Iterator[tuple[str, str, str, list[Tensor]]]:
    """The plain containers that hold trainable tensors which their module does not register."""
    registered = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name in _TORCH_DICTS or not isinstance(value, (list, tuple, dict, set)):
                continue
            held = {id(tensor): tensor for tensor in _tensors(value, set()) if id(tensor) not in registered}
            trainable = [tensor for tensor in held.values() if tensor.requires_grad and tensor.is_leaf]
            if trainable:
                yield path, name, type(value).__name__, trainable


def _tensors(item: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(item) in seen:
        return
    seen.add(id(item))
    if isinstance(item, Tensor):
        yield item
    elif isinstance(item, nn.Module):
        yield from item.parameters()
    elif isinstance(item, dict):
        for part in item.values():
            yield from _tensors(part, seen)
    elif isinstance(item, (list, tuple, set)):
        for part in item:
            yield from _tensors(part, seen)


@rule(
    "skip-in-one-mode",
    "error",
    remedy="Add the shortcut in both modes; only dropping and noise depend on self.training.",
    source="torch.nn.Module.train: evaluation is to compute the function that was trained",
)
def skip_in_one_mode(case: Case) -> Iterator[Found]:
    """A skip that is there in training and not in evaluation, or the other way round, while its branch runs in both.

    Silent where the branch does not run either (stochastic depth, auxiliary heads), and where a fused kernel hides
    what the other mode does.
    """
    if case.other is None:
        return
    here, there = (case.graph, case.other) if case.training else (case.other, case.graph)
    for graph, other, present, absent in (
        (here, there, "training", "evaluation"),
        (there, here, "evaluation", "training"),
    ):
        if any(operation.name == "opaque" for operation in other.trace.operations):
            continue
        for skip in _missing(graph, other):
            yield Found(
                skip.site,
                f"This skip is there in {present} and gone in {absent}, although its branch runs in both: the "
                "network that is evaluated is not the one that was trained.",
            )


def _missing(graph: SkipGraph, other: SkipGraph) -> Iterator[Skip]:
    place = [(skip.site.module, skip.site.call) for skip in graph.skips]
    left = Counter((skip.site.module, skip.site.call) for skip in other.skips)
    total = Counter(place)
    runs = _parameters_read(other.trace, other.trace.operations)
    for skip, key in zip(graph.skips, place, strict=True):
        branch = _parameters_read(graph.trace, [graph.trace.operations[index] for index in skip.branch_operations])
        if total[key] > left[key] and branch and branch <= runs:
            total[key] -= 1
            yield skip


def _parameters_read(trace: Trace, operations: tuple[Operation, ...] | list[Operation]) -> set[str]:
    values = (trace.values[value] for operation in operations for value in operation.operands)
    return {value.name for value in values if value.origin == "parameter"}


def failure_of(model: nn.Module, error: BaseException, mode: str = "") -> tuple[Site, str] | None:
    """Where in the model an exception was raised and a sentence about it; None where none was running."""
    paths = {id(module): path for path, module in model.named_modules()}
    owner = place = None
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        running = trace.tb_frame.f_locals.get("self")
        if isinstance(running, nn.Module) and id(running) in paths and code.co_name != "_call_impl":
            owner = running
        if owner is not None and (place is None or not code.co_filename.startswith(_TORCH)):
            place = f"{code.co_name} ({code.co_filename.rpartition('/')[2]}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if owner is None:
        return None
    path = paths[id(owner)]
    name = f"{type(owner).__name__} {path}" if path else type(owner).__name__
    message = str(error).split("\n")[0] or "no message"
    sentence = f"{name} fails in {place}{mode}: {type(error).__name__}: {message}"
    return Site(path, "forward"), sentence if sentence.endswith(".") else sentence + "."
