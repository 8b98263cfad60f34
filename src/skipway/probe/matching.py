"""`match_weights`: the permutation of one net's units that brings its weights nearest to those of another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.graph.symmetry import Element
from skipway.probe.batches import read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.progress import progress
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.units import Ids, UnitMap, same_parameters

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

# A gain below this share of the objective is rounding.
_GAIN = 1e-9


@dataclass(frozen=True, eq=False)
class Matching(Result):
    """A permutation of the second net's units, found by coordinate descent from several starts.

    `moved` says where each unit goes, by the numbers that the symmetry of the traced model gives them. `similarity` is
    the sum of the products of both nets' weights, over the product of their norms (a cosine): `before` for the second
    net as it is; `history` (starts, sweeps) after each sweep, NaN behind a start's last; `best` is the start that was
    taken. `distances` are |a - b| before and after. `difference` is the largest change of the second net's output by
    the permutation, over the largest output: rounding, as it must change nothing. `classes`, their `sizes` and in
    `still` the share of the units of each that stayed in their place.
    """

    moved: np.ndarray
    before: float
    history: np.ndarray
    best: int
    distances: tuple[float, float]
    difference: float
    classes: tuple[str, ...]
    sizes: np.ndarray
    still: np.ndarray

    @property
    def similarity(self) -> float:
        """The cosine of the angle between both nets' weights after matching."""
        return float(np.nanmax(self.history[self.best], initial=self.before))

    @property
    def what(self) -> str:
        """What was measured."""
        return (
            f"Weights matched over {len(self.classes)} classes of units from {len(self.history)} starts: cosine "
            f"{self.before:.3f} before, {self.similarity:.3f} after"
        )

    def applied(self, model: nn.Module, graph: SkipGraph) -> nn.Module:
        """A copy of the second net with its units moved; `graph` is a trace of either net. It computes the same."""
        symmetry = graph.symmetry()
        if len(self.moved) != len(symmetry.forest.root):
            raise SkipwayError("this matching is of another architecture than the traced model")
        return symmetry.apply(model, Element(self.moved, np.zeros(0)))

    def table(self) -> pandas.DataFrame:
        """One row a class of units: where it lies first, its size, the share of units that stayed in place."""
        import pandas

        return pandas.DataFrame({"class": list(self.classes), "size": self.sizes, "still": self.still})

    def plot(self, axes: Any = None) -> Any:
        """The cosine after each sweep, a line a start."""
        with canvas(axes, self.caption) as axes:
            for number, row in enumerate(self.history):
                taken = number == self.best
                shown = row[~np.isnan(row)]
                axes.plot(np.arange(len(shown)), shown, "o-", markersize=3, zorder=3 if taken else 2,
                          color="tab:blue" if taken else "0.7", label="taken" if taken else None)  # fmt: skip
            axes.axhline(self.before, color="0.4", linestyle="--", linewidth=1, label="as it was")
            axes.set(xlabel="sweep over all classes", ylabel="cosine between both nets' weights")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.legend(frameon=False, fontsize=8)
        return axes

    def interactive(self) -> plotly.graph_objects.Figure:
        """The cosine after each sweep as a plotly figure."""
        import plotly.graph_objects as go

        lines = [go.Scatter(y=row[~np.isnan(row)], name=f"start {number + 1}", mode="lines+markers")
                 for number, row in enumerate(self.history)]  # fmt: skip
        return plotly_figure(
            lines, self.caption, title="Weight matching", xaxis_title="sweep", yaxis_title="cosine of weights"
        )


def match_weights(
    model: nn.Module, other: nn.Module, data: Any, *, starts: int = 5, sweeps: int = 100, seed: int = 0,
    graph: SkipGraph | None = None,
) -> Matching:  # fmt: skip
    """Permute the units of `other` so that its weights come as near as can be to those of `model`.

        maximise  sum over parameters <w_model, pi(w_other)>   over the permutations pi of the model's symmetry

    Coordinate descent over the classes of units, each a linear assignment while the others stand (Ainsworth, Hayase,
    Srinivasa 2022, "Git Re-Basin", arXiv:2209.04836). Which classes there are follows from the trace: units that a
    stream ties move together, heads and groups take what is in them along, and no specification is written by hand.
    The sum never falls. The problem is not convex, so it is solved from several `starts`: the nets as they are, then
    random permutations, the classes in a random order; each for at most `sweeps` over all classes. `data` is a batch
    that both take; with it the trace is made and it is checked that pi changes no output.

    Raises SkipwayError where the two are not of one architecture, or no units can be exchanged.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    >>> from skipway.graph import trace
    >>> shuffled = trace(net, torch.zeros(1, 3)).symmetry()
    >>> other = shuffled.apply(net, shuffled.sample(1))
    >>> round(match_weights(net, other, (torch.randn(4, 3), None)).similarity, 5)
    1.0
    """
    if starts < 1 or sweeps < 1:
        raise SkipwayError(f"starts={starts}, sweeps={sweeps}: at least 1 of each is needed")
    same_parameters(model, other)
    # The targets are not looked at; a loss of None would take the labels for inputs.
    batches = read_batches(model, data, "mse")
    batch = batches.items[0]
    with quiet(model), quiet(other):
        graph = graph or with_trace(model, batch, None, lambda found: found)
        units = UnitMap(graph)
        if not units.groups:
            raise SkipwayError(f"no units of this {type(model).__name__} can be exchanged: there is nothing to match")
        own, others = units.tensors(model), units.tensors(other)
        best: tuple[float, int, Ids] | None = None
        history = np.full((starts, sweeps + 1), np.nan)
        scale = _norm(own) * _norm(others) or 1.0
        with progress("matching weights", starts) as advance:
            for number in range(starts):
                generator = np.random.default_rng(np.random.SeedSequence((seed, number)))
                moved = units.forest.random(generator) if number else units.still
                descent = _Descent(units, own, others, moved, generator)
                history[number, 0] = descent.value / scale
                for sweep in range(1, sweeps + 1):
                    improved = descent.sweep()
                    history[number, sweep] = descent.value / scale
                    if not improved:
                        break
                if best is None or descent.value > best[0]:
                    best = (descent.value, number, descent.moved)
                advance(1)
        assert best is not None
        changed = units.symmetry.apply(other, Element(best[2], np.zeros(0)))
        difference = _difference(batch.run(other), batch.run(changed))
        after = units.tensors(changed)
    if difference > 1e-3:
        raise SkipwayError(
            f"the permutation changed the output of the {type(other).__name__} by {difference:.1e} of its size: what "
            "it computes depends on more than its trace shows, so its weights cannot be matched by it"
        )
    names, sizes, still = _told(units, best[2])
    last = max(1, int((~np.isnan(history)).sum(1).max()))
    return Matching(
        batches.policy(model, seed=seed), best[2], _product(own, others) / scale, history[:, :last], best[1],
        (_distance(own, others), _distance(own, after)), difference, names, sizes, still,
    )  # fmt: skip


class _Descent:
    """Coordinate descent from one start."""

    def __init__(self, units: UnitMap, own: dict[str, Tensor], others: dict[str, Tensor], moved: Ids, generator: Any):
        self._units = units
        self._own = {name: tensor.double() for name, tensor in own.items()}
        self._now = {name: units.permuted(name, tensor.double(), moved) for name, tensor in others.items()}
        self._generator = generator
        self.moved = moved
        self.value = _product(self._own, self._now)
        self._steps = [(group, bool(units.children(group))) for group in units.groups]
        self._slices = {tuple(group): units.slices(group) for group in units.groups}

    def sweep(self) -> bool:
        """Every class once, in a random order; whether any moved."""
        improved = False
        for index in self._generator.permutation(len(self._steps)):
            group, blocks = self._steps[index]
            improved |= self._move_blocks(group) if blocks else self._move(group)
        return improved

    def _move(self, group: Ids) -> bool:
        goals = _assign(self._costs(self._slices[tuple(group)]))
        if self._try(self._units.exchange(group, goals)):
            return True
        # Where a weight has units of the class along both axes the assignment is only a guess: take what helps of it.
        improved = False
        cycles = _cycles(goals)
        for cycle in cycles if len(cycles) > 1 else []:
            part = np.arange(len(group))
            part[cycle] = goals[cycle]
            improved |= self._try(self._units.exchange(group, part))
        return improved

    def _move_blocks(self, group: Ids) -> bool:
        """Blocks to places, each pair judged by the best order of the units inside; then the units inside."""
        costs = self._costs(self._slices[tuple(group)])
        image = self._units.image(group)
        kinds = self._units.children(group)
        inside = np.zeros_like(costs)
        for sets in kinds:
            size = len(sets[0])
            every = self._costs(self._units.slices(np.concatenate(sets), image)).reshape(len(sets), size, -1, size)
            for i in range(len(sets)):
                for j in range(len(sets)):
                    block = every[i, :, j]
                    inside[i, j] += block[np.arange(size), _assign(block)].sum() - np.trace(block)
        before = self.value, self.moved, dict(self._now)
        self._apply(self._units.exchange(group, _assign(costs + inside)))
        for _ in range(3):
            moves = [self._move(child) for sets in kinds for child in sets]
            if not any(moves):
                break
        if self.value > before[0] + _GAIN * abs(before[0]):
            return True
        self.value, self.moved, self._now = before
        return False

    def _costs(self, slices: list[Any]) -> np.ndarray:
        """What the objective gains where unit i takes the place of unit j, the others as they are."""
        total: Any = 0.0
        for part in slices:
            if part.name in self._own:
                total = total + part.of(self._now[part.name]) @ part.of(self._own[part.name]).T
        return total.cpu().numpy()

    def _try(self, moved: Ids) -> bool:
        before = self.value, self.moved, dict(self._now)
        self._apply(moved)
        if self.value > before[0] + _GAIN * abs(before[0]):
            return True
        self.value, self.moved, self._now = before
        return False

    def _apply(self, moved: Ids) -> None:
        touched = np.flatnonzero(moved != self._units.still)
        for name, factors in self._units.factors.items():
            if name in self._now and any(np.isin(column, touched).any() for f in factors for column in f.columns):
                self._now[name] = self._units.permuted(name, self._now[name], moved)
        self.moved = moved[self.moved]
        self.value = _product(self._own, self._now)


def _assign(costs: np.ndarray) -> np.ndarray:
    from scipy.optimize import linear_sum_assignment

    return linear_sum_assignment(costs, maximize=True)[1]


def _cycles(goals: np.ndarray) -> list[np.ndarray]:
    seen, found = np.zeros(len(goals), bool), []
    for start in range(len(goals)):
        cycle = []
        at = start
        while not seen[at]:
            seen[at] = True
            cycle.append(at)
            at = int(goals[at])
        if len(cycle) > 1:
            found.append(np.array(cycle))
    return found


def _product(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum(float((one[name].double() * other[name].double()).sum()) for name in one))


def _norm(tensors: dict[str, Tensor]) -> float:
    return _product(tensors, tensors) ** 0.5


def _distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return float(sum(float((one[name].double() - other[name].double()).square().sum()) for name in one)) ** 0.5


def _difference(one: Any, other: Any) -> float:
    from skipway.probe.losses import logits_of

    first, second = logits_of(one), logits_of(other)
    if first is None or second is None:
        return float("nan")
    return float((first - second).detach().abs().max() / first.detach().abs().max().clamp_min(1e-30))


def _told(units: UnitMap, moved: Ids) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    names, sizes, still = [], [], []
    for group in units.groups:
        part = units.slices(group)
        names.append(f"{part[0].name}[{part[0].axes[0]}]" if part else "")
        sizes.append(len(group))
        still.append(float((moved[group] == group).mean()))
    return tuple(names), np.array(sizes), np.array(still)
