"""Probes on the networks that a study trained: run, kept as files, and summed up as measures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway import probe
from skipway.errors import SkipwayError, choose
from skipway.probe import Result
from skipway.study.tasks.classification import Classification
from skipway.study.tasks.task import Task

# What a study may run on each network; those that compare several networks or trainings are not among them.
PROBES = (
    "gradients", "responses", "paths", "lesions", "landscape", "curvature", "curvature_map", "reuse", "shattering",
    "singularities", "collisions", "symmetry_breaking", "symmetry_plane",
)  # fmt: skip
# Of more samples every probe takes longer, and none says more.
_SAMPLES = 256


def check_probes(asked: Sequence[Any]) -> None:
    """Raise SkipwayError for a probe that is none, or an argument that it does not take."""
    for one in asked:
        name, settings = read_probe(one)
        choose("probe of a study", name, PROBES)
        allowed = [key for key in inspect.signature(getattr(probe, name)).parameters if key not in _SETTLED]
        for key in settings:
            choose(f"argument of the probe '{name}'", key, allowed)
        if isinstance(one, Mapping):
            choose("seeds of a probe", one.get("seeds", "first"), ("first", "all"))


def read_probe(asked: Any) -> tuple[str, dict[str, Any]]:
    """The name and the arguments of a probe as a study declares it.

    >>> read_probe("gradients"), read_probe({"name": "landscape", "steps": 21})
    (('gradients', {}), ('landscape', {'steps': 21}))
    """
    if isinstance(asked, str):
        return asked, {}
    if not isinstance(asked, Mapping) or "name" not in asked:
        raise SkipwayError(f'a probe is a name, or a table such as {{name = "landscape", steps = 21}}; not {asked!r}')
    return str(asked["name"]), {key: value for key, value in asked.items() if key not in ("name", "seeds")}


def probes_of(asked: Sequence[Any], first: bool) -> list[Any]:
    """Those of a study's probes that are run on the networks of a seed, which is its first or a further one.

    The first seed's networks stand for the others', unless a probe says `seeds = "all"`.

    >>> probes_of(["gradients", {"name": "singularities", "seeds": "all"}], first=False)
    [{'name': 'singularities', 'seeds': 'all'}]
    """
    return [one for one in asked if first or (isinstance(one, Mapping) and one.get("seeds") == "all")]


def run_probe(name: str, settings: Mapping[str, Any], network: nn.Module, task: Task) -> Result:
    """Measure a trained network on examples of its task."""
    data, loss = examples(task, int(settings.get("samples") or _SAMPLES))
    function = getattr(probe, name)
    given = dict(settings)
    if "samples" in inspect.signature(function).parameters:
        given.setdefault("samples", _SAMPLES)
    return function(network, data, loss, **given)


def examples(task: Task, samples: int) -> tuple[tuple[Tensor, Tensor], str]:
    """A batch of a task's examples as probes take it, and the loss; of images in classes, those held out."""
    order = torch.randperm(task.count, generator=torch.Generator().manual_seed(0))[:samples]
    if isinstance(task, Classification):
        held_out = task.images
        order = torch.randperm(len(held_out.test_labels), generator=torch.Generator().manual_seed(0))[:samples]
        return (task.normalise(held_out.test_images[order]), held_out.test_labels[order]), "cross_entropy"
    if task.kind == "segmentation":
        pixels, masks = task.batch(order, order)
        inputs = task.normalise(pixels)  # pyright: ignore[reportAttributeAccessIssue]
        if task.logits == 1:  # pyright: ignore[reportAttributeAccessIssue]
            return (inputs, masks[:, None].float()), "binary_cross_entropy"
        return (inputs, masks), "cross_entropy"
    if task.kind == "language":
        tokens, following = task.batch(order, order)
        return (tokens, following), "cross_entropy"
    raise SkipwayError(f"probes of a study are for networks of one input; leave them out for {task.kind}")


def probe_path(folder: Path, trial_id: str, name: str) -> Path:
    """Where a study keeps what a probe found in a trial's network."""
    return folder / "probes" / trial_id / f"{name}.npz"


def sums(result: Result) -> dict[str, float]:
    """What a result comes down to, as measures that trials can be compared by; empty where no number sums it up."""
    found = _SUMS.get(type(result).__name__)
    return {} if found is None else {name: float(value) for name, value in found(result).items()}


def _gradients(result: Any) -> dict[str, float]:
    layers = result.norms[result.layers >= 0]
    layers = layers[np.isfinite(layers) & (layers > 0)]
    return {"gradient_range": layers.max() / layers.min()} if len(layers) else {}


def _lesions(result: Any) -> dict[str, float]:
    if not len(result.parts):
        return {}
    return {"lesion_error": np.median(result.errors), "lesion_loss": np.median(result.losses)}


def _landscape(result: Any) -> dict[str, float]:
    return {"roughness": probe.contour_roughness(result.loss)} if result.loss.ndim == 2 else {}


def _curvature(result: Any) -> dict[str, float]:
    return {"sharpness": result.top[0, 0]} if result.top.shape[1] else {}


def _singularities(result: Any) -> dict[str, float]:
    return {
        "overlap": result.overlap.mean(), "inactive": result.inactive.mean(), "dependence": result.dependence.mean(),
    }  # fmt: skip


def _collisions(result: Any) -> dict[str, float]:
    """Directions in which the loss is flat where two units are made one, beyond those that were flat before."""
    return {"flat_directions": float(result.output_zeros[1] - result.output_zeros[0])}


def _symmetry_breaking(result: Any) -> dict[str, float]:
    with_skips, _, without = result.collisions
    return {
        "flat_directions": _collisions(with_skips)["flat_directions"],
        "flat_directions_plain": _collisions(without)["flat_directions"],
        "overlap": result.singularities[0].overlap.mean(),
        "overlap_plain": result.singularities[1].overlap.mean(),
    }


_SETTLED = ("model", "data", "loss", "graph", "folder", "workers", "engine", "shard", "plain", "test", "calibration")
_SUMS: dict[str, Callable[[Any], dict[str, float]]] = {
    "Gradients": _gradients,
    "Responses": lambda result: {"response": np.median(result.ratios)} if len(result.skips) else {},
    "Lesions": _lesions,
    "Landscape": _landscape,
    "Curvature": _curvature,
    "Singularities": _singularities,
    "Collisions": _collisions,
    "SymmetryBreaking": _symmetry_breaking,
    "Shattering": lambda result: {"gradient_correlation": result.correlation},
}
