"""Following a trace on the live model: which operation of the trace each real one is, while it runs with autograd."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.graph.ir import Operation, Site, Trace
from skipway.graph.names import Named
from skipway.graph.operations import DROPOUTS
from skipway.graph.sites import SiteMode, tensors_in
from skipway.graph.state import Inventory, Keeper, unchanged
from skipway.graph.tracing import recording
from skipway.probe.batches import Batch, front

# What was recorded without having run: the change of a view along with its base, and code that torch does not show.
_UNSEEN = ("alias", "opaque")
_ENOUGH = 2

Measured = TypeVar("Measured")


class StaleTrace(SkipwayError):
    """The model does not run as it was traced."""


class Follower(SiteMode):
    """A mode that runs a live forward pass as it is and knows, for every operation, which one of a trace it is.

    A subclass says what operations are to read and what the model is to see of their results, by `read` and `made`.
    Raises SkipwayError, naming the first difference, where the model does something else than was traced.
    """

    def __init__(self, inventory: Inventory, followed: Trace):
        super().__init__(inventory)
        self.inventory = inventory
        self.trace = followed
        self.keeper: Keeper | None = None
        self._at = {operation.site: operation for operation in followed.operations if operation.name not in _UNSEEN}
        self._next = 0
        self._seen: dict[int, weakref.ref[Tensor]] = {}

    def read(self, operation: Operation, operands: list[Tensor]) -> list[Tensor]:
        """The tensors that the operation is to read, given those that it would."""
        return operands

    def made(self, operation: Operation, results: list[Tensor]) -> list[Tensor]:
        """The tensors that the model is to see, given those that the operation made."""
        return results

    def apart(self, operation: Operation) -> bool:
        """Whether `made` may give something else for this operation, which works in place."""
        return False

    def peek(self, name: str, inplace: bool) -> Site:
        """The site of an operation of this name if it ran now, without counting it."""
        frame = self._frames[-1]
        operation = f"{name}_" if inplace else name
        return Site(frame.path, operation, frame.counts.get(operation, 0), frame.ordinal)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, inplace = self.called(func, args, kwargs)
        operation = self._at.get(self.peek(known.name, inplace)) if known.name else None
        if self.keeper is not None:
            for tensor in written_to(known, inplace, args, kwargs):
                self.keeper.keep(tensor)
        if operation is None:
            result = self.compute(known, func, args, kwargs)
            if known.name and result_tensors(result, args, inplace):
                self.site(known.name, inplace)
            return result
        out = {key: kwargs[key] for key in ("out",) if key in kwargs}
        written = {key: item for key, item in kwargs.items() if key != "out"}
        operands = tensors_in(_plain((args, written)))
        self._check(operation, operands)
        given = self.read(operation, operands)
        target = operands[0] if inplace and operands else None
        apart = target is not None and (given[0] is not target or self.apart(operation))
        if apart:
            # The operation may keep its result for autograd, and the model holds the tensor that it wrote to: it
            # writes to a copy, and what the model is to see is written back behind it.
            given = [given[0].clone(), *given[1:]]
        if given is not operands:
            args, written = replaced((args, written), iter(given))
        result = self.compute(known, func, args, {**written, **out})
        results = result_tensors(result, args, inplace)
        if not results:
            return result
        self.site(known.name, inplace)
        if results[0] is (args[0] if args else None) and not inplace and known.name in DROPOUTS:
            results = [results[0].view_as(results[0])]
            result = results[0]
        seen = self.made(operation, results)
        if apart and target is not None:
            become(target, seen[0])
            seen, result = [target], target
        elif seen is not results:
            result = seen[0] if isinstance(result, Tensor) else replaced(result, iter(seen))
        for value, tensor in zip(operation.results, seen, strict=False):
            self._seen[value] = weakref.ref(tensor)
        self._next = operation.index + 1
        if inplace:
            self._change_aliases()
        return result

    def _change_aliases(self) -> None:
        while self._next < len(self.trace.operations) and self.trace.operations[self._next].name == "alias":
            alias = self.trace.operations[self._next]
            self._next += 1
            reference = self._seen.get(alias.operands[0])
            tensor = reference() if reference is not None else None
            if tensor is not None:
                self._seen[alias.results[0]] = weakref.ref(tensor)
                self.made(alias, [tensor])

    def _check(self, operation: Operation, operands: list[Tensor]) -> None:
        for index in range(self._next, operation.index):
            if self.trace.operations[index].name not in _UNSEEN:
                raise self._stale(self.trace.operations[index].site, f"it now runs {operation.site}")
        if operation.index < self._next:
            raise self._stale(operation.site, "it runs again later, in another order")
        if len(operands) != len(operation.operands):
            raise self._stale(
                operation.site, f"which read {len(operation.operands)} tensors, it now reads {len(operands)}"
            )
        for value, tensor in zip(operation.operands, operands, strict=True):
            reference = self._seen.get(value)
            if reference is None:
                if self.trace.values[value].producer is None:
                    self._seen[value] = weakref.ref(tensor)
                continue
            expected = reference()
            if expected is not None and expected is not tensor:
                raise self._stale(operation.site, "it now runs on another tensor")

    def finish(self) -> None:
        """The pass has ended; raises SkipwayError where operations of the trace did not run."""
        for operation in self.trace.operations[self._next :]:
            if operation.name not in _UNSEEN:
                raise self._stale(operation.site, "it now ends")

    def restore(self) -> None:
        """Put back what the pass wrote into parameters, buffers and inputs; after the backward pass if there is one."""
        if self.keeper is not None:
            self.keeper.restore()

    def _stale(self, site: Site, now: str) -> StaleTrace:
        return StaleTrace(
            f"the model no longer runs as it was traced: where the trace has {site}, {now}; trace it again (in the "
            "same mode, on inputs of the same kind)"
        )


@contextmanager
def following(follower: Any, gradient: bool) -> Iterator[None]:
    """Inside, the follower (a `SiteMode` that ends with `finish`) sees the forward pass, with or without autograd."""
    follower.gradient = gradient
    with recording(follower), _open_checkpoints():
        yield
    follower.finish()


def run(model: nn.Module, batch: Batch, follower: Follower, gradient: bool) -> Any:
    """The output of the model on a batch, followed.

    Attributes that the pass set on modules (caches, counters) are put back, so that the next pass runs as this one did;
    so is what it wrote into parameters, buffers and inputs, which with a gradient is up to the caller's
    `follower.restore()`.
    """
    follower.keeper = Keeper([*follower.inventory.tensors, *tensors_in((batch.args, batch.kwargs))])
    done = False
    try:
        with unchanged(follower.inventory, ()), following(follower, gradient):
            output = batch.run(model)
        done = True
        return output
    finally:
        if not (done and gradient):
            follower.restore()


@contextmanager
def differentiating() -> Iterator[None]:
    """Turn autograd's complaint about a model that has no gradient into one sentence."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, SkipwayError) or "modified by an inplace operation" not in str(error):
            raise
        raise SkipwayError(
            "this model has no gradient in this mode: it writes over tensors in place that autograd needs"
        ) from error


@contextmanager
def _open_checkpoints() -> Iterator[None]:
    """Run what is checkpointed reentrantly as if it were not, or its inside would stand in no graph of autograd."""
    library: Any = torch.utils.checkpoint
    kept = library.CheckpointFunction

    class Open:
        @staticmethod
        def apply(function: Callable[..., Any], preserve: bool, *args: Any) -> Any:
            return function(*args)

    library.CheckpointFunction = Open
    try:
        yield
    finally:
        library.CheckpointFunction = kept


def with_trace(
    model: nn.Module, batch: Batch, graph: SkipGraph | None, measure: Callable[[SkipGraph], Measured]
) -> Measured:
    """What `measure` makes of the model's graph: of the one given, or of one traced on a few samples of the batch.

    A few samples are as good as many as long as the model then runs as it did on these, which whoever follows the trace
    checks. Where it does not (its control flow depends on the data, or its first run filled a cache), it is traced on
    the whole batch and measured again.
    """
    if graph is not None:
        return measure(graph)
    if batch.samples > 2 * _ENOUGH:
        few = front(batch, _ENOUGH)
        # Some networks cannot take so few: a norm over the batch, a fixed batch size.
        with suppress(SkipwayError):
            graph = trace(model, *few.args, **few.kwargs)
    if graph is None:
        graph = trace(model, *batch.args, **batch.kwargs)
    try:
        return measure(graph)
    except StaleTrace:
        return measure(trace(model, *batch.args, **batch.kwargs))


def written_to(known: Named, inplace: bool, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that a torch function writes to, the running statistics of norms aside."""
    if known.mutates and not inplace and known.name not in ("batch_norm", "instance_norm"):
        return tensors_in((args, kwargs))
    return tensors_in((args[:1] if inplace else (), kwargs.get("out")))


def overwritten(followed: Trace) -> frozenset[int]:
    """The values that an operation writes over in place."""
    return frozenset(
        operation.operands[0] for operation in followed.operations if operation.inplace and operation.operands
    )


def become(tensor: Tensor, content: Tensor) -> None:
    """Make a tensor, in place, what another holds, in memory and for autograd."""
    if tensor.requires_grad and not tensor._is_view():
        # Else autograd would send zeros down the history that is written over.
        tensor.detach_()
    tensor.copy_(content)


def result_tensors(result: Any, args: Any, inplace: bool) -> list[Tensor]:
    """The tensors that a torch function made."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, (tuple, list)):
        return tensors_in(result)
    return [args[0]] if inplace and args and isinstance(args[0], Tensor) else []


def replaced(item: Any, tensors: Iterator[Tensor]) -> Any:
    """Nested arguments with their tensors replaced, in order."""
    if isinstance(item, Tensor):
        return next(tensors)
    if isinstance(item, slice):
        return slice(*(replaced(part, tensors) for part in (item.start, item.stop, item.step)))
    if isinstance(item, dict):
        return {key: replaced(part, tensors) for key, part in item.items()}
    if isinstance(item, (tuple, list)):
        parts = [replaced(part, tensors) for part in item]
        if isinstance(item, tuple) and hasattr(item, "_fields"):
            return type(item)(*parts)
        return type(item)(parts)
    return item


def _plain(item: Any) -> Any:
    """Nested arguments with slices as tuples, so that a tensor in one is found in its place."""
    if isinstance(item, slice):
        return (item.start, item.stop, item.step)
    if isinstance(item, dict):
        return {key: _plain(part) for key, part in item.items()}
    if isinstance(item, (tuple, list)) and not all(isinstance(part, (Tensor, int)) for part in item):
        return [_plain(part) for part in item]
    return item
