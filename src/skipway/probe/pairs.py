"""`Pair`: two units of a layer, the weights that make them and those that read them; colliding and exchanging them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph.ir import Operation
from skipway.probe.directions import Changes
from skipway.probe.units import Ids, Slices, UnitMap, to_front, written

# Of each kind of operation that reads a matrix of weights: the axis of what it makes, and the axis of what it reads.
_AXES = {"linear": (0, 1), "conv1d": (0, 1), "conv2d": (0, 1), "conv3d": (0, 1), "conv_transpose1d": (1, 0),
         "conv_transpose2d": (1, 0), "conv_transpose3d": (1, 0)}  # fmt: skip
_NORMS = ("batch_norm", "instance_norm", "layer_norm", "rms_norm", "group_norm")


@dataclass(frozen=True, eq=False)
class Pair:
    """Two units of `layer`, a weight's name, and their `incoming` and `outgoing` weights (rows: the two units).

    `tied` are the other weight layers that make the same units, because skips add to them. With `whole`, what these
    hold of the units is among the incoming weights; without it, only what the layer itself and its norm hold, and
    among the outgoing weights only those that are read behind it.
    """

    layer: str
    units: tuple[int, int]
    whole: bool
    tied: tuple[str, ...]
    incoming: tuple[Slices, ...]
    outgoing: tuple[Slices, ...]


def weight_layers(units: UnitMap) -> dict[str, Operation]:
    """The operations that read a matrix of weights with a name, by that name, in the order they run."""
    found: dict[str, Operation] = {}
    for operation in units.trace.operations:
        index = operation.value("weight") if operation.name in _AXES else None
        if index is not None and units.trace.values[index].origin == "parameter":
            found.setdefault(units.trace.values[index].name, operation)
    return found


def axes_of(operation: Operation) -> tuple[int, int]:
    """The axis of its weight along which lie the units it makes, and that of the units it reads."""
    return _AXES[operation.name]


def default_layer(units: UnitMap) -> str:
    """The last layer whose units a skip ties to others, or the first with units that can be exchanged."""
    layers = weight_layers(units)
    free = [name for name, operation in layers.items() if _groups(units, name, operation)]
    if not free:
        raise SkipwayError("no layer of this model makes units that can be exchanged")
    tied = {name for one in units.symmetry.classes if one.skips for name, axis in one.members
            if name in layers and axis == axes_of(layers[name])[0]}  # fmt: skip
    return next((name for name in reversed(free) if name in tied), free[0])


def find_pair(units: UnitMap, layer: str | None, numbers: tuple[int, int], whole: bool) -> Pair:
    """Two units of a layer; raises SkipwayError where there is no such layer, or they cannot be exchanged there."""
    layers = weight_layers(units)
    name = default_layer(units) if layer is None else choose("weight layer", layer, layers)
    operation = layers[name]
    atoms = _atoms(units, name, operation, numbers)
    ahead = operation.index
    mine = _own(units, operation)
    incoming, outgoing, tied = [], [], []
    for part in units.slices(atoms):
        reader = layers.get(part.name)
        if reader is not None and part.axes == (axes_of(reader)[1],):
            if whole or reader.index > ahead:
                outgoing.append(part)
        elif reader is None or part.axes == (axes_of(reader)[0],):
            if reader is not None and part.name != name:
                tied.append(part.name)
            if whole or part.name in mine:
                incoming.append(part)
        else:
            raise SkipwayError(
                f"the units of '{name}' meet '{part.name}', whose inputs and outputs come in groups: choose another"
            )
    return Pair(name, numbers, whole, tuple(tied), tuple(incoming), tuple(outgoing))


def collided(model: nn.Module, pair: Pair, outgoing: bool = True) -> nn.Module:
    """A copy of the model with the incoming weights of the two units equal, to their mean; and the outgoing ones.

    With `outgoing`, the units weigh alike on what reads them, so that training by gradients leaves them one.
    """
    own = _tensors(model)
    parts = [*pair.incoming, *(pair.outgoing if outgoing else ())]
    return written(copy.deepcopy(model), _changed(own, parts, lambda rows: rows.mean(0, keepdim=True).expand_as(rows)))


def exchanged(model: nn.Module, pair: Pair) -> nn.Module:
    """A copy of the model with the incoming and the outgoing weights of the two units exchanged."""
    return written(
        copy.deepcopy(model), _changed(_tensors(model), [*pair.incoming, *pair.outgoing], lambda r: r.flip(0))
    )


def differences(model: nn.Module, pair: Pair) -> tuple[Changes, Changes]:
    """What the incoming, and the outgoing, weights of the two units differ from their mean by; 0 elsewhere."""
    own = _tensors(model)
    made: list[Changes] = []
    for parts in (pair.incoming, pair.outgoing):
        names = {part.name for part in parts}
        zeros = {name: torch.zeros_like(own[name]) for name in names}
        halves = _changed(own, parts, lambda rows: rows - rows.mean(0, keepdim=True), zeros)
        made.append({name: tensor for name, tensor in halves.items() if tensor.is_floating_point()})
    return made[0], made[1]


def apart(model: nn.Module, pair: Pair) -> float:
    """The distance between the incoming weights of the two units, over their mean norm."""
    rows = [part.of(tensor) for part, tensor in _parameters(model, pair.incoming)]
    both = torch.cat([row.double() for row in rows], 1)
    return float((both[0] - both[1]).norm() / both.norm(dim=1).mean().clamp_min(1e-30))


def positions(model: nn.Module, parts: tuple[Slices, ...]) -> dict[str, Ids]:
    """Where the slices lie in each parameter, as indices into it when it is flat."""
    found: dict[str, list[Ids]] = {}
    for part, tensor in _parameters(model, parts):
        index = part.of(torch.arange(tensor.numel()).view(tensor.shape))
        found.setdefault(part.name, []).append(index.flatten().numpy())
    return {name: np.unique(np.concatenate(places)) for name, places in found.items()}


def _parameters(model: nn.Module, parts: tuple[Slices, ...]) -> list[tuple[Slices, Tensor]]:
    own = dict(model.named_parameters())
    return [(part, own[part.name].detach()) for part in parts if part.name in own]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}


def _changed(
    own: dict[str, Tensor],
    parts: Iterable[Slices],
    change: Callable[[Tensor], Tensor],
    into: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Tensors with the rows of the two units changed; `into` are what the others are, by default as they are."""
    found = {} if into is None else dict(into)
    for part in parts:
        source = own[part.name]
        base = found.get(part.name, source).clone()
        flat = to_front(base, part.axes).clone()
        order = torch.from_numpy(part.order).to(source.device)
        rows = to_front(source if into is not None else base, part.axes)[order]
        flat[order.flatten()] = change(rows).reshape(-1, flat.shape[1])
        rest = [axis for axis in range(base.ndim) if axis not in part.axes]
        front = flat.reshape([base.shape[axis] for axis in (*part.axes, *rest)])
        back = np.argsort([*part.axes, *rest]).tolist()
        found[part.name] = front.permute(*back)
    return found


def _atoms(units: UnitMap, name: str, operation: Operation, numbers: tuple[int, int]) -> Ids:
    axis = axes_of(operation)[0]
    column = next((factor.columns[0] for factor in units.factors.get(name, ()) if factor.axes == (axis,)), None)
    size = units.trace.values[operation.value("weight") or 0].shape[axis]
    one, other = numbers
    if one == other or not all(0 <= number < size for number in numbers):
        raise SkipwayError(
            f"units={numbers}: two different units of the {size} that '{name}' makes, from 0 to {size - 1}"
        )
    if column is not None:
        atoms = column[[one, other]]
        if any(np.isin(atoms, group).all() for group in units.groups):
            return atoms
    raise SkipwayError(
        f"units {one} and {other} of '{name}' cannot be exchanged: they are pinned, or of different groups; choose "
        "another layer"
    )


def _groups(units: UnitMap, name: str, operation: Operation) -> bool:
    axis = axes_of(operation)[0]
    for factor in units.factors.get(name, ()):
        if factor.axes == (axis,):
            return any(np.isin(factor.columns[0][:2], group).all() for group in units.groups)
    return False


def _own(units: UnitMap, operation: Operation) -> set[str]:
    """The names of what the layer and the norm right behind it hold."""
    values = units.trace.values
    behind = [
        later for later in units.trace.operations if later.name in _NORMS and operation.results[0] in later.operands
    ]
    held = {index for one in (operation, *behind) for index in one.operands}
    return {values[index].name for index in held if values[index].origin in ("parameter", "buffer")}
