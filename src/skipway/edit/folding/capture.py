"""Recording one run of a model as a program that can be run again with other inputs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from skipway.edit.folding.constants import Expression
from skipway.edit.folding.program import Fact, Node, Program, refs_in, words
from skipway.edit.folding.structure import template
from skipway.errors import SkipwayError
from skipway.graph.ir import Ref, Site
from skipway.graph.operations import DROPOUTS
from skipway.graph.record import Recorder
from skipway.graph.sites import SiteMode, tensors_in
from skipway.graph.state import Inventory, Keeper, unchanged
from skipway.graph.tracing import recording

# What these give to Python is the content of tensors, on which the code may then depend.
_CONTENT = words(
    """item tolist numpy __bool__ __float__ __int__ __index__ __complex__ __contains__ __array__ equal allclose
    is_nonzero _local_scalar_dense"""
)
# How large the results of these are depends on content.
_SIZED = words(
    """nonzero argwhere masked_select unique unique_consecutive bincount unique_dim _unique _unique2 nonzero_static"""
)
_functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]
_DATA_DEPENDENT = "what it computes depends on the values of its inputs, and a fold would freeze it as it went once"


class Capture(SiteMode):
    """A mode that writes down every operation that depends on the inputs, with its real function and arguments.

    What depends on weights alone becomes an `Expression`; what depends on nothing is kept as the tensor it is when an
    operation reads it.
    """

    def __init__(self, inventory: Inventory, keeper: Keeper, program: Program) -> None:
        self.program = program
        self._keeper = keeper
        self._known: dict[int, tuple[weakref.ref[Tensor], Ref | Expression, int]] = {}
        self._owned: dict[int, str] = {}
        self._memory: dict[int, str] = {}
        self._addresses: dict[int, int] = {}
        self.groups: dict[int, list[int]] = {}
        self._written: dict[int, str] = {}
        self._held: list[Tensor] = []
        super().__init__(inventory)

    def adopt(self, inventory: Inventory, prefix: str) -> None:
        """Learn the paths of modules and the names of weights."""
        super().adopt(inventory, prefix)
        if prefix:
            return
        for name, tensor in (*inventory.parameters, *inventory.buffers):
            self._owned[id(tensor)] = name
            self._memory.setdefault(_address(tensor), name)

    def leave_module(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """The call of a module ends; one that torch.jit compiled cannot be seen into."""
        if isinstance(module, torch.jit.ScriptModule):
            raise SkipwayError(
                f"{self._frames[-1].path or 'the model'} is compiled by torch.jit and cannot be seen into: fold the "
                "model it was compiled from"
            )
        super().leave_module(module, args, *rest)

    def opaque(self, what: str, read: tuple[Tensor, ...], results: list[Tensor]) -> None:
        """Called for what runs out of sight."""
        raise SkipwayError(f"{what} and cannot be seen into: fold the model before it is compiled")

    def add_input(self, tensor: Tensor) -> None:
        self.program.inputs.append(self._bind(tensor, None))

    def _bind(self, tensor: Tensor, like: int | None) -> int:
        """A new value for a tensor; `like` is a value that lies in the same memory."""
        value = self.program.new(_fact(tensor))
        self._known[id(tensor)] = (weakref.ref(tensor), Ref(value), 0)
        self._addresses[value] = _address(tensor)
        group = self.groups.setdefault(value, []) if like is None else self.groups[like]
        group.append(value)
        self.groups[value] = group
        return value

    def operand(self, tensor: Tensor) -> Ref | Expression:
        """What stands for a tensor that an operation reads now."""
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor and (isinstance(known[1], Ref) or known[2] == _version(tensor)):
            return known[1]
        constants = self.program.constants
        if id(tensor) in self._owned:
            return constants.named(self._owned[id(tensor)])
        if _address(tensor) in self._written:
            raise SkipwayError(self._partly_written([tensor]))
        if known is not None and known[0]() is tensor and known[1].learned:  # pyright: ignore[reportAttributeAccessIssue]
            raise SkipwayError("the model overwrites part of what it computed from its weights: compute it in one go")
        found = constants.fixed(tensor.detach().clone())
        self._known[id(tensor)] = (weakref.ref(tensor), found, _version(tensor))
        return found

    def _fed(self, tensor: Tensor) -> bool:
        while _functorch.is_functorch_wrapped_tensor(tensor):
            tensor = _functorch.get_unwrapped(tensor)
        known = self._known.get(id(tensor))
        return known is not None and known[0]() is tensor and isinstance(known[1], Ref)

    def _learned(self, tensor: Tensor) -> bool:
        known = self._known.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return isinstance(known[1], Expression) and known[1].learned
        return id(tensor) in self._owned

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        known, inplace = self.called(func, args, kwargs)
        name = known.name
        read = tensors_in((args, kwargs))
        fed = any(self._fed(tensor) for tensor in read)
        plain = getattr(func, "__name__", "")
        if fed:
            self._refuse(name, plain, args, kwargs, read)
        if plain in ("set_", "set_data") or name == "set_data":
            raise SkipwayError(f"{self._here()} replaces the memory of a tensor, which a fold cannot follow")
        out = kwargs.get("out")
        target = args[0] if inplace and args and isinstance(args[0], Tensor) else None
        if inplace and target is None:
            target = next(iter(read), None)
        self._refuse_write([*tensors_in([out, target]), *_statistics(name, args, kwargs)])
        learned = not fed and any(self._learned(tensor) for tensor in read)
        if plain in _CONTENT and learned:
            for tensor in read:
                self.program.constants.assume(
                    cast(Expression, self.operand(tensor)), f"{self._here()} reads its value in Python"
                )
        # Operands are looked up before the call, which may change what they are.
        written_args, written_kwargs = ((), {}) if not (fed or learned) else (self._write(args), self._write(kwargs))
        result = func(*args, **kwargs)
        if not fed and any(_address(tensor) in self._written for tensor in read):
            raise SkipwayError(self._partly_written(read))
        if not (fed or learned) or not name or result is NotImplemented:
            return result
        results = tensors_in([result] if target is None else [target])
        if not results:
            return result
        if out is not None:
            written_kwargs.pop("out")
        if target is None and out is None and args and result is args[0]:
            if name in DROPOUTS:
                self.program.log.folded(Site(self._frames[-1].path, name), name, "does nothing here and is removed")
            return result
        writes, many = target is not None, target is None and isinstance(result, (tuple, list))
        self._record(func, name, written_args, written_kwargs, results, fed, writes, many)
        return result

    def _record(
        self, func: Any, name: str, args: Any, kwargs: Any, results: list[Tensor], fed: bool, writes: bool, many: bool
    ) -> None:
        if not fed:
            function = _on_a_copy(func) if writes else func
            for output, tensor in enumerate(results):
                made = self.program.constants.make(function, *args, output=output, **kwargs)
                self._known[id(tensor)] = (weakref.ref(tensor), made, _version(tensor))
            return
        # A view lies in the memory of what it was made from, and what was written to in its old memory.
        neighbours = {self._addresses[value]: value for value in refs_in((args, kwargs))}
        old = args[0].value if writes and isinstance(args[0], Ref) else None
        values = []
        for tensor in results:
            address = _address(tensor)
            values.append(self._bind(tensor, neighbours.get(address) if old is None else old))
            if writes and old is None:
                # A constant was written to: what else lies in its memory is no constant any more.
                self._written[address] = self._here()
                self._held.append(tensor)
        site = self.site(name, writes)
        self.program.nodes.append(Node(name, func, args, tuple(values), site, kwargs, writes, many))

    def _write(self, item: Any) -> Any:
        if isinstance(item, Tensor):
            return self.operand(item)
        if isinstance(item, tuple):
            return tuple([self._write(part) for part in item])
        if isinstance(item, list):
            return [self._write(part) for part in item]
        if isinstance(item, dict):
            return {key: self._write(part) for key, part in item.items()}
        if isinstance(item, slice):
            return slice(*(self._write(part) for part in (item.start, item.stop, item.step)))
        return item

    def _here(self) -> str:
        return self._frames[-1].path or "the model"

    def _partly_written(self, read: list[Tensor]) -> str:
        where = next(self._written[_address(tensor)] for tensor in read if _address(tensor) in self._written)
        return (
            f"{where} writes what depends on the inputs into part of a tensor that is then read as a whole, which a "
            "fold cannot follow: build it with torch.cat or torch.stack"
        )

    def _refuse(self, name: str, plain: str, args: Any, kwargs: Any, read: list[Tensor]) -> None:
        shaped = (
            name in _SIZED
            or plain in _CONTENT
            or (name == "where" and len(args) + len(kwargs) == 1)
            or (name == "one_hot" and (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) == -1)
            or (name == "repeat_interleave" and len(args) > 1 and isinstance(args[1], Tensor) and self._fed(args[1]))
            or (name == "getitem" and any(t.dtype in (torch.bool, torch.uint8) and self._fed(t)
                                          for t in tensors_in(args[1:])))
        )  # fmt: skip
        if shaped:
            raise SkipwayError(f"{self._here()} calls {plain or name} on a tensor: {_DATA_DEPENDENT}")
        if any(_functorch.is_functorch_wrapped_tensor(tensor) for tensor in read):
            raise SkipwayError(
                f"{self._here()} runs {plain or name} under torch.func (vmap, grad), which a fold cannot follow: where "
                "that makes an attention mask, leave the mask out of the inputs"
            )

    def _refuse_write(self, targets: list[Tensor]) -> None:
        for tensor in targets:
            self._keeper.keep(tensor)
            name = self._memory.get(_address(tensor))
            if name is not None:
                raise SkipwayError(
                    f"{self._here()} writes to {name} while it runs; a folded model has no state that changes: fold a "
                    "part of the model without it"
                )


def capture(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: list[Tensor], program: Program
) -> tuple[Any, list[Tensor]]:
    """Run the model once and write it down in `program`; returns the form of its result and the tensors in it.

    Raises SkipwayError for what a program could not repeat: random numbers, decisions on content, changing state.
    """
    inventory = Inventory.of(model)
    keeper = Keeper([*inventory.tensors, *inputs])
    recorder = Capture(inventory, keeper, program)
    for tensor in inputs:
        recorder.add_input(tensor)
    with unchanged(inventory, inputs):
        before = _generators(inputs)
        try:
            with recording(cast(Recorder, recorder)), torch.no_grad():
                output = model(*args, **kwargs)
            tensors: list[Tensor] = []
            form = template(output, tensors)
            program.outputs = [recorder.operand(tensor) for tensor in tensors]
            # What is returned may be an input that was written to, which is about to get its content back.
            tensors = [tensor.detach().clone() for tensor in tensors]
        except SkipwayError:
            raise
        except Exception as error:
            given = ", ".join(str(tuple(tensor.shape)) for tensor in inputs) or "nothing"
            raise SkipwayError(
                f"the model does not run on these inputs ({given}): {type(error).__name__}: {error}"
            ) from error
        finally:
            lost = keeper.restore()
        if lost:
            names = {id(tensor): name for name, tensor in (*inventory.parameters, *inventory.buffers)}
            raise SkipwayError(
                f"the model writes to {names.get(id(lost[0]), 'an input')} in a way that torch does not show; a folded "
                "model has no state that changes: fold a part of the model without it"
            )
        if not all(map(torch.equal, before, _generators(inputs))):
            raise SkipwayError(
                "the model draws random numbers although it is in evaluation mode, and a fold would repeat the same "
                "ones for ever: switch off what draws them"
            )
    _pin(program, recorder.groups)
    return form, tensors


def _pin(program: Program, groups: dict[int, list[int]]) -> None:
    """Find the memory that is written to while other values in it are still to be read.

    Everywhere else an overwriting operation may be taken for one that makes a new tensor.
    """
    last: dict[int, int] = {value: len(program.nodes) for value in program.output_values}
    born: dict[int, int] = {}
    for index, node in enumerate(program.nodes):
        born.update(dict.fromkeys(node.results, index))
        for value in node.reads:
            last[value] = max(last.get(value, -1), index)
    for index, node in enumerate(program.nodes):
        if not node.writes or node.source is None:
            continue
        for value in groups[node.source]:
            # Other arguments in the memory that is written to (x[1:] += x[:-1]) count as well.
            others = [ref for ref in refs_in((node.args[1:], node.kwargs)) if ref == value]
            if value != node.source and born.get(value, -1) < index and (last.get(value, -1) > index or others):
                program.pinned.update(groups[node.source])
    for value in set(program.inputs) & program.pinned:
        fact = program.facts[value]
        own = program.new(fact)
        program.substitute(value, Ref(own))
        program.nodes.insert(0, Node("clone", torch.clone, (Ref(value),), (own,), Site("", "clone")))
        program.pinned.discard(value)
        program.pinned.add(own)
        program.changed()


def _on_a_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """An overwriting function as one that makes a new tensor."""

    def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        made = tensor.clone()
        function(made, *args, **kwargs)
        return made

    return call


def _statistics(name: str, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The running statistics that a norm is going to update."""
    if name not in ("batch_norm", "instance_norm"):
        return []
    names = ("input", "running_mean", "running_var", "weight", "bias", "training")
    given = dict(zip(names, args, strict=False)) | kwargs
    training = given.get("training", given.get("use_input_stats", name == "instance_norm"))
    return tensors_in([given.get("running_mean"), given.get("running_var")]) if training else []


def _generators(inputs: list[Tensor]) -> list[Tensor]:
    # Python's own generator is left out: run-time checkers of types draw from it.
    states = [torch.get_rng_state()]
    for device in {tensor.device for tensor in inputs} - {torch.device("cpu")}:
        if device.type != "meta":
            states.append(torch.get_device_module(device).get_rng_state(device))
    return states


def _address(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or -id(tensor)
    except (NotImplementedError, RuntimeError):
        return -id(tensor)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _fact(tensor: Tensor) -> Fact:
    strides = tensor.stride() if tensor.layout == torch.strided else ()
    return Fact(tuple(tensor.shape), tensor.dtype, tensor.device, strides)
