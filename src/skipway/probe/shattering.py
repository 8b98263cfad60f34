"""`shattering`: how alike the gradients at neighbouring inputs are in a network that was not trained yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph, trace
from skipway.probe.batches import Batch, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.losses import logits_of
from skipway.probe.quiet import quiet
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Shattering(Result):
    """Gradients of a network's output by its input, at points on a line.

    `positions` on the line, from -1 to 1; `gradient`, the first projection's gradient along the line at each;
    `autocorrelation` by lag, in points, of the gradient less its mean; `correlations`, the matrix of the cosines
    between the gradients at any two points; `depth`, the weight layers on the longest path.
    """

    depth: int
    positions: np.ndarray
    gradient: np.ndarray
    autocorrelation: np.ndarray
    correlations: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        return (
            f"Gradients at {len(self.positions)} inputs on a line, {self.depth} weight layers: mean correlation "
            f"{self.correlation:.3f}, white noise by {100 * self.white_share:.0f} %"
        )

    @property
    def correlation(self) -> float:
        """The mean correlation between the gradients at two different points."""
        n = len(self.correlations)
        return float((self.correlations.sum() - np.trace(self.correlations)) / (n * (n - 1)))

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the correlations' spectrum: 1 if all gradients point one way, n for white noise."""
        spectrum = np.clip(np.linalg.eigvalsh(self.correlations), 0, None)
        spectrum = spectrum[spectrum > 0] / spectrum.sum()
        return float(np.exp(-(spectrum * np.log(spectrum)).sum()))

    @property
    def white_share(self) -> float:
        """a in the least-squares fit a * white + (1 - a) * brown of the autocorrelation at lags from 1, in 0 to 1."""
        white, brown = noises(len(self.positions), len(self.autocorrelation))
        step = (white - brown)[1:]
        share = float((self.autocorrelation[1:] - brown[1:]) @ step / (step @ step))
        return min(1.0, max(0.0, share))

    def table(self) -> pandas.DataFrame:
        """One row a lag."""
        import pandas

        white, brown = noises(len(self.positions), len(self.autocorrelation))
        lags = np.arange(len(self.autocorrelation))
        return pandas.DataFrame({
            "lag": lags, "autocorrelation": self.autocorrelation, "white_noise": white, "brown_noise": brown,
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Three panels: the gradient along the line, its autocorrelation by lag, and the matrix of correlations."""
        with canvas(axes, self.caption, columns=3, size=(13.0, 4.2)) as drawn:
            first, second, third = drawn
            first.plot(self.positions, self.gradient, linewidth=0.8)
            first.set(xlabel="position on the line", ylabel="gradient along the line")
            _draw_autocorrelations(second, (self,), ("gradients",))
            image = third.imshow(self.correlations, cmap="RdBu_r", vmin=-1, vmax=1, extent=(-1, 1, 1, -1))
            third.set(xlabel="position", ylabel="position", title="correlation of gradients")
            third.figure.colorbar(image, ax=third, shrink=0.8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The autocorrelation as a plotly figure."""
        return _interactive((self,), ("gradients",), self.caption)


@dataclass(frozen=True, eq=False)
class ShatteringComparison(Result):
    """Shattering in several networks, of several depths or with and without skips, in one order."""

    names: tuple[str, ...]
    results: tuple[Shattering, ...]

    @property
    def what(self) -> str:
        """What was measured."""
        return f"Correlation of gradients at neighbouring inputs: {', '.join(self.names)}"

    def table(self) -> pandas.DataFrame:
        """One row a network."""
        import pandas

        return pandas.DataFrame({
            "model": self.names, "depth": [one.depth for one in self.results],
            "correlation": [one.correlation for one in self.results],
            "effective_rank": [one.effective_rank for one in self.results],
            "white_share": [one.white_share for one in self.results],
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Two panels: autocorrelation by lag, and mean correlation by depth."""
        with canvas(axes, self.caption, columns=2, size=(10.0, 4.4)) as drawn:
            _draw_autocorrelations(drawn[0], self.results, self.names)
            for number, (name, one) in enumerate(zip(self.names, self.results, strict=True)):
                drawn[1].plot([one.depth], [max(one.correlation, 1e-4)], "o", color=f"C{number}", label=name)
            drawn[1].set(xlabel="weight layers", ylabel="mean correlation of gradients", yscale="log")
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The autocorrelations as a plotly figure."""
        return _interactive(self.results, self.names, self.caption)


def shattering(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = "cross_entropy", *,
    points: int = 256, projections: int = 8, mode: Literal["eval", "train"] = "eval", seed: int = 0,
    graph: SkipGraph | None = None,
) -> Shattering:  # fmt: skip
    """How the gradient of the output by the input changes along the line between the data's first two samples.

    In deep plain networks at initialisation gradients at neighbouring inputs have nothing in common, like white noise;
    with skips they resemble brown noise (Balduzzi et al. 2017, "The Shattered Gradients Problem", 1702.08591). With
    rectifiers that are open at random, their correlation is 1 / 2^L in a plain network of L layers and (3/4)^L in a
    residual one. Give it a network that was not trained.

    At each of `points` inputs the gradient of a random projection of the output is taken, for so many `projections`
    (one where the output is a single number). In training mode BatchNorm takes its statistics over the whole line.

    Raises SkipwayError where there are not two samples or no float inputs.

    >>> net = nn.Sequential(nn.Linear(1, 32), nn.ReLU(), nn.Linear(32, 1))
    >>> found = shattering(net, (torch.tensor([[-2.0], [2.0]]), torch.zeros(2)), points=16)
    >>> found.correlations.shape, float(found.autocorrelation[0])
    ((16, 16), 1.0)
    """
    choose("mode", mode, ("eval", "train"))
    if points < 4 or projections < 1:
        raise SkipwayError(f"points={points}, projections={projections}: it takes at least 4 points and 1 projection")
    batches = read_batches(model, data, loss, samples=2)
    batch = batches.items[0]
    if batch.samples < 2:
        raise SkipwayError("shattering takes the line between two samples, and the first batch of the data has one")
    with quiet(model, training=mode == "train", seed=seed) as inventory:
        graph = graph or trace(model, *batch.args, **batch.kwargs)
        for _, parameter in inventory.parameters:
            if parameter.is_leaf:
                parameter.requires_grad_(False)
        positions = torch.linspace(-1, 1, points, dtype=torch.float64)
        at_once = points if mode == "train" else _AT_ONCE
        parts = [
            _gradients(model, batch, positions[start : start + at_once], projections, seed)
            for start in range(0, points, at_once)
        ]
        gradients = torch.cat([part for part, _ in parts], 1)
        along = torch.cat([part for _, part in parts], 1)
    lengths = gradients.square().sum((0, 2)).sqrt()
    flat = (gradients / lengths[None, :, None].clamp_min(1e-300)).transpose(0, 1).flatten(1)
    depth = graph.paths().longest
    policy = batches.policy(model, mode, seed=seed)
    return Shattering(
        policy, depth, positions.numpy(), along[0].numpy(), _autocorrelation(gradients.numpy(), points // 2),
        (flat @ flat.T).numpy(),
    )  # fmt: skip


def compare_shattering(results: Sequence[Shattering], names: Sequence[str] | None = None) -> ShatteringComparison:
    """Shattering in several networks side by side; `names` are by default model and depth.

    Raises SkipwayError where there is nothing to compare or the names do not fit.
    """
    names = [f"{one.policy.model}, {one.depth} layers" for one in results] if names is None else list(names)
    if len(results) < 2 or len(names) != len(results):
        raise SkipwayError(
            f"{len(results)} results and {len(names)} names: comparing takes at least two, and a name each"
        )
    return ShatteringComparison(results[0].policy, tuple(names), tuple(results))


def _gradients(model: nn.Module, batch: Batch, positions: Tensor, projections: int, seed: int) -> tuple[Tensor, Tensor]:
    """For each projection and position the gradient by the inputs, and its component along the line."""
    leaves: list[Tensor] = []
    directions: list[Tensor] = []

    def on_line(item: Any) -> Any:
        if isinstance(item, Tensor) and item.ndim and item.shape[0] == batch.samples:
            shape = (-1, *[1] * (item.ndim - 1))
            if not item.is_floating_point():
                return item[:1].expand(len(positions), *item.shape[1:])
            weight = positions.to(item.device, item.dtype).view(shape)
            placed = (item[:1] * (1 - weight) / 2 + item[1:2] * (1 + weight) / 2).detach().requires_grad_()
            leaves.append(placed)
            directions.append((item[1] - item[0]) / 2)
            return placed
        if isinstance(item, dict):
            return {key: on_line(part) for key, part in item.items()}
        return type(item)(on_line(part) for part in item) if isinstance(item, (tuple, list)) else item

    args, kwargs = on_line(batch.args), on_line(batch.kwargs)
    if not leaves:
        raise SkipwayError(
            "the model's inputs are whole numbers: there is no line between two of them, and no gradient"
        )
    with torch.enable_grad():
        output = logits_of(model(*args, **kwargs))
    if output is None or not output.requires_grad:
        raise SkipwayError("the model's output has no gradient by its input")
    outputs = output.reshape(len(positions), -1)
    generator = torch.Generator().manual_seed(seed)
    count = min(projections, outputs.shape[1])
    found, along = [], []
    for number in range(count):
        weights = torch.randn(outputs.shape[1], generator=generator).to(outputs) if outputs.shape[1] > 1 else 1.0
        gradients = torch.autograd.grad(
            (outputs * weights).sum(), leaves, retain_graph=number < count - 1, allow_unused=True
        )
        parts = [g if g is not None else torch.zeros_like(leaf) for g, leaf in zip(gradients, leaves, strict=True)]
        found.append(torch.cat([part.flatten(1).double().cpu() for part in parts], 1))
        projected = [(part * way).flatten(1).double().sum(1) for part, way in zip(parts, directions, strict=True)]
        along.append(torch.stack(projected).sum(0).cpu())
    return torch.stack(found), torch.stack(along)


def _autocorrelation(series: np.ndarray, lags: int) -> np.ndarray:
    """Of series (projection, point, dimension) less their means, all together: 1 at lag 0."""
    centred = series - series.mean(1, keepdims=True)
    n = centred.shape[1]
    whole = (centred**2).sum()
    if not whole:
        return np.concatenate([[1.0], np.zeros(lags - 1)])
    return np.array([(centred[:, : n - lag] * centred[:, lag:]).sum() / whole for lag in range(lags)])


def noises(points: int, lags: int) -> tuple[np.ndarray, np.ndarray]:
    """The expected autocorrelations, by lag, of white and of brown noise at so many points.

    With x the series and C = x - mean(x), E[C_i C_j] is C's covariance; of white noise that of x is the identity, of
    brown noise min(i, j).
    """
    centre = np.eye(points) - 1.0 / points
    index = np.arange(1, points + 1)
    found = []
    for covariance in (np.eye(points), np.minimum.outer(index, index).astype(float)):
        centred = centre @ covariance @ centre
        found.append(np.array([np.trace(centred, lag) for lag in range(lags)]) / np.trace(centred))
    return found[0], found[1]


def _draw_autocorrelations(panel: Any, results: Sequence[Shattering], names: Sequence[str]) -> None:
    for number, (one, name) in enumerate(zip(results, names, strict=True)):
        step = one.positions[1] - one.positions[0]
        panel.plot(np.arange(len(one.autocorrelation)) * step, one.autocorrelation, color=f"C{number}", label=name)
    first = results[0]
    white, brown = noises(len(first.positions), len(first.autocorrelation))
    lags = np.arange(len(white)) * (first.positions[1] - first.positions[0])
    panel.plot(lags, white, ":", color="0.5", label="white noise")
    panel.plot(lags, brown, "--", color="0.5", label="brown noise")
    panel.set(xlabel="distance on the line", ylabel="autocorrelation")
    panel.legend(frameon=False, fontsize=8)


def _interactive(results: Sequence[Shattering], names: Sequence[str], caption: str) -> plotly.graph_objects.Figure:
    import plotly.graph_objects as go

    lines = [
        go.Scatter(x=np.arange(len(one.autocorrelation)), y=one.autocorrelation, name=name, mode="lines")
        for one, name in zip(results, names, strict=True)
    ]
    return plotly_figure(lines, caption, title="Autocorrelation of gradients", xaxis_title="lag", yaxis_title="")
