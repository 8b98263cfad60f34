"""`paths`: which of the many paths through a network with skips carry its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph
from skipway.graph.state import Inventory
from skipway.probe.batches import Batches, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.paths_cut import cut
from skipway.probe.paths_sums import Gradients, draw_paths, gradient_along, gradient_by_length, in_series
from skipway.probe.quiet import quiet
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class PathGradients(Result):
    """The gradient of the mean loss at the input, by the number of branches that its paths pass (`lengths`).

    `norms` is the norm of the sum over all paths of each length, exact; `shares` the part of the gradient that this sum
    makes up, its projection on the whole, so that they add up to 1 (one is negative where its paths work against the
    rest); `frequency` the share of all paths that are of this length and `log10_counts` how many they are. `whole` is
    the norm of the gradient and `residual` how far the sum over all lengths is from it, over its norm, which rounding
    alone makes unequal 0. `drawn` holds the norms of single paths drawn at random, one row a draw (none where none were
    asked for). At the input means: at float inputs, and at what is looked up in a table for others.
    """

    lengths: np.ndarray
    norms: np.ndarray
    shares: np.ndarray
    frequency: np.ndarray
    log10_counts: np.ndarray
    whole: float
    residual: float
    drawn: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        low, high = self.effective()
        return (
            f"Gradient at the input by path length; 95 % of it comes along paths past {low} to {high} of "
            f"{int(self.lengths[-1])} branches"
        )

    @property
    def coherence(self) -> float:
        """The norm of the whole gradient over the sum of the norms by length: 1 where the lengths pull one way."""
        total = self.norms.sum()
        return float(self.whole / total) if total else float("nan")

    @property
    def coherence_by_length(self) -> np.ndarray:
        """How far paths of one length pull one way: the norm of their sum over the sum of their norms, by the drawn."""
        if not len(self.drawn):
            return np.full(len(self.lengths), np.nan)
        return _quotient(self.norms, self._drawn_totals)

    @property
    def mean_length(self) -> float:
        """The mean length, each weighted with the norm of its gradient."""
        total = self.norms.sum()
        return float((self.lengths * self.norms).sum() / total) if total else float("nan")

    def effective(self, share: float = 0.95) -> tuple[int, int]:
        """The lengths between which that share of the gradient comes, with as much below as above."""
        if not 0 < share <= 1:
            raise SkipwayError(f"share={share}: it lies above 0 and is at most 1")
        total = self.norms.sum()
        if not total:
            return int(self.lengths[0]), int(self.lengths[-1])
        upto = np.cumsum(self.norms) / total
        tail = (1 - share) / 2
        low = int(np.searchsorted(upto, tail, side="right"))
        high = int(np.searchsorted(upto, 1 - tail - 1e-12))
        return int(self.lengths[min(low, high)]), int(self.lengths[min(high, len(self.lengths) - 1)])

    @property
    def _drawn_totals(self) -> np.ndarray:
        return self.drawn.mean(0) * 10.0**self.log10_counts

    def table(self) -> pandas.DataFrame:
        """One row a length."""
        import pandas

        return pandas.DataFrame({
            "length": self.lengths, "log10_paths": self.log10_counts, "frequency": self.frequency,
            "gradient": self.norms, "share": self.shares,
            "one_path": self.drawn.mean(0) if len(self.drawn) else np.full(len(self.lengths), np.nan),
            "coherence": self.coherence_by_length,
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Three panels (Veit et al. 2016, figure 6): lengths of paths, gradient of one, gradient of each length."""
        with canvas(axes, self.caption, columns=3, size=(13.0, 4.2)) as drawn:
            first, second, third = drawn
            first.bar(self.lengths, self.frequency, width=0.9, color="C0")
            first.set(xlabel="path length (branches)", ylabel="share of the paths")
            averages = _quotient(self.norms, 10.0**self.log10_counts)
            second.plot(self.lengths, _positive(averages), marker=".", label="mean over all paths (vector)")
            if len(self.drawn):
                for row in self.drawn:
                    second.plot(self.lengths, _positive(row), ".", color="C1", alpha=0.4, markersize=4)
                second.plot(self.lengths, _positive(self.drawn.mean(0)), color="C1", label="paths drawn at random")
            second.set(xlabel="path length (branches)", ylabel="norm of the gradient of one path", yscale="log")
            second.legend(frameon=False, fontsize=8)
            total = self.norms.sum() or 1.0
            third.bar(self.lengths, self.norms / total, width=0.9, color="C0", label="all paths, exactly")
            if len(self.drawn):
                expected = self._drawn_totals
                third.plot(
                    self.lengths, expected / (expected.sum() or 1.0), color="C1", marker=".",
                    label="number of paths x mean norm of the drawn",
                )  # fmt: skip
            low, high = self.effective()
            third.axvspan(low - 0.5, high + 0.5, color="0.5", alpha=0.15, label=f"95 %: {low} to {high}")
            third.set(xlabel="path length (branches)", ylabel="share of the gradient's norm")
            third.legend(frameon=False, fontsize=8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """Frequency and gradient by length as a plotly figure."""
        import plotly.graph_objects as go

        bars = [
            go.Bar(x=self.lengths, y=self.frequency, name="share of the paths"),
            go.Bar(x=self.lengths, y=self.norms / (self.norms.sum() or 1.0), name="share of the gradient's norm"),
        ]
        return plotly_figure(
            bars, self.caption, title="Paths by length", xaxis_title="path length (branches)", yaxis_title="share"
        )


def paths(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = None, *, draws: int = 2,
    mode: Literal["eval", "train"] = "eval", samples: int | None = None, seed: int = 0,
    graph: SkipGraph | None = None,
) -> PathGradients:  # fmt: skip
    """The gradient at the input, split by path length: exactly, over all of the 2^n paths that n skips make.

    A skip lets the gradient come back through its branch or past it. The sum over all paths that pass k branches is
    found for every k in one sweep (`skipway.probe.paths_sums`), for skips in a row, side by side or nested; it is
    checked against the ordinary gradient. n skips in a row cost about n / 4 training steps' backward passes.

    `draws` single paths of each length are drawn at random beside it, as Veit, Wilber and Belongie did (2016,
    arXiv:1605.06431): forward through the whole network, backward through the branches of k skips and the shortcuts of
    all others. It takes skips in a row; a draw of every length costs as much as the exact sweep; `draws=0` omits it.

    `data` and `loss` are as in `read_batches`. Raises SkipwayError where the network has no skips, or writes into its
    tensors in ways that cannot be split.

    >>> import skipway as sw
    >>> net = sw.models.create("resnet20", num_classes=10, width=4)
    >>> found = paths(net, (torch.randn(4, 3, 32, 32), torch.arange(4)), "cross_entropy", draws=0)
    >>> len(found.lengths), round(float(found.shares.sum()), 4), found.residual < 1e-4
    (10, 1.0, True)
    """
    choose("mode", mode, ("eval", "train"))
    if draws < 0:
        raise SkipwayError(f"draws={draws}: the number of paths to draw of each length, 0 or more")
    batches = read_batches(model, data, loss, samples)
    with quiet(model, training=mode == "train", seed=seed) as inventory:
        for _, parameter in inventory.parameters:
            if parameter.is_leaf:
                parameter.requires_grad_(False)
        graph, sums = with_trace(
            model, batches.items[0], graph, lambda found: (found, _sums(model, batches, found, inventory, draws, seed))
        )
    counts = graph.paths(by="block")
    lengths = sorted({*sums.squares, *counts}) or [0]
    distribution = counts.distribution()
    return PathGradients(
        batches.policy(model, mode, seed=seed if draws or mode == "train" else None),
        np.array(lengths),
        np.array([sums.squares.get(length, 0.0) for length in lengths]) ** 0.5,
        np.array([sums.products.get(length, 0.0) for length in lengths]) / (sums.whole or 1.0),
        np.array([distribution.get(length, 0.0) for length in lengths]),
        np.array([_log10(counts.get(length, 0)) for length in lengths]),
        sums.whole**0.5,
        sums.checked(),
        np.array(sums.drawn).reshape(-1, draws).T ** 0.5 if draws else np.zeros((0, len(lengths))),
    )


def _sums(model: nn.Module, batches: Batches, graph: SkipGraph, inventory: Inventory, draws: int, seed: int) -> _Sums:
    if not graph.skips:
        raise SkipwayError(f"{graph.trace.model} has no skips: all of its gradient comes along one path")
    if draws and not in_series(graph):
        raise SkipwayError(
            "single paths are drawn only where skips follow one another, and here some are nested or side by side; "
            "draws=0 gives the exact sums alone"
        )
    sums = _Sums(draw_paths(len(graph.skips), draws, seed), graph)
    for number, share in enumerate(batches.shares()):
        torch.manual_seed(seed + number)
        with cut(model, graph, batches, number, inventory, at_skips=False) as cuts:
            whole = cuts.push_loss()
        torch.manual_seed(seed + number)
        with cut(model, graph, batches, number, inventory) as cuts:
            sums.add(share, whole, gradient_by_length(cuts, graph))
            if draws:
                sums.add_drawn(share, gradient_along(cuts, graph, sums.paths))
    return sums


class _Sums:
    """Squared norms and inner products, added up over batches and over the places where the signal begins."""

    def __init__(self, paths: list[frozenset[int]], graph: SkipGraph):
        self.paths = paths
        # Some models do a part of their work in single precision whatever they are given.
        kinds = {value.dtype for value in graph.trace.values if value.live and value.dtype.is_floating_point}
        self._precision = max(torch.finfo(kind).eps for kind in kinds)
        self.squares: dict[int, float] = {}
        self.products: dict[int, float] = {}
        self.drawn = [0.0] * len(paths)
        self.whole = 0.0
        self._missed = 0.0

    def add(self, share: float, whole: dict[int, Tensor], by_length: dict[int, Gradients]) -> None:
        for value in {*whole, *by_length}:
            expected = whole.get(value)
            parts = by_length.get(value, {})
            if expected is None:
                expected = torch.zeros_like(next(iter(parts.values())))
            expected = expected.double()
            left = expected.clone()
            for length, part in parts.items():
                part = part.double()
                left -= part
                self.squares[length] = self.squares.get(length, 0.0) + share**2 * float(part.square().sum())
                self.products[length] = self.products.get(length, 0.0) + share**2 * float((part * expected).sum())
            self.whole += share**2 * float(expected.square().sum())
            self._missed += share**2 * float(left.square().sum())

    def add_drawn(self, share: float, along: dict[int, Gradients]) -> None:
        for gradients in along.values():
            for path, gradient in gradients.items():
                self.drawn[path] += share**2 * float(gradient.double().square().sum())

    def checked(self) -> float:
        """How far the sum over the lengths is from the gradient; raises where rounding does not explain it."""
        scale = max(self.whole**0.5, sum(square**0.5 for square in self.squares.values()))
        if self._missed**0.5 > self._precision**0.5 * scale:
            raise SkipwayError(
                "this network's gradient cannot be split by path length: the parts do not add up to it (they miss "
                f"{self._missed**0.5 / scale:.1e} of it), since it writes into views of a stream, or is random"
            )
        return self._missed**0.5 / (self.whole**0.5 or 1.0)


def _log10(count: int) -> float:
    # A count may be too large for a float.
    return len(str(count)) - 17 + float(np.log10(float(str(count)[:17]))) if count >= 10**17 else (
        float(np.log10(count)) if count else float("-inf")
    )  # fmt: skip


def _quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)


def _positive(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, np.nan)
