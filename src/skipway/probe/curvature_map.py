"""`curvature_map`: the Hessian's extreme eigenvalues at every point of a landscape's plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from skipway.engines import Engine
from skipway.errors import SkipwayError
from skipway.probe.batches import Batches, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.flat import Moved
from skipway.probe.hessian import Hessian, in_pieces, matching
from skipway.probe.lanczos import extreme_eigenvalues
from skipway.probe.plane import Plane, coordinates, fingerprint, make_plane
from skipway.probe.points import Values, check_sharing, grid, measure_points
from skipway.probe.quiet import quiet
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas

_COLUMNS = ("loss", "largest", "smallest", "largest_residual", "smallest_residual")


@dataclass(frozen=True, eq=False)
class CurvatureMap(Result):
    """The largest and the smallest eigenvalue of the Hessian over a line or a plane of weights.

    All arrays are as the points of a `Landscape`: `[i, j]` is at (`x[i]`, `y[j]`). `loss` is the loss there; residuals
    are |H v - lambda v|; `converged` says that both are within `tolerance` of the larger size; `measured` is false at
    the points that other shards measure.
    """

    kind: str
    labels: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray | None
    loss: np.ndarray
    largest: np.ndarray
    smallest: np.ndarray
    largest_residual: np.ndarray
    smallest_residual: np.ndarray
    measured: np.ndarray
    tolerance: float
    method: str

    @property
    def ratio(self) -> np.ndarray:
        """|smallest / largest|: how far from convex the loss is at each point (Li et al. 2018, fig. 7)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.abs(self.smallest / self.largest)

    @property
    def converged(self) -> np.ndarray:
        """Where both eigenvalues are within the tolerance."""
        size = np.maximum(np.abs(self.largest), np.abs(self.smallest))
        return np.maximum(self.largest_residual, self.smallest_residual) <= self.tolerance * size

    @property
    def what(self) -> str:
        size = " x ".join(str(length) for length in self.loss.shape)
        missed = int((self.measured & ~self.converged).sum())
        note = f"; {missed} of them not converged" if missed else ""
        return f"|smallest / largest| eigenvalue of the Hessian, {size} points{note} ({self.method})"

    def table(self) -> pandas.DataFrame:
        """One row a point."""
        import pandas as pd

        axes = [self.x] if self.y is None else [self.x, self.y]
        points = grid(axes)
        columns: dict[str, Any] = {"xy"[number]: points[:, number] for number in range(len(axes))}
        for name in (*_COLUMNS, "ratio", "converged"):
            columns[name] = getattr(self, name).ravel()
        return pd.DataFrame(columns)

    def plot(self, axes: Any = None) -> Any:
        """Draw the map of |smallest / largest| from 0 to 0.5 as published; for a line, both eigenvalues."""
        with canvas(axes, self.caption) as axes:
            axes.set_xlabel(self.labels[0])
            if self.y is None:
                axes.plot(self.x, self.largest, color="tab:red", label="largest eigenvalue")
                axes.plot(self.x, self.smallest, color="tab:blue", label="smallest eigenvalue")
                axes.axhline(0, color="0.6", linewidth=0.8)
                axes.set_yscale("symlog", linthresh=max(1e-3, float(np.nanmax(np.abs(self.largest))) * 1e-3))
                axes.legend(fontsize=8)
            else:
                image = axes.pcolormesh(
                    self.x, self.y, self.ratio.T, cmap="viridis", vmin=0, vmax=0.5, shading="nearest"
                )
                axes.figure.colorbar(image, ax=axes, label="|smallest / largest| eigenvalue", extend="max")
                axes.set_ylabel(self.labels[1])
        return axes

    def interactive(self) -> Any:
        """The map, or for a line both eigenvalues, as a plotly figure."""
        import plotly.graph_objects as go

        if self.y is None:
            traces: list[Any] = [
                go.Scatter(x=self.x, y=values, name=name)
                for name, values in (("largest", self.largest), ("smallest", self.smallest))
            ]
            return plotly_figure(traces, self.caption, xaxis_title=self.labels[0], yaxis_title="eigenvalue")
        traces = [go.Heatmap(x=self.x, y=self.y, z=self.ratio.T, colorscale="Viridis", zmin=0, zmax=0.5)]
        return plotly_figure(traces, self.caption, xaxis_title=self.labels[0], yaxis_title=self.labels[1])


def curvature_map(
    model: nn.Module,
    data: Any,
    loss: Any = None,
    *,
    steps: int | Sequence[int] = 11,
    span: Any = None,
    dims: int | None = None,
    other: Any = None,
    directions: Any = None,
    normalize: str = "filter",
    seed: int = 0,
    tolerance: float = 1e-2,
    products: int = 100,
    samples: int | None = None,
    batch_size: int | None = None,
    folder: str | Path | None = None,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    engine: str | Engine = "local",
) -> CurvatureMap:
    """Measure the Hessian's largest and smallest eigenvalue over a line or a plane of weights through `model`.

    The plane, the folder, the workers, the engine and the shards are those of `landscape`; BatchNorm's statistics are
    frozen. At each point one Lanczos run finds both ends to `tolerance`, or spends `products` Hessian-vector products.
    Points of a folder are kept as they are measured, and the same call goes on where a run was stopped, to the same
    bits.

    Raises SkipwayError as `landscape` does.

    >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> batch = torch.randn(16, 2), torch.randint(2, (16,))
    >>> curvature_map(net, batch, "cross_entropy", steps=2).ratio.shape
    (2, 2)
    """
    check_sharing(workers, shard, folder, engine)
    if products < 2:
        raise SkipwayError(f"products={products}: at least 2 are needed for two eigenvalues")
    batches = in_pieces(read_batches(model, data, loss, samples), batch_size)
    with quiet(model):
        plane = make_plane(model, dims, other, directions, normalize, seed, "frozen")
        axes = coordinates(plane, steps, span)
        points = grid(axes)
        task = _MapTask(model, plane, points, batches, matching(model, None), tolerance, products, seed)
        policy = batches.policy(model, "eval", None, seed)
        manifest = {} if folder is None else _manifest(task, vars(policy), axes, normalize)
        values, measured = measure_points(
            task, len(points), len(_COLUMNS) + 1, title="curvature map", manifest=manifest, folder=folder,
            workers=workers, shard=shard, engine=engine,
        )  # fmt: skip
    shape = tuple(len(axis) for axis in axes)
    columns = {name: np.ascontiguousarray(values[:, i]).reshape(shape) for i, name in enumerate(_COLUMNS)}
    return CurvatureMap(
        policy=policy,
        kind=plane.kind,
        labels=plane.labels,
        x=axes[0],
        y=axes[1] if len(axes) == 2 else None,
        measured=measured.reshape(shape),
        tolerance=tolerance,
        method="central differences" if np.nanmax(values[:, -1], initial=0) else "double backward",
        **columns,
    )


@dataclass(frozen=True, eq=False)
class _MapTask:
    model: nn.Module
    plane: Plane
    points: np.ndarray
    batches: Batches
    names: tuple[str, ...]
    tolerance: float
    products: int
    seed: int

    def measure(self) -> Callable[[int], Values]:
        moved = Moved(self.model, self.plane)

        def values(point: int) -> Values:
            model = moved.at(self.points[point].tolist())
            hessian = Hessian(model, self.batches, self.names)
            loss = self.batches.mean_loss(model)
            if not np.isfinite(loss):
                return (loss, *[float("nan")] * len(_COLUMNS))
            like = torch.zeros(hessian.size, device=hessian.device, dtype=hessian.dtype)
            # The start depends on the point alone, not on what was measured before it.
            state = np.random.SeedSequence((self.seed, point)).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(state))
            ends = extreme_eigenvalues(hessian.product, like, 1, 1, self.tolerance, self.products, generator)
            differences = float(hessian.method != "double backward")
            return (
                loss, ends.top[0], ends.bottom[0], ends.top_residuals[0], ends.bottom_residuals[0], differences,
            )  # fmt: skip

        return values


def _manifest(task: _MapTask, policy: dict[str, Any], axes: tuple[np.ndarray, ...], normalize: str) -> dict[str, Any]:
    tensors = {**dict(task.model.named_parameters()), **dict(task.model.named_buffers())}
    return {
        "what": "curvature map",
        "policy": policy,
        "loss_name": task.batches.loss.name,
        "normalize": normalize,
        "axes": [axis.tolist() for axis in axes],
        "parameters": list(task.names),
        "tolerance": task.tolerance,
        "products": task.products,
        "weights": fingerprint([tensors]),
        "directions": fingerprint([task.plane.vectors, task.plane.centre]),
        "data": fingerprint([[batch.args, batch.kwargs, batch.targets] for batch in task.batches]),
    }
