"""`landscape`: the loss along one or two directions through a model's weights, or between models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from skipway.engines import Engine
from skipway.errors import SkipwayError
from skipway.probe import roughness
from skipway.probe.batches import place_of, read_batches
from skipway.probe.journal import read_manifest, read_points
from skipway.probe.landscape_points import EVERY, LandscapeTask, with_way
from skipway.probe.plane import coordinates, fingerprint, make_plane
from skipway.probe.points import check_sharing, grid, measure_points
from skipway.probe.quiet import quiet
from skipway.probe.result import Policy, Result

if TYPE_CHECKING:
    import pandas

_PRECISIONS = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Landscape(Result):
    """The loss over a line or a plane of weights.

    `loss[i]` is at `x[i]`, `loss[i, j]` at (`x[i]`, `y[j]`): mean training loss; `error` is the share of targets told
    wrong (NaN where targets are no classes), `test_loss` and `test_error` the same on test data, None without it.
    `measured` is false at the points that other shards measure. `kind` says what the axes are; `cosine` is the angle
    between two directions, `ignored` the parameters that do not move, `way` how the points were measured. In low
    precision, `precision_error` holds the median and the largest error of the loss, relative to full precision, at
    every 20th point. `path` are the checkpoints of a trajectory in the plane, `drops` those where the rate fell.
    """

    kind: str
    loss_name: str
    normalize: str
    labels: tuple[str, ...]
    x: np.ndarray
    y: np.ndarray | None
    loss: np.ndarray
    error: np.ndarray
    test_loss: np.ndarray | None
    test_error: np.ndarray | None
    measured: np.ndarray
    cosine: float
    ignored: tuple[str, ...]
    way: str
    precision_error: tuple[float, float] | None = None
    path: np.ndarray | None = None
    drops: tuple[int, ...] = ()

    @cached_property
    def roughness(self) -> float:
        """How far the contours of the loss are from convex, 0 to 1: see `skipway.probe.contour_roughness`."""
        return roughness.contour_roughness(self.loss)

    @cached_property
    def negative_curvature(self) -> float:
        """The share of inner points at which the surface bends downwards: see `skipway.probe.negative_curvature`."""
        return roughness.negative_curvature(self.loss)

    @property
    def what(self) -> str:
        over = {
            "random": "along random directions",
            "between models": "between models",
            "trajectory": "over the plane of a trajectory",
            "given": "along given directions",
        }[self.kind]
        if self.kind == "random":
            over += {"filter": ", filter-normalised", "layer": ", layer-normalised", "none": ", not normalised"}[
                self.normalize
            ]
        size = " x ".join(str(length) for length in self.loss.shape)
        parts = [f"Loss ({self.loss_name.replace('_', ' ')}) {over}, {size} points"]
        if not self.measured.all():
            parts.append(f"{int((~self.measured).sum())} of them not measured yet")
        if self.precision_error is not None:
            median, most = self.precision_error
            parts.append(f"{self.policy.dtype} is off by {median:.1%} in the median, {most:.1%} at most")
        return "; ".join(parts)

    def table(self) -> pandas.DataFrame:
        """One row a point: its coordinates, loss and error on each set."""
        import pandas as pd

        axes = [self.x] if self.y is None else [self.x, self.y]
        points = grid(axes)
        columns: dict[str, Any] = {
            name: points[:, number] for number, name in zip(range(len(axes)), "xy", strict=False)
        }
        for name in ("loss", "error", "test_loss", "test_error"):
            if (values := getattr(self, name)) is not None:
                columns[name] = values.ravel()
        return pd.DataFrame(columns)

    def plot(
        self, axes: Any = None, kind: str = "contour", log: bool = False, levels: Any = None, values: str = "loss"
    ) -> Any:
        """Draw a curve with twin axes, or a surface as "contour", "filled", "heat" or "surface" (in 3-D).

        `log` shows the logarithm of the loss, `levels` are those of the contours (by default they fit the range), and
        `values` is what to show of a surface: "loss", "error", "test_loss" or "test_error".
        """
        from skipway.probe import landscape_plot

        return landscape_plot.draw(self, axes, kind, log, levels, values)

    def interactive(self, log: bool = False, values: str = "loss") -> Any:
        """The curve, or the surface in 3-D, as a plotly figure."""
        from skipway.probe import landscape_plot

        return landscape_plot.interactive([self], log, values)


def landscape(
    model: nn.Module,
    data: Any,
    loss: Any = None,
    *,
    steps: int | Sequence[int] = 51,
    span: Any = None,
    dims: int | None = None,
    other: Any = None,
    directions: Any = None,
    batch_norm: str = "frozen",
    normalize: str = "filter",
    seed: int = 0,
    test: Any = None,
    calibration: Any = None,
    samples: int | None = None,
    dtype: torch.dtype | None = None,
    folder: str | Path | None = None,
    workers: int | None = None,
    shard: tuple[int, int] | None = None,
    engine: str | Engine = "local",
) -> Landscape:
    """Measure the loss of `model` over a line or a plane of weights that runs through it.

        L(a, b) = loss at w + a * d1 + b * d2,    a, b in `span` (-1 to 1), `steps` points along each axis

    By default d1 and d2 are random with the scale of each filter (Li et al. 2018, arXiv 1712.09913; see
    `random_direction` for the rules). `dims=1` takes d1 alone. `other=model_b` is the line (1 - t) w + t w_b from this
    model at 0 to that at 1, t from -0.5 to 1.5, in all parameters; `other=[model_b, model_c]` the plane through three
    (models, state dictionaries or weight files). `directions` are your own, as dictionaries by parameter name, or a
    `Trajectory`, whose plane and path are shown.

    The model is in evaluation mode. BatchNorm's statistics are its own at every point ("frozen"), move with the weights
    ("interpolated", between models), or are estimated anew at every point on `calibration` ("recalibrated"; by default
    on `data`): three different surfaces. The model itself is not touched; (0, 0) is its loss bit for bit.

    `data` and `loss` are as in `read_batches`; `test` is data to measure beside it, `samples` a bound on each.
    `dtype=torch.bfloat16` computes in low precision and measures the error that makes at every 20th point. With
    `folder`, each point is kept as it is measured, and the same call goes on where a run was stopped, to the same bits.
    `workers` is a number of processes of this machine, and with `engine="ray"` or "ray:ADDRESS" how much at once a
    cluster takes on (without one, what it has room for). `shard=(i, n)` measures every n-th point from the i-th, for
    several machines, whose folders `merge_landscapes` puts together.

    Raises SkipwayError where the arguments do not fit the model or each other, or the folder holds another landscape.

    >>> net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
    >>> batch = torch.randn(32, 2), torch.randint(2, (32,))
    >>> landscape(net, batch, "cross_entropy", steps=5).loss.shape
    (5, 5)
    """
    check_sharing(workers, shard, folder, engine)
    batches = read_batches(model, data, loss, samples)
    sets = (batches,) if test is None else (batches, read_batches(model, test, loss, samples))
    fresh = None
    if batch_norm == "recalibrated":
        fresh = batches if calibration is None else read_batches(model, calibration, loss, samples)
    elif calibration is not None:
        raise SkipwayError(f"calibration data is for batch_norm='recalibrated', and this is {batch_norm!r}")
    own = place_of(model)[1]
    if dtype == own:
        dtype = None
    if dtype is not None and dtype not in _PRECISIONS:
        raise SkipwayError(f"dtype={dtype}: measure in the model's own precision (None), bfloat16 or float16")
    with quiet(model):
        plane = make_plane(model, dims, other, directions, normalize, seed, batch_norm)
        axes = coordinates(plane, steps, span)
        points = grid(axes)
        policy = batches.policy(model, "eval", batch_norm, seed if plane.kind == "random" else None, dtype)
        task = LandscapeTask(model, plane, points, sets, policy.batch_norm, fresh, dtype)
        task = with_way(task)
        facts = {
            "kind": plane.kind,
            "loss_name": batches.loss.name,
            "normalize": normalize,
            "labels": list(plane.labels),
            # Rounded, for its last digits depend on how many threads there are; JSON's NaN would not equal itself.
            "cosine": None if np.isnan(angle := plane.cosine()) else round(angle, 9),
            "ignored": list(plane.ignored),
            "way": task.way,
        }
        manifest = {} if folder is None else _manifest(task, policy, axes, facts)
        values, measured = measure_points(
            task, len(points), task.columns, title="landscape", manifest=manifest, folder=folder, workers=workers,
            shard=shard, engine=engine,
        )  # fmt: skip
    return _result(policy, axes, facts, values, measured, len(sets), dtype is not None, plane.path, plane.drops)


def merge_landscapes(folders: str | Path | Sequence[str | Path]) -> Landscape:
    """The landscape whose points lie in these folders, as shards left them; no model is needed.

    Raises SkipwayError where the folders are of different landscapes, or points are missing from all of them.
    """
    places = [Path(part).expanduser() for part in ([folders] if isinstance(folders, (str, Path)) else folders)]
    if not places:
        raise SkipwayError("give the folders in which the shards of a landscape left their points")
    manifest = read_manifest(places[0])
    if manifest.get("what") != "landscape":
        raise SkipwayError(
            f"'{places[0]}' holds no landscape, but a {manifest.get('what', 'measurement of another kind')}"
        )
    for place in places[1:]:
        other = read_manifest(place)
        if other != manifest:
            name = next(name for name in {**manifest, **other} if manifest.get(name) != other.get(name))
            raise SkipwayError(f"'{places[0]}' and '{place}' hold different landscapes: their {name} differs")
    axes = tuple(np.array(axis) for axis in manifest["axes"])
    count = int(np.prod([len(axis) for axis in axes]))
    columns = 2 * manifest["sets"] + manifest["checked"]
    values, measured = np.full((count, columns), np.nan), np.zeros(count, dtype=bool)
    for place in places:
        found, there = read_points(place, count, columns)
        values[there & ~measured] = found[there & ~measured]
        measured |= there
    if not measured.all():
        missing = np.flatnonzero(~measured)
        raise SkipwayError(
            f"{len(missing)} of {count} points are in none of these folders, the first number {missing[0]}: measure "
            "them first, by the same call with its shard, or name all folders"
        )
    path = None if manifest["path"] is None else np.array(manifest["path"])
    return _result(
        Policy(**manifest["policy"]), axes, manifest["facts"], values, measured, manifest["sets"], manifest["checked"],
        path, tuple(manifest["drops"]),
    )  # fmt: skip


def _manifest(
    task: LandscapeTask, policy: Policy, axes: tuple[np.ndarray, ...], facts: dict[str, Any]
) -> dict[str, Any]:
    plane = task.plane
    tensors = {**dict(task.model.named_parameters()), **dict(task.model.named_buffers())}
    data = [[[batch.args, batch.kwargs, batch.targets] for batch in batches] for batches in task.sets]
    return {
        "what": "landscape",
        "policy": vars(policy),
        "axes": [axis.tolist() for axis in axes],
        "sets": len(task.sets),
        "checked": task.dtype is not None,
        "weights": fingerprint([tensors]),
        "directions": fingerprint([plane.vectors, plane.centre]),
        "data": fingerprint(data),
        "calibration": None
        if task.calibration is None
        else fingerprint([[batch.args, batch.kwargs] for batch in task.calibration]),
        "facts": facts,
        "path": None if plane.path is None else plane.path.tolist(),
        "drops": list(plane.drops),
    }


def _result(
    policy: Policy, axes: tuple[np.ndarray, ...], facts: dict[str, Any], values: np.ndarray, measured: np.ndarray,
    sets: int, checked: bool, path: np.ndarray | None, drops: tuple[int, ...],
) -> Landscape:  # fmt: skip
    shape = tuple(len(axis) for axis in axes)
    columns = [np.ascontiguousarray(column).reshape(shape) for column in values.T]
    precision_error = None
    if checked:
        exact, low = values[::EVERY, -1], values[::EVERY, 0]
        usable = np.isfinite(exact) & np.isfinite(low) & (exact != 0)
        relative = np.abs(low[usable] / exact[usable] - 1)
        precision_error = (float(np.median(relative)), float(relative.max())) if relative.size else (np.nan, np.nan)
    return Landscape(
        policy=policy,
        kind=facts["kind"],
        loss_name=facts["loss_name"],
        normalize=facts["normalize"],
        labels=tuple(facts["labels"]),
        x=axes[0],
        y=axes[1] if len(axes) == 2 else None,
        loss=columns[0],
        error=columns[1],
        test_loss=columns[2] if sets == 2 else None,
        test_error=columns[3] if sets == 2 else None,
        measured=measured.reshape(shape),
        cosine=np.nan if facts["cosine"] is None else facts["cosine"],
        ignored=tuple(facts["ignored"]),
        way=facts["way"],
        precision_error=precision_error,
        path=path,
        drops=drops,
    )
