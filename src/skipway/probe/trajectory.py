"""`trajectory`: the path of a training run in the plane of its main directions, and how far it is off that plane."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from skipway.errors import SkipwayError, choose
from skipway.graph.state import Inventory
from skipway.probe.batches import Batches, place_of, read_batches
from skipway.probe.directions import Changes, state_of
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.landscape_points import measure_set
from skipway.probe.progress import progress
from skipway.probe.quiet import quiet
from skipway.probe.result import Policy, Result

if TYPE_CHECKING:
    import pandas

PARTS = ("all", "weights")
# Rows of differences held at a time, in numbers (512 MB in single precision); beyond, checkpoints are read again.
_HELD = 2**27


@dataclass(frozen=True, eq=False)
class Trajectory(Result):
    """Checkpoints seen from the last one, in the plane of their first two principal components.

    `coordinates` (n, 2) are the projections of w_t - w_n; `distance` is |w_t - w_n| and `off_plane` what the plane does
    not show of it; `explained` (n - 1,) is each component's share of the variance, largest first. `loss` and `error`
    are each checkpoint's own, with its own statistics: not those of the surface at its projection; NaN without data.
    `rates` are learning rates, `drops` the checkpoints at which the rate fell. `centre` and `directions` (2,
    parameters) are the last checkpoint and the plane's unit vectors, all tensors in a row as `names` and `sizes` say.
    """

    centred: bool
    parts: str
    coordinates: np.ndarray
    distance: np.ndarray
    off_plane: np.ndarray
    explained: np.ndarray
    loss: np.ndarray
    error: np.ndarray
    rates: np.ndarray | None
    drops: tuple[int, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    centre: np.ndarray
    directions: np.ndarray

    @property
    def labels(self) -> tuple[str, ...]:
        """What the axes are, with the share of the variance that each explains."""
        return tuple(
            f"{name} PC: {100 * share:.2f} %" for name, share in zip(("1st", "2nd"), self.explained, strict=False)
        )

    @property
    def what(self) -> str:
        off = self.off_plane[:-1] / np.maximum(self.distance[:-1], 1e-300)
        kind = "centred" if self.centred else "not centred"
        return (
            f"{len(self.distance)} checkpoints in the plane of their first two principal components ({kind}), which "
            f"explain {100 * self.explained[:2].sum():.1f} %; at most {off.max():.0%} of a checkpoint's way is off it"
        )

    def plane_of(self, model: nn.Module) -> tuple[Changes, tuple[Changes, ...]]:
        """The last checkpoint and the two directions by parameter name, as `model` holds them."""
        inventory = Inventory.of(model)
        own = dict(inventory.parameters)
        first, *rest = (self._by_name(own, row) for row in (self.centre, *self.directions))
        return first, tuple(rest)

    def _by_name(self, own: dict[str, Any], row: np.ndarray) -> Changes:
        changes: Changes = {}
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            if name not in own or own[name].numel() != size:
                raise SkipwayError(f"the trajectory is of another model: '{name}' does not fit this one")
            part = torch.from_numpy(row[start : start + size].copy())
            changes[name] = part.reshape(own[name].shape).to(own[name])
            start += size
        return changes

    def table(self) -> pandas.DataFrame:
        """One row a checkpoint."""
        import pandas as pd

        columns: dict[str, Any] = {
            "x": self.coordinates[:, 0],
            "y": self.coordinates[:, 1],
            "distance": self.distance,
            "off_plane": self.off_plane,
            "loss": self.loss,
            "error": self.error,
        }
        if self.rates is not None:
            columns["rate"] = self.rates
        return pd.DataFrame(columns)

    def plot(self, axes: Any = None) -> Any:
        """Draw the path in the plane: a dot for each checkpoint, red where the rate fell, a star at the end."""
        with canvas(axes, self.caption) as axes:
            x, y = self.coordinates.T
            axes.plot(x, y, "-", color="0.7", linewidth=1, zorder=1)
            known = bool(np.isfinite(self.loss).any())
            dots = axes.scatter(x, y, c=self.loss if known else "tab:blue", cmap="viridis", s=22, zorder=2)
            if known:
                axes.figure.colorbar(dots, ax=axes, label="loss of the checkpoint itself")
            dropped = self.coordinates[list(self.drops)]
            axes.plot(dropped[:, 0], dropped[:, 1], "o", color="tab:red", markersize=7, zorder=3)
            axes.plot(x[-1], y[-1], "*", color="black", markersize=12, zorder=3)
            axes.set_xlabel(self.labels[0])
            axes.set_ylabel(self.labels[1])
        return axes

    def interactive(self) -> Any:
        """The path as a plotly figure, with each checkpoint's loss and distance off the plane on hover."""
        import plotly.graph_objects as go

        hover = [
            f"checkpoint {number}<br>loss {loss:.4g}<br>off the plane {off:.3g} of {distance:.3g}"
            for number, (loss, off, distance) in enumerate(zip(self.loss, self.off_plane, self.distance, strict=True))
        ]
        colours = ["#c0392b" if number in self.drops else "#1f77b4" for number in range(len(hover))]
        path = go.Scatter(
            x=self.coordinates[:, 0], y=self.coordinates[:, 1], mode="lines+markers", hovertext=hover,
            hoverinfo="text", marker={"color": colours}, line={"color": "#bbb"},
        )  # fmt: skip
        return plotly_figure([path], self.caption, xaxis_title=self.labels[0], yaxis_title=self.labels[1])


def trajectory(
    model: nn.Module,
    checkpoints: Sequence[Any],
    data: Any = None,
    loss: Any = None,
    *,
    centred: bool = False,
    parts: str = "all",
    rates: Sequence[float] | None = None,
    samples: int | None = None,
) -> Trajectory:
    """Find the plane in which a training run moved most, and the run's path in it.

        M = [w_0 - w_n; ...; w_{n-1} - w_n],    directions = M^T u / sqrt(lambda),    G = M M^T, G u = lambda u

    (Li et al. 2018, arXiv 1712.09913, section 7). `checkpoints` are at least three state dictionaries, models or weight
    files in order of time; files are read one at a time and never all held. `centred=True` takes the mean of M's rows
    away first, as their code does and their text does not. `parts="weights"` leaves out vectors: biases and norms.
    `rates`, the learning rate at each checkpoint, marks where it fell. With `data` (as in `read_batches`), the loss of
    each checkpoint is measured. `landscape(model, data, loss, directions=trajectory)` draws the surface around it.

    Raises SkipwayError where checkpoints do not fit the model, or do not move.

    >>> net = nn.Linear(3, 2)
    >>> path = trajectory(net, [{k: v * s for k, v in net.state_dict().items()} for s in (4.0, 2.0, 1.0)])
    >>> path.explained.round(6).tolist(), float(path.off_plane.max()) < 1e-5
    ([1.0, 0.0], True)
    """
    choose("choice of parts", parts, PARTS)
    count = len(checkpoints)
    if count < 3:
        raise SkipwayError(f"{count} checkpoints make no plane; give 3 or more, in order of time")
    if rates is not None and len(rates) != count:
        raise SkipwayError(f"{len(rates)} learning rates for {count} checkpoints; give one for each")
    batches = None if data is None else read_batches(model, data, loss, samples)
    with quiet(model):
        rows = _Rows(model, checkpoints, parts)
        with progress("trajectory", 2 * count) as advance:
            losses = _losses(rows, batches, advance)
            gram = _gram(rows)
            values, vectors, mixed = _components(gram, centred)
            if values[0] <= 0:
                raise SkipwayError("the checkpoints are all the same: there is no path between them")
            directions = _directions(rows, vectors, values, centred, advance)
    coordinates = np.zeros((count, 2))
    lengths = np.zeros(count)
    coordinates[:-1] = mixed[:, :2]
    lengths[:-1] = np.sqrt(np.maximum(np.diag(gram), 0))
    # Not sqrt(|w|^2 - |projection|^2), which loses all digits where a checkpoint lies in the plane.
    off_plane = np.zeros(count)
    off_plane[:-1] = rows.distances(coordinates[:-1], directions)
    total = values.sum()
    device_policy = Policy(type(model).__name__, dtype=str(place_of(model)[1]).removeprefix("torch."))
    return Trajectory(
        policy=device_policy if batches is None else batches.policy(model),
        centred=centred,
        parts=parts,
        coordinates=coordinates,
        distance=lengths,
        off_plane=off_plane,
        explained=values / total,
        loss=losses[:, 0],
        error=losses[:, 1],
        rates=None if rates is None else np.asarray(rates, dtype=float),
        drops=() if rates is None else tuple(i for i in range(1, count) if rates[i] < rates[i - 1]),
        names=tuple(rows.names),
        sizes=tuple(rows.sizes),
        centre=rows.last,
        directions=directions,
    )


class _Rows:
    """The differences of checkpoints from the last, one at a time."""

    def __init__(self, model: nn.Module, checkpoints: Sequence[Any], parts: str):
        self.scratch = copy.deepcopy(model)
        self._checkpoints = checkpoints
        named = [
            (name, tensor)
            for name, tensor in Inventory.of(model).parameters
            if tensor.is_floating_point() and (parts == "all" or tensor.ndim > 1)
        ]
        if not named:
            raise SkipwayError("the model has no such parameters; parts='all' takes vectors too")
        self.names = [name for name, _ in named]
        self.sizes = [tensor.numel() for _, tensor in named]
        self.count = len(checkpoints) - 1
        self.last = self._vector(self.count)

    def state(self, number: int) -> Changes:
        try:
            return state_of(self.scratch, self._checkpoints[number])
        except SkipwayError as error:
            raise SkipwayError(f"checkpoint {number}: {error}") from error

    def _vector(self, number: int) -> np.ndarray:
        state = self.state(number)
        return torch.cat([state[name].flatten().cpu() for name in self.names]).to(torch.float32).numpy()

    def row(self, number: int) -> np.ndarray:
        """w_t - w_n in single precision."""
        return self._vector(number) - self.last

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """As many rows at a time as are held, with the number of the first."""
        size = max(1, _HELD // len(self.last))
        for start in range(0, self.count, size):
            yield start, np.stack([self.row(number) for number in range(start, min(start + size, self.count))])

    def distances(self, coordinates: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """|row - its projection|, for every row."""
        found = np.zeros(self.count)
        for start, block in self.blocks():
            for place, row in enumerate(block):
                rest = row - coordinates[start + place].astype(np.float32) @ directions
                found[start + place] = np.sqrt(_dot(rest, rest))
        return found


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """A product of single-precision vectors, added up in double precision, in pieces."""
    size = 2**20
    return float(sum(a[i : i + size].astype(float) @ b[i : i + size].astype(float) for i in range(0, len(a), size)))


def _gram(rows: _Rows) -> np.ndarray:
    gram = np.zeros((rows.count, rows.count))
    for start, block in rows.blocks():
        stop = start + len(block)
        for i in range(stop):
            # Rows before this block are read once more for each block.
            row = block[i - start] if i >= start else rows.row(i)
            for j in range(max(i, start), stop):
                gram[i, j] = gram[j, i] = _dot(row, block[j - start])
    return gram


def _components(gram: np.ndarray, centred: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eigenvalues from the largest, eigenvectors, and the projections of all rows on the first two components."""
    count = len(gram)
    middle = np.eye(count) - centred / count
    values, vectors = np.linalg.eigh(middle @ gram @ middle)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    # Below rounding there is no component; its direction would be noise of unit length.
    values = np.where(values > values[0] * 1e-12, values, 0.0)
    # Eigenvectors have no sign of their own: the first checkpoint is on the positive side.
    projections = gram @ middle @ vectors[:, :2]
    signs = np.where(projections[0] < 0, -1.0, 1.0)
    vectors = vectors[:, :2] * signs
    scale = np.sqrt(np.where(values[:2] > 0, values[:2], np.inf))
    return values, middle @ vectors / scale, projections * signs / scale


def _directions(rows: _Rows, weights: np.ndarray, values: np.ndarray, centred: bool, advance: Any) -> np.ndarray:
    directions = np.zeros((2, len(rows.last)), dtype=np.float32)
    for start, block in rows.blocks():
        directions += (weights[start : start + len(block)].T.astype(np.float32)) @ block
        advance(len(block))
    return directions


def _losses(rows: _Rows, batches: Batches | None, advance: Any) -> np.ndarray:
    found = np.full((rows.count + 1, 2), np.nan)
    if batches is None:
        return found
    model = copy.deepcopy(rows.scratch).eval()
    own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for number in range(rows.count + 1):
        with torch.no_grad():
            for name, tensor in rows.state(number).items():
                own[name].copy_(tensor)
            found[number] = measure_set(model, [(batch,) for batch in batches], batches.shares(), batches)
        advance(1)
    return found
