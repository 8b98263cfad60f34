"""`symmetry_breaking`: whether the skips of a net take it away from singular points, against its plain twin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from skipway.edit import plain_twin
from skipway.errors import SkipwayError
from skipway.graph import SkipGraph, trace
from skipway.probe.batches import Batches, read_batches
from skipway.probe.collisions import Collisions, collisions
from skipway.probe.figures import canvas, plotly_figure
from skipway.probe.follow import with_trace
from skipway.probe.planes import SymmetryPlane, draw_plane, symmetry_plane
from skipway.probe.quiet import quiet
from skipway.probe.result import Result
from skipway.probe.singularities import Singularities, draw, singularities
from skipway.probe.units import UnitMap, same_parameters

if TYPE_CHECKING:
    import pandas
    import plotly.graph_objects

NETS = ("with skips", "with skips, tied layers too", "without skips")


@dataclass(frozen=True, eq=False)
class SymmetryBreaking(Result):
    """The same two units of the same layer, in a net with skips and in one without.

    `log10_orders` are the logarithms of the numbers of permutations of both nets (with skips, without). `collisions`
    and `planes` are of: the net with skips, the units of the layer alone; the same with all layers that skips tie to
    it; the net without skips. `singularities` are of the nets with and without. `trained` says whether the net without
    skips was given, or is the twin with the same weights and its skips cut.
    """

    trained: bool
    log10_orders: tuple[float, float]
    collisions: tuple[Collisions, ...]
    planes: tuple[SymmetryPlane, ...]
    singularities: tuple[Singularities, Singularities]

    @property
    def what(self) -> str:
        """What was measured."""
        with_skips, _, without = self.collisions
        more = [int(one.output_zeros[1] - one.output_zeros[0]) for one in (with_skips, without)]
        twin = "a plain net trained by itself" if self.trained else "the same weights with the skips cut"
        return (
            f"Units {with_skips.units[0]} and {with_skips.units[1]} of '{with_skips.layer}' made one: {more[0]} more "
            f"directions that change no output with skips, {more[1]} without ({twin}); permutations 10^"
            f"{self.log10_orders[0]:.1f} and 10^{self.log10_orders[1]:.1f}"
        )

    def table(self) -> pandas.DataFrame:
        """One row a net and way to collide: near-zero eigenvalues before and after, what keeps the units together."""
        import pandas

        rows = []
        for name, found, plane in zip(NETS, self.collisions, self.planes, strict=True):
            rows.append({
                "net": name, "near zero, as it is": int(found.zeros[0]), "near zero, collided": int(found.zeros[1]),
                "near zero, trained on": int(found.zeros[2]), "flat, as it is": int(found.output_zeros[0]),
                "flat, collided": int(found.output_zeros[1]), "flat, trained on": int(found.output_zeros[2]),
                "expected more": found.flat if name != NETS[0] or not found.tied else 0,
                "apart after training": float(found.apart[-1]), "asymmetry": plane.asymmetry, "ridge": plane.ridge,
            })  # fmt: skip
        return pandas.DataFrame(rows)

    def plot(self, axes: Any = None) -> Any:
        """Nine panels: the plane of both units; eigenvalues, distance of the units, singularities, with and without."""
        with canvas(axes, self.caption, rows=3, columns=3, size=(14.0, 12.0)) as drawn:
            top = max(float(one.loss.max()) for one in self.planes)
            levels = np.linspace(min(float(one.loss.min()) for one in self.planes), top, 25)
            for panel, plane, name in zip(drawn[0], self.planes, NETS, strict=True):
                draw_plane(panel, plane, levels if levels[-1] > levels[0] else None)
                panel.set_title(name)
            self._spectra(drawn[1])
            pair = (NETS[0], NETS[2])
            draw(drawn[2], self.singularities, pair, ("C0", "C2"))
        return drawn

    def _spectra(self, panels: Any) -> None:
        for number, (name, found) in enumerate(zip(NETS, self.collisions, strict=True)):
            for panel, values in zip(panels, (found.outputs, found.hessian), strict=False):
                for row, style in ((0, ":"), (1, "-")):
                    sizes = np.sort(np.abs(values[row]))[::-1]
                    panel.semilogy(np.maximum(sizes / sizes[0], 1e-19), style, color=f"C{number}",
                                   label=name if row else None)  # fmt: skip
            panels[2].plot(found.apart, ("-", "-", "--")[number], color=f"C{number}", label=name)
        panels[0].set(title="J'J: dotted as it is, solid collided", xlabel="eigenvalue, by size", ylabel="over largest")
        panels[1].set(title="Hessian: dotted as it is, solid collided", xlabel="eigenvalue, by size")
        panels[2].set(title="training on from the collision", xlabel="step", ylabel="distance of the two units")
        for panel in panels:
            panel.legend(frameon=False, fontsize=8)

    def interactive(self) -> plotly.graph_objects.Figure:
        """The distance of the two units while training on, as a plotly figure."""
        import plotly.graph_objects as go

        lines = [go.Scatter(y=found.apart, name=name, mode="lines")
                 for name, found in zip(NETS, self.collisions, strict=True)]  # fmt: skip
        return plotly_figure(
            lines, self.caption, title="Two units made one, and trained on", xaxis_title="step",
            yaxis_title="distance of the units",
        )  # fmt: skip


def symmetry_breaking(
    model: nn.Module, data: Any, loss: Any = None, *, plain: nn.Module | None = None, layer: str | None = None,
    units: tuple[int, int] = (0, 1), steps: int = 100, rate: float = 0.01, grid: int = 15, largest: int = 1200,
    samples: int | None = 256, graph: SkipGraph | None = None,
) -> SymmetryBreaking:  # fmt: skip
    """Test on a net whether skips break the symmetry of its units, and so keep it off the singular points.

    The hypothesis (Orhan and Pitkow 2018, "Skip Connections Eliminate Singularities", arXiv:1701.09175): in a plain
    net, two units whose incoming weights meet become one for good, and the loss is flat in as many directions as they
    have outgoing weights; with additive skips they stay two. The net is put beside `plain`, a net of the same
    parameters without skips that you trained, or its own plain twin. For both: the number of their permutations,
    `collisions` of two `units` of a `layer`, `symmetry_plane`, and `singularities`. Skips do not take the symmetry
    away: they tie it across layers, so colliding all tied layers brings it all back, which is measured beside.

    `steps`, `rate` and `largest` are as in `collisions`, `grid` the points an axis of the planes, `samples` a bound.

    Raises SkipwayError where the model has no skip that adds, or the layer's units cannot be exchanged.

    >>> import skipway as sw
    >>> block = lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))
    >>> net = nn.Sequential(nn.Linear(3, 4), sw.Skip(block(), channels=4, dims=0), nn.Linear(4, 2))
    >>> import torch
    >>> data = torch.randn(40, 3), torch.randint(2, (40,))
    >>> found = symmetry_breaking(net, data, "cross_entropy", steps=3, grid=5)
    >>> [bool(one.apart[-1] > 1e-6) for one in found.collisions]
    [True, False, False]
    """
    batches = read_batches(model, data, loss, samples)
    kept = [((batch.kwargs if batch.kwargs else batch.args), batch.targets) for batch in batches]
    with quiet(model):
        graph = graph or with_trace(model, batches.items[0], None, lambda found: found)
        if plain is None:
            other = plain_twin(model, graph=graph)
        else:
            same_parameters(model, plain)
            other = plain
        name = layer or _tied_layer(graph)
        with quiet(other):
            other_graph = _traced(other, batches)
    if plain is not None and any(not skip.long and skip.kind != "concat" for skip in other_graph.skips):
        raise SkipwayError("the net given as plain has skips too; leave it out to compare with the twin without them")
    nets = ((model, graph, False), (model, graph, True), (other, other_graph, False))
    found, planes = [], []
    for net, traced, whole in nets:
        found.append(
            collisions(net, kept, batches.loss, layer=name, units=units, whole=whole, steps=steps, rate=rate,
                       largest=largest, graph=traced)
        )  # fmt: skip
        planes.append(
            symmetry_plane(net, kept, batches.loss, layer=name, units=units, whole=whole, steps=grid, graph=traced)
        )
    singular = [singularities(net, kept, batches.loss, graph=traced) for net, traced, whole in nets if not whole]
    return SymmetryBreaking(
        found[0].policy, plain is not None,
        (graph.symmetry().log10_order, other_graph.symmetry().log10_order), tuple(found), tuple(planes),
        (singular[0], singular[1]),
    )  # fmt: skip


def _tied_layer(graph: SkipGraph) -> str:
    from skipway.probe.pairs import default_layer

    units = UnitMap(graph)
    if not any(one.skips for one in units.symmetry.classes):
        raise SkipwayError(
            "no skip of this model ties units that can be exchanged: it has no symmetry for skips to break"
        )
    return default_layer(units)


def _traced(model: nn.Module, batches: Batches) -> SkipGraph:
    return trace(model, *batches.items[0].args, **batches.items[0].kwargs)
