"""`lesions`: what a trained network loses when parts of it are deleted or exchanged, and nothing is trained again."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph
from skipway.graph.state import Inventory
from skipway.probe.batches import Batch, Batches, read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import StaleTrace, run, with_trace
from skipway.probe.lesions_plan import blocks, exchanged, kendall_tau, shuffled, units, without_branches, without_units
from skipway.probe.losses import count_errors
from skipway.probe.plane import fingerprint
from skipway.probe.points import Values, measure_points
from skipway.probe.quiet import quiet
from skipway.probe.replay import Base, Change, replay
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class Lesions(Result):
    """Mean loss and error (share of the targets told wrong; NaN where they are no classes) of damaged networks.

    `base_loss` and `base_error` are the whole network's. One part deleted: `parts` (the sites of the merges, or of the
    layers), `resized` (whether the part changes the shape), `losses`, `errors`. Several deleted at random, one row each
    way drawn: `deleted` (how many), `deleted_losses`, `deleted_errors`. Blocks exchanged at random: `taus` (Kendall's
    rank correlation with the original order), `reordered_losses`, `reordered_errors`.
    """

    of: str
    base_loss: float
    base_error: float
    parts: tuple[str, ...]
    resized: np.ndarray
    losses: np.ndarray
    errors: np.ndarray
    deleted: np.ndarray
    deleted_losses: np.ndarray
    deleted_errors: np.ndarray
    taus: np.ndarray
    reordered_losses: np.ndarray
    reordered_errors: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        part = "the branch of a skip" if self.of == "skips" else "a layer"
        whole = self._text(self.base_error, self.base_loss)
        return f"Error without {part}, nothing trained again; the whole network's is {whole}"

    @staticmethod
    def _text(error: float, loss: float) -> str:
        return f"{100 * error:.2f} %" if error == error else f"unknown, its loss {loss:.4g}"

    def table(self, of: Literal["one", "several", "order"] = "one") -> pandas.DataFrame:
        """One row a deleted part, a random deletion of several, or a random order."""
        import pandas

        if choose("table", of, ("one", "several", "order")) == "one":
            return pandas.DataFrame({
                "part": self.parts, "resized": self.resized, "loss": self.losses, "error": self.errors,
                "added_loss": self.losses - self.base_loss, "added_error": self.errors - self.base_error,
            })  # fmt: skip
        if of == "several":
            return pandas.DataFrame({
                "deleted": self.deleted, "loss": self.deleted_losses, "error": self.deleted_errors,
            })  # fmt: skip
        return pandas.DataFrame({"tau": self.taus, "loss": self.reordered_losses, "error": self.reordered_errors})

    def _measure(self) -> tuple[str, float, dict[str, np.ndarray]]:
        """What is drawn: the error in per cent, or the loss where there is none."""
        if self.base_error == self.base_error:
            values = {"one": self.errors, "several": self.deleted_errors, "order": self.reordered_errors}
            return "error, %", 100 * self.base_error, {name: 100 * value for name, value in values.items()}
        values = {"one": self.losses, "several": self.deleted_losses, "order": self.reordered_losses}
        return "loss", self.base_loss, values

    def plot(self, axes: Any = None) -> Any:
        """A panel for each that was measured (Veit et al. 2016, figures 3 and 5): one deleted, several, order."""
        label, base, values = self._measure()
        panels = [name for name in ("one", "several", "order") if len(values[name]) or name == "one"]
        with canvas(axes, self.caption, columns=len(panels), size=(2 + 4.4 * len(panels), 4.4)) as drawn:
            for panel, name in zip(np.atleast_1d(drawn), panels, strict=True):
                panel.axhline(base, color="0.4", linestyle="--", linewidth=1, label="whole network")
                if name == "one":
                    numbers = np.arange(len(self.parts))
                    panel.plot(numbers, values[name], color="C0", marker=".", linewidth=1)
                    if self.resized.any():
                        panel.plot(
                            numbers[self.resized],
                            values[name][self.resized],
                            "o",
                            color="C3",
                            label="changes the shape",
                        )
                    panel.set(xlabel="deleted " + ("skip's branch" if self.of == "skips" else "layer"), ylabel=label)
                elif name == "several":
                    counts = sorted(set(self.deleted.tolist()))
                    panel.boxplot(
                        [values[name][self.deleted == count] for count in counts], positions=counts,
                        widths=[0.6] * len(counts), manage_ticks=False,
                    )  # fmt: skip
                    panel.set(xlabel="number deleted at random", ylabel=label)
                    panel.xaxis.get_major_locator().set_params(integer=True)
                else:
                    panel.plot(self.taus, values[name], ".", color="C0")
                    panel.invert_xaxis()
                    panel.set(xlabel="Kendall tau with the original order", ylabel=label)
                panel.set_ylim(0, 1.05 * max(float(panel.dataLim.y1), 1e-9))
                panel.legend(frameon=False, fontsize=8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The single deletions as a plotly figure."""
        import plotly.graph_objects as go

        label, base, values = self._measure()
        numbers = list(range(len(self.parts)))
        figure = plotly_figure(
            [go.Scatter(x=numbers, y=values["one"], text=list(self.parts), mode="lines+markers", name="without it")],
            self.caption, title="One part deleted", xaxis_title="part", yaxis_title=label,
            xaxis_dtick=max(1, len(numbers) // 10),
        )  # fmt: skip
        figure.add_hline(y=base, line_dash="dash", annotation_text="whole network")
        return figure


def lesions(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = None, *,
    of: Literal["skips", "layers"] | None = None, delete: Sequence[int] = (), reorder: Sequence[int] = (),
    repeats: int = 5, samples: int | None = None, seed: int = 0, graph: SkipGraph | None = None,
    folder: str | Path | None = None,
) -> Lesions:  # fmt: skip
    """Delete parts of a trained network, one at a time, and measure its loss and error (Veit et al. 2016, 1605.06431).

    Of a skip y = h(x) + F(x) the branch is deleted, y = h(x); where it merges by concatenation, its channels become
    zeros. What else the branch makes and others read (a position bias that all layers share) stays. Of a network
    without skips (or `of="layers"`), each layer that keeps its input's shape is, with the norm and activation behind
    it. `delete=(1, 2, 5)` also deletes so many at random, `reorder=(1, 2, 5)` exchanges so many random pairs of blocks
    that are alike in every shape, `repeats` times each. Weights and running statistics stay.

    What comes before the damage is computed once for all: n single deletions cost about n / 2 forward passes. Between
    them the streams at n places are held, so a batch takes about n times the memory of its stream.

    `data` and `loss` are as in `read_batches`. With `folder`, what is measured is kept there lesion by lesion, and the
    same call goes on where a run was stopped, to the same bits. Raises SkipwayError where there is nothing to delete or
    to exchange, or the folder holds other lesions.

    >>> import skipway as sw
    >>> net = sw.models.create("resnet20", num_classes=10, width=4)
    >>> found = lesions(net, (torch.randn(4, 3, 32, 32), torch.arange(4)), "cross_entropy", delete=(2, 3))
    >>> len(found.losses), len(found.deleted_losses)
    (9, 10)
    """
    batches = read_batches(model, data, loss, samples)
    if of is not None:
        choose("part", of, ("skips", "layers"))
    if repeats < 1:
        raise SkipwayError(f"repeats={repeats}: each random deletion is drawn at least once")
    policy = batches.policy(model, "eval", seed=seed)
    with quiet(model, training=False, seed=seed) as inventory:

        def damage(graph: SkipGraph) -> tuple[_Plan, np.ndarray]:
            plan = _plan(graph, of, delete, reorder, repeats, seed, inventory)
            task = _Task(model, batches, graph, inventory, plan.changes, seed)
            manifest = {} if folder is None else _manifest(task, plan, vars(policy))
            points = len(batches) * task.rows
            values, _ = measure_points(task, points, 3, title="lesions", manifest=manifest, folder=folder)
            return plan, _sums(values.reshape(len(batches), task.rows, 3), batches.shares())

        plan, sums = with_trace(model, batches.items[0], graph, damage)
    errors = sums[:, 1] / np.maximum(sums[:, 2], 1)
    first = 1 + len(plan.parts)
    second = first + len(plan.deleted)
    return Lesions(
        batches.policy(model, "eval", seed=seed if second < len(sums) or plan.deleted else None), plan.of,
        float(sums[0, 0]), float(errors[0]), tuple(plan.parts), np.array(plan.resized, dtype=bool),
        sums[1:first, 0], errors[1:first], np.array(plan.deleted, dtype=np.int64), sums[first:second, 0],
        errors[first:second], np.array(plan.taus, dtype=float), sums[second:, 0], errors[second:],
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Task:
    """Point by point, for each batch the whole network and each change: its loss, how many it tells wrong, of how many.

    The points of a batch follow one another, so that what they share is computed, and held, for one batch at a time.
    """

    model: nn.Module
    batches: Batches
    graph: SkipGraph
    inventory: Inventory
    changes: Sequence[Change]
    seed: int

    @property
    def rows(self) -> int:
        return len(self.changes) + 1

    def measure(self) -> Callable[[int], Values]:
        places = {change.begins(self.graph.trace) for change in self.changes}
        base: Base | None = None

        def first(batch: Batch) -> Any:
            nonlocal base
            base = Base(self.inventory, self.graph.trace, places, batch)
            torch.manual_seed(self.seed)
            return run(self.model, batch, base, gradient=False)

        def again(change: Change) -> Any:
            assert base is not None
            torch.manual_seed(self.seed)
            return replay(self.model, base, change)

        def values(point: int) -> Values:
            number, row = divmod(point, self.rows)
            batch = self.batches.items[number]
            if row == 0:
                output = first(batch)
            else:
                if base is None or base.batch is not batch:
                    first(batch)
                try:
                    output = again(self.changes[row - 1])
                except StaleTrace:
                    # The first run on such a batch may have filled a cache, which the next ones read.
                    first(batch)
                    output = again(self.changes[row - 1])
            with torch.no_grad():
                value = float(self.batches.loss(output, batch.targets))
            wrong, counted = count_errors(output, batch.targets) or (float("nan"), 1)
            return value, float(wrong), float(counted)

        return values


def _sums(values: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    """Mean loss, number told wrong and number of targets: a row for the whole network, and one for each change."""
    sums = np.zeros(values.shape[1:])
    for batch, share in zip(values, shares, strict=True):
        sums += batch * (share, 1.0, 1.0)
    return sums


def _manifest(task: _Task, plan: _Plan, policy: dict[str, Any]) -> dict[str, Any]:
    return {
        "what": "lesions",
        "policy": policy,
        "loss_name": task.batches.loss.name,
        "of": plan.of,
        "parts": plan.parts,
        "deleted": plan.deleted,
        "taus": plan.taus,
        "weights": fingerprint([dict(task.inventory.parameters), dict(task.inventory.buffers)]),
        "data": fingerprint([[batch.args, batch.kwargs, batch.targets] for batch in task.batches]),
    }


@dataclass(frozen=True)
class _Plan:
    """What is done to the network, in the order of `changes`: single deletions, several at once, other orders."""

    of: str
    parts: list[str]
    resized: list[bool]
    deleted: list[int]
    taus: list[float]
    changes: list[Change]


def _plan(
    graph: SkipGraph, of: str | None, delete: Sequence[int], reorder: Sequence[int], repeats: int, seed: int,
    inventory: Inventory,
) -> _Plan:  # fmt: skip
    of = of or ("skips" if graph.skips else "layers")
    parts, resized, single = _single(graph, of)
    generator = random.Random(seed)
    deleted = [count for count in delete for _ in range(repeats)]
    several = [_several(graph, of, count, generator, len(parts)) for count in deleted]
    tensors = dict((*inventory.parameters, *inventory.buffers))
    taus, orders = _orders(graph, tensors, reorder, repeats, generator)
    return _Plan(of, parts, resized, deleted, taus, [*single, *several, *orders])


def _single(graph: SkipGraph, of: str) -> tuple[list[str], list[bool], list[Change]]:
    """The parts that can be deleted: their names, whether they change the shape, and how to delete each."""
    if of == "layers":
        found = units(graph)
        if not found:
            raise SkipwayError(
                f"{graph.trace.model} has no layer that keeps the shape of its input: none can be deleted"
            )
        return [unit.name for unit in found], [False] * len(found), [without_units([unit]) for unit in found]
    if not graph.skips:
        raise SkipwayError(f"{graph.trace.model} has no skips; of='layers' deletes its layers")
    names = [str(skip.site) for skip in graph.skips]
    return names, [skip.source_shape != skip.shape for skip in graph.skips], [
        without_branches(graph, [skip]) for skip in graph.skips
    ]  # fmt: skip


def _several(graph: SkipGraph, of: str, count: int, generator: random.Random, n: int) -> Change:
    if not 1 <= count <= n:
        raise SkipwayError(f"delete={count}: this network has {n} {of} that can be deleted, so 1 to {n} of them")
    chosen = generator.sample(range(n), count)
    if of == "layers":
        found = units(graph)
        return without_units([found[index] for index in chosen])
    return without_branches(graph, [graph.skips[index] for index in chosen])


def _orders(
    graph: SkipGraph, tensors: dict[str, Tensor], swaps: Sequence[int], repeats: int, generator: random.Random
) -> tuple[list[float], list[Change]]:
    if not swaps:
        return [], []
    found = blocks(graph)
    if len({block.kind for block in found}) == len(found):
        raise SkipwayError(
            f"{graph.trace.model} has no two blocks that are alike in every shape: none can be exchanged"
        )
    taus, changes = [], []
    for count in swaps:
        if count < 1:
            raise SkipwayError(f"reorder={count}: how many pairs of blocks to exchange, at least 1")
        for _ in range(repeats):
            order = shuffled(found, count, generator)
            taus.append(kendall_tau(order))
            changes.append(exchanged(order, found, tensors))
    return taus, changes
