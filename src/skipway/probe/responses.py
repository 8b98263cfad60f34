"""`responses`: how strongly layers and branches respond, and what they do to the stream that they are added to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError, choose
from skipway.graph import SkipGraph
from skipway.graph.ir import Operation
from skipway.graph.operations import Passage, weight_layers
from skipway.graph.state import Inventory
from skipway.probe.batches import read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import Follower, overwritten, run, with_trace
from skipway.probe.quiet import quiet
from skipway.probe.result import Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class Responses(Result):
    """How strongly a network responds, layer by layer and skip by skip.

    By weight layer, in the order in which they run: `layers` (its site), `layer_std`, the standard deviation of its
    output over samples, channels and positions, after the norm that follows it if one does and before anything else,
    and `inside`, whether it lies in the branch of a skip. By skip: `skips`, `branch_std`, that of what the branch gives
    to the merge; `ratios`, the mean over samples of |F(x)| / |h(x)|, branch over shortcut; `cosines`, the mean over
    samples of the cosine between the stream before and after the merge; `stream_std` of the stream after it, and
    `source_std` of the skip's source.
    """

    layers: tuple[str, ...]
    layer_std: np.ndarray
    inside: np.ndarray
    skips: tuple[str, ...]
    branch_std: np.ndarray
    ratios: np.ndarray
    cosines: np.ndarray
    stream_std: np.ndarray
    source_std: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        return "Standard deviation of layer responses after the norm and before the activation or sum"

    @property
    def growth(self) -> np.ndarray:
        """The variance of the stream after each merge, over that at the source of the first skip."""
        return self.stream_std**2 / self.source_std[:1] ** 2

    def table(self, by: Literal["layer", "skip"] = "layer") -> pandas.DataFrame:
        """One row a weight layer or a skip."""
        import pandas

        if choose("table", by, ("layer", "skip")) == "layer":
            return pandas.DataFrame({"layer": self.layers, "std": self.layer_std, "in_branch": self.inside})
        return pandas.DataFrame({
            "skip": self.skips, "branch_std": self.branch_std, "branch_to_shortcut": self.ratios,
            "cosine": self.cosines, "stream_std": self.stream_std, "growth": self.growth,
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Two panels (He et al. 2015, figure 7): the responses by layer, and sorted by magnitude."""
        return _plot((self,), ("",), axes, self.caption)

    def plot_stream(self, axes: Any = None) -> Any:
        """Three panels by skip: branch over shortcut, cosine of the stream in and out, growth of its variance."""
        numbers = np.arange(len(self.skips))
        with canvas(axes, self.caption, columns=3, size=(12.0, 4.0)) as drawn:
            for panel, values, title in zip(
                drawn, (self.ratios, self.cosines, self.growth),
                ("|F(x)| / |h(x)|", "cosine of the stream in and out", "variance of the stream, first source = 1"),
                strict=True,
            ):  # fmt: skip
                panel.plot(numbers, values, marker=".")
                panel.set(xlabel="skip", title=title)
            drawn[2].set_yscale("log")
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The responses by layer as a plotly figure."""
        return _interactive((self,), ("",), self.caption)


@dataclass(frozen=True, eq=False)
class ResponseComparison(Result):
    """The responses of several networks on one scale: `names` and `results`, in one order."""

    names: tuple[str, ...]
    results: tuple[Responses, ...]

    @property
    def what(self) -> str:
        """What was measured."""
        return f"Standard deviation of layer responses: {' against '.join(self.names)}"

    def table(self, by: Literal["layer", "skip"] = "layer") -> pandas.DataFrame:
        """The tables of all, one under the other, with the network's name in the first column."""
        import pandas

        tables = [result.table(by) for result in self.results]
        for name, table in zip(self.names, tables, strict=True):
            table.insert(0, "model", name)
        return pandas.concat(tables, ignore_index=True)

    def plot(self, axes: Any = None) -> Any:
        """The two panels of figure 7: networks without skips dashed, those with skips solid."""
        return _plot(self.results, self.names, axes, self.caption)

    def interactive(self) -> plotly.graph_objects.Figure:
        """The responses by layer as a plotly figure."""
        return _interactive(self.results, self.names, self.caption)


def responses(
    model: nn.Module, data: Any, loss: str | Callable[[Any, Any], Tensor] | None = "cross_entropy", *,
    mode: Literal["train", "eval"] = "eval", samples: int | None = None, graph: SkipGraph | None = None,
) -> Responses:  # fmt: skip
    """How strongly every weight layer and every branch of a network responds to data.

    For plain networks and for those with skips: He et al. 2015, arXiv:1512.03385, figure 7, found that residual
    branches respond less than plain layers do, and less the deeper the network is. In training mode BatchNorm fixes
    every channel's deviation to its own learned scale, so the default is evaluation mode. `data` and `loss` are as in
    `read_batches`; the loss only says which part of a dictionary are targets.

    >>> import skipway as sw
    >>> net = sw.models.create("resnet20", num_classes=10, width=4)
    >>> found = responses(net, (torch.randn(4, 3, 32, 32), torch.arange(4)))
    >>> len(found.layers), len(found.skips), bool((found.cosines <= 1).all())
    (20, 9, True)
    """
    choose("mode", mode, ("train", "eval"))
    batches = read_batches(model, data, loss, samples)
    with quiet(model, training=mode == "train", seed=0) as inventory:

        def listen(graph: SkipGraph) -> tuple[SkipGraph, list[tuple[Operation, int]], _Listener]:
            answers = _answers(graph)
            listener: _Listener | None = None
            for batch in batches:
                listener = _Listener(inventory, graph, answers, batch.samples, listener)
                run(model, batch, listener, gradient=False)
            assert listener is not None
            return graph, answers, listener

        graph, answers, listener = with_trace(model, batches.items[0], graph, listen)
    std = {value: moments.std for value, moments in listener.moments.items()}
    inside = {index for skip in graph.skips for index in skip.branch_operations}
    unknown = float("nan")
    return Responses(
        batches.policy(model, mode),
        tuple(str(operation.site) for operation, _ in answers),
        np.array([std.get(value, unknown) for _, value in answers]),
        np.array([operation.index in inside for operation, _ in answers], dtype=bool),
        tuple(str(skip.site) for skip in graph.skips),
        np.array([listener.branches[skip.index].std for skip in graph.skips]),
        np.array([listener.ratios[skip.index].mean for skip in graph.skips]),
        np.array([listener.cosines[skip.index].mean for skip in graph.skips]),
        np.array([std.get(graph.trace.operations[skip.merge].results[0], unknown) for skip in graph.skips]),
        np.array([std.get(skip.source, unknown) for skip in graph.skips]),
    )


def compare_responses(results: Sequence[Responses], names: Sequence[str] | None = None) -> ResponseComparison:
    """Responses of several networks side by side; `names` are by default those of the models.

    Raises SkipwayError where there is nothing to compare or the names do not fit.
    """
    names = [result.policy.model for result in results] if names is None else list(names)
    if len(results) < 2 or len(names) != len(results):
        raise SkipwayError(
            f"{len(results)} results and {len(names)} names: comparing takes at least two, and a name each"
        )
    return ResponseComparison(results[0].policy, tuple(names), tuple(results))


def _answers(graph: SkipGraph) -> list[tuple[Operation, int]]:
    """Every weight layer that passes a signal on, and the value that is its response: after its norm if it has one."""
    trace, flow = graph.trace, graph.flow
    found = []
    for operation in trace.operations:
        if not weight_layers(operation, trace) or not operation.results:
            continue
        value = operation.results[0]
        if not trace.values[value].signal:
            continue
        readers = flow.readers[value]
        if len(readers) == 1 and Passage.NORM in flow.passages[readers[0]]:
            value = trace.operations[readers[0]].results[0]
        found.append((operation, value))
    return found


class _Moments:
    """Count, mean and sum of squared deviations, joined batch by batch (Chan, Golub and LeVeque 1979)."""

    def __init__(self):
        self.count, self._mean, self.square = 0, 0.0, 0.0

    @property
    def mean(self) -> float:
        return self._mean if self.count else float("nan")

    def add(self, tensor: Tensor) -> None:
        n = tensor.numel()
        if not n:
            return
        values = tensor.float() if tensor.element_size() < 4 else tensor
        variance, mean = (part.item() for part in torch.var_mean(values, correction=0))
        total = self.count + n
        shift = mean - self._mean
        self.square += variance * n + shift**2 * self.count * n / total
        self._mean += shift * n / total
        self.count = total

    @property
    def std(self) -> float:
        return (self.square / self.count) ** 0.5 if self.count else float("nan")


class _Listener(Follower):
    """Measures what is asked for as soon as it exists, so that no more is kept than the model itself keeps."""

    def __init__(
        self, inventory: Inventory, graph: SkipGraph, answers: list[tuple[Operation, int]], samples: int,
        before: _Listener | None,
    ):  # fmt: skip
        super().__init__(inventory, graph.trace)
        self.moments: dict[int, _Moments] = before.moments if before else {}
        self.branches = before.branches if before else [_Moments() for _ in graph.skips]
        self.ratios = before.ratios if before else [_Moments() for _ in graph.skips]
        self.cosines = before.cosines if before else [_Moments() for _ in graph.skips]
        self._graph, self._samples = graph, samples
        self._wanted = {value for _, value in answers} | {skip.source for skip in graph.skips}
        self._wanted |= {graph.trace.operations[skip.merge].results[0] for skip in graph.skips}
        self._branches: dict[int, list[int]] = {}
        self._kept: dict[int, Tensor] = {}
        self._last: dict[int, int] = {}
        self._norms: dict[int, Tensor] = {}
        for skip in graph.skips:
            for value in skip.branches:
                self._branches.setdefault(value, []).append(skip.index)
            for value in (skip.source, skip.carried):
                self._last[value] = max(self._last.get(value, 0), skip.merge)
        self._merges: dict[int, list[int]] = {}
        for skip in graph.skips:
            self._merges.setdefault(graph.trace.operations[skip.merge].results[0], []).append(skip.index)
        self._fragile = overwritten(graph.trace)
        self._met: set[int] = set()

    def read(self, operation: Operation, operands: list[Tensor]) -> list[Tensor]:
        for value, tensor in zip(operation.operands, operands, strict=True):
            if self.trace.values[value].producer is None and value not in self._met:
                self._meet(value, tensor)
        return operands

    def made(self, operation: Operation, results: list[Tensor]) -> list[Tensor]:
        for value, tensor in zip(operation.results, results, strict=False):
            self._meet(value, tensor)
        return results

    def _meet(self, value: int, tensor: Tensor) -> None:
        self._met.add(value)
        if not tensor.is_floating_point():
            return
        if value in self._wanted:
            self.moments.setdefault(value, _Moments()).add(tensor)
        if value in self._branches:
            self._norms[value] = self._by_sample(tensor).norm(dim=1)
            for skip in self._branches[value]:
                self.branches[skip].add(tensor)
        if value in self._last:
            self._kept[value] = tensor.clone() if value in self._fragile else tensor
        for skip in self._merges.get(value, ()):
            self._merge(skip, tensor)
        if value in self._merges:
            producer = self.trace.values[value].producer or 0
            for kept in [kept for kept, last in self._last.items() if last <= producer]:
                self._kept.pop(kept, None)

    def _merge(self, index: int, result: Tensor) -> None:
        skip = self._graph.skips[index]
        carried, source = self._kept.get(skip.carried), self._kept.get(skip.source)
        norms = [self._norms[value] for value in skip.branches if value in self._norms]
        if carried is not None and norms:
            branch = torch.stack(norms).square().sum(0).sqrt() if len({len(norm) for norm in norms}) == 1 else norms[0]
            shortcut = self._by_sample(carried).norm(dim=1)
            if branch.shape == shortcut.shape:
                self.ratios[index].add(branch / shortcut)
        entering = source if source is not None and source.shape == result.shape else carried
        if entering is not None and entering.shape == result.shape:
            pair = self._by_sample(entering), self._by_sample(result)
            self.cosines[index].add(torch.cosine_similarity(*pair, dim=1))

    def _by_sample(self, tensor: Tensor) -> Tensor:
        """One row a sample; a tensor that is not by samples is one row."""
        values = tensor.float() if tensor.element_size() < 4 else tensor
        by_sample = values.ndim > 1 and values.shape[0] == self._samples
        return values.flatten(1) if by_sample else values.reshape(1, -1)


def _plot(results: Sequence[Responses], names: Sequence[str], axes: Any, caption: str) -> Any:
    with canvas(axes, caption, rows=2, size=(7.2, 7.0)) as drawn:
        above, below = drawn
        for number, (result, name) in enumerate(zip(results, names, strict=True)):
            style = {"linestyle": "-" if result.skips else "--", "color": f"C{number}", "label": name, "marker": "."}
            above.plot(np.arange(len(result.layers)), result.layer_std, **style)
            below.plot(np.arange(len(result.layers)), -np.sort(-result.layer_std), **style)
        above.set(xlabel="layer, in order", ylabel="std of the response", yscale="log")
        below.set(xlabel="layer, sorted by magnitude", ylabel="std of the response", yscale="log")
        if any(names):
            above.legend(frameon=False)
    return drawn


def _interactive(results: Sequence[Responses], names: Sequence[str], caption: str) -> plotly.graph_objects.Figure:
    import plotly.graph_objects as go

    lines = [
        go.Scatter(
            x=np.arange(len(result.layers)), y=result.layer_std, text=list(result.layers), name=name,
            mode="lines+markers", line={"dash": "solid" if result.skips else "dash"},
        )
        for result, name in zip(results, names, strict=True)
    ]  # fmt: skip
    return plotly_figure(lines, caption, title="Layer responses", xaxis_title="layer", yaxis_title="std")
