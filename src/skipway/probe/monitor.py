"""`GradientMonitor`: the flow of gradients over a whole training, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.graph.state import Inventory
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import following
from skipway.probe.result import Policy, Result
from skipway.probe.split import Splitter, Sums, empty_sums, splits

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class GradientHistory(Result):
    """Norms of the gradient over training: `steps`, and one row a step in everything else.

    `norms` and `weights` by parameter; `updates`, how far the parameter then moved over its norm (NaN where
    `after_step` was not called); `through_shortcut` and `through_branch` by skip (NaN where the forward pass was not
    watched).
    """

    parameters: tuple[str, ...]
    skips: tuple[str, ...]
    steps: np.ndarray
    norms: np.ndarray
    weights: np.ndarray
    updates: np.ndarray
    through_shortcut: np.ndarray
    through_branch: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        return f"Norm of the gradient over {len(self.steps)} training steps"

    def table(self) -> pandas.DataFrame:
        """One row a step and parameter."""
        import pandas

        steps, names = len(self.steps), len(self.parameters)
        return pandas.DataFrame({
            "step": np.repeat(self.steps, names), "parameter": list(self.parameters) * steps,
            "gradient": self.norms.ravel(), "weight": self.weights.ravel(), "update_to_weight": self.updates.ravel(),
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """One line a parameter from the first layer (dark) to the last (light): gradient, and update to weight."""
        moved = bool(np.isfinite(self.updates).any())
        with canvas(axes, self.caption, columns=2 if moved else 1, size=(11.0 if moved else 6.4, 4.6)) as drawn:
            import matplotlib as mpl

            panels = list(np.atleast_1d(drawn))
            colours = mpl.colormaps["viridis"](np.linspace(0, 0.95, max(len(self.parameters), 1)))
            for panel, values, title in zip(
                panels, (self.norms, self.updates), ("norm of the gradient", "update to weight"), strict=False
            ):
                for column, name in enumerate(self.parameters):
                    shown = np.where(values[:, column] > 0, values[:, column], np.nan)
                    ends = column in (0, len(self.parameters) - 1)
                    panel.plot(self.steps, shown, color=colours[column], label=name if ends else None, linewidth=1)
                panel.set(xlabel="step", ylabel=title, yscale="log")
            panels[0].legend(frameon=False, fontsize=8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """One line a parameter as a plotly figure."""
        import plotly.graph_objects as go

        lines = [
            go.Scatter(x=self.steps, y=self.norms[:, column], name=name, mode="lines")
            for column, name in enumerate(self.parameters)
        ]
        return plotly_figure(
            lines, self.caption, title="Gradients over training", xaxis_title="step",
            yaxis_title="norm of the gradient", yaxis_type="log",
        )  # fmt: skip


class GradientMonitor:
    """Measures gradients while a model trains. It reads what is there and changes nothing.

    Call `after_backward()` between `loss.backward()` and `optimizer.step()`, and `after_step()` behind it for the
    update-to-weight ratio. Run the forward pass inside `forward()` to see what came through shortcuts and branches
    (with the model's `graph`). `every` measures only each so many steps; `updates=False` does without the copy of the
    parameters that `after_step` compares with. `lightning()` is all but the split as a callback.

    >>> model = nn.Linear(2, 1); optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> monitor = GradientMonitor(model)
    >>> model(torch.ones(4, 2)).sum().backward(); monitor.after_backward()
    >>> optimizer.step(); monitor.after_step()
    >>> monitor.result().norms.round(3).tolist()
    [[5.657, 4.0]]
    """

    def __init__(self, model: nn.Module, graph: SkipGraph | None = None, every: int = 1, updates: bool = True):
        if every < 1:
            raise SkipwayError(f"every={every}: it measures each so many steps, at least 1")
        self.model, self.graph, self.every, self.updates = model, graph, every, updates
        self._parameters = dict(model.named_parameters())
        self._plan = splits(graph) if graph is not None else {}
        self._count = 0
        self._steps: list[int] = []
        self._rows: dict[str, list[np.ndarray]] = {name: [] for name in ("norms", "weights", "updates", "ways")}
        self._sums: list[Sums] | None = None
        self._before: list[Tensor] | None = None

    @property
    def due(self) -> bool:
        """Whether the step that now runs is measured."""
        return self._count % self.every == 0

    @contextmanager
    def forward(self) -> Iterator[None]:
        """Inside, the model's forward pass is watched, so that the gradient will be split at every skip."""
        if self.graph is None:
            raise SkipwayError("to split gradients at skips, the monitor needs graph=skipway.trace(model, inputs)")
        if not self.due or not torch.is_grad_enabled():
            yield
            return
        sums = self._sums = self._sums or empty_sums(self.graph)
        splitter = Splitter(Inventory.of(self.model), self.graph.trace, self._plan, sums)
        with following(splitter, gradient=True):
            yield

    def after_backward(self) -> None:
        """The gradients are there: measure them."""
        if not self.due:
            self._count += 1
            return
        self._steps.append(self._count)
        self._count += 1
        parameters = list(self._parameters.values())
        self._rows["norms"].append(_norms([parameter.grad for parameter in parameters]))
        self._rows["weights"].append(_norms(parameters))
        self._rows["updates"].append(np.full(len(parameters), np.nan))
        n = len(self.graph.skips) if self.graph is not None else 0
        ways = np.full((n, 2), np.nan)
        if self._sums is not None:
            ways = np.sqrt([[float(row[0]), float(row[1])] for row in self._sums]).reshape(n, 2)
        self._rows["ways"].append(ways)
        self._sums = None
        if self.updates:
            self._before = [parameter.detach().clone() for parameter in parameters]

    def after_step(self) -> None:
        """The optimizer has moved the parameters: measure how far. Only after a step that was measured."""
        if self._before is None:
            return
        moved = [now.detach() - before for now, before in zip(self._parameters.values(), self._before, strict=True)]
        weights = self._rows["weights"][-1]
        self._rows["updates"][-1] = _norms(moved) / np.where(weights > 0, weights, np.nan)
        self._before = None

    def result(self) -> GradientHistory:
        """All that was measured so far; raises SkipwayError where nothing was."""
        if not self._steps:
            raise SkipwayError("nothing was measured yet: call after_backward() once loss.backward() has run")
        rows = {name: np.stack(values) for name, values in self._rows.items()}
        dtype = str(next(iter(self._parameters.values())).dtype).removeprefix("torch.")
        policy = Policy(type(self.model).__name__, "train", "batch", 0, None, dtype)
        skips = tuple(str(skip.site) for skip in self.graph.skips) if self.graph is not None else ()
        return GradientHistory(
            policy, tuple(self._parameters), skips, np.array(self._steps), rows["norms"], rows["weights"],
            rows["updates"], rows["ways"][..., 0], rows["ways"][..., 1],
        )  # fmt: skip

    def lightning(self) -> Any:
        """A Lightning callback that measures after every backward pass and every step."""
        from lightning import Callback

        monitor = self

        class Monitor(Callback):
            def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
                monitor.after_backward()

            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                monitor.after_step()

        return Monitor()


def _norms(tensors: list[Any]) -> np.ndarray:
    """The norms of tensors, in one transfer; NaN where there is none."""
    found = [index for index, tensor in enumerate(tensors) if tensor is not None]
    norms = np.full(len(tensors), np.nan)
    if found:
        values = torch.stack([
            torch.linalg.vector_norm(tensors[index].detach().float()).to(tensors[found[0]].device) for index in found
        ])  # fmt: skip
        norms[found] = values.cpu().double().numpy()
    return norms
