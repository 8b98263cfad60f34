"""Running a model again and again with something changed in the middle, without computing what comes before it twice.

The first run of a batch (`Base`) writes down what every torch function returned, and keeps at each place where a later
run may begin to differ the few tensors that are still alive there. A later run (`Replay`) is the model's own Python
code again, with its hooks and branches; but up to its place every torch function is answered from the log.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from skipway.graph.ir import Operation, Site, Trace
from skipway.graph.sites import SiteMode, tensors_in
from skipway.graph.state import Inventory, Keeper, unchanged
from skipway.probe.batches import Batch
from skipway.probe.follow import (
    Follower,
    StaleTrace,
    following,
    overwritten,
    replaced,
    result_tensors,
    written_to,
)


@dataclass(frozen=True)
class Change:
    """What a run is to do otherwise: operations and values are those of the trace.

    `skipped` operations are not computed and give zeros; `zeroed` operands (operation, position) are read as zeros;
    `bypassed` operations, of a unit that is left out, give what `bypassed[last]`, the unit's first operation, read;
    `tensors` are read in place of parameters and buffers of these names.
    """

    skipped: frozenset[int] = frozenset()
    zeroed: frozenset[tuple[int, int]] = frozenset()
    bypassed: Mapping[int, int] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def begins(self, trace: Trace) -> int:
        """The first operation that is not as it was."""
        first = {*self.skipped, *(operation for operation, _ in self.zeroed)}
        if self.tensors:
            names = self.tensors.keys()
            first |= {
                operation.index for operation in trace.operations
                if any(trace.values[value].name in names for value in operation.operands)
            }  # fmt: skip
        return min(first, default=len(trace.operations))


@dataclass
class _Place:
    """A place where later runs begin to differ: the call there, and all that is alive before it."""

    call: int
    tensors: dict[int, Tensor]
    random: Tensor
    written: dict[int, Tensor] = field(default_factory=dict)


class _Slot(int):
    """Stands in a logged result where a tensor was: its number."""


@dataclass(frozen=True, slots=True)
class _Entry:
    func: Any
    counted: str
    result: Any


class Base(Follower):
    """The first run of a batch, as it is; `places` are the operations at which later runs may begin to differ."""

    def __init__(self, inventory: Inventory, followed: Trace, places: Iterable[int], batch: Batch):
        super().__init__(inventory, followed)
        # What happens out of sight cannot be answered from a log.
        hidden = [operation.index for operation in followed.operations if operation.name == "opaque"]
        self._wanted = {place for place in places if not hidden}
        permanent = [*inventory.tensors, *tensors_in((batch.args, batch.kwargs))]
        self._permanent = {id(tensor) for tensor in permanent}
        self._by_memory = {_memory(tensor): tensor for tensor in permanent}
        self.writes: list[tuple[int, Tensor, Tensor]] = []
        self.batch = batch
        self.log: list[_Entry] = []
        self.places: dict[int, _Place] = {}
        self._shapes: dict[int, tuple[int, list[tuple[torch.Size, torch.dtype, torch.device]]]] = {}
        self._fragile = overwritten(followed)
        self._slots: list[weakref.ref[Tensor]] = []
        self._slot_of: dict[int, int] = {}
        self._living: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, inplace = self.called(func, args, kwargs)
        operation = self._at.get(self.peek(known.name, inplace)) if known.name else None
        if operation is not None and operation.index in self._wanted:
            self._stand(operation.index)
        targets = written_to(known, inplace, args, kwargs)
        if targets and self.places:
            self._keep_before_writing(targets)
        result = super().__torch_function__(func, types, args, kwargs)
        for tensor in targets:
            owner = self._by_memory.get(_memory(tensor))
            if owner is not None:
                self.writes.append((len(self.log), owner, owner.detach().clone()))
        made = result_tensors(result, args, inplace) if known.name else []
        if operation is not None:
            shapes = [(tensor.shape, tensor.dtype, tensor.device) for tensor in made]
            self._shapes[operation.index] = len(self.log), shapes
        name = f"{known.name}_" if inplace else known.name
        self.log.append(_Entry(func, name if made else "", rebuilt(result, self._template)))
        return result

    def nothing(self, index: int) -> Any:
        """Zeros in place of what an operation gave."""
        call, shapes = self._shapes[index]
        # One zero seen everywhere costs nothing; what will be written to in place needs room of its own.
        made = [
            torch.zeros(shape if value in self._fragile else (), dtype=dtype, device=device).expand(shape)
            for value, (shape, dtype, device) in zip(self.trace.operations[index].results, shapes, strict=True)
        ]
        zeros = iter(made)
        return rebuilt(self.log[call].result, lambda item: next(zeros) if isinstance(item, (_Slot, Tensor)) else item)

    def _template(self, item: Any) -> Any:
        if not isinstance(item, Tensor) or id(item) in self._permanent:
            return item
        slot = self._slot_of.get(id(item))
        if slot is None or self._slots[slot]() is not item:
            slot = self._slot_of[id(item)] = len(self._slots)
            self._slots.append(weakref.ref(item))
            self._living.add(slot)
        return _Slot(slot)

    def _stand(self, index: int) -> None:
        living = {slot: tensor for slot in self._living if (tensor := self._slots[slot]()) is not None}
        self._living = set(living)
        self.places[index] = _Place(len(self.log), living, torch.get_rng_state())

    def _keep_before_writing(self, targets: list[Tensor]) -> None:
        memories = {_memory(tensor) for tensor in targets}
        copies: dict[int, Tensor] = {}
        for place in self.places.values():
            for slot, tensor in place.tensors.items():
                if slot not in place.written and _memory(tensor) in memories:
                    if slot not in copies:
                        copies[slot] = tensor.detach().clone()
                    place.written[slot] = copies[slot]


class Replay(SiteMode):
    """A later run of the same batch, with a change."""

    def __init__(self, base: Base, change: Change):
        super().__init__(base.inventory)
        self._base, self._change = base, change
        self.trace = base.trace
        self._at: dict[Site, Operation] = base._at
        begin = change.begins(base.trace)
        self._place = base.places.get(begin)
        self._until = self._place.call if self._place is not None else 0
        self._call = 0
        self._dead: dict[int, Tensor] = {}
        self._entered: dict[int, Tensor] = {}
        self._touched: dict[int, list[int]] = {}
        for operation, position in change.zeroed:
            self._touched.setdefault(operation, []).append(position)
        self._firsts = set(change.bypassed.values())
        held = self._place.tensors.values() if self._place is not None else ()
        self._keeper = Keeper([*base.inventory.tensors, *tensors_in((base.batch.args, base.batch.kwargs)), *held])

    def finish(self) -> None:
        """The pass has ended: another one than was traced, perhaps."""

    def restore(self) -> None:
        """Leave the tensors that other runs begin with as they were."""
        self._keeper.restore()

    def begin(self) -> None:
        """Bring all that is written to in place to where it stood at the place where this run begins to differ."""
        if self._place is not None:
            with torch.no_grad():
                for call, tensor, content in self._base.writes:
                    if call < self._until:
                        self._keeper.keep(tensor)
                        tensor.detach().copy_(content)
                for slot, content in self._place.written.items():
                    tensor = self._place.tensors[slot]
                    self._keeper.keep(tensor)
                    tensor.detach().copy_(content)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._call < self._until:
            return self._remembered(func, args, kwargs)
        if self._call == self._until:
            if self._place is not None:
                torch.set_rng_state(self._place.random)
            self._call += 1
        known, inplace = self.called(func, args, kwargs)
        frame = self._frames[-1]
        name = f"{known.name}_" if inplace else known.name
        site = Site(frame.path, name, frame.counts.get(name, 0), frame.ordinal)
        operation = self._at.get(site) if known.name else None
        if operation is None:
            result = self._run(func, args, kwargs, inplace)
        else:
            result = self._changed(operation, func, args, kwargs, inplace)
        if known.name and result_tensors(result, args, inplace):
            self.site(known.name, inplace)
        return result

    def _remembered(self, func: Any, args: Any, kwargs: Any) -> Any:
        entry = self._base.log[self._call]
        self._call += 1
        if entry.func != func:
            self._until = -1
            raise StaleTrace("the model does not run the same way twice on the same batch: it cannot be replayed")
        if entry.counted:
            counts = self._frames[-1].counts
            counts[entry.counted] = counts.get(entry.counted, 0) + 1
        elif not tensors_in((args, kwargs)):
            # It may set what the code that follows runs under: gradients on or off, autocast.
            return func(*args, **kwargs)
        return rebuilt(entry.result, self._recall)

    def _recall(self, item: Any) -> Any:
        if not isinstance(item, _Slot):
            return item
        assert self._place is not None
        tensor = self._place.tensors.get(item)
        if tensor is None:
            tensor = self._dead.get(item)
        if tensor is None:
            # Nobody computes with it any more; its attributes are answered from the log too.
            tensor = self._dead[item] = torch.empty(0)
        return tensor

    def _run(self, func: Any, args: Any, kwargs: Any, inplace: bool) -> Any:
        known, _ = self.called(func, args, kwargs)
        for tensor in written_to(known, inplace, args, kwargs):
            self._keeper.keep(tensor)
        return self.compute(known, func, args, kwargs)

    def _changed(self, operation: Operation, func: Any, args: Any, kwargs: Any, inplace: bool) -> Any:
        index, change = operation.index, self._change
        read = {key: item for key, item in kwargs.items() if key != "out"}
        if index in self._firsts:
            self._entered[index] = tensors_in((args, read))[0]
        if index in change.bypassed:
            return self._bypass(self._entered[change.bypassed[index]], args, inplace)
        if index in change.skipped:
            if inplace:
                return args[0]
            return self._base.nothing(index)
        positions = self._touched.get(index, ())
        swapped = {
            position: change.tensors[name] for position, value in enumerate(operation.operands)
            if (name := self.trace.values[value].name) in change.tensors and self.trace.values[value].producer is None
        } if change.tensors else {}  # fmt: skip
        if positions or swapped:
            operands = tensors_in((args, read))
            for position in positions:
                if position == 0 and inplace:
                    self._keeper.keep(operands[0])
                    operands[0].zero_()
                else:
                    operands[position] = operands[position].new_zeros(()).expand(operands[position].shape)
            for position, tensor in swapped.items():
                operands[position] = tensor
            args, read = replaced((args, read), iter(operands))
            kwargs = {**read, **({"out": kwargs["out"]} if "out" in kwargs else {})}
        return self._run(func, args, kwargs, inplace)

    def _bypass(self, entered: Tensor, args: Any, inplace: bool) -> Tensor:
        if inplace:
            target = args[0]
            self._keeper.keep(target)
            return target.copy_(entered)
        return entered.clone()


def rebuilt(item: Any, of: Callable[[Any], Any]) -> Any:
    """What a torch function returned, with every part of it that is no container replaced by `of` it."""
    if isinstance(item, tuple) and not isinstance(item, torch.Size):
        parts = [rebuilt(part, of) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else type(item)(parts)
    if isinstance(item, list):
        return [rebuilt(part, of) for part in item]
    return of(item)


def replay(model: nn.Module, base: Base, change: Change) -> Any:
    """The model's output on the batch that `base` ran, with a change."""
    run = Replay(base, change)
    try:
        run.begin()
        with unchanged(base.inventory, ()), following(run, gradient=False):
            return base.batch.run(model)
    finally:
        run.restore()


def _memory(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):
        return -id(tensor)
