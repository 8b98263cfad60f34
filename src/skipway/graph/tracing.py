"""`trace`: one real forward pass of any model, written down."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.parameter import is_lazy

from skipway.errors import SkipwayError
from skipway.graph.ir import Call, Operation, Ref, Trace, Value
from skipway.graph.record import Recorder
from skipway.graph.sites import SiteMode, tensors_in
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.state import Inventory, Keeper, unchanged


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> SkipGraph:
    """Run `model(*args, **kwargs)` once and return the graph of its operations, in which its skips can be found.

    Any module, any Python control flow, any nesting of inputs and outputs; on the CPU, on an accelerator or on the
    `meta` device; in training or evaluation mode as it stands. The model, the inputs and the random generators are left
    exactly as they were, no activation is kept, and no gradient is computed. What depends on the mode (dropout,
    stochastic depth, control flow on random numbers) is traced as it went this once.

    Raises SkipwayError where the model is no module, has lazy parameters, or fails on these inputs.

    >>> block = nn.TransformerEncoderLayer(8, nhead=2, dim_feedforward=16, batch_first=True)
    >>> [str(skip.site) for skip in trace(block, torch.zeros(1, 3, 8)).skips]
    [':add:0', ':add:1']
    """
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise SkipwayError(f"trace takes a torch.nn.Module, and this is {given}: call it as trace(model, *inputs)")
    inventory = Inventory.of(model)
    lazy = [name for name, tensor in (*inventory.parameters, *inventory.buffers) if is_lazy(tensor)]
    if lazy:
        raise SkipwayError(
            f"{lazy[0]} has no shape yet: run the model once on an input, so that its lazy modules are built"
        )
    inputs = list(named_inputs(model, args, kwargs))
    tensors = [tensor for _, tensor in inputs]
    keeper = Keeper([*inventory.tensors, *tensors])
    recorder = Recorder(inventory, keeper)
    indices = [recorder.add_input(tensor, name) for name, tensor in inputs]
    with unchanged(inventory, tensors):
        try:
            with recording(recorder):
                output = model(*args, **kwargs)
            outputs = list(_named_outputs(output))
        except SkipwayError:
            raise
        except Exception as error:
            given = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs) or "nothing"
            raise SkipwayError(
                f"the model does not run on these inputs ({given}): {type(error).__name__}: {error}"
            ) from error
        finally:
            lost = keeper.restore()
    if lost:
        names = {id(tensor): name for name, tensor in (*inventory.parameters, *inventory.buffers, *inputs)}
        listed = ", ".join(names[id(tensor)] for tensor in lost)
        warnings.warn(f"tracing changed {listed}: an operation unknown to torch wrote to it", stacklevel=2)
    return SkipGraph(_finish(recorder, model, inventory, indices, outputs))


@contextmanager
def recording(recorder: SiteMode) -> Iterator[None]:
    with ExitStack() as stack:
        # The many small records would set off full collections, each far longer than the pass itself.
        if gc.isenabled():
            gc.disable()
            stack.callback(gc.enable)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(warnings.catch_warnings())
        # Reentrant checkpointing wants inputs that require a gradient, which nothing does while it is traced.
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad=True")
        warnings.filterwarnings("ignore", message=r"Using `torch.compile\(module\)` when there are global hooks")
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(_python_in_place_of_scripts(recorder))
        stack.callback(register_module_forward_pre_hook(recorder.enter_module).remove)
        leaving = register_module_forward_hook(recorder.leave_module, with_kwargs=True, always_call=True)
        # Removing a global hook leaves its mark among those that take keyword arguments, and torch.compile warns of it.
        stack.callback(torch.nn.modules.module._global_forward_hooks_with_kwargs.pop, leaving.id, None)
        stack.callback(leaving.remove)
        stack.enter_context(recorder)
        yield


@contextmanager
def _python_in_place_of_scripts(recorder: SiteMode) -> Iterator[None]:
    """Run the Python source of scripted functions, whose compiled form hides its operations."""
    scripted: Any = torch._C.ScriptFunction
    compiled_call = scripted.__call__

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        source = getattr(function, "_torchdynamo_inline", None)
        if source is not None:
            return source(*args, **kwargs)
        result = compiled_call(function, *args, **kwargs)
        recorder.opaque(
            f"the function {function.name} is compiled by torch.jit",
            tuple(tensors_in((args, kwargs))),
            tensors_in(result),
        )
        return result

    scripted.__call__ = call
    try:
        yield
    finally:
        scripted.__call__ = compiled_call


def named_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as error:
        if isinstance(error, TypeError) and not isinstance(model, torch.jit.ScriptModule):
            raise SkipwayError(
                f"{type(model).__name__}.forward cannot be called with these arguments: {error}"
            ) from error
        yield from tensors_named("", (args, kwargs))
        return
    for name, value in bound.arguments.items():
        yield from tensors_named(name, value)


def _named_outputs(output: Any) -> Iterator[tuple[str, Tensor]]:
    yield from tensors_named("", output)


def tensors_named(name: str, item: Any, seen: set[int] | None = None) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested containers, dataclasses and plain objects, each with how one would write its place."""
    seen = set() if seen is None else seen
    if isinstance(item, Tensor):
        yield name, item
        return
    if item is None or isinstance(item, (int, float, str, bytes, type, nn.Module)) or id(item) in seen:
        return
    seen.add(id(item))
    dot = f"{name}." if name else ""
    if isinstance(item, dict):
        for key, part in item.items():
            yield from tensors_named(f"{dot}{key}", part, seen)
    elif isinstance(item, tuple) and hasattr(item, "_fields"):
        for key, part in item._asdict().items():  # pyright: ignore[reportAttributeAccessIssue]
            yield from tensors_named(f"{dot}{key}", part, seen)
    elif isinstance(item, (tuple, list, set, frozenset)):
        for position, part in enumerate(item):
            yield from tensors_named(f"{name}[{position}]", part, seen)
    elif dataclasses.is_dataclass(item):
        for field in dataclasses.fields(item):
            yield from tensors_named(f"{dot}{field.name}", getattr(item, field.name, None), seen)
    elif hasattr(item, "__dict__"):
        for key, part in vars(item).items():
            yield from tensors_named(f"{dot}{key}", part, seen)


def _finish(
    recorder: Recorder, model: nn.Module, inventory: Inventory, inputs: list[int], outputs: list[tuple[str, Tensor]]
) -> Trace:
    """Drop what only computes sizes, indices and masks."""
    results, names = _results(recorder, outputs)
    values, operations, calls = recorder.values, recorder.operations, recorder.calls
    kept = [operation for operation in operations if any(values[index].live for index in operation.results)]
    if len(kept) < len(operations):
        values, operations, calls, inputs, results = _compact(values, operations, calls, inputs, results, kept)
    return Trace(
        model=type(model).__name__,
        values=tuple(values),
        operations=tuple(operations),
        calls=tuple(calls),
        inputs=tuple(inputs),
        outputs=tuple(results),
        output_names=tuple(names),
        parameters={name: tuple(parameter.shape) for name, parameter in inventory.parameters},
        notes=tuple(recorder.notes),
    )


def _compact(
    values: list[Value], operations: list[Operation], calls: tuple[Call, ...], inputs: list[int], results: list[int],
    kept: list[Operation],
) -> tuple[list[Value], list[Operation], tuple[Call, ...], list[int], list[int]]:  # fmt: skip
    """Number what is kept from zero; what dropped operations made and kept ones read becomes a constant."""
    used = {*inputs, *results}
    for operation in kept:
        used.update(operation.operands)
        used.update(operation.results)
    numbers = {old: new for new, old in enumerate(sorted(used))}
    places = {operation.index: new for new, operation in enumerate(kept)}
    new_values = []
    for old, new in numbers.items():
        value = values[old]
        producer = None if value.producer is None else places.get(value.producer)
        origin = "constant" if value.origin == "operation" and producer is None else value.origin
        new_values.append(
            Value(new, value.shape, value.dtype, origin, value.name, producer, value.output, value.fed, value.live)
        )
    new_operations = [
        Operation(place, operation.site, operation.name, _renumber(operation.args, numbers),
                  {key: _renumber(item, numbers) for key, item in operation.kwargs.items()},
                  tuple(numbers[index] for index in operation.operands),
                  tuple(numbers[index] for index in operation.results),
                  operation.call, operation.inplace, operation.gradient, operation.after, operation.step)
        for place, operation in enumerate(kept)
    ]  # fmt: skip
    # How many kept operations lie before each recorded one: what the bounds of the calls become.
    before = [0]
    for operation in operations:
        before.append(before[-1] + (operation.index in places))
    new_calls = tuple(
        dataclasses.replace(
            call, start=before[call.start], stop=before[call.stop],
            given=tuple(numbers.get(index, -1) for index in call.given),
            returned=tuple(numbers.get(index, -1) for index in call.returned),
        )
        for call in calls
    )  # fmt: skip
    return (
        new_values,
        new_operations,
        new_calls,
        [numbers[index] for index in inputs],
        [numbers[index] for index in results],
    )


def _results(recorder: Recorder, outputs: list[tuple[str, Tensor]]) -> tuple[list[int], list[str]]:
    """The live values that the outputs are, or were computed from where they are classes or other integers."""
    found: dict[int, str] = {}
    for name, tensor in outputs:
        waiting, seen = [recorder.value_of(tensor)], set[int]()
        while waiting:
            index = waiting.pop()
            if index in seen:
                continue
            seen.add(index)
            value = recorder.values[index]
            if value.live and value.origin != "parameter":
                found.setdefault(index, name)
            elif value.producer is not None:
                waiting.extend(reversed(recorder.operations[value.producer].operands))
    if not found:
        read = {index for operation in recorder.operations for index in operation.operands}
        found = {
            value.index: ""
            for value in recorder.values
            if value.live and value.producer is not None and value.index not in read
        }
    return list(found), list(found.values())


def _renumber(item: Any, numbers: dict[int, int]) -> Any:
    if isinstance(item, Ref):
        return Ref(numbers[item.value])
    if isinstance(item, tuple):
        return tuple(_renumber(part, numbers) for part in item)
    if isinstance(item, slice):
        return slice(*(_renumber(part, numbers) for part in (item.start, item.stop, item.step)))
    if isinstance(item, dict):
        return {key: _renumber(part, numbers) for key, part in item.items()}
    return item
