"""`gradients`: how the gradient of the real loss flows: by layer, by block, and past and through every skip."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph
from skipway.graph.ir import Trace
from skipway.graph.operations import weight_layers
from skipway.graph.state import Inventory
from skipway.probe.batches import Batches, read_batches
from skipway.probe.edges import parameters_of
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import differentiating, run, with_trace
from skipway.probe.gradient_findings import findings
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.split import Splitter, Sums, empty_sums, splits

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class Gradients(Result):
    """Norms (L2) of the gradient of the mean loss.

    By parameter, in the order in which the network uses them: `parameters`, `layers` (its number if it is the weight
    of a weight layer, else -1), `norms`, `weights` (the parameter's own norm) and `updates` (norm of one step of the
    optimizer over that, NaN where none was given). By block, the innermost modules that run several weight layers:
    `blocks`, `block_norms`, the norm over all parameters in it. By skip, at its source: `through_shortcut`,
    `through_branch`, `elsewhere` (by readers that are of neither), `whole`, the norm of the three together, and
    `cosines` between the first two. `findings` are sentences about what is wrong. NaN: no gradient was asked for.
    """

    loss: float
    parameters: tuple[str, ...]
    layers: np.ndarray
    norms: np.ndarray
    weights: np.ndarray
    updates: np.ndarray
    blocks: tuple[str, ...]
    block_norms: np.ndarray
    skips: tuple[str, ...]
    through_shortcut: np.ndarray
    through_branch: np.ndarray
    elsewhere: np.ndarray
    whole: np.ndarray
    cosines: np.ndarray
    findings: tuple[str, ...]

    @property
    def what(self) -> str:
        """What was measured."""
        return f"Norm of the gradient of the mean loss ({self.loss:.4g}) by weight layer and at every skip"

    def table(self, by: Literal["parameter", "block", "skip"] = "parameter") -> pandas.DataFrame:
        """One row a parameter, a block or a skip."""
        import pandas

        choose("table", by, ("parameter", "block", "skip"))
        if by == "parameter":
            return pandas.DataFrame({
                "parameter": self.parameters, "layer": self.layers, "gradient": self.norms, "weight": self.weights,
                "update_to_weight": self.updates,
            })  # fmt: skip
        if by == "block":
            return pandas.DataFrame({"block": self.blocks, "gradient": self.block_norms})
        return pandas.DataFrame({
            "skip": self.skips, "shortcut": self.through_shortcut, "branch": self.through_branch,
            "elsewhere": self.elsewhere, "whole": self.whole, "cosine": self.cosines,
        })  # fmt: skip

    def lines(self) -> dict[str, tuple[np.ndarray, np.ndarray, list[str]]]:
        """The two panels of the plot, each its lines by name: x, y and what each point is."""
        weights = self.layers >= 0
        names = [name for name, is_weight in zip(self.parameters, weights, strict=True) if is_weight]
        found = {"weight layers": (self.layers[weights], self.norms[weights], names)}
        numbers = np.arange(len(self.skips))
        for name, values in (
            ("through the shortcut", self.through_shortcut),
            ("through the branch", self.through_branch),
        ):
            found[name] = (numbers, values, list(self.skips))
        return found

    def plot(self, axes: Any = None) -> Any:
        """Norm against depth on a logarithmic scale: weight layers, and beside them the two ways at every skip."""
        return plot_gradients((self,), ("",), axes, self.caption)

    def interactive(self) -> plotly.graph_objects.Figure:
        """The plot as a plotly figure."""
        return interactive_gradients((self,), ("",), self.caption)


@dataclass(frozen=True, eq=False)
class GradientComparison(Result):
    """The gradients of several models on one scale: `names` and `results`, in one order."""

    names: tuple[str, ...]
    results: tuple[Gradients, ...]

    @property
    def what(self) -> str:
        """What was measured."""
        return f"Norm of the gradient by weight layer and at every skip: {' against '.join(self.names)}"

    def table(self, by: Literal["parameter", "block", "skip"] = "parameter") -> pandas.DataFrame:
        """The tables of all, one under the other, with the model's name in the first column."""
        import pandas

        tables = [result.table(by) for result in self.results]
        for name, table in zip(self.names, tables, strict=True):
            table.insert(0, "model", name)
        return pandas.concat(tables, ignore_index=True)

    def plot(self, axes: Any = None) -> Any:
        """All models in the same two panels, one colour each."""
        return plot_gradients(self.results, self.names, axes, self.caption)

    def interactive(self) -> plotly.graph_objects.Figure:
        """The plot as a plotly figure."""
        return interactive_gradients(self.results, self.names, self.caption)


def gradients(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = None, *,
    mode: Literal["train", "eval"] = "train", rate: float | torch.optim.Optimizer | None = None,
    samples: int | None = None, seed: int | None = 0, graph: SkipGraph | None = None,
) -> Gradients:  # fmt: skip
    """The gradient of the mean loss over the data: its norm by parameter and by block, and split at every skip.

    With s the source of a skip y = h(s) + F(s), the chain rule gives dL/ds = dL/dy h'(s) + dL/dy F'(s): the two terms
    are what came through the shortcut and through the branch. They are measured on their way, in one backward pass.

    `data` and `loss` are as in `read_batches`; over several batches the gradient is that of the mean over all samples
    (with batch statistics, BatchNorm's are each batch's own). `rate` is a learning rate, for the update-to-weight ratio
    of plain gradient descent, or an optimizer, for that of the step that it would take, which it does not. `graph` is
    the model's trace if there is one. Raises SkipwayError for data, losses and rates that are none.

    >>> import skipway as sw
    >>> net = sw.models.create("resnet20", num_classes=10, width=4)
    >>> found = gradients(net, (torch.randn(4, 3, 32, 32), torch.arange(4)), "cross_entropy", rate=0.1)
    >>> len(found.skips), len(found.norms), bool((found.whole > 0).all())
    (9, 59, True)
    """
    choose("mode", mode, ("train", "eval"))
    if isinstance(rate, (int, float)) and not rate > 0:
        raise SkipwayError(f"rate={rate}: a learning rate is greater than 0")
    batches = read_batches(model, data, loss, samples)
    with quiet(model, training=mode == "train", seed=seed) as inventory:
        mean, measured = with_trace(
            model, batches.items[0], graph, lambda found: _flow(model, batches, found, inventory, rate)
        )
    return Gradients(batches.policy(model, mode, seed=seed), mean, *measured)


def _flow(
    model: nn.Module, batches: Batches, graph: SkipGraph, inventory: Inventory,
    rate: float | torch.optim.Optimizer | None,
) -> tuple[float, tuple[Any, ...]]:  # fmt: skip
    """The mean loss, and all that is told of its gradient."""
    named = [(name, parameter) for name, parameter in inventory.parameters if parameter.requires_grad]
    wanted = [parameter for _, parameter in named]
    totals: list[Tensor | None] = [None] * len(wanted)
    plan, squares = splits(graph), empty_sums(graph)
    mean = 0.0
    for batch, share in zip(batches, batches.shares(), strict=True):
        splitter = Splitter(inventory, graph.trace, plan, squares)
        output = run(model, batch, splitter, gradient=True)
        with torch.enable_grad():
            value = batches.loss(output, batch.targets) * share
        mean += value.item()
        inputs = [*wanted, *splitter.leaves]
        if not value.requires_grad or not inputs:
            raise SkipwayError("the loss depends on no parameter that requires a gradient, and on no skip")
        try:
            with differentiating():
                found = torch.autograd.grad(value, inputs, allow_unused=True)[: len(wanted)]
        finally:
            splitter.release()
        totals = [_added(total, part) for total, part in zip(totals, found, strict=True)]
    by_name = {name: total for (name, _), total in zip(named, totals, strict=True)}
    return mean, measure(model, graph, by_name, squares, rate)


def compare_gradients(results: Sequence[Gradients], names: Sequence[str] | None = None) -> GradientComparison:
    """Gradients of several models side by side; `names` are by default those of the models.

    Raises SkipwayError where there is nothing to compare or the names do not fit.
    """
    names = [result.policy.model for result in results] if names is None else list(names)
    if len(results) < 2 or len(names) != len(results):
        raise SkipwayError(
            f"{len(results)} results and {len(names)} names: comparing takes at least two, and a name each"
        )
    return GradientComparison(results[0].policy, tuple(names), tuple(results))


def measure(
    model: nn.Module, graph: SkipGraph, found: dict[str, Tensor | None], squares: list[Sums],
    rate: float | torch.optim.Optimizer | None,
) -> tuple[Any, ...]:  # fmt: skip
    """The fields of `Gradients` behind its loss, from the gradients by parameter and the sums of a splitter."""
    parameters: dict[str, Tensor] = dict(model.named_parameters())
    order = [name for name in parameters_of(graph.trace, range(len(graph.trace.operations))) if name in parameters]
    order += [name for name in parameters if name not in set(order)]
    numbers = _layer_numbers(graph.trace)
    norms = _norms([found.get(name) for name in order], [name in found for name in order])
    weights = _norms([parameters[name] for name in order])
    updates = _updates(parameters, found, order, norms, rate) / np.where(weights > 0, weights, np.nan)
    layers = np.array([numbers.get(name, -1) for name in order], dtype=np.int64)
    members = blocks(graph.trace)
    of_name = dict(zip(order, norms, strict=True))
    block_norms = np.array([
        np.sqrt(np.nansum([of_name.get(name, np.nan) ** 2 for name in names])) for names in members.values()
    ])  # fmt: skip
    sums = np.array([[float(number) for number in row] for row in squares]).reshape(-1, 5)
    ways = np.sqrt(sums[:, :4])
    product = ways[:, 0] * ways[:, 1]
    cosines = np.divide(sums[:, 4], product, out=np.full(len(sums), np.nan), where=product > 0)
    skips = tuple(str(skip.site) for skip in graph.skips)
    told = findings(order, layers, norms, weights, updates)
    return (
        tuple(order), layers, norms, weights, updates, tuple(members), block_norms, skips,
        ways[:, 0], ways[:, 1], ways[:, 2], ways[:, 3], cosines, told,
    )  # fmt: skip


def blocks(trace: Trace) -> dict[str, tuple[str, ...]]:
    """The innermost modules that run several weight layers, each with the parameters it reads; all others by module."""
    found: dict[str, tuple[str, ...]] = {}
    counts = [weight_layers(operation, trace) for operation in trace.operations]
    taken: set[int] = set()
    for call in sorted(trace.calls, key=lambda call: call.stop - call.start):
        inside = range(call.start, call.stop)
        if sum(counts[index] for index in inside) > 1 and taken.isdisjoint(inside):
            taken.update(inside)
            found[call.module] = parameters_of(trace, inside)
    for operation in trace.operations:
        if operation.index not in taken and counts[operation.index]:
            found.setdefault(operation.site.module, parameters_of(trace, [operation.index]))
    first = {name: index for index, name in enumerate(parameters_of(trace, range(len(trace.operations))))}
    return dict(sorted(found.items(), key=lambda item: min((first[name] for name in item[1]), default=0)))


def _layer_numbers(trace: Trace) -> dict[str, int]:
    """The number of the weight layer that each weight belongs to, in the order of their first use."""
    numbers: dict[str, int] = {}
    count = 0
    for operation in trace.operations:
        if weight_layers(operation, trace):
            for name in parameters_of(trace, [operation.index]):
                if len(trace.parameters.get(name, ())) > 1:
                    numbers.setdefault(name, count)
            count += 1
    return numbers


def _added(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return total if part is None else part if total is None else total + part


def _norms(tensors: Sequence[Tensor | None], zero: Sequence[bool] | None = None) -> np.ndarray:
    """The norm of each; for None 0 where `zero` says so, else NaN; infinite where one holds NaN."""
    norms = np.array([0.0 if zero is not None and zero[place] else np.nan for place in range(len(tensors))])
    there = [(place, tensor.detach()) for place, tensor in enumerate(tensors) if tensor is not None]
    values = [tensor.coalesce().values() if tensor.is_sparse else tensor for _, tensor in there]
    values = [tensor.float() if tensor.element_size() < 4 else tensor for tensor in values]
    if values:
        found = np.array([float(norm) for norm in torch._foreach_norm(values)])  # pyright: ignore[reportPrivateImportUsage]
        norms[[place for place, _ in there]] = np.where(np.isnan(found), np.inf, found)
    return norms


def _updates(
    parameters: dict[str, Tensor], found: dict[str, Tensor | None], order: list[str], norms: np.ndarray,
    rate: float | torch.optim.Optimizer | None,
) -> np.ndarray:  # fmt: skip
    """The norm of the step that each parameter would take."""
    if rate is None:
        return np.full(len(order), np.nan)
    if not isinstance(rate, torch.optim.Optimizer):
        return rate * norms
    # On a copy of the optimizer with its parameters and its memory: neither the model nor the optimizer is touched.
    twin = copy.deepcopy(rate)
    names = {id(parameter): name for name, parameter in parameters.items()}
    pairs = [
        (names.get(id(parameter), ""), parameter, copied)
        for group, copies in zip(rate.param_groups, twin.param_groups, strict=True)
        for parameter, copied in zip(group["params"], copies["params"], strict=True)
    ]
    if not any(name for name, _, _ in pairs):
        raise SkipwayError("the optimizer given as rate= holds none of this model's parameters")
    for name, _, copied in pairs:
        copied.grad = found.get(name)
    # A learning-rate scheduler puts a step of the original in the copy's place: the class's own is called.
    type(twin).step(twin)
    moved = _norms([copied.detach() - parameter.detach() for _, parameter, copied in pairs])
    steps = dict(zip((name for name, _, _ in pairs), moved, strict=True))
    return np.array([steps.get(name, np.nan) for name in order])


def plot_gradients(results: Sequence[Gradients], names: Sequence[str], axes: Any, caption: str) -> Any:
    """Draw the two panels for one model or several."""
    skips = any(len(result.skips) for result in results)
    with canvas(axes, caption, columns=2 if skips else 1, size=(10.5 if skips else 6.4, 4.6)) as drawn:
        panels = list(np.atleast_1d(drawn))
        for number, (result, name) in enumerate(zip(results, names, strict=True)):
            for line, (x, y, _) in result.lines().items():
                if not len(x):
                    continue
                panel = panels[0] if line == "weight layers" else panels[-1]
                dashed = line == "through the branch"
                colour = f"C{number}" if len(results) > 1 else ("C0" if not dashed else "C1")
                label = name if line == "weight layers" else f"{name}: {line}" if name else line
                panel.plot(
                    x, np.where(y > 0, y, np.nan), "--" if dashed else "-", marker=".", color=colour, label=label
                )
        panels[0].set(xlabel="weight layer", ylabel="norm of the gradient", yscale="log", title="Weight layers")
        if skips:
            panels[1].set(xlabel="skip", yscale="log", title="At the source of every skip")
        for panel in panels:
            if panel.get_legend_handles_labels()[1] not in ([], [""]):
                panel.legend(frameon=False)
    return drawn


def interactive_gradients(
    results: Sequence[Gradients], names: Sequence[str], caption: str
) -> plotly.graph_objects.Figure:
    """The lines of one model or several in one plotly figure."""
    import plotly.graph_objects as go

    lines = [
        go.Scatter(x=x, y=y, text=texts, mode="lines+markers", name=f"{name} {line}".strip())
        for result, name in zip(results, names, strict=True) for line, (x, y, texts) in result.lines().items()
    ]  # fmt: skip
    return plotly_figure(
        lines, caption, title="Gradient flow", xaxis_title="weight layer or skip", yaxis_title="norm of the gradient",
        yaxis_type="log",
    )  # fmt: skip
