"""Whether a model still is the one that was traced, as far as that can be seen without running it."""

from __future__ import annotations

from torch import nn

from skipway.edit.log import history
from skipway.errors import SkipwayError
from skipway.graph.ir import Trace


def check(model: nn.Module, trace: Trace) -> None:
    """Raise SkipwayError with the first module or parameter that the model does not have as the trace has it."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for call in trace.calls:
        if "<" in call.module:
            continue
        module = modules.get(call.module)
        if module is None:
            raise SkipwayError(
                f"the graph is of another model: {call.module!r} ran in it, and this {type(model).__name__} has no "
                "such module: trace this one"
            )
        kind = getattr(module, "original_name", None) or type(module).__name__
        if kind != call.kind:
            where = repr(call.module) if call.module else "the model itself"
            raise SkipwayError(
                f"the graph is of another model: {where} was a {call.kind} in it and is a {kind} here: trace this one"
            )
    parameters = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
    for name, shape in trace.parameters.items():
        if parameters.get(name) != shape:
            here = f"{parameters[name]} here" if name in parameters else "missing here"
            raise SkipwayError(f"the graph is of another model: the parameter {name!r} was {shape} in it and is "
                               f"{here}: trace this one")  # fmt: skip
    brought = [f"{change.connection}." for change in history(model) if change.connection]
    for name in parameters:
        if name not in trace.parameters and not any(name.startswith(path) for path in brought):
            raise SkipwayError(
                f"the graph is of another model: the parameter {name!r} here is not in it: trace this one"
            )
