"""`reorder`: blocks of equal shape exchange what they compute."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from skipway.edit.log import Change, Parameters, apply
from skipway.edit.shapes import static_site
from skipway.edit.stale import check
from skipway.edit.wiring import Wiring
from skipway.edit.wrappers import Wrapper, wrap
from skipway.errors import SkipwayError, choose
from skipway.graph.ir import Trace
from skipway.graph.skipgraph import SkipGraph
from skipway.graph.skips import Skip


@dataclass(frozen=True)
class ReorderChange:
    """Blocks run in another order: in the place of `modules[i]` runs `modules[order[i]]`."""

    modules: tuple[str, ...]
    order: tuple[int, ...]
    trace: Trace | None = None
    verb: str = "reorder"
    connection: str = ""

    @property
    def where(self) -> str:
        return ", ".join(self.modules)

    @property
    def detail(self) -> str:
        return ", ".join(self.modules[index] for index in self.order)

    def replaces(self, other: Change) -> bool:
        return False

    def wire(self, wiring: Wiring, layer: int) -> None:
        modules = [wiring.module(path) for path in self.modules]

        def exchange() -> list[Wrapper]:
            forwards = [module.__dict__.get("forward") for module in modules]
            moved = [
                Moved(module, modules[index], forwards[index])
                for module, index in zip(modules, self.order, strict=True)
            ]
            for wrapper in moved:
                wrap(wrapper)
            return list(moved)

        wiring.move(exchange)


class Moved(Wrapper):
    """On a module in whose place another one runs."""

    def __init__(self, module: nn.Module, other: nn.Module, forward: Any) -> None:
        super().__init__(module)
        self.other, self.forward = other, forward

    def run(self, *args: Any, **kwargs: Any) -> Any:
        if self.forward is None:
            return type(self.other).forward(self.other, *args, **kwargs)
        return self.forward(*args, **kwargs)


def reorder(
    model: nn.Module,
    blocks: Sequence[str] | Sequence[Skip],
    order: Sequence[int],
    *,
    graph: SkipGraph | None = None,
    inplace: bool = False,
    parameters: Parameters = "copy",
) -> nn.Module:
    """The model with blocks of equal shape run in another order: in the place of `blocks[i]` runs `blocks[order[i]]`.

    Parameters keep their names: those of `blocks[order[i]]` now work in the place of `blocks[i]`. The reordering of
    Veit et al. 2016 (arXiv:1605.06431).

    Args:
        model: any module; it stays as it is unless `inplace`.
        blocks: paths of modules, or skips, which stand for the modules that hold their branch, shortcut and merge.
        order: a permutation of the numbers of the blocks.
        graph: tells the shapes; without it they are told from the layers' own channels and strides.
        inplace, parameters: as for `cut`.

    Raises SkipwayError for unknown blocks, no permutation, and blocks whose shapes differ.

    >>> import torch, skipway as sw
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 4))
    >>> x = torch.ones(2, 4)
    >>> torch.equal(reorder(net, ["0", "2"], [1, 0])(x), net[0](torch.tanh(net[2](x))))
    True
    """
    if not isinstance(model, nn.Module):
        raise SkipwayError(f"an edit takes a torch.nn.Module, not {type(model).__name__}")
    names = [name for name, _ in model.named_modules() if name]
    skips = [block for block in blocks if isinstance(block, Skip)]
    trace = graph.trace if graph is not None else skips[0].trace if skips else None
    if trace is not None:
        check(model, trace)
    paths = [block_of(block) if isinstance(block, Skip) else choose("module", block, names) for block in blocks]
    if sorted(order) != list(range(len(paths))):
        raise SkipwayError(f"order is a permutation of 0 to {len(paths) - 1}, one number a block, not {list(order)}")
    if len(set(paths)) < len(paths):
        raise SkipwayError(f"a block is named twice: {', '.join(paths)}")
    for one in paths:
        for other in paths:
            if one != other and one.startswith(f"{other}."):
                raise SkipwayError(f"{one} lies inside {other}: they cannot take each other's place")
    shapes = [_shapes(model, path, trace) for path in paths]
    for path, shape in zip(paths, shapes, strict=True):
        if shape != shapes[0]:
            raise SkipwayError(
                f"only blocks of equal shape can take each other's place: {paths[0]} turns {shapes[0][0]} into "
                f"{shapes[0][1]}, and {path} turns {shape[0]} into {shape[1]}"
            )
    return apply(model, [ReorderChange(tuple(paths), tuple(order), trace)], [], inplace, parameters)


def block_of(skip: Skip) -> str:
    """The innermost module that holds the branch of a skip, its shortcut and its merge, with all their parameters."""
    trace = skip.trace
    inside = (*skip.branch_operations, *skip.shortcut_operations, skip.merge)
    modules = [trace.calls[trace.operations[index].call].module for index in inside]
    for call in trace.enclosing(trace.operations[skip.merge].call):
        if call.parent is not None and all(m == call.module or m.startswith(f"{call.module}.") for m in modules):
            return call.module
    raise SkipwayError(f"the skip at {skip.site} has no block of its own: no module but the model itself holds it")


def _shapes(model: nn.Module, path: str, trace: Trace | None) -> tuple[object, object]:
    if trace is None:
        site = static_site(f"cannot move {path}", [model.get_submodule(path)], 0, 1)
        return (site.in_channels, 1), (site.out_channels, site.stride)
    call = next((call for call in trace.calls if call.module == path), None)
    if call is None:
        raise SkipwayError(f"{path} did not run when the model was traced")
    given = tuple(trace.values[value].shape for value in call.given[:1] if value >= 0)
    returned = tuple(trace.values[value].shape for value in call.returned[:1] if value >= 0)
    return given, returned
