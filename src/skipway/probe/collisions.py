"""`collisions`: what happens to the curvature of the loss when two units of a layer are made one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.probe.batches import Batches, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.hessian import Hessian, _differentiable, in_precision, matching
from skipway.probe.losses import logits_of
from skipway.probe.pairs import apart, collided, find_pair, positions
from skipway.probe.progress import progress
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.units import UnitMap

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

_AT_ONCE = 64
# Eigenvalues of J^T J are squares: those of exact zeros are rounding, far below what any other is.
_EXACT = 1e-13
POINTS = ("as it is", "collided", "trained on")


@dataclass(frozen=True, eq=False)
class Collisions(Result):
    """Curvature at a net's weights, where two units of a layer are made one, and after training on from there.

    `points` names the three; a row of everything else is for one. `hessian` (points, weights) are all eigenvalues of
    the loss's Hessian from the largest down, over `parameters` weights: all, or those of the two units, as `of` says.
    `outputs` (points, weights) are the eigenvalues of J^T J / n, J the outputs' Jacobian: the Hessian of the distance
    to the net's own outputs. An eigenvalue is near zero if its size is at most `threshold` times the largest (for
    `outputs`: if it is rounding). `losses` by point. `apart` (steps + 1) is the distance between
    the two units' incoming weights over their mean norm while training on. `flat` is the number of outgoing weights of
    a unit; `tied` are the other layers to which skips tie the layer's units, `whole` says whether they collided too.
    """

    layer: str
    units: tuple[int, int]
    whole: bool
    tied: tuple[str, ...]
    of: str
    parameters: int
    flat: int
    threshold: float
    points: tuple[str, ...]
    losses: np.ndarray
    hessian: np.ndarray
    outputs: np.ndarray
    apart: np.ndarray

    @property
    def zeros(self) -> np.ndarray:
        """For each point, how many eigenvalues of the Hessian are near zero."""
        return near_zero(self.hessian, self.threshold)

    @property
    def output_zeros(self) -> np.ndarray:
        """For each point, how many directions of these weights change no output at first order."""
        return near_zero(self.outputs, _EXACT)

    @property
    def what(self) -> str:
        """What was measured."""
        one, other = self.units
        tied = f" and {len(self.tied)} layers tied to it" if self.whole and self.tied else ""
        return (
            f"Curvature where units {one} and {other} of '{self.layer}'{tied} are one, over {self.of} "
            f"({self.parameters} weights): near-zero eigenvalues {', '.join(map(str, self.zeros.tolist()))}"
        )

    def table(self) -> pandas.DataFrame:
        """One row a point: the loss, near-zero eigenvalues of both matrices, and the Hessian's ends."""
        import pandas

        return pandas.DataFrame({
            "point": list(self.points), "loss": self.losses, "near zero": self.zeros,
            "near zero, outputs": self.output_zeros, "largest": self.hessian[:, 0], "smallest": self.hessian[:, -1],
            "flat directions": self.flat,
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Three panels: eigenvalues of J^T J and of the Hessian by size; distance of the units while training on."""
        with canvas(axes, self.caption, columns=3, size=(13.0, 4.2)) as drawn:
            spectra = ((self.outputs, self.output_zeros, _EXACT), (self.hessian, self.zeros, self.threshold))
            for panel, (values, zeros, threshold) in zip(drawn, spectra, strict=False):
                for number, point in enumerate(self.points):
                    sizes = np.sort(np.abs(values[number]))[::-1]
                    shown = np.maximum(sizes / max(sizes[0], 1e-300), 1e-18)
                    panel.semilogy(shown, color=f"C{number}", linewidth=1.4, label=f"{point}: {zeros[number]} near 0")
                panel.axhline(threshold, color="0.5", linestyle=":", linewidth=1)
                panel.set(xlabel="eigenvalue, by size", ylabel="|eigenvalue| / largest")
                panel.legend(frameon=False, fontsize=8)
            drawn[0].set_title("J'J, of the outputs")
            drawn[1].set_title("Hessian of the loss")
            drawn[2].plot(self.apart, color="C2")
            drawn[2].set(xlabel="step of training on", ylabel="distance of the units / their norm")
            drawn[2].set_ylim(bottom=-0.01, top=max(1.1 * float(self.apart.max()), 0.1))
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The sizes of all eigenvalues as a plotly figure."""
        import plotly.graph_objects as go

        lines = [
            go.Scatter(y=np.maximum(np.sort(np.abs(row))[::-1], 1e-18), name=point, mode="lines")
            for point, row in zip(self.points, self.hessian, strict=True)
        ]
        return plotly_figure(
            lines, self.caption, title="Two units made one", xaxis_title="eigenvalue, by size",
            yaxis={"type": "log", "title": "|eigenvalue|"},
        )  # fmt: skip


def collisions(
    model: nn.Module, data: Any, loss: Any = None, *, layer: str | None = None, units: tuple[int, int] = (0, 1),
    whole: bool = False, steps: int = 100, rate: float = 0.01, threshold: float = 1e-6, largest: int = 1200,
    samples: int | None = None, graph: SkipGraph | None = None,
) -> Collisions:  # fmt: skip
    """Make two units of a layer one, and count the near-zero eigenvalues of the loss's Hessian there.

    Where the incoming weights of units i and j agree, only the sum of their outgoing weights matters: each outgoing
    weight is a direction in which the outputs do not change, and the Jacobian of the outputs loses that many ranks.
    These are the singularities of Orhan and Pitkow 2018 (arXiv:1701.09175); equal outgoing weights make it lose as
    many as a unit has incoming ones, too. At a critical point with equal outgoing weights too (a permutation point),
    Brea et al. 2019 (arXiv:1907.02911) say that the Hessian has n_{k+1} zero eigenvalues, as many as one unit has
    outgoing weights. That holds where the errors that reach the unit vanish one by one (a single output; a loss of
    zero), as H = J^T L'' J + sum of errors times second derivatives. Elsewhere the second term couples outgoing with
    incoming weights, and turns zeros into pairs of a negative and a positive one.

    With a skip, units of a layer are added to those of others (`tied`): making only this layer's weights equal does not
    make them one. `whole=True` makes those of all tied layers equal, which does. `layer` is the name of a weight; by
    default the last whose units a skip ties, else the first. Three points are measured, in double precision and
    evaluation mode: the net as it is; with both the incoming and the outgoing weights of the two units at their mean;
    and after `steps` steps of gradient descent (Adam, `rate`, all samples at once) from there, which cannot part two
    units that are one. Eigenvalues are of all weights if these are at most `largest`, else of the two units' own.

    Raises SkipwayError where the two units cannot be exchanged, or have more than `largest` weights themselves.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> data = torch.randn(64, 2), torch.randint(3, (64,))
    >>> found = collisions(net, data, "cross_entropy", steps=5)
    >>> (found.output_zeros[1:] - found.output_zeros[0] >= 3).tolist(), found.flat
    ([True, True], 3)
    """
    if steps < 0 or not 0 < threshold < 1:
        raise SkipwayError(
            f"steps={steps}, threshold={threshold}: steps are not negative, a threshold is between 0 and 1"
        )
    batches = read_batches(model, data, loss, samples)
    with quiet(model):
        graph = graph or with_trace(model, batches.items[0], None, lambda found: found)
        pair = find_pair(UnitMap(graph), layer, units, whole)
        exact, exact_batches = in_precision(model, batches, torch.float64)
        exact = exact if exact is not model else copy.deepcopy(model)
        names = matching(exact, None)
        own = dict(exact.named_parameters())
        start = collided(exact, pair)
        places: dict[str, np.ndarray] | None = None
        count = sum(own[name].numel() for name in names)
        of = "all weights"
        if count > largest:
            places = positions(exact, (*pair.incoming, *pair.outgoing))
            names, count, of = tuple(places), sum(map(len, places.values())), "the weights of the two units"
            if count > largest:
                raise SkipwayError(
                    f"the two units of '{pair.layer}' have {count} weights, and largest={largest}: raise it, or choose "
                    "a smaller layer (a Hessian of n weights takes n products)"
                )
        with progress("collisions", steps + 3 * count) as advance:
            ended, distances = _trained(start, exact_batches, pair, steps, rate, advance)
            found = [_spectra(part, exact_batches, names, places, advance) for part in (exact, start, ended)]
        flat = sum(part.of(own[part.name]).shape[1] for part in pair.outgoing if part.name in own)
        losses = [exact_batches.mean_loss(part) for part in (exact, start, ended)]
    return Collisions(
        batches.policy(model, dtype=torch.float64), pair.layer, pair.units, whole, pair.tied, of, count, flat,
        threshold,
        POINTS, np.array(losses), np.stack([one for one, _ in found]), np.stack([one for _, one in found]), distances,
    )  # fmt: skip


def near_zero(eigenvalues: np.ndarray, threshold: float) -> np.ndarray:
    """How many eigenvalues of each row are at most `threshold` times its largest in size."""
    sizes = np.abs(eigenvalues)
    return (sizes <= threshold * sizes.max(-1, keepdims=True)).sum(-1)


def _trained(
    start: nn.Module, batches: Batches, pair: Any, steps: int, rate: float, advance: Any
) -> tuple[nn.Module, np.ndarray]:
    """The net after training on, in evaluation mode, and how far apart the two units were after each step."""
    model = copy.deepcopy(start).requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    shares = batches.shares()
    distances = [apart(model, pair)]
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            for batch, share in zip(batches, shares, strict=True):
                (share * batches.loss_of(model, batch)).backward()
            optimizer.step()
            distances.append(apart(model, pair))
            advance(1)
    optimizer.zero_grad(set_to_none=True)
    return model, np.array(distances)


def _spectra(
    model: nn.Module, batches: Batches, names: tuple[str, ...], places: dict[str, np.ndarray] | None, advance: Any
) -> tuple[np.ndarray, np.ndarray]:
    """All eigenvalues of the Hessian and of J^T J / n, over the named parameters or the places in them."""
    own = dict(model.named_parameters())
    parameters: list[Tensor] = [own[name] for name in names]
    hessian = Hessian(model, batches, names)
    chosen, begin = [], 0
    for name in names:
        size = own[name].numel()
        chosen.append(begin + (np.arange(size) if places is None else places[name]))
        begin += size
    index = torch.from_numpy(np.concatenate(chosen)).to(hessian.device)
    second = torch.zeros(len(index), len(index), dtype=hessian.dtype, device=hessian.device)
    first = torch.zeros_like(second)
    with _differentiable(parameters):
        for batch, share in zip(batches, batches.shares(), strict=True):
            gradient = torch.cat([part.flatten() for part in hessian._gradient(batch, create_graph=True)])[index]
            for start, part in _jacobian(gradient, parameters, index):
                second[start : start + len(part)] += share * part
            outputs = logits_of(batch.run(model))
            if outputs is None:
                raise SkipwayError("the model's output holds no tensor of which a Jacobian could be taken")
            for _, part in _jacobian(outputs.flatten(), parameters, index):
                first += part.T @ part
    advance(len(index))
    spectra = [
        torch.linalg.eigvalsh(matrix).flip(0).cpu().numpy()
        for matrix in ((second + second.T) / 2, first / batches.samples)
    ]
    return spectra[0], spectra[1]


def _jacobian(values: Tensor, parameters: list[Tensor], index: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Rows of the Jacobian of some values by the weights at `index`, a block at a time, with the first's number."""
    if not values.requires_grad:
        yield 0, torch.zeros(len(values), len(index), dtype=values.dtype, device=values.device)
        return
    batched = True
    for start in range(0, len(values), _AT_ONCE):
        block = values[start : start + _AT_ONCE]
        rows: list[Tensor] = []
        if batched:
            eye = torch.eye(len(block), dtype=values.dtype, device=values.device)
            try:
                found = torch.autograd.grad(
                    block, parameters, eye, retain_graph=True, allow_unused=True, materialize_grads=True,
                    is_grads_batched=True,
                )  # fmt: skip
                rows = [torch.cat([part.flatten(1) for part in found], 1)[:, index]]
            except RuntimeError:
                # An operation that cannot be batched over gradients: one row at a time, then.
                batched = False
        if not batched:
            for value in block:
                row = torch.autograd.grad(
                    value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
                )
                rows.append(torch.cat([part.flatten() for part in row])[None, index])
        yield start, torch.cat(rows).detach()
