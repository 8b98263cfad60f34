"""The operations that merge a skip, and what an edit makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from skipway.connect.connection import PlacedConnection
from skipway.connect.layers import asked_for_again
from skipway.connect.residual import ResidualConnection
from skipway.edit.meta import same_each_time
from skipway.errors import SkipwayError
from skipway.graph.ir import Operation, Ref, Trace
from skipway.graph.skips import Skip

Path = tuple[int | str, ...]

SUMS = ("add", "sub", "rsub")
MERGES = (*SUMS, "lerp", "cat", "stack", "hstack", "vstack", "dstack", "column_stack", "addcmul", "where")


@dataclass(frozen=True)
class Junction:
    """One operation of a merge, with the operands that lead to the shortcut and to the branches.

    A merge is one operation, or several sums in a row (x + f(x) + g(x)): in one the shortcut enters (`shortcut` is
    where among the arguments), those after it carry it on (`through`). `others` come from elsewhere (a position added
    in the same sum, the features of other skips): they stay with the shortcut.
    """

    operation: Operation
    shortcut: Path | None
    through: Path | None
    branches: tuple[Path, ...]
    others: tuple[Path, ...] = ()

    @property
    def brought(self) -> tuple[int, ...]:
        """The values that the branches bring to it."""
        places = dict(_references((*self.operation.args, self.operation.kwargs)))
        return tuple(places[path] for path in self.branches)


def junctions(skip: Skip) -> tuple[Junction, ...]:
    """The operations that merge a skip, from the one where the shortcut enters to the last.

    Raises SkipwayError for a merge by an operation that no edit can replace.
    """
    trace = skip.trace
    found = _walk(trace, skip, trace.operations[skip.merge])
    if found is None:
        raise SkipwayError(f"the skip at {skip.site} has a shortcut that enters its merge only as a part of a tensor")
    for junction in found:
        name = junction.operation.name
        if name not in MERGES:
            raise SkipwayError(
                f"the skip at {skip.site} is merged by {name!r}, which cannot be replaced: only sums, blends and "
                "concatenations can; rewrite that line of the model as one of them"
            )
    return tuple(found)


def _walk(trace: Trace, skip: Skip, operation: Operation) -> list[Junction] | None:
    places = list(_references((*operation.args, operation.kwargs)))
    here = [path for path, value in places if value == skip.carried]
    weights = _weights(operation.name, here)
    fed = [
        (path, value) for path, value in places
        if value != skip.carried and path not in weights and _fed(trace, value)
    ]  # fmt: skip
    branches = tuple(path for path, value in fed if _brings(trace, skip, value))
    others = tuple(path for path, _ in fed if path not in branches)
    if not branches and here:
        branches, others = others, ()
    if here:
        return [Junction(operation, here[0], None, branches, others)]
    for path, value in places:
        made = trace.operation_of(value)
        if value in skip.branches or made is None or made.name not in SUMS:
            continue
        inner = _walk(trace, skip, made)
        if inner is not None:
            rest = tuple(other for other, _ in fed if other != path)
            return [*inner, Junction(operation, None, path, rest)]
    return None


def _brings(trace: Trace, skip: Skip, value: int) -> bool:
    """Whether an operand is a branch of the skip, or a sum with one in it."""
    if value in skip.branches:
        return True
    made = trace.operation_of(value)
    return made is not None and made.name in SUMS and any(_brings(trace, skip, part) for part in made.operands)


def _weights(name: str, shortcut: list[Path]) -> tuple[Path, ...]:
    """The operands that only weigh others: what a blend or a choice goes by, and a factor of the shortcut's own."""
    if name == "lerp":
        return (2,), ("weight",)
    if name == "where":
        return (0,), ("condition",)
    factors = ((1,), (2,), ("tensor1",), ("tensor2",))
    return factors if name == "addcmul" and shortcut and shortcut[0] in factors else ()


def _fed(trace: Trace, value: int) -> bool:
    return trace.values[value].fed or trace.values[value].live


def _references(args: tuple[Any, ...]) -> Iterator[tuple[Path, int]]:
    """The tensors among the arguments: where each stands, and its value. The last entry holds the keyword arguments."""
    for position, item in enumerate(args[:-1]):
        yield from _inside((position,), item)
    for key, item in args[-1].items():
        yield from _inside((key,), item)


def _inside(path: Path, item: Any) -> Iterator[tuple[Path, int]]:
    if isinstance(item, Ref):
        yield path, item.value
    elif isinstance(item, tuple):
        for position, part in enumerate(item):
            yield from _inside((*path, position), part)


@dataclass
class EditState:
    """What the parts of one edited skip tell each other in a pass; between passes, nothing."""

    connection: PlacedConnection | None = None
    left_out: bool = False
    turns: dict[str, int] = field(default_factory=dict)
    stream: Tensor | None = None
    source: Tensor | None = None
    read: Tensor | None = None

    def reset(self) -> None:
        """Forget the pass that has ended, or broke off."""
        self.left_out, self.turns = False, {}
        self.stream = self.source = self.read = None


@dataclass
class Dropping:
    """Computes a merge without some of its operands: what cuts and lesions put in its place."""

    operation: str
    dropped: set[Path] = field(default_factory=set)

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = without(self.operation, function, args, kwargs, self.dropped)
        return _written(function, args, result, *[item for _, item in _tensors(args, kwargs)])


@dataclass
class Entering:
    """Where the shortcut enters a merge of several sums that is swapped: it is kept for the last of them."""

    operation: str
    junction: Junction
    state: EditState

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert self.junction.shortcut is not None
        stream = without(self.operation, function, args, kwargs, set(self.junction.branches))
        self.state.stream = apart(stream, args[0]) if _method_in_place(function) else stream
        value = without(self.operation, function, args, kwargs, {self.junction.shortcut, *self.junction.others})
        return _written(function, args, value, *[item for _, item in _tensors(args, kwargs)])


@dataclass
class Writing:
    """The last operation of a merge that is swapped: the connection writes the branch to the shortcut."""

    operation: str
    junction: Junction
    state: EditState

    def __post_init__(self) -> None:
        # By far the most common merge, x + f(x), is told apart beforehand: where the shortcut stands, 0 or 1.
        alone: dict[Path, int] = {(0,): 0, (1,): 1}
        branches = [alone.get(path) for path in self.junction.branches]
        place = None if self.junction.shortcut is None else alone.get(self.junction.shortcut)
        sums = self.operation == "add" and not self.junction.others and place is not None and branches == [1 - place]
        self.place = place if sums else None

    @property
    def plain(self) -> bool:
        """Whether the connection multiplies by numbers alone, so that no backward pass asks for what it read."""
        connection = self.state.connection
        assert connection is not None
        if connection.placement.out or connection.placement.after or connection.part("reweight") is not None:
            return False
        if not isinstance(connection, ResidualConnection):
            return True
        skip = connection.skip
        learned = any(scale is not None and scale.learned for scale in (skip.scale, skip.shortcut_scale))
        return skip.gate is None and not learned

    def __call__(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        state, connection = self.state, self.state.connection
        assert connection is not None
        alone = self.place is not None and len(args) == 2 and not kwargs
        if alone and not state.left_out and isinstance(connection, ResidualConnection) and connection.adds:
            one, other = args
            if one.shape == other.shape:
                if state.read is not None:
                    state.reset()
                return function(one, other)
        given = args
        # An in-place merge wrote over its first operand. The connection may do so too, unless it needs what it reads
        # again in the backward pass: then it reads a copy.
        in_place = _method_in_place(function) and not args[0].is_meta
        if in_place and asked_for_again() and not self.plain:
            args = (args[0].clone(), *args[1:])
        value, joins = None, False
        if self.place is not None and len(args) == 2 and not kwargs:
            stream, value = args[self.place], args[1 - self.place]
        elif self.junction.shortcut is not None:
            joins = self.operation == "cat"
            stream = _at(self.junction.shortcut, args, kwargs) if joins else without(
                self.operation, function, args, kwargs, set(self.junction.branches)
            )  # fmt: skip
            value = _at(self.junction.branches[0], args, kwargs) if joins else None
        else:
            assert state.stream is not None
            stream = state.stream
        if state.left_out:
            result = connection.without(stream)
        else:
            if value is None:
                entered = self.junction.shortcut
                dropped = set() if entered is None else {entered, *self.junction.others}
                value = without(self.operation, function, args, kwargs, dropped)
            result = connection.write(stream, value, state.read, fresh=in_place and value is args[0])
        if joins and self.junction.shortcut == (0, 1):
            size = stream.size(_axis(args, kwargs))
            result = torch.roll(result, -size, _axis(args, kwargs))
        state.reset()
        return _written(function, given, result, stream, value)


def without(operation: str, function: Any, args: Any, kwargs: dict[str, Any], dropped: set[Path]) -> Any:
    """The value of an operation as if some operands were zero, computing as little as possible."""
    if not dropped:
        return _again(operation, function)(*args, **kwargs)
    plain = operation in ("add", "sub") and not kwargs and len(args) == 2
    if plain and len(dropped) == 1 and all(isinstance(item, Tensor) for item in args):
        (gone,) = dropped
        left = args[1 - int(gone[0])]
        if operation == "add":
            return left
        return left if gone == (1,) else -left
    tensors = _tensors(args, kwargs)
    kept = [item for path, item in tensors if path not in dropped and item.device.type != "meta"]
    like = kept[0] if kept else tensors[0][1]
    args, kwargs = _replaced(args, kwargs, dropped, like, operation in SUMS)
    return _again(operation, function)(*args, **kwargs)


def _again(operation: str, function: Any) -> Callable[..., Any]:
    """The function of an operation that leaves its operands as they are."""
    return getattr(torch, operation) if hasattr(torch, operation) else function


# These call themselves rather than functions inside of them, which torch.compile does not always see through.
def _replaced(args: Any, kwargs: Any, dropped: set[Path], like: Tensor, scalar: bool) -> tuple[Any, dict[str, Any]]:
    changed = tuple(_changed(item, (position,), dropped, like, scalar) for position, item in enumerate(args))
    return changed, {key: _changed(item, (key,), dropped, like, scalar) for key, item in kwargs.items()}


def _changed(item: Any, path: Path, dropped: set[Path], like: Tensor, scalar: bool) -> Any:
    if isinstance(item, (tuple, list)):
        parts = [_changed(part, (*path, position), dropped, like, scalar) for position, part in enumerate(item)]
        return type(item)(parts)
    if not isinstance(item, Tensor) or path not in dropped:
        return item
    dtype = item.dtype if item.dtype.is_floating_point or item.dtype.is_complex else like.dtype
    return torch.zeros(() if scalar else item.shape, dtype=dtype, device=like.device)


def _tensors(args: Any, kwargs: Any) -> list[tuple[Path, Tensor]]:
    found: list[tuple[Path, Tensor]] = []
    for position, item in enumerate(args):
        _gather((position,), item, found)
    for key, item in kwargs.items():
        _gather((key,), item, found)
    return found


def _gather(path: Path, item: Any, found: list[tuple[Path, Tensor]]) -> None:
    if isinstance(item, Tensor):
        found.append((path, item))
    elif isinstance(item, (tuple, list)):
        for position, part in enumerate(item):
            _gather((*path, position), part, found)


def _at(path: Path, args: Any, kwargs: Any) -> Any:
    item: Any = args[path[0]] if isinstance(path[0], int) else kwargs[path[0]]
    for position in path[1:]:
        item = item[position]
    return item


def _axis(args: Any, kwargs: Any) -> int:
    given = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    return int(given)


# torch.compile cannot take names apart, and need not: it is the same each time.
@same_each_time
def _method_in_place(function: Any) -> bool:
    """Whether a call changes its first argument for those who do not look at what it returns, as `x.add_(y)` does."""
    return _named_in_place(function)


@cache
def _named_in_place(function: Any) -> bool:
    name = getattr(function, "__name__", "").split(".")[0]
    return name.endswith("_") and not name.endswith("__")


def _written(function: Any, args: Any, result: Any, *given: Any) -> Any:
    """The result as the replaced operation would have left it: in its first operand, or a tensor of its own."""
    return put(args[0], result, *given) if _method_in_place(function) else apart(result, *given)


def apart(result: Any, *given: Any) -> Any:
    """The result, copied if it is one of the tensors given: what follows may overwrite it."""
    for item in given:
        if result is item:
            return result.clone()
    return result


def put(target: Tensor, result: Any, *given: Any) -> Any:
    """The result, put into the tensor that the replaced operation would have changed."""
    if result is target:
        return result
    if torch._C._get_tracing_state() is not None:
        # The exporter to ONNX that traces knows no copying into a tensor.
        return target.zero_().add_(result)
    if not target.is_meta:
        return target.copy_(result)
    # The branch was not run, so there is no memory to write to: its stand-in becomes the result, if nothing forbids it.
    result = apart(result, *given)
    with suppress(RuntimeError):
        result = result.view_as(result)
        torch.utils.swap_tensors(target, result)
        return target
    return result
