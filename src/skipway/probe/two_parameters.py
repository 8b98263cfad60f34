"""`two_parameters`: the smallest net with a symmetry that a skip breaks, its whole loss surface in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from skipway.errors import SkipwayError
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.result import Policy, Result

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class TwoParameters(Result):
    """L = (target - y)^2 / 2 over both weights: `plain` for y = w2 w1, `skip` for y = (1 + w2)(1 + w1).

    `weights` is the axis of both; surfaces are indexed [w1, w2]. `saddles` (nets, 2) are where the gradient is zero and
    the Hessian has a negative eigenvalue; `eigenvalues` (nets, 2) the Hessian's there; `starts` (nets,) the norms of
    the gradient where both weights are 0, from which nets with small weights start.
    """

    target: float
    weights: np.ndarray
    plain: np.ndarray
    skip: np.ndarray
    saddles: np.ndarray
    eigenvalues: np.ndarray
    starts: np.ndarray

    @property
    def what(self) -> str:
        """What was measured."""
        one, other = self.starts
        return (
            f"Loss of two weights in a row, to learn y = {self.target:g} x: gradient at zero weights {one:.3g} without "
            f"and {other:.3g} with skips, the saddle at (0, 0) moved to (-1, -1)"
        )

    @property
    def caption(self) -> str:
        """What is drawn: nothing was measured, it is a closed form."""
        return f"{self.what}. In closed form."

    def table(self) -> pandas.DataFrame:
        """One row a net: its saddle, the Hessian's eigenvalues there, and the gradient at zero weights."""
        import pandas

        return pandas.DataFrame({
            "net": ["y = w2 w1 x", "y = (1 + w2)(1 + w1) x"], "saddle w1": self.saddles[:, 0],
            "saddle w2": self.saddles[:, 1], "smallest": self.eigenvalues.min(1), "largest": self.eigenvalues.max(1),
            "gradient at 0": self.starts,
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Contours of both surfaces on one scale: solutions white, the saddle a red cross, the start a ring."""
        with canvas(axes, self.caption, columns=2, size=(10.5, 4.8)) as drawn:
            top = float(np.quantile(np.concatenate([self.plain.ravel(), self.skip.ravel()]), 0.9))
            levels = np.linspace(0, np.sqrt(top), 22) ** 2
            titles = ("without skips: y = w2 w1 x", "with skips: y = (1 + w2)(1 + w1) x")
            filled = None
            for panel, surface, saddle, title in zip(drawn, (self.plain, self.skip), self.saddles, titles, strict=True):
                filled = panel.contourf(
                    self.weights, self.weights, surface.T, levels=levels, cmap="viridis", extend="max"
                )
                shift = 0.0 if title.startswith("without") else 1.0
                self._solutions(panel, shift)
                panel.plot(*saddle, "x", color="red", markersize=9, markeredgewidth=2, label="saddle")
                panel.plot(0, 0, "o", color="white", markersize=12, fillstyle="none", label="start: zero weights")
                panel.plot(self.weights, self.weights, ":", color="white", linewidth=0.8, label="w1 = w2")
                panel.set(xlabel="w1", ylabel="w2", title=title, aspect="equal")
                panel.set(xlim=(self.weights[0], self.weights[-1]), ylim=(self.weights[0], self.weights[-1]))
            legend = drawn[0].legend(fontsize=8, loc="upper right", facecolor="0.85")
            legend.set_zorder(5)
            drawn[1].figure.colorbar(filled, ax=list(drawn), label="loss")
        return drawn

    def _solutions(self, panel: Any, shift: float) -> None:
        for side in (-1, 1):
            factor = side * np.geomspace(1e-3, 1e3, 400)
            panel.plot(factor - shift, self.target / factor - shift, color="white", linewidth=1.5)

    def interactive(self) -> plotly.graph_objects.Figure:
        """Both surfaces in 3-D as a plotly figure, a menu to choose from."""
        import plotly.graph_objects as go

        names = ("without skips", "with skips")
        top = float(np.quantile(np.concatenate([self.plain.ravel(), self.skip.ravel()]), 0.9))
        surfaces = [
            go.Surface(x=self.weights, y=self.weights, z=np.minimum(surface, top).T, colorscale="Viridis", name=name,
                       visible=number == 0, showscale=False)
            for number, (surface, name) in enumerate(zip((self.plain, self.skip), names, strict=True))
        ]  # fmt: skip
        buttons = [{"label": name, "method": "update", "args": [{"visible": [other == name for other in names]}]}
                   for name in names]  # fmt: skip
        scene = {"xaxis_title": "w1", "yaxis_title": "w2", "zaxis_title": "loss"}
        return plotly_figure(
            surfaces, self.caption, title="Two weights in a row", scene=scene,
            updatemenus=[{"buttons": buttons, "x": 1, "y": 1.1}],
        )  # fmt: skip


def two_parameters(target: float = 1.0, *, span: float = 2.5, steps: int = 101) -> TwoParameters:
    """The loss surfaces of the chain y = w2 w1 x and of the residual chain y = (1 + w2)(1 + w1) x, for x = 1.

        L = (target - y)^2 / 2

    Both surfaces have the symmetry of exchanging w1 and w2, and are one another's image under a shift by (1, 1): a skip
    takes no saddle away, it moves it. Without skips the saddle is at (0, 0), where weights start and to which weight
    decay leads: the gradient is zero there, and the Hessian has the eigenvalues -target and +target. With skips the
    saddle is at (-1, -1), and at zero weights the net is the identity, with the gradient (1 - target) (1, 1). For
    target > 0 the solutions are the two branches of a hyperbola; the line w1 = w2 of the symmetry meets both, and runs
    through the saddle between. (Orhan and Pitkow 2018, arXiv:1701.09175; Hardt and Ma 2017, arXiv:1611.04231.)

    Raises SkipwayError for a target of 0, where the two surfaces have no isolated saddle.

    >>> found = two_parameters(2.0)
    >>> found.starts.tolist(), found.eigenvalues[0].tolist()
    ([0.0, 1.4142135623730951], [-2.0, 2.0])
    """
    if target == 0:
        raise SkipwayError(
            "target=0: both weights are solutions at 0 by themselves, and no saddle is left; choose another"
        )
    if steps < 3 or span <= 0:
        raise SkipwayError(f"steps={steps}, span={span}: 3 steps at least, and a span above 0")
    weights = np.linspace(-span, span, steps)
    w1, w2 = np.meshgrid(weights, weights, indexing="ij")
    size = abs(target)
    return TwoParameters(
        Policy("the chain of two weights", batch_norm="none", samples=1, dtype="float64"), float(target), weights,
        (target - w1 * w2) ** 2 / 2, (target - (1 + w1) * (1 + w2)) ** 2 / 2, np.array([[0.0, 0.0], [-1.0, -1.0]]),
        np.array([[-size, size]] * 2), np.array([0.0, np.sqrt(2.0) * abs(1 - target)]),
    )  # fmt: skip
