"""`reuse`: how strongly each layer of a network that concatenates uses what each earlier one gave."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.graph.ir import Operation
from skipway.probe.batches import Batch, read_batches
from skipway.probe.capture import capture
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.reuse_slices import Target, find_targets, groups_of

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class Reuse(Result):
    """The strength with which `targets` (weight layers) use `sources` (what earlier ones gave), in the order they run.

    `strengths[target, source]` is the sum of the absolute weights on the source's channels over their number, NaN where
    the target does not read the source; `channels` are the channels of each source. Targets and sources that belong to
    one dense block are of one group (`target_groups`, `source_groups`); `leaving` says which targets lead out of it, as
    transitions and classifiers do. `folded` says whether the scale of the norm before the target is in the weights.
    """

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    strengths: np.ndarray
    channels: np.ndarray
    target_groups: np.ndarray
    source_groups: np.ndarray
    leaving: np.ndarray
    folded: bool

    @property
    def what(self) -> str:
        """What was measured."""
        scale = ", the norm's scale folded in" if self.folded else ""
        return f"Mean absolute weight on the channels of each earlier layer (L1 per input channel{scale})"

    def table(self) -> pandas.DataFrame:
        """One row a target and source that are connected."""
        import pandas

        rows, columns = np.nonzero(~np.isnan(self.strengths))
        return pandas.DataFrame({
            "group": self.target_groups[rows], "target": np.array(self.targets)[rows],
            "source": np.array(self.sources)[columns], "channels": self.channels[columns],
            "strength": self.strengths[rows, columns],
        })  # fmt: skip

    def heat_map(self, group: int) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
        """One group's strengths (a row a source, a column a target), its sources, its targets, which of these leave."""
        rows, columns = np.flatnonzero(self.source_groups == group), np.flatnonzero(self.target_groups == group)
        values = self.strengths[np.ix_(columns, rows)].T
        return values, [self.sources[r] for r in rows], [self.targets[c] for c in columns], self.leaving[columns]

    def plot(self, axes: Any = None) -> Any:
        """A triangular heat map for each group (Huang et al. 2017, figure 5); boxes mark layers that lead out of it.

        Every column is scaled by its strongest source, as columns differ more in the size of all weights than in use.
        """
        groups = sorted(set(self.target_groups.tolist()))
        with canvas(axes, self.caption, columns=len(groups), size=(1.2 + 4.3 * len(groups), 4.8)) as drawn:
            panels = np.atleast_1d(drawn)
            image = None
            for panel, group in zip(panels, groups, strict=True):
                values, _, _, leaving = self.heat_map(group)
                image = panel.imshow(
                    _scaled(values), cmap="jet", vmin=0, vmax=1, aspect="auto", interpolation="nearest"
                )
                for column in np.flatnonzero(leaving):
                    from matplotlib.patches import Rectangle

                    panel.add_patch(
                        Rectangle((column - 0.5, -0.5), 1, len(values), fill=False, edgecolor="black", linewidth=2)
                    )
                panel.set(xlabel="target layer", ylabel="source layer", title=f"Block {group + 1}")
            if image is not None and axes is None:
                panels[0].figure.colorbar(image, ax=list(panels), label="strength, over the column's strongest")
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The heat maps as one plotly figure, a menu to choose the block from."""
        import plotly.graph_objects as go

        groups = sorted(set(self.target_groups.tolist()))
        maps = []
        for number, group in enumerate(groups):
            values, sources, targets, _ = self.heat_map(group)
            maps.append(
                go.Heatmap(
                    z=values, x=list(range(len(targets))), y=list(range(len(sources))), colorscale="Jet",
                    customdata=[[f"{target} from {source}" for target in targets] for source in sources],
                    hovertemplate="%{customdata}: %{z:.3g}<extra></extra>", visible=number == 0,
                )
            )  # fmt: skip
        buttons = [
            {"label": f"Block {group + 1}", "method": "update", "args": [{"visible": [g == group for g in groups]}]}
            for group in groups
        ]
        figure = plotly_figure(
            maps, self.caption, title="Feature reuse", xaxis_title="target layer", yaxis_title="source layer",
            updatemenus=[{"buttons": buttons, "x": 1, "y": 1.15}],
        )  # fmt: skip
        figure.update_yaxes(autorange="reversed")
        return figure


def reuse(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = "cross_entropy", *,
    fold: bool = False, graph: SkipGraph | None = None,
) -> Reuse:  # fmt: skip
    """How strongly each layer uses what every earlier layer of its block gave.

    The heat map of Huang et al. 2017, "Densely Connected Convolutional Networks", arXiv:1608.06993, figure 5.
    Which channels of a layer's input come from where is read from the traced concatenations, so it takes any network
    that concatenates: DenseNets, U-Nets, Inception's modules. With `w` the layer's weights, the strength of a source
    with the channels S is `sum over c in S of sum |w[:, c]| / |S|`. A norm before the layer scales each channel, which
    the figure in the paper leaves out; `fold=True` multiplies its scale in (with running statistics, weight / sqrt(var
    + eps)). `data` is any batch that the model takes; the loss only says which part of a dictionary are targets.

    Raises SkipwayError where no layer reads a concatenation of channels.

    >>> class Dense(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a, self.b = nn.Linear(2, 3), nn.Linear(5, 4)
    ...     def forward(self, x): return self.b(torch.cat([x, self.a(x)], 1))
    >>> found = reuse(Dense(), (torch.zeros(1, 2), torch.zeros(1, dtype=torch.long)))
    >>> found.sources, found.channels.tolist()
    (('x', 'a:linear:0'), [2, 3])
    """
    batches = read_batches(model, data, loss, samples=2)
    with quiet(model, training=False):
        graph, targets, groups, tensors = with_trace(
            model, batches.items[0], graph, lambda found: _read(model, found, batches.items[0])
        )
    sources = sorted({value for target in targets for value, _ in target.slices})
    strengths = np.full((len(targets), len(sources)), np.nan)
    for row, target in enumerate(targets):
        sums = _by_channel(target, tensors, fold)
        start = 0
        for value, count in target.slices:
            column = sources.index(value)
            before = strengths[row, column]
            mean = float(sums[start : start + count].mean())
            strengths[row, column] = mean if np.isnan(before) else before + mean
            start += count
    counts = {value: count for target in targets for value, count in target.slices}
    group_of = {value: groups[target.operation.index] for target in targets for value, _ in target.slices}
    leaving = [
        not any(
            graph.flow.reach[value].all >> target.operation.results[0] & 1
            for value in sources if group_of[value] == groups[target.operation.index]
        )
        for target in targets
    ]  # fmt: skip
    return Reuse(
        batches.policy(model), tuple(str(target.operation.site) for target in targets),
        tuple(_name(graph, value) for value in sources), strengths, np.array([counts[value] for value in sources]),
        np.array([groups[target.operation.index] for target in targets]),
        np.array([group_of[value] for value in sources]),
        np.array(leaving, dtype=bool), fold,
    )  # fmt: skip


def _read(
    model: nn.Module, graph: SkipGraph, batch: Batch
) -> tuple[SkipGraph, list[Target], dict[int, int], dict[int, Tensor]]:
    """The layers that read concatenations, their groups, and the weights and norms of these layers."""
    targets = find_targets(graph)
    groups = groups_of(targets)
    targets = [target for target in targets if target.operation.index in groups]
    if not targets:
        raise SkipwayError(f"{graph.trace.model} has no layer that reads a concatenation of channels")
    wanted = {value for target in targets for value in _tensors_of(target)}
    tensors, _ = capture(model, graph, batch, wanted, gradient=False)
    return graph, targets, groups, tensors


def _tensors_of(target: Target) -> list[int]:
    found = [target.operation.value("weight")]
    if target.norm is not None:
        found += [target.norm.value("weight"), target.norm.value("running_var")]
    return [value for value in found if value is not None]


def _by_channel(target: Target, tensors: dict[int, Tensor], fold: bool) -> np.ndarray:
    """For each input channel of a layer the sum of the absolute weights on it."""
    operation = target.operation
    index = operation.value("weight")
    assert index is not None
    weight = tensors[index].detach().double().abs()
    if operation.name.startswith("conv_transpose"):
        sums = weight.flatten(1).sum(1)
    elif operation.name == "linear":
        sums = weight.sum(0)
    else:
        groups = int(operation.argument("groups", 1) or 1)
        sums = weight.flatten(2).sum(2).view(groups, -1, weight.shape[1]).sum(1).flatten()
    if fold and target.norm is not None:
        sums = sums * _scale(target.norm, tensors, len(sums)).to(sums.device)
    return sums.cpu().numpy()


def _scale(norm: Operation, tensors: dict[int, Tensor], channels: int) -> Tensor:
    """The factor by which a norm multiplies each channel."""
    scale = torch.ones(channels, dtype=torch.float64)
    weight, variance = norm.value("weight"), norm.value("running_var")
    if weight is not None:
        scale = tensors[weight].detach().double().abs().cpu()
    if variance is not None:
        scale = scale / (tensors[variance].double().cpu() + float(norm.argument("eps", 1e-5))).sqrt()
    return scale


def _name(graph: SkipGraph, value: int) -> str:
    found = graph.trace.values[value]
    made = graph.trace.operation_of(value)
    return found.name or "input" if made is None else str(made.site)


def _scaled(values: np.ndarray) -> np.ndarray:
    highest = np.nanmax(values, axis=0, keepdims=True)
    return values / np.where(highest > 0, highest, 1.0)
