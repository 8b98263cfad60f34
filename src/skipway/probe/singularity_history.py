"""`SingularityMonitor`: the singularities of a net over a whole training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.probe.batches import read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.singularities import Singularities, singularities

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

_SHOWN = (("overlap", "mean largest cosine"), ("inactive", "inactive units, share"), ("dependence", "1 - rank / width"))


@dataclass(frozen=True, eq=False)
class SingularityHistory(Result):
    """Singularities by training step: `steps`, and (steps, layers) in everything else, as in `Singularities`."""

    layers: tuple[str, ...]
    steps: np.ndarray
    overlap: np.ndarray
    incoming: np.ndarray
    outgoing: np.ndarray
    inactive: np.ndarray
    dependence: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        return (
            f"Singularities of {len(self.layers)} layers over training, steps {self.steps[0]} to {self.steps[-1]}: "
            f"mean overlap {self.overlap[0].mean():.2f} to {self.overlap[-1].mean():.2f}, linear dependence "
            f"{self.dependence[0].mean():.2f} to {self.dependence[-1].mean():.2f}"
        )

    def table(self) -> pandas.DataFrame:
        """One row a step and layer."""
        import pandas

        count = len(self.layers)
        return pandas.DataFrame({
            "step": np.repeat(self.steps, count), "layer": list(self.layers) * len(self.steps),
            "overlap": self.overlap.ravel(), "incoming near 0": self.incoming.ravel(),
            "outgoing near 0": self.outgoing.ravel(), "inactive": self.inactive.ravel(),
            "linear dependence": self.dependence.ravel(),
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Three panels: overlap, inactive units and linear dependence by step, a line a layer, their mean black."""
        with canvas(axes, self.caption, columns=3, size=(13.0, 4.2)) as drawn:
            import matplotlib as mpl

            colours = mpl.colormaps["viridis"](np.linspace(0, 0.95, max(len(self.layers), 1)))
            for panel, (name, label) in zip(drawn, _SHOWN, strict=True):
                values = getattr(self, name)
                for number, layer in enumerate(self.layers):
                    ends = number in (0, len(self.layers) - 1)
                    panel.plot(self.steps, values[:, number], color=colours[number], linewidth=1,
                               label=layer if ends else None)  # fmt: skip
                panel.plot(self.steps, values.mean(1), color="black", linewidth=2, label="mean")
                panel.set(xlabel="step", ylabel=label)
            drawn[0].legend(frameon=False, fontsize=8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The means over layers as a plotly figure."""
        import plotly.graph_objects as go

        lines = [go.Scatter(x=self.steps, y=getattr(self, name).mean(1), name=label, mode="lines+markers")
                 for name, label in _SHOWN]  # fmt: skip
        return plotly_figure(
            lines, self.caption, title="Singularities over training", xaxis_title="step", yaxis_title=""
        )


class SingularityMonitor:
    """Measures the singularities of a model on the same data while it trains, and changes nothing.

    Call `after_step()` after every `optimizer.step()`; it measures each `every` steps, in evaluation mode, the first
    time when it is made. `lightning()` is the same as a callback.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> monitor = SingularityMonitor(model, (torch.randn(16, 3), torch.zeros(16, dtype=torch.long)), every=2)
    >>> for _ in range(4): monitor.after_step()
    >>> monitor.result().steps.tolist()
    [0, 2, 4]
    """

    def __init__(
        self, model: nn.Module, data: Any, loss: Any = "cross_entropy", *, every: int = 10, small: float = 0.01,
        samples: int | None = 256, graph: SkipGraph | None = None,
    ):  # fmt: skip
        if every < 1:
            raise SkipwayError(f"every={every}: it measures each so many steps, at least 1")
        self.model, self.every = model, every
        batches = read_batches(model, data, loss, samples)
        self._loss, self._small = batches.loss, small
        self._data = [((batch.kwargs if batch.kwargs else batch.args), batch.targets) for batch in batches]
        if graph is None:
            with quiet(model):
                graph = trace(model, *batches.items[0].args, **batches.items[0].kwargs)
        self._graph = graph
        self._count = 0
        self._found: list[tuple[int, Singularities]] = []
        self._measure()

    def after_step(self) -> None:
        """The optimizer has moved the parameters."""
        self._count += 1
        if self._count % self.every == 0:
            self._measure()

    def result(self) -> SingularityHistory:
        """All that was measured so far."""
        found = [one for _, one in self._found]
        parts = {name: np.stack([getattr(one, name) for one in found])
                 for name in ("overlap", "incoming", "outgoing", "inactive", "dependence")}  # fmt: skip
        return SingularityHistory(
            found[0].policy, found[0].layers, np.array([step for step, _ in self._found]), **parts
        )

    def lightning(self) -> Any:
        """A Lightning callback that measures after each so many steps."""
        from lightning import Callback

        monitor = self

        class Monitor(Callback):
            def on_train_batch_end(
                self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
            ) -> None:
                monitor.after_step()

        return Monitor()

    def _measure(self) -> None:
        found = singularities(self.model, self._data, self._loss, small=self._small, samples=None, graph=self._graph)
        self._found.append((self._count, found))
