"""Recording one real forward pass of a model, operation by operation."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from skipway.graph.ir import Operation, Ref, Value
from skipway.graph.operations import DROPOUTS, MAKERS, NOISES, VIEWS
from skipway.graph.sites import SiteMode, tensors_in
from skipway.graph.state import Inventory, Keeper

_ATOMS = frozenset(
    (int, float, bool, str, complex, type(None), type(Ellipsis), torch.dtype, torch.device, torch.memory_format)
)


class Recorder(SiteMode):
    """A mode that writes down every operation on tensors, and in which call of which module it stood.

    Tensors are known by identity through weak references, so nothing is kept alive and an address that is used again
    is not mistaken for the tensor that had it before. No activation is saved, for operations run without autograd, and
    a `no_grad` inside the model is seen.
    """

    gradient = False

    def __init__(self, inventory: Inventory, keeper: Keeper):
        self.values: list[Value] = []
        self.operations: list[Operation] = []
        self.notes: dict[str, None] = {}
        self._refs: list[Ref] = []
        self._keeper = keeper
        self._known: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._aliases: dict[int, list[weakref.ref[Tensor]]] = {}
        self._gradient = True
        self._owned: dict[int, tuple[str, str, Tensor]] = {}
        super().__init__(inventory)

    @property
    def position(self) -> int:
        """How many operations were recorded."""
        return len(self.operations)

    def adopt(self, inventory: Inventory, prefix: str) -> None:
        """Learn the paths of the modules of an inventory, and the names of their parameters and buffers."""
        super().adopt(inventory, prefix)
        dot = f"{prefix}." if prefix else ""
        for name, parameter in inventory.parameters:
            self._owned.setdefault(id(parameter), ("parameter", dot + name, parameter))
        for name, buffer in inventory.buffers:
            self._owned.setdefault(id(buffer), ("buffer", dot + name, buffer))

    def adopt_stranger(self, module: nn.Module, path: str) -> None:
        """Note a module that runs without being registered, if it has parameters."""
        inventory = Inventory.of(module)
        if inventory.parameters:
            note = f"{path} runs in the model but is not registered in it: its parameters are not the model's"
            self.notes[note] = None
        self.adopt(inventory, path)

    def enter_module(self, module: nn.Module, args: Any) -> None:
        """A call begins; a compiled module may change its buffers out of sight."""
        super().enter_module(module, args)
        self._frames[-1].given = self._known_values(args)
        if isinstance(module, torch.jit.ScriptModule):
            for buffer in module.buffers():
                self._keeper.keep(buffer)

    def leave_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """A call ends. What it returned must be known, or it hid its work.

        `rest` is the keyword arguments and the output; the output alone, None, where the call failed.
        """
        kwargs, output = rest if len(rest) == 2 else ({}, None)
        returned = [output] if isinstance(output, Tensor) else tensors_in(output)
        hidden = [tensor for tensor in returned if self._unseen(tensor)]
        if hidden:
            self._hide(module, (args, kwargs), hidden)
        frame = self._frames[-1]
        if frame.module is module:
            frame.given += self._known_values(kwargs)
            frame.returned = self._known_values(output)
        super().leave_module(module, args, *rest)

    def _known_values(self, item: Any) -> tuple[int, ...]:
        """The values that the tensors in nested containers hold, -1 for those that no operation has met yet."""
        found = [(self._known.get(id(tensor)), tensor) for tensor in tensors_in(item)]
        return tuple([-1 if known is None or known[0]() is not tensor else known[1] for known, tensor in found])

    def _hide(self, module: nn.Module, given: Any, results: list[Tensor]) -> None:
        """Make one operation of a module whose results came about where no torch function was seen."""
        own = {id(tensor) for tensor in tensors_in((given, list(vars(module).values())))}
        results = [tensor for tensor in results if id(tensor) not in own]
        if not results:
            return
        path = self._frames[-1].path or "the model"
        compiled = isinstance(module, torch.jit.ScriptModule)
        why = "is compiled by torch.jit" if compiled else "runs code that torch does not show"
        self.opaque(f"{path} {why}", (*tensors_in(given), *module.parameters()), results)

    def opaque(self, what: str, read: tuple[Tensor, ...], results: list[Tensor]) -> None:
        """Record as one operation what was computed out of sight; `what` begins the sentence that says so."""
        self.notes[f"{what}: its inside cannot be seen, so it counts as one operation"] = None
        self._record("opaque", False, read, {}, results)

    def _unseen(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        seen = known is not None and known[0]() is tensor
        return not seen and id(tensor) not in self._owned and tensor.is_floating_point()

    def add_input(self, tensor: Tensor, name: str) -> int:
        """Make `tensor` an input of the trace."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        return self._bind(tensor, "input", name, None, 0, fed=True, live=_differentiable(tensor.dtype))

    def value_of(self, tensor: Tensor) -> int:
        """The index of the value that `tensor` holds now."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1]
        if id(tensor) in self._owned:
            origin, name, _ = self._owned[id(tensor)]
            return self._bind(tensor, origin, name, None, 0, fed=False,
                              live=origin == "parameter" and _differentiable(tensor.dtype))  # fmt: skip
        if isinstance(tensor, nn.Parameter) or tensor.requires_grad:
            return self._bind(tensor, "parameter", "(unregistered)", None, 0, fed=False, live=True)
        return self._bind(tensor, "constant", "", None, 0, fed=False, live=False)

    def _bind(
        self, tensor: Tensor, origin: str, name: str, producer: int | None, output: int, fed: bool, live: bool
    ) -> int:
        index = len(self.values)
        self.values.append(Value(index, tuple(tensor.shape), tensor.dtype, origin, name, producer, output, fed, live))
        self._refs.append(Ref(index))
        self._known[id(tensor)] = (weakref.ref(tensor), index)
        return index

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, inplace = self.called(func, args, kwargs)
        name = known.name
        # Inside a custom autograd Function torch itself has switched gradients off: what is asked for there says
        # nothing about the gradient, which the Function's own backward defines.
        if name == "_set_grad_enabled" and (torch.is_grad_enabled() or not self._gradient):
            self._gradient = args[0]
        out = kwargs.get("out")
        if inplace or out is not None or (known.mutates and _updates(name, args, kwargs)) or kwargs.get("max_norm"):
            for tensor in tensors_in((args, kwargs) if not inplace else args[:1] or kwargs):
                self._keeper.keep(tensor)
        result = self.compute(known, func, args, kwargs)
        if not name or result is NotImplemented:
            return result
        if isinstance(result, Tensor):
            results = [result]
        elif isinstance(result, (tuple, list)):
            results = tensors_in(result)
        elif inplace and args and isinstance(args[0], Tensor):
            results = [args[0]]
        else:
            return result
        if not results:
            return result
        if inplace:
            self._change(name, args, kwargs, results)
        elif out is not None:
            read = {key: value for key, value in kwargs.items() if key != "out"}
            writes_what_it_reads = any(tensor is other for tensor in tensors_in(out) for other in tensors_in(args))
            self._record(name, writes_what_it_reads, args, read, results)
        elif args and result is args[0]:
            if name not in DROPOUTS:
                self.site(name, False)
                return result
            # Switched off, dropout hands its input back: a view keeps what passed it apart from what did not.
            result = results[0].view_as(results[0])
            self._record(name, False, args, kwargs, [result])
        else:
            self._record(name, False, args, kwargs, results)
        return result

    def _change(self, name: str, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        target = args[0] if args and isinstance(args[0], Tensor) else results[0]
        others = self._aliases.get(self.value_of(target), [])
        self._record(name, True, args, kwargs, [target])
        new = self.value_of(target)
        self._aliases[new] = others
        for reference in others:
            alias = reference()
            if alias is None or alias is target:
                continue
            # A view and what it is a view of change together; each gets a new value that says so.
            whole = alias.numel() > target.numel()
            self._record("alias", True, (alias, target) if whole else (target,), {}, [alias])
            self._aliases[self.value_of(alias)] = others

    def _record(self, name: str, inplace: bool, args: Any, kwargs: Any, results: list[Tensor]) -> None:
        operands: list[int] = []
        written = tuple([self._write(item, operands) for item in args])
        written_kwargs = {key: self._write(item, operands) for key, item in kwargs.items()} if kwargs else {}
        site, frame = self.site(name, inplace), self._frames[-1]
        step = frame.since[site.operation] - 1
        index = len(self.operations)
        read = [self.values[operand] for operand in (operands[:1] if name in VIEWS else operands)]
        fed = any(value.fed for value in read)
        live = name not in MAKERS and any(value.live for value in read)
        constant = ""
        if not live or name == "mul":
            constant = _constant_name(name, read)
            live = live and constant != "zeros"
            fed = fed and name not in MAKERS
        made = []
        for output, tensor in enumerate(results):
            alive = live and _differentiable(tensor.dtype)
            made.append(self._bind(tensor, "operation", "" if alive else constant, index, output, fed, alive))
            if not inplace and (tensor._base is not None or name in ("detach", "data")):
                self._share(args, tensor, made[-1])
        gradient = self._gradient and name not in ("detach", "data")
        operation = Operation(
            index, site, name, written, written_kwargs, tuple(operands), tuple(made), max(frame.call, 0), inplace,
            gradient, frame.latest, step,
        )  # fmt: skip
        self.operations.append(operation)

    def _share(self, args: Any, tensor: Tensor, value: int) -> None:
        source = args[0] if args and isinstance(args[0], Tensor) else None
        # What a library routine computed may be a view of its own scratch tensor: only views of the operand count.
        if source is None or (
            tensor._base is not None and tensor._base is not source and tensor._base is not source._base
        ):
            return
        group = self._aliases.setdefault(self.value_of(source), [])
        if not group:
            group.append(weakref.ref(source))
        group.append(weakref.ref(tensor))
        self._aliases[value] = group

    def _write(self, item: Any, operands: list[int]) -> Any:
        kind = type(item)
        if kind in _ATOMS:
            return item
        if isinstance(item, Tensor):
            value = self.value_of(item)
            operands.append(value)
            return self._refs[value]
        if isinstance(item, (tuple, list)):
            if all(type(part) in _ATOMS for part in item):
                return tuple(item)
            return tuple([self._write(part, operands) for part in item])
        if isinstance(item, slice):
            return slice(*(self._write(part, operands) for part in (item.start, item.stop, item.step)))
        if isinstance(item, dict):
            return {key: self._write(part, operands) for key, part in item.items()}
        return f"<{kind.__name__}>"


def _updates(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a norm updates its running statistics; other operations that may write do."""
    if name not in ("batch_norm", "instance_norm"):
        return True
    return bool(args[5] if len(args) > 5 else kwargs.get("training", kwargs.get("use_input_stats", True)))


def _differentiable(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


def _constant_name(name: str, read: list[Value]) -> str:
    """What is known of a value that carries no gradient: "zeros", "noise" or nothing."""
    if name in ("zeros", "zeros_like", "new_zeros", "zero"):
        return "zeros"
    if name in NOISES or (read and any(value.name == "noise" and not value.live for value in read)):
        return "noise"
    zeros = [value.name == "zeros" and not value.live for value in read]
    if zeros and (any(zeros) if name == "mul" else name in VIEWS and all(zeros)):
        return "zeros"
    return ""
