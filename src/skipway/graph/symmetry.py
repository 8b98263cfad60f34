"""`symmetry`: which units of a traced model can be exchanged, or rescaled, without changing the function it computes.

Permuting the hidden units of a layer, together with the weights that make and read them, leaves a network as it was:
n! ways for n units (Hecht-Nielsen 1990; Ainsworth, Hayase, Srinivasa 2022, arXiv:2209.04836). Skips tie units of
different layers together, so that fewer permutations are left. A ReLU lets positive scales pass, which is a continuous
symmetry (Neyshabur, Salakhutdinov, Srebro 2015, arXiv:1506.02617).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from skipway.errors import SkipwayError
from skipway.graph.ir import Site, Trace, Value
from skipway.graph.symmetry_attention import AttentionWalk
from skipway.graph.symmetry_forest import Forest, resolve
from skipway.graph.symmetry_rescaling import ScaleWalk
from skipway.graph.symmetry_scales import Solution
from skipway.graph.symmetry_units import Ids
from skipway.graph.symmetry_walk import Places

if TYPE_CHECKING:
    from skipway.graph.skipgraph import SkipGraph


@dataclass(frozen=True)
class PermutationClass:
    """Units that can be exchanged for one another: `count` independent sets of `size` units each.

    `kind` is "units" (channels, neurons) or "blocks" (whole heads or groups, which take the units inside along). There
    are several sets where units move only inside a block: the `size` channels of each of `count` groups. `members` are
    the parameters and running statistics that must be permuted together, each with the axis. `skips` are the sites of
    the additive skips that tie the class across layers.
    """

    kind: str
    size: int
    count: int
    members: tuple[tuple[str, int], ...]
    skips: tuple[Site, ...] = ()

    @property
    def log10_order(self) -> float:
        """log10 of the number of permutations: count * log10(size!)."""
        return self.count * math.lgamma(self.size + 1) / math.log(10)


@dataclass(frozen=True)
class Pinned:
    """`size` units that keep their place, the operation that pinned them (None for an output), and why."""

    size: int
    site: Site | None
    why: str
    members: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Element:
    """One symmetry: where each unit moves, and the logarithm of each free scale (empty for a pure permutation)."""

    moved: Ids
    log_scales: NDArray[np.float64]


class Symmetry:
    """The symmetries of a model's parameters that follow from its graph, whatever its weights are.

    Permutations: a permutation of units counts where it can be undone in all tensors that the units pass through. Units
    inside heads and groups make wreath products, g! (n/g)!^g for g alike groups of n/g units. A head's queries and keys
    are permuted together, as are its values and the columns that read them; rotary positions pin the former. Everything
    that no rule is known for is pinned. Parameters and the running statistics of norms move; other buffers do not, nor
    do vocabularies, kernel positions, inputs and outputs. Key-value caches that a model hands out count as inside it:
    only it reads them again.

    Rescalings: a unit counts when a positive factor on the weights, bias or norm affine that make it can be taken back
    by the columns of every linear map that reads it, with nothing between but operations that let positive factors pass
    (ReLU, leaky ReLU, pooling, sums of units scaled alike, products with gates, the weighing of an attention's values).
    Each such unit (or set of units tied by sums) is one dimension, R+. Weights in front of a norm do not count: the
    norm's own affine behind it does. Not counted: scaling queries against keys, and linear maps beyond the diagonal.

    Whoever moves units by hand finds them as the atoms of `forest`; `groups` are the sets that may be exchanged.
    """

    def __init__(self, trace: Trace, skips: Iterable[tuple[Site, int]] = ()):
        self._trace = trace
        self._walk = AttentionWalk(trace)
        self._walk.run()
        self.forest: Forest = resolve(self._walk.units)
        self.groups, self._number = self.forest.classes()
        self._skips = tuple(skips)

    @property
    def log10_order(self) -> float:
        """log10 of the number of permutations that change no output."""
        sizes, counts = np.unique([len(group) for group in self.groups], return_counts=True)
        return sum(n * math.lgamma(size + 1) for size, n in zip(sizes, counts, strict=True)) / math.log(10)

    @property
    def order(self) -> int:
        """The exact number of permutations that change no output."""
        return math.prod(math.factorial(len(group)) for group in self.groups)

    @property
    def rescalings(self) -> int:
        """The number of independent positive rescalings of units that change no output."""
        return len(self._rescaled[1][0])

    @cached_property
    def _rescaled(self) -> tuple[ScaleWalk, Solution]:
        walk = ScaleWalk(self._trace)
        walk.run()
        return walk, walk.solution()

    @cached_property
    def classes(self) -> tuple[PermutationClass, ...]:
        """The classes of units that can be exchanged, in the order in which the model first uses them."""
        forest = self.forest
        if not self.groups:
            return ()
        _, kind = np.unique([forest.orbit[group[0]] for group in self.groups], return_inverse=True)
        members: dict[int, list[tuple[str, int]]] = {}
        for name, axis, atoms in self._places:
            for k in np.unique(kind[self._numbers_of(atoms, upward=True)]):
                members.setdefault(int(k), []).append((name, axis))
        tied: dict[int, list[Site]] = {}
        for site, value in self._skips:
            for factor in self._walk.layout(value).factors:
                for k in np.unique(kind[self._numbers_of(np.unique(np.concatenate(forest.address(factor.ids))))]):
                    tied.setdefault(int(k), []).append(site)
        above = np.zeros(len(forest.root), bool)
        above[forest.parent[forest.parent >= 0]] = True
        for coordinate in forest.pair:
            above[coordinate[coordinate >= 0]] = False
        made = []
        for k in members:
            mine = [self.groups[index] for index in np.flatnonzero(kind == k)]
            what = "blocks" if above[mine[0][0]] else "units"
            places = tuple(dict.fromkeys(members[k]))
            made.append(PermutationClass(what, len(mine[0]), len(mine), places, tuple(tied.get(k, ()))))
        return tuple(made)

    @cached_property
    def pinned(self) -> tuple[Pinned, ...]:
        """The units that keep their place, by the operation that keeps them there."""
        forest, reasons = self.forest, self._walk.units.reasons
        reason = np.full(len(forest.root), -1)
        for index in range(len(reasons) - 1, -1, -1):
            at = forest.root[reasons[index][0]]
            for coordinate in (at, *(side[at][side[at] >= 0] for side in forest.pair)):
                reason[coordinate] = index
        stuck = self._number < 0
        found: dict[tuple[int, str], tuple[list[Ids], list[tuple[str, int]]]] = {}
        for name, axis, atoms in self._places:
            still = atoms[stuck[atoms]]
            for index in np.unique(reason[still]):
                if index < 0:
                    continue
                _, operation, why = reasons[index]
                entry = found.setdefault((operation, why), ([], []))
                entry[0].append(still[reason[still] == index])
                entry[1].append((name, axis))
        made = []
        for (operation, why), (atoms, members) in found.items():
            site = self._trace.operations[operation].site if operation >= 0 else None
            size = len(np.unique(np.concatenate(atoms)))
            made.append(Pinned(size, site, why, tuple(dict.fromkeys(members))))
        return tuple(made)

    @cached_property
    def _places(self) -> list[tuple[str, int, Ids]]:
        """For each parameter's axis, the atoms that lie along it."""
        found = []
        for index, held in self._walk.addresses():
            for axes, ids in held:
                atoms = np.unique(np.concatenate(self.forest.address(ids)))
                found.append((self._trace.values[index].name, axes[-1], atoms[atoms >= 0]))
        return found

    def _numbers_of(self, atoms: Ids, upward: bool = False) -> Ids:
        found = []
        atoms = atoms[atoms >= 0]
        while len(atoms):
            found.append(self._number[atoms])
            atoms = np.unique(self.forest.parent[atoms])
            atoms = atoms[atoms >= 0] if upward else atoms[:0]
        numbers = np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)
        return numbers[numbers >= 0]

    def sample(self, seed: int, rescale: float = 0.0) -> Element:
        """A random element: a uniformly drawn permutation, and with `rescale` random scales as well.

        `rescale` is the standard deviation of the logarithms of the scales. The global random state is not touched.
        """
        generator = np.random.default_rng(seed)
        moved = self.forest.random(generator)
        scales = generator.normal(0.0, rescale, self.rescalings) if rescale else np.zeros(0)
        return Element(moved, scales)

    def apply(self, model: nn.Module, element: Element) -> nn.Module:
        """A copy of the model with its units permuted and rescaled: it computes the same function.

        The model is not changed. Raises SkipwayError where it lacks a parameter of the model that was traced, or has
        it in another shape.
        """
        for index, _ in self._walk.addresses():
            self.tensor(model, self._trace.values[index])
        changed = copy.deepcopy(model)
        with torch.no_grad():
            if len(element.log_scales):
                walk, (free, root, sums) = self._rescaled
                logs = walk.values(free, element.log_scales, root, sums)
                for index, places in walk.addresses():
                    tensor = self.tensor(changed, self._trace.values[index])
                    tensor.copy_(tensor * torch.from_numpy(_scale(tensor.shape, places, logs)).to(tensor))
            for value, places in self.held():
                tensor = self.tensor(changed, value)
                tensor.copy_(self.permuted(tensor.detach(), places, element.moved))
        return changed

    def held(self) -> list[tuple[Value, Places]]:
        """The parameters and running statistics that hold units, each with which units lie along which of its axes."""
        return [(self._trace.values[index], places) for index, places in self._walk.addresses() if places]

    def tensor(self, model: nn.Module, value: Value) -> torch.Tensor:
        """The model's own parameter or statistic for one of the trace; SkipwayError where it has none that fits."""
        try:
            tensor = model.get_parameter(value.name) if value.origin == "parameter" else model.get_buffer(value.name)
        except AttributeError:
            raise SkipwayError(
                f"this {type(model).__name__} has no {value.origin} '{value.name}', which the traced "
                f"{self._trace.model} has: give the model that was traced, or one built like it"
            ) from None
        if tuple(tensor.shape) != value.shape:
            raise SkipwayError(
                f"'{value.name}' has shape {tuple(tensor.shape)}, and had {value.shape} in the traced "
                f"{self._trace.model}: give the model that was traced, or one built like it"
            )
        return tensor

    def permuted(self, tensor: torch.Tensor, places: Places, moved: Ids) -> torch.Tensor:
        """The tensor in which each unit stands where `moved` says; `places` are those of `held`."""
        axes = sorted({axis for where, _ in places for axis in where})
        joint = {axis for where, _ in places if len(where) > 1 for axis in where}
        for group in [sorted(joint), *([axis] for axis in axes if axis not in joint)]:
            if not group:
                continue
            shape = [tensor.shape[axis] for axis in group]
            columns = []
            for where, ids in places:
                if set(where) <= set(group):
                    spread = ids.reshape([tensor.shape[axis] if axis in where else 1 for axis in group])
                    columns += self.forest.address(np.broadcast_to(spread, shape))
            goals = [np.where(column >= 0, moved[column], -1) for column in columns]
            if all((goal == column).all() for goal, column in zip(goals, columns, strict=True)):
                continue
            source, target = np.lexsort(goals), np.lexsort(columns)
            where_from = np.empty(len(source), np.int64)
            where_from[target] = source
            front = tensor.permute(*group, *(axis for axis in range(tensor.dim()) if axis not in group))
            flat = front.reshape(len(source), -1)[torch.from_numpy(where_from).to(tensor.device)].reshape(front.shape)
            back = np.argsort([*group, *(axis for axis in range(tensor.dim()) if axis not in group)])
            tensor = flat.permute(*back.tolist())
        return tensor

    def to_frame(self) -> Any:
        """The classes as a pandas table: one row a class."""
        import pandas as pd

        rows = [
            {"kind": one.kind, "size": one.size, "count": one.count, "log10_order": one.log10_order,
             "members": len(one.members), "first": f"{one.members[0][0]}[{one.members[0][1]}]", "skips": len(one.skips)}
            for one in self.classes
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["kind", "size", "count", "log10_order", "members", "first", "skips"])

    def __repr__(self) -> str:
        return (
            f"Symmetry(log10_order={self.log10_order:.1f}, classes={len(self.classes)}, rescalings={self.rescalings}, "
            f"pinned={sum(one.size for one in self.pinned)})"
        )


def _scale(shape: torch.Size, places: Places, logs: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros([1] * len(shape))
    for axes, ids in places:
        total = total + logs[ids].reshape([shape[axis] if axis in axes else 1 for axis in range(len(shape))])
    return np.asarray(np.exp(total))


def symmetry(graph: SkipGraph | Trace) -> Symmetry:
    """The symmetries of a traced model: classes of units, their order, random elements and what they do to a model.

    >>> import torch
    >>> from skipway.graph import trace
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> symmetry(trace(model, torch.zeros(1, 3))).order
    120
    """
    if isinstance(graph, Trace):
        return Symmetry(graph)
    merges = [(skip.site, graph.trace.operations[skip.merge]) for skip in graph.skips if skip.kind != "concat"]
    return Symmetry(graph.trace, [(site, merge.results[0]) for site, merge in merges])
