"""`symmetry_plane`: the loss over the plane in which two units of a layer change places and become one on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from skipway.errors import SkipwayError
from skipway.graph import SkipGraph
from skipway.probe.batches import read_batches
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.landscape import landscape
from skipway.probe.pairs import collided, differences, find_pair
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.units import UnitMap

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects


@dataclass(frozen=True, eq=False)
class SymmetryPlane(Result):
    """Loss over the plane of two units: `loss[i, j]` at `x[i]` of their incoming, `x[j]` of their outgoing difference.

    (1, 1) is the net as it is, (-1, -1) the net with the weights of the two units exchanged, (0, 0) where both weigh
    the same, and on x = 0 the two units are one. `layer`, `units`, `whole` and `tied` are as in `collisions`.
    """

    layer: str
    units: tuple[int, int]
    whole: bool
    tied: tuple[str, ...]
    loss_name: str
    x: np.ndarray
    loss: np.ndarray

    @property
    def line(self) -> np.ndarray:
        """The loss on the straight line from the net to the one with the units exchanged, at the same x."""
        return np.diag(self.loss).copy()

    @property
    def asymmetry(self) -> float:
        """How far the loss is from the same at (a, b) and (-a, -b): largest difference over the loss's range."""
        return _share(np.abs(self.loss - self.loss[::-1, ::-1]).max(), self.loss)

    @property
    def ridge(self) -> float:
        """How far the loss is from constant where the incoming weights agree: its range there over the plane's."""
        middle = self.loss[len(self.x) // 2]
        return _share(float(np.ptp(middle)), self.loss)

    @property
    def what(self) -> str:
        """What was measured."""
        one, other = self.units
        return (
            f"Loss ({self.loss_name.replace('_', ' ')}) where units {one} and {other} of '{self.layer}'"
            f"{' and of all layers tied to it' if self.whole and self.tied else ''} change places: asymmetry "
            f"{self.asymmetry:.2g}, change along their collision {self.ridge:.2g} of the range"
        )

    def table(self) -> pandas.DataFrame:
        """One row a point."""
        import pandas

        incoming, outgoing = np.meshgrid(self.x, self.x, indexing="ij")
        return pandas.DataFrame({
            "incoming": incoming.ravel(), "outgoing": outgoing.ravel(), "loss": self.loss.ravel(),
        })  # fmt: skip

    def plot(self, axes: Any = None) -> Any:
        """Two panels: contours of the loss, both nets marked, and the loss across and along the plane of collision."""
        with canvas(axes, self.caption, columns=2, size=(10.5, 4.6)) as drawn:
            draw_plane(drawn[0], self)
            drawn[1].plot(self.x, self.line, label="across: from one net to the other")
            drawn[1].plot(self.x, self.loss[len(self.x) // 2], "--", label="along: the units are one")
            drawn[1].set(xlabel="difference of the units, 1: as they are, -1: exchanged", ylabel="loss")
            drawn[1].legend(frameon=False, fontsize=8)
        return drawn

    def interactive(self) -> plotly.graph_objects.Figure:
        """The surface in 3-D as a plotly figure."""
        import plotly.graph_objects as go

        surface = go.Surface(x=self.x, y=self.x, z=self.loss.T, colorscale="Viridis", showscale=False)
        scene = {"xaxis_title": "incoming", "yaxis_title": "outgoing", "zaxis_title": "loss"}
        return plotly_figure([surface], self.caption, title="Where two units change places", scene=scene)


def symmetry_plane(
    model: nn.Module, data: Any, loss: Any = None, *, layer: str | None = None, units: tuple[int, int] = (0, 1),
    whole: bool = False, steps: int = 25, span: float = 1.5, samples: int | None = None, graph: SkipGraph | None = None,
) -> SymmetryPlane:  # fmt: skip
    """The loss over the plane spanned by the incoming and the outgoing difference of two units, from `-span` to `span`.

        w(a, b) = middle + a * (incoming difference) / 2 + b * (outgoing difference) / 2

    with the middle where both units weigh the same. Where the units can be exchanged, L(a, b) = L(-a, -b): the net at
    (1, 1) has a mirror image at (-1, -1), with a saddle or a ridge between, and at a = 0, where the two units are one,
    the loss does not change with b. A skip that adds other layers' units to these breaks both, unless these are moved
    along (`whole=True`). `layer`, `units` and `whole` are as in `collisions`; BatchNorm's statistics are frozen, and at
    their mean for the two units. `steps` is odd, so that the middle is measured.

    Raises SkipwayError where the two units cannot be exchanged.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))
    >>> found = symmetry_plane(net, (torch.randn(32, 2), torch.randint(3, (32,))), "cross_entropy", steps=5)
    >>> found.asymmetry < 1e-4, found.ridge < 1e-4
    (True, True)
    """
    if steps < 3 or steps % 2 == 0 or span <= 0:
        raise SkipwayError(f"steps={steps}, span={span}: steps are odd and 3 at least, the span is above 0")
    batches = read_batches(model, data, loss, samples)
    with quiet(model):
        graph = graph or with_trace(model, batches.items[0], None, lambda found: found)
        pair = find_pair(UnitMap(graph), layer, units, whole)
        middle = collided(model, pair)
        own = dict(model.named_parameters())
        made = [{name: part for name, part in changes.items() if name in own} for changes in differences(model, pair)]
    if any(not any(bool(part.any()) for part in changes.values()) for changes in made):
        raise SkipwayError(f"units {units[0]} and {units[1]} of '{pair.layer}' are one already: choose two others")
    kept = [((batch.kwargs if batch.kwargs else batch.args), batch.targets) for batch in batches]
    found = landscape(middle, kept, batches.loss, steps=steps, span=(-span, span), directions=made)
    return SymmetryPlane(
        found.policy, pair.layer, pair.units, whole, pair.tied, batches.loss.name, found.x, found.loss
    )  # fmt: skip


def draw_plane(axes: Any, plane: SymmetryPlane, levels: Any = None) -> None:
    """Contours of the loss, the net as it is and its mirror image, and the line on which the units are one."""
    filled = axes.contourf(plane.x, plane.x, plane.loss.T, levels=24 if levels is None else levels, cmap="viridis")
    axes.figure.colorbar(filled, ax=axes, label=plane.loss_name.replace("_", " "))
    axes.axvline(0, color="white", linestyle="--", linewidth=1)
    axes.plot([1, -1], [1, -1], color="white", linewidth=0.8, alpha=0.7)
    axes.plot([1], [1], "o", color="white", markeredgecolor="black")
    axes.plot([-1], [-1], "s", color="white", markeredgecolor="black")
    axes.set(xlabel="difference of incoming weights (0: one unit)", ylabel="difference of outgoing weights")


def _share(value: float, loss: np.ndarray) -> float:
    reach = float(np.ptp(loss))
    return float(value) / reach if reach else 0.0
