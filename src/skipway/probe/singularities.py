"""`singularities`: how near the units of each layer are to being one, being nothing, or depending on each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph
from skipway.graph.ir import Operation
from skipway.probe.batches import read_batches
from skipway.probe.capture import capture
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.pairs import axes_of, weight_layers
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.units import UnitMap, to_front

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

# Positions of maps beyond this many are left out of the spectrum, evenly.
_MOST = 8192


@dataclass(frozen=True, eq=False)
class Singularities(Result):
    """Three measures of degeneracy for each weight layer, in the order they run (Orhan and Pitkow 2018, 1701.09175).

    Overlap: `cosines` (layers, units), for each unit the largest cosine of its incoming weights with those of another
    (NaN beyond a layer's units). Elimination: `incoming` and `outgoing`, the shares of the units a layer makes whose
    incoming weights, and of those it reads whose weights in it, have a norm below `small` times the layer's median;
    `inactive`, the share of those it reads whose deviation over the data is. Linear dependence: `rank`, the effective
    number of independent units it reads, exp of the entropy of their covariance's spectrum; `width`, how many it reads;
    `condition`, the largest over the smallest eigenvalue (infinite where units depend on each other exactly).
    """

    layers: tuple[str, ...]
    small: float
    cosines: np.ndarray
    incoming: np.ndarray
    outgoing: np.ndarray
    inactive: np.ndarray
    rank: np.ndarray
    width: np.ndarray
    condition: np.ndarray

    @property
    def overlap(self) -> np.ndarray:
        """The mean over the units of each layer of the largest cosine with another."""
        return np.nanmean(np.where(np.isnan(self.cosines).all(1, keepdims=True), 0.0, self.cosines), 1)

    @property
    def dependence(self) -> np.ndarray:
        """1 - rank / width: 0 for units of equal spread that are not correlated, towards 1 where one says it all."""
        return 1 - self.rank / self.width

    @property
    def what(self) -> str:
        """What was measured."""
        return (
            f"Singularities of {len(self.layers)} layers: mean overlap {self.overlap.mean():.2f}, inactive units "
            f"{100 * self.inactive.mean():.0f} %, linear dependence {self.dependence.mean():.2f}"
        )

    def table(self) -> pandas.DataFrame:
        """One row a layer."""
        import pandas

        return pandas.DataFrame({
            "layer": list(self.layers), "overlap": self.overlap,
            "most alike": np.nanmax(np.where(np.isnan(self.cosines), -1.0, self.cosines), 1),
            "incoming near 0": self.incoming, "outgoing near 0": self.outgoing, "inactive": self.inactive,
            "width": self.width, "effective rank": self.rank, "condition": self.condition,
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Three panels: the cosines as a histogram, shares of eliminated units by layer, effective rank by layer."""
        with canvas(axes, self.caption, columns=3, size=(13.0, 4.2)) as drawn:
            draw(drawn, (self,), ("",))
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """Overlap, inactive units and dependence by layer as a plotly figure."""
        import plotly.graph_objects as go

        values = {"overlap": self.overlap, "inactive units": self.inactive, "linear dependence": self.dependence}
        lines = [
            go.Scatter(x=list(self.layers), y=row, name=name, mode="lines+markers") for name, row in values.items()
        ]
        return plotly_figure(lines, self.caption, title="Singularities", xaxis_title="layer", yaxis_title="")


def singularities(
    model: nn.Module, data: Any, loss: Any = "cross_entropy", *, small: float = 0.01,
    mode: Literal["eval", "train"] = "eval", samples: int | None = 512, graph: SkipGraph | None = None,
) -> Singularities:  # fmt: skip
    """Measure overlap, elimination and linear dependence of the units of every linear and convolutional layer.

    Where two units have the same incoming weights, a unit has none or is never active, or units depend linearly on each
    other, some directions of the weights change nothing, and learning slows down near by. Skips are said to keep nets
    away from such points, as with them a unit is never made by its layer alone. What a layer reads is looked at behind
    activations and merges, where it is read. The loss only says which part of a dictionary are targets.

    Raises SkipwayError where the model has no such layers.

    >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with torch.no_grad(): _ = net[0].weight[0].copy_(2 * net[0].weight[1])
    >>> found = singularities(net, (torch.randn(64, 3), torch.zeros(64, dtype=torch.long)))
    >>> found.cosines[0, :2].round(4).tolist(), found.width.tolist()
    ([1.0, 1.0], [3.0, 4.0])
    """
    choose("mode", mode, ("eval", "train"))
    if not 0 < small < 1:
        raise SkipwayError(f"small={small}: the share of the median below which a norm counts as none, between 0 and 1")
    batches = read_batches(model, data, loss, samples)
    with quiet(model, training=mode == "train"):
        graph = graph or with_trace(model, batches.items[0], None, lambda found: found)
        layers = weight_layers(UnitMap(graph)) if graph.trace.operations else {}
        if not layers:
            raise SkipwayError(f"this {type(model).__name__} has no linear or convolutional layer")
        weights = dict(model.named_parameters())
        reads = {name: _read_value(operation) for name, operation in layers.items()}
        sums: dict[str, _Moments] = {name: _Moments() for name in layers}
        for batch in batches:
            tensors, _ = capture(model, graph, batch, set(reads.values()), gradient=False)
            for name, operation in layers.items():
                sums[name].add(_by_unit(tensors[reads[name]].detach(), operation))
        rows = [_layer(weights[name].detach(), operation, sums[name], small) for name, operation in layers.items()]
    cosines = np.full((len(rows), max(len(row[0]) for row in rows)), np.nan)
    for place, row in zip(cosines, rows, strict=True):
        place[: len(row[0])] = row[0]
    rest = np.array([row[1] for row in rows], dtype=float).T
    return Singularities(batches.policy(model, mode), tuple(layers), small, cosines, *rest)


class _Moments:
    """Mean and covariance of units over all batches."""

    def __init__(self) -> None:
        self._count, self._sum, self._squares = 0, None, None

    def add(self, values: Tensor) -> None:
        values = values.double()
        self._count += len(values)
        total, squares = values.sum(0), values.T @ values
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares

    def covariance(self) -> np.ndarray:
        assert self._sum is not None
        assert self._squares is not None
        mean = self._sum / self._count
        return (self._squares / self._count - mean[:, None] * mean).cpu().numpy()


def _layer(
    weight: Tensor, operation: Operation, moments: _Moments, small: float
) -> tuple[np.ndarray, tuple[float, ...]]:
    made, read = axes_of(operation)
    rows = to_front(weight, (made,)).double()
    norms = rows.norm(dim=1)
    unit = rows / norms.clamp_min(1e-30)[:, None]
    alike = unit @ unit.T
    alike.fill_diagonal_(-torch.inf)
    cosines = alike.max(1).values.cpu().numpy() if len(rows) > 1 else np.array([np.nan])
    columns = to_front(weight, (read,)).double().norm(dim=1)
    covariance = moments.covariance()
    deviations = np.sqrt(np.clip(np.diag(covariance), 0, None))
    spectrum = np.clip(np.linalg.eigvalsh(covariance), 0, None)
    share = spectrum[spectrum > 0] / spectrum.sum() if spectrum.sum() > 0 else np.ones(1)
    rank = float(np.exp(-(share * np.log(share)).sum()))
    # Differences of sums: what lies below rounding is zero.
    smallest = spectrum[0] if spectrum[0] > 1e-13 * spectrum[-1] else 0.0
    condition = float(spectrum[-1] / smallest) if smallest else float("inf")
    return cosines, (
        _small(norms.cpu().numpy(), small), _small(columns.cpu().numpy(), small), _small(deviations, small), rank,
        float(len(covariance)), condition,
    )  # fmt: skip


def _small(values: np.ndarray, share: float) -> float:
    return float((values <= share * np.median(values)).mean())


def _read_value(operation: Operation) -> int:
    index = operation.value("input")
    return operation.operands[0] if index is None else index


def _by_unit(values: Tensor, operation: Operation) -> Tensor:
    """What a layer reads, (samples and positions, units)."""
    axis = values.ndim - 1 if operation.name == "linear" else values.ndim - 1 - int(operation.name[-2])
    flat = to_front(values, (axis,)).T
    return flat if len(flat) <= _MOST else flat[torch.linspace(0, len(flat) - 1, _MOST).long()]


def draw(
    drawn: Any, results: tuple[Singularities, ...], names: tuple[str, ...], colours: tuple[str, ...] = ("C0",)
) -> None:
    """Three panels of one net or several."""
    edges = np.linspace(-0.2, 1, 41)
    for one, name, colour in zip(results, names, colours, strict=True):
        prefix = f"{name}: " if name else ""
        values = one.cosines[~np.isnan(one.cosines)]
        drawn[0].hist(values.clip(-0.2, 1), edges, color=colour, histtype="stepfilled", alpha=0.5,
                      density=True, label=f"{prefix}mean {values.mean():.2f}")  # fmt: skip
        at = np.arange(len(one.layers))
        for row, style, label in ((one.inactive, "-", "inactive"), (one.outgoing, "--", "outgoing near 0"),
                                  (one.incoming, ":", "incoming near 0")):  # fmt: skip
            drawn[1].plot(at, 100 * row, style, color=colour, label=f"{prefix}{label}")
        drawn[2].plot(at, one.rank / one.width, "o-", markersize=3, color=colour, label=name or None)
    drawn[0].set(xlabel="largest cosine with another unit", ylabel="density", title="overlap")
    drawn[1].set(xlabel="weight layer", ylabel="units, %", title="elimination")
    drawn[2].set(xlabel="weight layer", ylabel="effective rank / width", title="linear dependence", ylim=(0, 1.05))
    for panel in drawn[:2]:
        panel.legend(frameon=False, fontsize=8)
    if any(names):
        drawn[2].legend(frameon=False, fontsize=8)
