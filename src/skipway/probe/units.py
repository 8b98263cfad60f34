"""`UnitMap`: where the units that a model's symmetry exchanges lie in its parameters, and what moves with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.graph.symmetry import Symmetry

Ids = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Factor:
    """Axes of a tensor, taken together, and the atoms that place each of their positions (-1: this column does not)."""

    axes: tuple[int, ...]
    columns: tuple[Ids, ...]


@dataclass(frozen=True, eq=False)
class Slices:
    """Positions along some axes of the tensor `name`: row i is what unit i holds, in an order that all units share."""

    name: str
    axes: tuple[int, ...]
    order: Ids

    def of(self, tensor: Tensor) -> Tensor:
        """What each unit holds, (units, numbers)."""
        front = to_front(tensor, self.axes)
        return front[torch.from_numpy(self.order).to(tensor.device).flatten()].reshape(len(self.order), -1)


class UnitMap:
    """The units of a traced model, by the classes of its `symmetry()`.

    An atom is a number that stands for a unit, a head or a group. `groups` are sets of atoms that may be exchanged,
    those of one parent together; what lies below an atom goes where it goes.
    """

    def __init__(self, graph: SkipGraph):
        self.symmetry: Symmetry = graph.symmetry()
        self.trace = graph.trace
        self.forest = self.symmetry.forest
        self.groups: list[Ids] = list(self.symmetry.groups)
        self._held = {value.name: (value, places) for value, places in self.symmetry.held()}
        self.factors = {name: self._factors_of(value.shape, places) for name, (value, places) in self._held.items()}
        self.still = np.arange(len(self.forest.root))

    def tensors(self, model: nn.Module, buffers: bool = False) -> dict[str, Tensor]:
        """The model's parameters (and statistics) that hold units; SkipwayError where they do not fit the trace."""
        return {
            name: self.symmetry.tensor(model, value).detach()
            for name, (value, _) in self._held.items()
            if buffers or value.origin == "parameter"
        }

    def permuted(self, name: str, tensor: Tensor, moved: Ids) -> Tensor:
        """The tensor, with the atoms moved."""
        return self.symmetry.permuted(tensor, self._held[name][1], moved)

    def exchange(self, group: Sequence[int] | Ids, goals: Sequence[int] | Ids) -> Ids:
        """Where every atom moves when group[k] moves to the place of group[goals[k]], and what is below goes along."""
        members = np.asarray(group)
        moved = self.still.copy()
        levels = self._levels(members)
        moved[members] = members[np.asarray(goals)]
        for atoms in levels[1:]:
            # Row k of both: the atoms below member k, in one order; those of k become those of goals[k].
            moved[atoms.ravel()] = atoms[np.asarray(goals)].ravel()
        return moved

    def image(self, members: Ids) -> Ids:
        """For every atom below a member, the one in its place below the first member; other atoms themselves."""
        image = self.still.copy()
        for atoms in self._levels(members):
            image[atoms] = atoms[0]
        return image

    def slices(self, members: Ids, image: Ids | None = None) -> list[Slices]:
        """What each member holds in each tensor that holds it; `image` are atoms to be taken for one another."""
        above = np.full(len(self.still), -1)
        for atoms in self._levels(members):
            above[atoms] = np.arange(len(members))[:, None]
        code = self.image(members)
        code = code if image is None else code[image]
        found = []
        for name, factors in self.factors.items():
            for factor in factors:
                over = np.stack([np.where(column >= 0, above[column], -1) for column in factor.columns])
                owner = over.max(0)
                # Between two members: neither's alone.
                owner[((over >= 0) & (over != owner)).any(0)] = -1
                mine = np.flatnonzero(owner >= 0)
                if not len(mine):
                    continue
                keys = [np.where(column[mine] >= 0, code[column[mine]], -1) for column in factor.columns]
                order = mine[np.lexsort((mine, *keys, owner[mine]))]
                if len(order) % len(members):
                    continue
                found.append(Slices(name, factor.axes, order.reshape(len(members), -1)))
        return found

    def children(self, members: Ids) -> list[list[Ids]]:
        """The exchangeable sets right below each member: for each kind of set, one a member."""
        kinds: dict[tuple[int, int], dict[int, Ids]] = {}
        place = {int(atom): number for number, atom in enumerate(members)}
        for group in self.groups:
            number = place.get(int(self.forest.parent[group[0]]))
            if number is not None:
                kinds.setdefault((int(self.forest.look[group[0]]), len(group)), {})[number] = group
        return [[sets[number] for number in range(len(members))] for sets in kinds.values()
                if len(sets) == len(members)]  # fmt: skip

    def _factors_of(self, shape: tuple[int, ...], places: list[tuple[tuple[int, ...], Ids]]) -> list[Factor]:
        joint = sorted({axis for where, _ in places if len(where) > 1 for axis in where})
        alone = sorted({where[0] for where, _ in places if len(where) == 1} - set(joint))
        factors = []
        for axes in ([joint] if joint else []) + [[axis] for axis in alone]:
            sizes = [shape[axis] for axis in axes]
            columns: list[Ids] = []
            for where, ids in places:
                if set(where) <= set(axes):
                    spread = ids.reshape([shape[axis] if axis in where else 1 for axis in axes])
                    columns += self.forest.address(np.broadcast_to(spread, sizes))
            factors.append(Factor(tuple(axes), tuple(columns)))
        return factors

    def _levels(self, members: Ids) -> list[Ids]:
        """The members, and level by level the atoms below them: row k lies below member k, in an order all share."""
        forest = self.forest
        levels = [np.asarray(members)[:, None]]
        while True:
            above = levels[-1]
            row, column = np.full(len(self.still), -1), np.full(len(self.still), -1)
            row[above] = np.arange(len(above))[:, None]
            column[above] = np.arange(above.shape[1])
            atoms = forest.atoms
            parents = forest.parent[atoms]
            mine = atoms[(parents >= 0) & (row[parents] >= 0)]
            if not len(mine):
                return levels
            up = forest.parent[mine]
            mine = mine[np.lexsort((mine, forest.look[mine], column[up], row[up]))]
            levels.append(mine.reshape(len(above), -1))


def to_front(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The tensor with these axes in front, as one, and the others behind, as one."""
    rest = [axis for axis in range(tensor.ndim) if axis not in axes]
    moved = tensor.permute(*axes, *rest)
    return moved.reshape(int(np.prod([tensor.shape[axis] for axis in axes])), -1)


def written(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The model, which is changed, with these tensors in place of those of the same names."""
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return model


def same_parameters(model: nn.Module, other: nn.Module) -> None:
    """Raise SkipwayError where two models differ in the names or shapes of their parameters."""
    own, others = ({name: tuple(tensor.shape) for name, tensor in part.named_parameters()} for part in (model, other))
    for name in {**own, **others}:
        if own.get(name) != others.get(name):
            raise SkipwayError(
                f"the two models are not alike: '{name}' has the shape {own.get(name, 'of none')} in the first and "
                f"{others.get(name, 'of none')} in the second; give two nets of one architecture"
            )
